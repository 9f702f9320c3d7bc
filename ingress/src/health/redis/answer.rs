//! Replies of Redis and Sentinel -> what they mean for a check. Pure.

use super::resp::Value;

/// What a server says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::health) enum Role {
    Primary {
        /// Of its replication stream: how much it has written.
        offset: u64,
        /// Connected now.
        replicas: usize,
    },
    Replica {
        /// `host:port` of its primary.
        of: String,
        /// `connected`, or what it still has to do until then.
        link: String,
    },
}

/// Why a server's answer is of no use, in words for operators.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it asks for a password; write `password_file` under `health.redis`")]
    WantsPassword,
    #[error("it does not accept the user and password of `health.redis`")]
    WrongPassword,
    #[error("its user may not ask; in Redis: ACL SETUSER <user> +role +ping +auth")]
    NoPermission,
    #[error("it is loading its data")]
    Loading,
    #[error("it is busy with a script")]
    Busy,
    #[error("its link to its primary is down, and it serves no stale data")]
    PrimaryDown,
    #[error("it is in protected mode: it takes no commands from other hosts without a password")]
    Protected,
    #[error("it has reached its `maxclients`")]
    TooManyClients,
    #[error("it is a Sentinel; Sentinels stand under `health.redis.sentinel`")]
    Sentinel,
    #[error("it is no Sentinel that speaks for the service {0:?}")]
    UnknownService(String),
    #[error("it refuses: {0}")]
    Other(String),
    #[error("it says what nobody understands: {0}")]
    Unknown(String),
}

/// The reply to `AUTH`. Some servers repeat what they were sent: only the kind of an error is looked at.
pub(super) fn login(reply: &Value) -> Result<(), Refusal> {
    match reply {
        Value::Simple(_) => Ok(()),
        Value::Error(line) => Err(match general(line) {
            known @ (Refusal::Loading | Refusal::Busy | Refusal::Protected | Refusal::TooManyClients) => known,
            Refusal::WantsPassword
            | Refusal::WrongPassword
            | Refusal::NoPermission
            | Refusal::PrimaryDown
            | Refusal::Sentinel
            | Refusal::UnknownService(_)
            | Refusal::Other(_)
            | Refusal::Unknown(_) => Refusal::WrongPassword,
        }),
        Value::Integer(_) | Value::Bulk(_) | Value::Array(_) => Err(Refusal::Unknown("no answer to AUTH".into())),
    }
}

/// The reply to `PING`: a server that loads its data knows its role, and serves nobody.
pub(super) fn ready(reply: &Value) -> Result<(), Refusal> {
    match reply {
        Value::Error(line) => Err(general(line)),
        Value::Simple(_) | Value::Integer(_) | Value::Bulk(_) | Value::Array(_) => Ok(()),
    }
}

/// The reply to `ROLE` (Redis 2.8.12).
pub(super) fn role(reply: &Value) -> Result<Role, Refusal> {
    let unknown = || Err(Refusal::Unknown(shown(&format!("{reply:?}"))));
    let items = match reply {
        Value::Error(line) => return Err(general(line)),
        Value::Array(Some(items)) => items.as_slice(),
        Value::Simple(_) | Value::Integer(_) | Value::Bulk(_) | Value::Array(None) => return unknown(),
    };
    let Some(Value::Bulk(Some(name))) = items.first() else { return unknown() };
    match (name.as_str(), &items[1..]) {
        ("master", [Value::Integer(offset), Value::Array(Some(replicas)), ..]) => {
            Ok(Role::Primary { offset: u64::try_from(*offset).unwrap_or(0), replicas: replicas.len() })
        }
        ("slave", [Value::Bulk(Some(host)), Value::Integer(port), Value::Bulk(Some(link)), ..]) => {
            Ok(Role::Replica { of: shown(&format!("{host}:{port}")), link: shown(link) })
        }
        ("sentinel", _) => Err(Refusal::Sentinel),
        _ => unknown(),
    }
}

/// The reply to `SENTINEL GET-MASTER-ADDR-BY-NAME`: host and port.
pub(super) fn named(reply: &Value, service: &str) -> Result<(String, u16), Refusal> {
    match reply {
        Value::Array(None) | Value::Bulk(None) => Err(Refusal::UnknownService(service.to_owned())),
        Value::Error(line) if line.starts_with("ERR unknown command") => {
            Err(Refusal::UnknownService(service.to_owned()))
        }
        Value::Error(line) => Err(general(line)),
        Value::Array(Some(items)) => match items.as_slice() {
            [Value::Bulk(Some(host)), Value::Bulk(Some(port))] => match port.parse() {
                Ok(port) => Ok((host.clone(), port)),
                Err(_) => Err(Refusal::Unknown(shown(port))),
            },
            _ => Err(Refusal::Unknown(shown(&format!("{reply:?}")))),
        },
        Value::Simple(_) | Value::Integer(_) | Value::Bulk(Some(_)) => {
            Err(Refusal::Unknown(shown(&format!("{reply:?}"))))
        }
    }
}

