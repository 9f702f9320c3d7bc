//! Resolves like the host does: `/etc/hosts`, then the name servers of `/etc/resolv.conf`. Both files are read again when
//! they change.
//!
//! IPv4 wins: IPv6 addresses are used only of names that have no others, because only IPv4 connections can be handed to
//! the kernel.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::config::{ResolverConfig, ResolverOpts, ServerOrderingStrategy};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use parking_lot::Mutex;

use super::{Answer, Resolve, ResolveError};

pub struct SystemResolver {
    hosts: Mutex<Watched<Hosts>>,
    servers: Mutex<Watched<Result<TokioResolver, String>>>,
}

/// What a file says, read again when the file changes.
struct Watched<T> {
    path: PathBuf,
    parse: fn(&Path) -> T,
    stamp: Option<Stamp>,
    value: T,
}

/// Time and length; a rewrite within one tick of the file system's clock shows at least in its length, mostly.
type Stamp = (SystemTime, u64);

impl SystemResolver {
    pub fn new() -> Self {
        Self::with_files("/etc/hosts", "/etc/resolv.conf")
    }

    fn with_files(hosts: impl Into<PathBuf>, resolv_conf: impl Into<PathBuf>) -> Self {
        Self {
            hosts: Mutex::new(Watched::new(hosts.into(), read_hosts)),
            servers: Mutex::new(Watched::new(resolv_conf.into(), read_resolv_conf)),
        }
    }

    fn in_hosts_file(&self, name: &Name) -> Vec<IpAddr> {
        let mut hosts = self.hosts.lock();
        let hosts = hosts.read();
        [RecordType::A, RecordType::AAAA]
            .into_iter()
            .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
            .map(|lookup| addresses(&lookup))
            .find(|addresses| !addresses.is_empty())
            .unwrap_or_default()
    }
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self::new()
    }
}

impl Resolve for SystemResolver {
    async fn lookup(&self, host: &str) -> Result<Answer, ResolveError> {
        let unavailable = |reason: String| ResolveError::Unavailable { host: host.to_owned(), reason };
        let no_such_name = || ResolveError::NoSuchName { host: host.to_owned() };
        let name = Name::from_utf8(host).map_err(|_| no_such_name())?;
        let from_file = self.in_hosts_file(&name);
        if !from_file.is_empty() {
            return Ok(Answer { addresses: from_file, ttl: HOSTS_FILE_TTL });
        }
        let servers = self.servers.lock().read().clone().map_err(unavailable)?;
        let found = match servers.ipv4_lookup(name.clone()).await {
            // Only a clear no asks for IPv6: a name server's hiccup must not move the clients to other addresses.
            Err(error) if error.is_no_records_found() => servers.ipv6_lookup(name).await,
            other => other,
        };
        match found {
            Ok(lookup) if addresses(&lookup).is_empty() => Err(no_such_name()),
            Ok(lookup) => {
                let ttl = lookup.valid_until().saturating_duration_since(Instant::now());
                Ok(Answer { addresses: addresses(&lookup), ttl })
            }
            Err(error) if error.is_no_records_found() => Err(no_such_name()),
            Err(error) => Err(unavailable(error.to_string())),
        }
    }
}

impl<T> Watched<T> {
    fn new(path: PathBuf, parse: fn(&Path) -> T) -> Self {
        Self { stamp: stamp(&path), value: parse(&path), path, parse }
    }

    fn read(&mut self) -> &T {
        let stamp = stamp(&self.path);
        if stamp != self.stamp {
            self.value = (self.parse)(&self.path);
            self.stamp = stamp;
        }
        &self.value
    }
}

/// `None`: there is no such file.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Without the file no name is in it.
fn read_hosts(path: &Path) -> Hosts {
    let mut hosts = Hosts::default();
    let read: io::Result<()> = File::open(path).and_then(|file| hosts.read_hosts_conf(file));
    if let Err(error) = read {
        tracing::debug!(path = %path.display(), %error, "hosts file not read");
    }
    hosts
}

fn read_resolv_conf(path: &Path) -> Result<TokioResolver, String> {
    let (config, options) =
        fs::read(path).map_err(NetError::from).and_then(parse_resolv_conf).map_err(|error| error.to_string())?;
    build(config, options).map_err(|error| error.to_string())
}

/// As the C library does: one server after the other. Nothing is cached, the answers' TTLs are kept by the caller.
fn build(config: ResolverConfig, mut options: ResolverOpts) -> Result<TokioResolver, NetError> {
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    options.num_concurrent_reqs = 1;
    options.cache_size = 0;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build()
}

