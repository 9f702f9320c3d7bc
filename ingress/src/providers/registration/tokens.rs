//! Who calls: bearer tokens (RFC 6750) from files or the environment, compared in constant time, never shown.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use subtle::{Choice, ConstantTimeEq};

use crate::config::{TokenConfig, TokenSource};
use crate::route::SniPattern;
use crate::secret::{self, SecretError};

/// All tokens that let somebody in.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens(Vec<Token>);

#[derive(Clone, Debug)]
struct Token {
    actor: Actor,
    /// Several while they are exchanged.
    secrets: Vec<Secret>,
}

/// Who has shown a good token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Actor {
    /// The token's name in the configuration.
    pub(super) name: Arc<str>,
    /// Empty: every host.
    hosts: Arc<[SniPattern]>,
}

/// Padded, so that a comparison takes the same time whatever the lengths.
#[derive(Clone)]
struct Secret {
    bytes: [u8; LONGEST],
    length: u64,
}

impl Tokens {
    /// Reads what the configuration names; `environment` looks a variable up. A token that is of no use lets nobody in: it
    /// is named beside, with the reason.
    pub(super) fn read(
        config: &BTreeMap<String, TokenConfig>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> (Self, Vec<String>) {
        let (mut tokens, mut problems) = (Self::default(), Vec::new());
        for (name, TokenConfig { source, hosts }) in config {
            let text = match source {
                TokenSource::File(path) => read(path).map_err(|error| error.to_string()),
                TokenSource::Env(variable) => {
                    environment(variable).ok_or_else(|| format!("the environment has no {variable}"))
                }
            };
            match text.and_then(|text| secrets(&text)) {
                Ok(secrets) if secrets.iter().any(|secret| tokens.holds(secret)) => {
                    problems.push(format!("token {name}: it is the same as another one's; nobody gets in as {name}"));
                }
                Ok(secrets) => {
                    let actor = Actor { name: name.as_str().into(), hosts: hosts.as_slice().into() };
                    tokens.0.push(Token { actor, secrets });
                }
                Err(why) => problems.push(format!("token {name}: {why}; nobody gets in with it")),
            }
        }
        (tokens, problems)
    }

    /// Files whose change matters.
    pub(super) fn files(config: &BTreeMap<String, TokenConfig>) -> Vec<PathBuf> {
        let file = |token: &TokenConfig| match &token.source {
            TokenSource::File(path) => Some(path.clone()),
            TokenSource::Env(_) => None,
        };
        config.values().filter_map(file).collect()
    }

    /// `header`: the value of `Authorization`.
    pub(super) fn authenticate(&self, header: Option<&[u8]>) -> Option<Actor> {
        let given = Secret::new(bearer(header?)?)?;
        let mut found = None;
        // All are compared, so the time does not tell which one it was.
        for Token { actor, secrets } in &self.0 {
            let right = secrets.iter().fold(Choice::from(0), |right, secret| right | secret.equals(&given));
            if bool::from(right) {
                found = Some(actor);
            }
        }
        found.cloned()
    }

    fn holds(&self, wanted: &Secret) -> bool {
        self.0.iter().flat_map(|token| &token.secrets).any(|secret| secret.equals(wanted).into())
    }
}

impl Actor {
    /// A pattern covers itself, and every name exactly one label below it.
    pub(super) fn may_register(&self, host: &SniPattern) -> bool {
        let covers = |scope: &SniPattern| match (scope, host) {
            (SniPattern::Wildcard(suffix), SniPattern::Exact(name)) => {
                name.as_str().split_once('.').is_some_and(|(_, rest)| rest == suffix.as_str())
            }
            (scope, host) => scope == host,
        };
        self.hosts.is_empty() || self.hosts.iter().any(covers)
    }

    /// Who needs no token.
    pub(super) fn nobody() -> Self {
        Self { name: "".into(), hosts: Arc::from([]) }
    }