/// Redis' errors begin with a word in capitals.
fn general(line: &str) -> Refusal {
    match line.split(' ').next().unwrap_or_default() {
        "NOAUTH" => Refusal::WantsPassword,
        "WRONGPASS" => Refusal::WrongPassword,
        "NOPERM" => Refusal::NoPermission,
        "LOADING" => Refusal::Loading,
        "BUSY" => Refusal::Busy,
        "MASTERDOWN" => Refusal::PrimaryDown,
        "DENIED" => Refusal::Protected,
        _ if line.starts_with("ERR max number of clients") => Refusal::TooManyClients,
        _ => Refusal::Other(shown(line)),
    }
}

/// What a stranger said, fit for one line of a log.
pub(super) fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || c == char::REPLACEMENT_CHARACTER { '.' } else { c }).take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::super::resp::replies;
    use super::*;

    fn value(text: &str) -> Value {
        replies(text.as_bytes(), 1).expect("RESP").expect("whole").remove(0)
    }

    #[test]
    fn roles_are_read_as_redis_documents_them() {
        let primary = value("*3\r\n$6\r\nmaster\r\n:42\r\n*1\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n9001\r\n$2\r\n42\r\n");
        assert_eq!(role(&primary), Ok(Role::Primary { offset: 42, replicas: 1 }));
        let replica = value("*5\r\n$5\r\nslave\r\n$8\r\n10.0.0.1\r\n:6379\r\n$9\r\nconnected\r\n:-1\r\n");
        assert_eq!(role(&replica), Ok(Role::Replica { of: "10.0.0.1:6379".into(), link: "connected".into() }));
        assert_eq!(role(&value("*2\r\n$8\r\nsentinel\r\n*0\r\n")), Err(Refusal::Sentinel));
        for odd in ["+OK\r\n", "*0\r\n", "*-1\r\n", "*1\r\n$6\r\nmaster\r\n", "*1\r\n:1\r\n", "*1\r\n$4\r\nking\r\n"] {
            assert!(matches!(role(&value(odd)), Err(Refusal::Unknown(_))), "{odd:?}");
        }
    }

    #[test]
    fn each_refusal_of_redis_has_words_of_its_own() {
        let cases = [
            ("NOAUTH Authentication required.", Refusal::WantsPassword),
            ("NOPERM this user has no permissions to run the 'role' command", Refusal::NoPermission),
            ("LOADING Redis is loading the dataset in memory", Refusal::Loading),
            ("BUSY Redis is busy running a script.", Refusal::Busy),
            ("MASTERDOWN Link with MASTER is down", Refusal::PrimaryDown),
            ("DENIED Redis is running in protected mode because ...", Refusal::Protected),
            ("ERR max number of clients reached", Refusal::TooManyClients),
        ];
        for (line, expected) in cases {
            assert_eq!(role(&Value::Error(line.into())), Err(expected.clone()), "{line}");
            assert_eq!(ready(&Value::Error(line.into())), Err(expected), "{line}");
        }
        assert_eq!(role(&Value::Error("ERR\u{7} odd".into())), Err(Refusal::Other("ERR. odd".into())));
    }

    #[test]
    fn a_server_that_repeats_the_password_is_not_quoted() {
        let line = "ERR unknown command 'AUTH', with args beginning with: 'hunter2'";
        let refused = login(&Value::Error(line.into())).expect_err("no login");
        assert_eq!(refused, Refusal::WrongPassword);
        assert!(!refused.to_string().contains("hunter2"));
        assert_eq!(login(&Value::Error("LOADING wait".into())), Err(Refusal::Loading));
        assert_eq!(login(&Value::Simple("OK".into())), Ok(()));
    }

    #[test]
    fn sentinels_name_an_address_or_nobody() {
        let named = |text| super::named(&value(text), "main");
        assert_eq!(named("*2\r\n$8\r\n10.0.0.1\r\n$4\r\n6379\r\n"), Ok(("10.0.0.1".into(), 6379)));
        let unknown = Err(Refusal::UnknownService("main".into()));
        assert_eq!(named("*-1\r\n"), unknown);
        assert_eq!(named("-ERR unknown command 'SENTINEL'\r\n"), unknown);
        assert_eq!(named("-NOAUTH Authentication required.\r\n"), Err(Refusal::WantsPassword));
        assert!(matches!(named("*2\r\n$1\r\na\r\n$5\r\n99999\r\n"), Err(Refusal::Unknown(_))));
    }
}
