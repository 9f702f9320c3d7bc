//! Who has registered what. Pure: the wish of a caller in, a verdict and a changed book out.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::problem::{Kind, Problem};
use crate::config::TokenConfig;
use crate::peers::stamp::Stamp;
use crate::route::SniPattern;

/// One host, as its owner wants it. Also what the journal keeps: a field that is added needs a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registration {
    #[serde(with = "as_text")]
    pub(super) host: SniPattern,
    /// The name of the token that registered it.
    pub(super) owner: String,
    /// Unix milliseconds.
    pub(super) registered: u64,
    /// Seconds without a word of the owner after which it ends; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ttl: Option<u32>,
    #[serde(flatten)]
    pub(super) shape: Shape,
    /// Which word about this host is the last. Its node is the one that judges the lease.
    #[serde(default)]
    pub(super) stamp: Stamp,
    /// Unix milliseconds at which this node heard of it.
    #[serde(default)]
    pub(super) learned: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "shape", rename_all = "snake_case")]
pub(super) enum Shape {
    /// One host, one set of backends.
    Simple { backends: Vec<Upstream>, tls: Tls, proxy_protocol: ProxyHeader },
    /// One address, whose ports and paths are in the configuration.
    Template { template: String, address: IpAddr, secrets: BTreeMap<String, Secret> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    pub(super) weight: u32,
}

/// Where TLS ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Tls {
    /// At the backend, which has the certificate.
    #[default]
    Passthrough,
    /// Here; needs HTTP.
    Terminate,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ProxyHeader {
    #[default]
    None,
    V1,
    V2,
}

/// Goes to the journal and to the backend; nobody reads it anywhere else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Secret(pub(super) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// All registrations of one provider. A copy costs a pointer each.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Book {
    live: BTreeMap<SniPattern, Arc<Registration>>,
    /// Hosts that were removed, so that other nodes hear of it; for a while.
    buried: BTreeMap<SniPattern, Grave>,
    /// Unix milliseconds at which another node was known to have the same book.
    same: BTreeMap<Arc<str>, u64>,
}

/// A host that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grave {
    pub(super) stamp: Stamp,
    /// Whose it was, where that is known.
    pub(super) owner: Option<String>,
}

/// What becomes of a wish to register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Created,
    Replaced,
    /// It stands there word for word.
    Unchanged,
    Removed,
    /// There was nothing to remove.
    Absent,
}

/// Which owners there still are: a registration whose token is gone from the configuration belongs to nobody.
pub(super) struct Owners<'a>(pub(super) &'a BTreeMap<String, TokenConfig>);

impl Verdict {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
            Self::Removed => "removed",
            Self::Absent => "absent",
        }
    }
}

impl Book {
    pub(super) fn get(&self, host: &SniPattern) -> Option<&Arc<Registration>> {
        self.live.get(host)
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Registration>> {
        self.live.values()
    }

    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    pub(super) fn grave(&self, host: &SniPattern) -> Option<&Grave> {
        self.buried.get(host)
    }

    pub(super) fn graves(&self) -> impl ExactSizeIterator<Item = (&SniPattern, &Grave)> {
        self.buried.iter()
    }

    pub(super) fn same(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, u64)> {
        self.same.iter().map(|(peer, at)| (peer, *at))
    }

    /// Takes `wanted` in, in the place of what its owner registered before.
    ///
    /// # Errors
    /// The host is another's.
    pub(super) fn register(&mut self, wanted: Registration, owners: &Owners<'_>) -> Result<Verdict, Problem> {
        let Some(before) = self.live.get(&wanted.host) else {
            self.put(Arc::new(wanted));
            return Ok(Verdict::Created);
        };
        owners.check(before, &wanted.owner)?;
        let Registration { registered, stamp, learned, .. } = Registration::clone(before);
        let same_words = Registration { registered, stamp, learned, ..wanted.clone() };
        if **before == same_words {
            // Whom its owner spoke to last judges its lease.
            if wanted.ttl.is_some() && wanted.stamp.node != before.stamp.node {
                self.put(Arc::new(Registration { registered, ..wanted }));
            }
            return Ok(Verdict::Unchanged);
        }
        self.put(Arc::new(wanted));
        Ok(Verdict::Replaced)
    }

    /// # Errors
    /// The host is another's.
    pub(super) fn deregister(
        &mut self,
        host: &SniPattern,
        actor: &str,
        owners: &Owners<'_>,
        stamp: Stamp,
    ) -> Result<Verdict, Problem> {
        let Some(before) = self.live.get(host) else { return Ok(Verdict::Absent) };
        owners.check(before, actor)?;
        self.bury(host, stamp);
        Ok(Verdict::Removed)
    }

    pub(super) fn put(&mut self, registration: Arc<Registration>) {
        self.buried.remove(&registration.host);
        self.live.insert(registration.host.clone(), registration);
    }

    /// Removes it so that other nodes hear of it; where there are none, without a trace.
    pub(super) fn bury(&mut self, host: &SniPattern, stamp: Stamp) {
        let owner = self.live.get(host).map(|live| live.owner.clone());
        let owner = owner.or_else(|| self.buried.get(host)?.owner.clone());
        self.put_grave(host, Grave { stamp, owner });
    }

    pub(super) fn put_grave(&mut self, host: &SniPattern, grave: Grave) {
        self.remove(host);
        if !grave.stamp.node.is_empty() {
            self.buried.insert(host.clone(), grave);
        }
    }

    /// Removes it without a trace.
    pub(super) fn remove(&mut self, host: &SniPattern) {
        self.live.remove(host);
        self.buried.remove(host);
    }

    pub(super) fn note_same(&mut self, peer: Arc<str>, at: u64) {
        self.same.insert(peer, at);
    }
}

impl Owners<'_> {
    /// # Errors
    /// It belongs to somebody else, who is still there.
    pub(super) fn check(&self, registration: &Registration, actor: &str) -> Result<(), Problem> {
        let Registration { owner, host, .. } = registration;
        if owner == actor || !self.0.contains_key(owner) {
            return Ok(());
        }
        let detail = format!("{host} is registered by {owner}; only its owner can change or remove it");
        Err(Problem::at(Kind::HostTaken, "host", detail))
    }
}

mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::route::SniPattern;

    pub(super) fn serialize<S: Serializer>(host: &SniPattern, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(host)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SniPattern, D::Error> {
        SniPattern::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::TokenSource;

    /// A simple registration.
    pub(in crate::providers::registration) fn simple(host: &str, owner: &str, backend: &str) -> Registration {
        Registration {
            host: SniPattern::parse(host).expect("a host"),
            owner: owner.to_owned(),
            registered: 1,
            stamp: Stamp::default(),
            learned: 0,
            ttl: None,
            shape: Shape::Simple {
                backends: vec![Upstream { address: backend.parse().expect("an address"), weight: 1 }],
                tls: Tls::Passthrough,
                proxy_protocol: ProxyHeader::None,
            },
        }
    }

    /// The configuration's tokens.
    fn tokens() -> BTreeMap<String, TokenConfig> {
        let token = TokenConfig { source: TokenSource::Env("T".into()), hosts: Vec::new() };
        [("one".to_owned(), token.clone()), ("two".to_owned(), token)].into()
    }

    #[test]
    fn the_owner_replaces_and_removes_and_nobody_else_does() {
        let mut book = Book::default();
        let register = |book: &mut Book, owner, backend| {
            book.register(simple("a.example.com", owner, backend), &Owners(&tokens()))
        };
        assert_eq!(register(&mut book, "one", "10.0.0.1:1"), Ok(Verdict::Created));
        assert_eq!(register(&mut book, "one", "10.0.0.1:1"), Ok(Verdict::Unchanged));
        assert_eq!(register(&mut book, "one", "10.0.0.1:2"), Ok(Verdict::Replaced));
        for backend in ["10.0.0.1:2", "10.0.0.1:3"] {
            let taken = register(&mut book, "two", backend).expect_err("it is another's");
            assert_eq!((taken.status().as_u16(), taken.field()), (409, Some("host")));
        }
        let host = SniPattern::parse("a.example.com").expect("a host");
        let mut deregister = |actor| book.deregister(&host, actor, &Owners(&tokens()), Stamp::default());
        assert!(deregister("two").is_err());
        assert_eq!(deregister("one"), Ok(Verdict::Removed));
        assert_eq!(deregister("two"), Ok(Verdict::Absent));
    }

    #[test]
    fn what_belonged_to_a_token_that_is_gone_can_be_taken_over() {
        let mut book = Book::default();
        book.put(Arc::new(simple("a.example.com", "gone", "10.0.0.1:1")));
        let verdict = book.register(simple("a.example.com", "two", "10.0.0.1:1"), &Owners(&tokens()));
        assert_eq!(verdict, Ok(Verdict::Replaced));
    }

    #[test]
    fn another_moment_alone_is_no_change() {
        let mut book = Book::default();
        let first = simple("a.example.com", "one", "10.0.0.1:1");
        let again = Registration { registered: 99, ..first.clone() };
        assert_eq!(book.register(first.clone(), &Owners(&tokens())), Ok(Verdict::Created));
        assert_eq!(book.register(again, &Owners(&tokens())), Ok(Verdict::Unchanged));
        assert_eq!(book.get(&first.host).map(|kept| kept.registered), Some(1));
    }

    #[test]
    fn a_registration_survives_its_journal_and_hides_its_secrets_elsewhere() {
        let full = Registration {
            ttl: Some(30),
            shape: Shape::Template {
                template: "full".into(),
                address: "10.0.1.5".parse().expect("ip"),
                secrets: [("gateway".to_owned(), Secret("s3cret".to_owned()))].into(),
            },
            ..simple("*.example.com", "one", "10.0.0.1:1")
        };
        for registration in [full.clone(), simple("a.example.com", "one", "[2001:db8::1]:1")] {
            let text = serde_json::to_string(&registration).expect("JSON");
            assert_eq!(serde_json::from_str::<Registration>(&text).expect("a registration"), registration, "{text}");
        }
        assert!(!format!("{full:?}").contains("s3cret"));
    }
}