    #[cfg(test)]
    pub(super) fn named(name: &str) -> Self {
        Self { name: name.into(), hosts: Arc::from([]) }
    }
}

impl Secret {
    fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; LONGEST];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Self { bytes, length: text.len() as u64 })
    }

    fn equals(&self, other: &Self) -> Choice {
        self.bytes.ct_eq(&other.bytes) & self.length.ct_eq(&other.length)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

fn read(path: &Path) -> Result<String, SecretError> {
    Ok(secret::Secret::read_lines(path)?.expose().to_owned())
}

/// One a line. The message never repeats what stands there.
fn secrets(text: &str) -> Result<Vec<Secret>, String> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return Err("it is empty".to_owned());
    }
    let secret = |line: &&str| match line.len() {
        ..SHORTEST => Err(format!("it is shorter than {SHORTEST} characters; `openssl rand -hex 32` makes a good one")),
        SHORTEST..=LONGEST if line.bytes().all(|b| b.is_ascii_graphic()) => {
            Secret::new(line).ok_or_else(|| "it is too long".to_owned())
        }
        SHORTEST..=LONGEST => Err("it holds spaces or characters beyond ASCII".to_owned()),
        _ => Err(format!("it is longer than {LONGEST} characters")),
    };
    lines.iter().map(secret).collect()
}

fn bearer(header: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

const SHORTEST: usize = 16;
const LONGEST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "0123456789abcdef";

    fn tokens(environment: &[(&str, &str)]) -> (Tokens, Vec<String>) {
        let config = environment.iter().map(|(name, _)| {
            let hosts = vec![SniPattern::parse("*.example.com").expect("a pattern")];
            ((*name).to_owned(), TokenConfig { source: TokenSource::Env((*name).to_owned()), hosts })
        });
        let lookup = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, v)| (*v).to_owned());
        Tokens::read(&config.collect(), lookup)
    }

    fn name(tokens: &Tokens, header: &str) -> Option<String> {
        tokens.authenticate(Some(header.as_bytes())).map(|actor| actor.name.to_string())
    }

    #[test]
    fn the_right_token_tells_who_calls() {
        let (tokens, problems) = tokens(&[("A", GOOD), ("B", "fedcba9876543210\nanother-one-of-16\n")]);
        assert_eq!(problems, [""; 0]);
        assert_eq!(name(&tokens, "Bearer 0123456789abcdef").as_deref(), Some("A"));
        assert_eq!(name(&tokens, "bearer fedcba9876543210").as_deref(), Some("B"));
        assert_eq!(name(&tokens, "Bearer another-one-of-16").as_deref(), Some("B"));
    }

    #[test]
    fn anything_else_lets_nobody_in() {
        let (tokens, _) = tokens(&[("A", GOOD)]);
        let long = format!("Bearer {}", "x".repeat(10_000));
        for header in ["", "Bearer", "Bearer ", "Bearer 0123456789abcde", "Bearer 0123456789abcdef0", "Basic x", &long]
        {
            assert_eq!(name(&tokens, header), None, "{header:?}");
        }
        assert_eq!(tokens.authenticate(None), None);
        assert_eq!(tokens.authenticate(Some(b"Bearer \xff")), None);
    }

    #[test]
    fn a_token_that_is_missing_empty_short_or_shared_lets_nobody_in_and_is_not_repeated() {
        let (tokens, problems) = tokens(&[("A", ""), ("B", "hunter2"), ("C", GOOD), ("D", GOOD)]);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(!problems.concat().contains("hunter2") && !problems.concat().contains(GOOD), "{problems:?}");
        assert_eq!(name(&tokens, "Bearer hunter2"), None);
        assert_eq!(name(&tokens, "Bearer "), None);
        assert_eq!(name(&tokens, &format!("Bearer {GOOD}")).as_deref(), Some("C"));
        assert!(!format!("{tokens:?}").contains(GOOD));
        let config = [("E".to_owned(), TokenConfig { source: TokenSource::Env("E".into()), hosts: vec![] })];
        let (_, problems) = Tokens::read(&config.into(), |_| None);
        assert_eq!(problems, ["token E: the environment has no E; nobody gets in with it"]);
    }

    #[test]
    fn a_scope_covers_names_one_label_below_it() {
        let (tokens, _) = tokens(&[("A", GOOD)]);
        let actor = tokens.authenticate(Some(format!("Bearer {GOOD}").as_bytes())).expect("the token is good");
        let may = |host: &str| actor.may_register(&SniPattern::parse(host).expect("a pattern"));
        assert!(may("a.example.com") && may("*.example.com"));
        assert!(!may("example.com") && !may("a.b.example.com") && !may("a.example.org") && !may("*.a.example.com"));
        assert!(Actor::named("any").may_register(&SniPattern::parse("a.b.c").expect("a name")));
    }
}
