//! Sentinels: who they say is the primary, and what that is worth together.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::Instant;

use super::client::Client;
use super::follow::Word;
use crate::balance::{Backend, SentinelsView};
use crate::config::{BackendAddress, SentinelConfig};
use crate::health::probe::{Attempt, ProbeError, Stage};

/// The Sentinels of one pool.
#[derive(Clone)]
pub(super) struct Sentinels {
    client: Client,
    config: SentinelConfig,
    timeout: Duration,
}

/// What they said, one after the other.
pub(super) type Said = Vec<Result<(String, u16), ProbeError>>;

impl Sentinels {
    pub(super) fn new(client: &Client, config: &SentinelConfig, timeout: Duration) -> Self {
        Self { client: client.with_login(&config.login), config: config.clone(), timeout }
    }

    /// Asks all at once.
    pub(super) async fn ask(&self) -> Said {
        join_all(self.config.addresses.iter().map(|address| self.ask_one(address))).await
    }

    async fn ask_one(&self, target: &BackendAddress) -> Result<(String, u16), ProbeError> {
        let deadline = Instant::now() + self.timeout;
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut attempt = Attempt { address: unknown, timeout: self.timeout, deadline };
        let host = match target {
            BackendAddress::Socket(address) => {
                attempt.address = *address;
                None
            }
            BackendAddress::Dns { host, port } => {
                let mut found = attempt.within(Stage::Resolve, lookup_host((host.as_str(), *port))).await?;
                attempt.address = found.next().unwrap_or(unknown);
                Some(host.as_str())
            }
        };
        let stream = attempt.within(Stage::Connect, TcpStream::connect(attempt.address)).await?;
        self.client.named(&attempt, stream, host, &self.config.service).await
    }
}

/// Under which addresses Sentinels may know a server.
#[derive(Clone, Debug)]
pub(super) struct Known {
    addresses: Vec<SocketAddr>,
    name: Option<(String, u16)>,
}

impl Known {
    pub(super) fn of(backend: &Backend, check_port: Option<u16>) -> Self {
        let mut addresses = backend.addresses();
        if let Some(port) = check_port {
            let checked: Vec<_> = addresses.iter().map(|address| SocketAddr::new(address.ip(), port)).collect();
            addresses.extend(checked);
        }
        let name = match &backend.target {
            BackendAddress::Socket(_) => None,
            BackendAddress::Dns { host, port } => Some((host.clone(), *port)),
        };
        Self { addresses, name }
    }

    fn is(&self, host: &str, port: u16) -> bool {
        match host.parse::<IpAddr>() {
            Ok(ip) => {
                let same = |known: &SocketAddr| known.ip().to_canonical() == ip.to_canonical() && known.port() == port;
                self.addresses.iter().any(same)
            }
            Err(_) => self.name.as_ref().is_some_and(|(name, at)| name.eq_ignore_ascii_case(host) && *at == port),
        }
    }
}

/// What they say together, how many of them, and whom they name if nobody here knows it. A majority is one of all that are
/// configured, not of those that answered.
pub(super) fn tally(said: &[Option<(String, u16)>], servers: &[Known]) -> (Word, SentinelsView, Option<String>) {
    let mut votes: BTreeMap<Result<usize, String>, usize> = BTreeMap::new();
    for (host, port) in said.iter().flatten() {
        let server = servers.iter().position(|server| server.is(host, *port));
        *votes.entry(server.ok_or_else(|| format!("{host}:{port}"))).or_default() += 1;
    }
    let (asked, answered) = (said.len(), said.iter().flatten().count());
    let Some((named, agreed)) = votes.into_iter().max_by_key(|(_, votes)| *votes) else {
        return (Word::None, SentinelsView { asked, answered, agreed: 0 }, None);
    };
    let view = SentinelsView { asked, answered, agreed };
    match named {
        _ if agreed * 2 <= asked => (Word::None, view, None),
        Ok(server) => (Word::Named(server), view, None),
        Err(stranger) => (Word::Stranger, view, Some(stranger)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(address: &str) -> Known {
        Known { addresses: vec![address.parse().expect("address")], name: Some(("a.example.com".into(), 6379)) }
    }

    fn said(words: &[&str]) -> Vec<Option<(String, u16)>> {
        let word =
            |word: &&str| word.rsplit_once(':').map(|(host, port)| (host.to_owned(), port.parse().expect("port")));
        words.iter().map(word).collect()
    }

    #[test]
    fn only_more_than_half_of_all_that_are_configured_count() {
        let servers = [known("10.0.0.1:6379"), Known { name: None, ..known("[2001:db8::2]:6379") }];
        for (words, expected, agreed) in [
            (&["10.0.0.1:6379", "10.0.0.1:6379", ""][..], Word::Named(0), 2),
            (&["10.0.0.1:6379", "", ""], Word::None, 1),
            (&["10.0.0.1:6379", "", "2001:db8::2:6379", "2001:db8::2:6379"], Word::None, 2),
            (&["::ffff:10.0.0.1:6379"], Word::Named(0), 1),
            (&["A.example.com:6379"], Word::Named(0), 1),
            (&["10.0.0.1:6380", "10.0.0.1:6380", "10.0.0.1:6379"], Word::Stranger, 2),
            (&["", ""], Word::None, 0),
        ] {
            let (word, view, _) = tally(&said(words), &servers);
            assert_eq!((word, view.agreed, view.asked), (expected, agreed, words.len()), "{words:?}");
        }
    }
}
