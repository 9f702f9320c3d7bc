//! Redis' protocol as far as checks speak it: RESP version 2 (redis.io, "Redis serialization protocol specification"). Pure.
//!
//! What a server may say is bounded: [`MAX_REPLY`] bytes in all, [`MAX_DEPTH`] arrays within one another.

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Option<String>),
    Array(Option<Vec<Self>>),
}

/// The bytes are no reply of Redis.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A command as an array of bulk strings.
pub(super) fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The first `wanted` replies in `bytes`. `None`: more bytes are needed.
pub(super) fn replies(mut bytes: &[u8], wanted: usize) -> Result<Option<Vec<Value>>, Malformed> {
    let mut values = Vec::new();
    while values.len() < wanted {
        let Some(value) = value(&mut bytes, 0)? else { return Ok(None) };
        values.push(value);
    }
    Ok(Some(values))
}

fn value(bytes: &mut &[u8], depth: usize) -> Result<Option<Value>, Malformed> {
    if depth > MAX_DEPTH {
        return Err(Malformed);
    }
    let Some((&kind, _)) = bytes.split_first() else { return Ok(None) };
    if !b"+-:$*".contains(&kind) {
        return Err(Malformed);
    }
    let Some(line) = line(bytes)? else { return Ok(None) };
    Ok(Some(match kind {
        b'+' => Value::Simple(line),
        b'-' => Value::Error(line),
        b':' => Value::Integer(line.parse().map_err(|_| Malformed)?),
        b'$' => match length(&line)? {
            None => Value::Bulk(None),
            Some(length) => match bulk(bytes, length)? {
                Some(text) => Value::Bulk(Some(text)),
                None => return Ok(None),
            },
        },
        _ => match length(&line)? {
            None => Value::Array(None),
            Some(length) => {
                let mut items = Vec::new();
                for _ in 0..length {
                    let Some(item) = value(bytes, depth + 1)? else { return Ok(None) };
                    items.push(item);
                }
                Value::Array(Some(items))
            }
        },
    }))
}

/// What stands between the kind and the end of the line.
fn line(bytes: &mut &[u8]) -> Result<Option<String>, Malformed> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() > MAX_LINE { Err(Malformed) } else { Ok(None) };
    };
    let line = bytes.get(1..end).ok_or(Malformed)?;
    *bytes = &bytes[end + 2..];
    Ok(Some(String::from_utf8_lossy(line).into_owned()))
}

fn bulk(bytes: &mut &[u8], length: usize) -> Result<Option<String>, Malformed> {
    let Some((text, rest)) = bytes.split_at_checked(length) else { return Ok(None) };
    let Some((end, rest)) = rest.split_at_checked(2) else { return Ok(None) };
    if end != b"\r\n" {
        return Err(Malformed);
    }
    *bytes = rest;
    Ok(Some(String::from_utf8_lossy(text).into_owned()))
}

/// `-1` stands for nothing.
fn length(line: &str) -> Result<Option<usize>, Malformed> {
    match line {
        "-1" => Ok(None),
        line => line.parse().ok().filter(|length| *length <= MAX_REPLY).map(Some).ok_or(Malformed),
    }
}

/// A primary with a thousand replicas says less.
pub(super) const MAX_REPLY: usize = 64 * 1024;
/// `ROLE` has two.
const MAX_DEPTH: usize = 4;
/// Redis' own error lines are far shorter.
const MAX_LINE: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROLE: &[u8] =
        b"*3\r\n$6\r\nmaster\r\n:3129659\r\n*1\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n9001\r\n$7\r\n3129242\r\n";

    fn text(text: &str) -> Value {
        Value::Bulk(Some(text.to_owned()))
    }

    #[test]
    fn a_role_is_read_once_it_is_whole_and_not_before() {
        let replica = Value::Array(Some(vec![text("127.0.0.1"), text("9001"), text("3129242")]));
        let role =
            Value::Array(Some(vec![text("master"), Value::Integer(3_129_659), Value::Array(Some(vec![replica]))]));
        assert_eq!(replies(ROLE, 1), Ok(Some(vec![role])));
        for end in 0..ROLE.len() {
            assert_eq!(replies(&ROLE[..end], 1), Ok(None), "cut at {end}");
        }
    }

    #[test]
    fn replies_come_one_after_the_other_and_nothing_is_nothing() {
        let read = replies(b"+OK\r\n-LOADING wait\r\n*-1\r\n$-1\r\n*0\r\n", 5).map(Option::unwrap_or_default);
        let expected = [
            Value::Simple("OK".into()),
            Value::Error("LOADING wait".into()),
            Value::Array(None),
            Value::Bulk(None),
            Value::Array(Some(vec![])),
        ];
        assert_eq!(read, Ok(expected.to_vec()));
    }

    #[test]
    fn what_is_not_redis_or_claims_too_much_is_refused_at_once() {
        let nested = "*1\r\n".repeat(MAX_DEPTH + 2);
        let long = format!("+{}", "x".repeat(MAX_LINE + 1));
        for bad in
            ["HTTP/1.1 400 Bad Request\r\n", "$99999999\r\n", ":12x\r\n", "$-2\r\n", "$2\r\nabcd", &nested, &long]
        {
            assert_eq!(replies(bad.as_bytes(), 1), Err(Malformed), "{bad:.40}");
        }
    }

    #[test]
    fn a_command_is_an_array_of_its_words() {
        assert_eq!(command(&["AUTH", "p w"]), b"*2\r\n$4\r\nAUTH\r\n$3\r\np w\r\n");
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = replies(&bytes, 3);
            let _ = replies(&[b"*3\r\n".as_slice(), &bytes].concat(), 1);
        }
    }
}
