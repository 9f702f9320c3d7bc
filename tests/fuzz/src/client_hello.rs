//! `l4::client_hello`: the answer depends on the bytes alone, never on how they were read or cut into records.

use ingress::l4::client_hello::{ClientHello, HelloReader, MAX_RECEIVED, Outcome, parse};

pub fn check(data: &[u8]) {
    let whole = parse(data);
    // A longer input takes longer steps: it would be mutated less often for no further insight.
    let step = 1 + data.len() / 32;
    let mut reader = HelloReader::default();
    for end in (0..data.len()).step_by(step).chain([data.len()]) {
        let outcome = reader.parse(&data[..end]);
        assert_eq!(outcome, parse(&data[..end]), "read in steps of {step} and at once, {end} bytes");
        if outcome != Outcome::NeedMore {
            assert_eq!(outcome, whole, "{end} bytes were enough for an answer");
        }
    }
    match whole {
        Outcome::Hello(hello) => check_hello(data, &hello),
        Outcome::NeedMore => assert!(data.len() < MAX_RECEIVED),
        Outcome::NotTls(_) => {}
    }
}

fn check_hello(data: &[u8], hello: &ClientHello) {
    let records = &data[..hello.length];
    assert_eq!(parse(records), Outcome::Hello(hello.clone()), "the hello's own records are enough");
    assert_eq!(parse(&records[..hello.length - 1]), Outcome::NeedMore, "and no less is");
    if let Some(sni) = &hello.sni {
        assert!((1..=253).contains(&sni.as_str().len()));
    }
    if let Some(alpn) = &hello.alpn {
        assert!((1..=64).contains(&alpn.len()) && alpn.bytes().all(|byte| byte.is_ascii_graphic()));
    }
    let cut = one_byte_records(records);
    if cut.len() <= MAX_RECEIVED {
        let expected = ClientHello { length: cut.len(), ..hello.clone() };
        assert_eq!(parse(&cut), Outcome::Hello(expected), "cut into records of one byte");
    }
}

fn one_byte_records(mut records: &[u8]) -> Vec<u8> {
    let mut cut = Vec::new();
    while let Some(([kind, major, minor, high, low], rest)) = records.split_first_chunk() {
        let (payload, next) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        cut.extend(payload.iter().flat_map(|byte| [*kind, *major, *minor, 0, 1, *byte]));
        records = next;
    }
    cut
}