/// In the server's order, CNAMEs left out.
fn addresses(lookup: &Lookup) -> Vec<IpAddr> {
    lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// The file has no TTLs; looking at its time stamp so often costs nothing.
const HOSTS_FILE_TTL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use hickory_resolver::config::NameServerConfig;
    use tokio::net::UdpSocket;

    use super::*;

    fn answer(last: &[u8], ttl: Duration) -> Answer {
        Answer { addresses: last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect(), ttl }
    }

    /// Asks this server and no file.
    fn asking(server: SocketAddr) -> SystemResolver {
        let mut server_config = NameServerConfig::udp(server.ip());
        server_config.connections[0].port = server.port();
        let config = ResolverConfig::from_parts(None, vec![], vec![server_config]);
        let mut options = ResolverOpts::default();
        options.timeout = Duration::from_millis(200);
        options.attempts = 0;
        let resolver = SystemResolver::with_files("/nonexistent/hosts", "/nonexistent/resolv.conf");
        resolver.servers.lock().value = build(config, options).map_err(|error| error.to_string());
        resolver
    }

    /// A name server that knows `a.example.com` (two A records, TTL 30), `six.example.com` (AAAA only), fails for
    /// `broken.example.com` and denies the rest.
    async fn name_server() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = socket.local_addr().expect("a bound socket");
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut query).await {
                let _ = socket.send_to(&respond(&query[..len]), from).await;
            }
        });
        address
    }

    /// RFC 1035 section 4: header, the question again, answers whose names point at it.
    fn respond(query: &[u8]) -> Vec<u8> {
        let name_len = query[12..].iter().position(|byte| *byte == 0).expect("a root label") + 1;
        let question = &query[12..12 + name_len + 4];
        let name = question[..name_len].to_ascii_lowercase();
        let is_aaaa = question[name_len..name_len + 2] == [0, 28];
        let (code, records): (u8, Vec<Vec<u8>>) = match (name.as_slice(), is_aaaa) {
            (b"\x01a\x07example\x03com\0", false) => (0, vec![vec![10, 0, 0, 1], vec![10, 0, 0, 2]]),
            (b"\x03six\x07example\x03com\0", true) => (0, vec![vec![0x20; 16]]),
            (b"\x03six\x07example\x03com\0", false) => (0, vec![]),
            (b"\x06broken\x07example\x03com\0", _) => (2, vec![]),
            _ => (3, vec![]),
        };
        let count = u8::try_from(records.len()).expect("few records");
        let mut response = vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0];
        response.extend_from_slice(question);
        for data in records {
            let kind = if is_aaaa { 28 } else { 1 };
            let len = u8::try_from(data.len()).expect("an address");
            response.extend_from_slice(&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 30, 0, len]);
            response.extend_from_slice(&data);
        }
        response
    }

    #[tokio::test]
    async fn a_name_has_the_servers_addresses_and_ttl() {
        let resolver = asking(name_server().await);
        let Answer { mut addresses, ttl } = resolver.lookup("a.example.com").await.expect("a known name");
        addresses.sort_unstable();
        assert_eq!(addresses, answer(&[1, 2], ttl).addresses);
        assert!(ttl <= Duration::from_secs(30) && ttl > Duration::from_secs(20), "{ttl:?}");
    }

    #[tokio::test]
    async fn ipv6_is_used_where_there_is_no_ipv4() {
        let found = asking(name_server().await).lookup("six.example.com").await.expect("a known name");
        assert_eq!(found.addresses, [IpAddr::from([0x20; 16])]);
    }

    #[tokio::test]
    async fn an_unknown_name_and_a_broken_server_are_told_apart() {
        let resolver = asking(name_server().await);
        let unknown = resolver.lookup("no.example.com").await.expect_err("nobody knows it");
        assert_eq!(unknown.to_string(), "no.example.com does not exist or has no address");
        let broken = resolver.lookup("broken.example.com").await.expect_err("SERVFAIL");
        assert!(matches!(broken, ResolveError::Unavailable { .. }), "{broken}");
    }

    #[tokio::test]
    async fn a_silent_server_is_an_error() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let resolver = asking(silent.local_addr().expect("a bound socket"));
        let error = resolver.lookup("a.example.com").await.expect_err("no answer");
        assert!(matches!(error, ResolveError::Unavailable { .. }), "{error}");
    }

    #[tokio::test]
    async fn the_hosts_file_comes_first_and_is_read_again_when_it_changes() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("hosts");
        let resolver = SystemResolver::with_files(&path, directory.path().join("resolv.conf"));
        let missing = resolver.lookup("app.example.com").await.expect_err("neither file exists");
        assert!(missing.to_string().starts_with("no name server answers for app.example.com ("), "{missing}");

        fs::write(&path, "10.0.0.1 app.example.com app\n2001:db8::1 app.example.com\n").expect("a file");
        assert_eq!(resolver.lookup("APP.example.com").await, Ok(answer(&[1], HOSTS_FILE_TTL)), "IPv4 wins");
        assert_eq!(resolver.lookup("app").await, Ok(answer(&[1], HOSTS_FILE_TTL)));
        fs::write(&path, "10.0.0.2 app.example.com\n10.0.0.30 app.example.com # both\n").expect("a file");
        assert_eq!(resolver.lookup("app.example.com").await, Ok(answer(&[2, 30], HOSTS_FILE_TTL)));
    }
}
