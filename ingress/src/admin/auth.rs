//! Who may see the dashboard: HTTP basic auth (RFC 7617) with user and password from the environment.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use super::dashboard::Visitor;
use crate::config::BasicAuthEnv;

/// Decided once per configuration.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    /// The configuration asks for no password.
    Open,
    Password {
        user: String,
        password: String,
    },
    /// The configuration asks for a password that the environment does not hold: nobody gets in.
    Unset {
        variables: Vec<String>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    WrongPassword,
    Unset { variables: Vec<String> },
}

impl Login {
    /// `lookup` is the environment. An empty value counts as not set: it would be no password.
    pub(super) fn new(config: Option<&BasicAuthEnv>, lookup: impl Fn(&str) -> Option<String>) -> Self {
        let Some(BasicAuthEnv { username_env, password_env }) = config else {
            return Self::Open;
        };
        let value = |variable: &str| lookup(variable).filter(|value| !value.is_empty());
        match (value(username_env), value(password_env)) {
            (Some(user), Some(password)) => Self::Password { user, password },
            (user, password) => {
                let unset = [(user, username_env), (password, password_env)];
                let unset = unset.into_iter().filter(|(value, _)| value.is_none());
                Self::Unset { variables: unset.map(|(_, variable)| variable.clone()).collect() }
            }
        }
    }

    /// `header`: the value of `Authorization`.
    pub(super) fn check(&self, header: Option<&[u8]>) -> Result<Visitor, Denied> {
        match self {
            Self::Open => Ok(Visitor(None)),
            Self::Unset { variables } => Err(Denied::Unset { variables: variables.clone() }),
            Self::Password { user, password } => {
                let (given_user, given_password) = header.and_then(credentials).unwrap_or_default();
                // Both are always compared, so the time tells neither of them.
                let right =
                    user.as_bytes().ct_eq(given_user.as_bytes()) & password.as_bytes().ct_eq(given_password.as_bytes());
                if bool::from(right) { Ok(Visitor(Some(user.clone()))) } else { Err(Denied::WrongPassword) }
            }
        }
    }
}

fn credentials(header: &[u8]) -> Option<(String, String)> {
    let (scheme, encoded) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> BasicAuthEnv {
        BasicAuthEnv { username_env: "STATS_USER".into(), password_env: "STATS_PASSWORD".into() }
    }

    fn auth(password: Option<&'static str>) -> Login {
        Login::new(Some(&config()), |name| match name {
            "STATS_USER" => Some("admin".to_owned()),
            "STATS_PASSWORD" => password.map(str::to_owned),
            other => panic!("{other} was asked for"),
        })
    }

    fn basic(credentials: &str) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(credentials)).into_bytes()
    }

    #[test]
    fn the_right_user_and_password_get_in() {
        let admin = Ok(Visitor(Some("admin".into())));
        assert_eq!(auth(Some("se:cret")).check(Some(&basic("admin:se:cret"))), admin);
        let lower_case = [b"basic ".as_slice(), STANDARD.encode("admin:pw").as_bytes()].concat();
        assert_eq!(auth(Some("pw")).check(Some(&lower_case)), admin);
    }

    #[test]
    fn anything_else_does_not() {
        let wrong = ["admin:", "admin:se:cre", "admin:se:crett", "Admin:se:cret", ":", "admin", ":se:cret"];
        for credentials in wrong {
            let got = auth(Some("se:cret")).check(Some(&basic(credentials)));
            assert_eq!(got, Err(Denied::WrongPassword), "{credentials}");
        }
        for header in [&b"Bearer x"[..], b"Basic", b"Basic !!!", b"\xff\xfe", b""] {
            assert_eq!(auth(Some("se:cret")).check(Some(header)), Err(Denied::WrongPassword), "{header:?}");
        }
        assert_eq!(auth(Some("se:cret")).check(None), Err(Denied::WrongPassword));
    }

    #[test]
    fn a_missing_or_empty_variable_locks_the_page_instead_of_opening_it() {
        for unset in [None, Some("")] {
            let denied = auth(unset).check(Some(&basic("admin:")));
            assert_eq!(denied, Err(Denied::Unset { variables: vec!["STATS_PASSWORD".into()] }));
        }
    }

    #[test]
    fn without_basic_auth_in_the_configuration_the_page_is_open_to_nobody_in_particular() {
        assert_eq!(Login::new(None, |_| None).check(None), Ok(Visitor(None)));
    }
}
