//! Registry files -> contribution. Pure: the same on every node but for what is local there.
//!
//! **Local first.** A backend on this node takes the connections while it is healthy, else the others do: they are the
//! pool's fallback. A service that names standbys is ordered by that alone.
//!
//! **No loops.** A backend that is the very port that the registry opens here is left out. And whoever comes from another
//! node of the service is given to `backends` only, never to the fallback ([`PoolConfig::loop_guard`]): from the second node
//! on, a connection can only go to a service, not to a third node.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::{self, Backend, Document, Http, Tcp};
use super::files::Texts;
use super::local::LocalAddresses;
use crate::config::{
    BackendAddress, BackendConfig, Balance, HealthConfig, OnDown, PoolConfig, ProbeConfig, decode_yaml,
};
use crate::route::rule::{Matcher, Rule};
use crate::route::{Contribution, HttpRoute, SniPattern, Why};

/// What the configuration says about all that the registry lists.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) bind: Vec<IpAddr>,
    /// Of single services.
    pub(super) checks: BTreeMap<String, HealthConfig>,
    pub(super) health: Option<HealthConfig>,
    pub(super) on_down: OnDown,
}

/// Fills `contribution`. The error says what the registry's author has to mend.
pub(super) fn compile(
    texts: &Texts,
    local: &LocalAddresses,
    settings: &Settings,
    mut contribution: Contribution,
) -> Result<Contribution, String> {
    let whole = Whole::read(texts)?;
    let node = Node { local, settings };
    for (host, (_, Http { backends, cache })) in whole.http {
        let place = format!("http.{host}");
        let pattern = SniPattern::parse(&host).map_err(|error| format!("{place}: {error}"))?;
        let backends = read_backends(&place, &backends)?;
        let pool = contribution.http_pool(&host, node.pool(backends));
        let (name, rule) = (contribution.provider().route(&host), Rule::Match(Matcher::Host(pattern)));
        let middlewares = cache.map(|cache| format!("cache: {cache}")).into_iter().collect();
        contribution.http(HttpRoute { name, rule, pool, priority: 0, middlewares, tls: true, sticky: None });
    }
    for (name, (_, Tcp { port, backends, balance })) in whole.tcp {
        let place = format!("tcp.{name}");
        if port == 0 {
            return Err(format!("{place}.port: must not be 0"));
        }
        let mut backends = read_backends(&place, &backends)?;
        let own = backends.extract_if(.., |(backend, _)| node.is_own_port(&backend.address, port));
        for (backend, _) in own.collect::<Vec<_>>() {
            let why = "this node opens that very port: it would lead back here".to_owned();
            contribution.unserved(format!("{place} backend {}", backend.name), Why::Unsupported(why));
        }
        if backends.is_empty() {
            contribution.unserved(place, Why::Unsupported("no backend is left".to_owned()));
            continue;
        }
        let mut config = PoolConfig { balance: balance.into(), ..node.pool(backends) };
        if let Some(check) = settings.checks.get(&name) {
            config.health = Some(check.clone());
        }
        if config.follows_primary() {
            if let Some(same) = all_of(&config).find(|backend| port_of(&backend.address) == port) {
                // That node opens the port too, and would answer for whichever server it follows itself.
                let why = "Redis stands behind the port that is opened for it; give it another one".to_owned();
                contribution.unserved(format!("{place} backend {}", same.name), Why::Unsupported(why));
                continue;
            }
            // Each node connects to the primary itself, wherever the client is.
            config.loop_guard = false;
        }
        let pool = contribution.pool(&name, config);
        let bind = settings.bind.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        contribution.listen(&name, bind, &pool);
    }
    Ok(contribution)
}

/// All files together; each entry with the file that it is from.
#[derive(Default)]
struct Whole {
    http: BTreeMap<String, (PathBuf, Http)>,
    tcp: BTreeMap<String, (PathBuf, Tcp)>,
}

impl Whole {
    fn read(texts: &Texts) -> Result<Self, String> {
        let mut whole = Self::default();
        let mut empty_is_meant = false;
        for (n, (path, text)) in texts.iter().enumerate() {
            let Document { version, include, http, tcp, empty } =
                decode_yaml(text, path).map_err(|problems| format!("{problems:#}"))?;
            let refuse = |why: String| Err(format!("{}: {why}", path.display()));
            if version != 1 {
                return refuse(format!("version {version} is not understood; this build reads version 1"));
            }
            if n > 0 && !include.is_empty() {
                return refuse("an included file cannot include further ones".to_owned());
            }
            empty_is_meant |= empty && n == 0;
            add(&mut whole.http, http, "http", path)?;
            add(&mut whole.tcp, tcp, "tcp", path)?;
        }
        let is_empty = whole.http.is_empty() && whole.tcp.is_empty();
        if is_empty && !empty_is_meant {
            let path = texts.first().map(|(path, _)| path.display().to_string()).unwrap_or_default();
            return Err(format!("{path}: lists nothing; write `empty: true` if that is meant"));
        }
        Ok(whole)
    }
}

fn add<T>(
    into: &mut BTreeMap<String, (PathBuf, T)>,
    entries: BTreeMap<String, T>,
    section: &str,
    path: &Path,
) -> Result<(), String> {
    for (name, entry) in entries {
        if let Some((first, _)) = into.get(&name) {
            let (path, first) = (path.display(), first.display());
            return Err(format!("{path}: {section}.{name} stands in {first} already"));
        }
        into.insert(name, (path.to_owned(), entry));
    }
    Ok(())
}

/// Each with whether it is a standby.
fn read_backends(place: &str, backends: &[Backend]) -> Result<Vec<(BackendConfig, bool)>, String> {
    let mut read: Vec<(BackendConfig, bool)> = Vec::new();
    for (n, Backend { host, port, weight, standby }) in backends.iter().enumerate() {
        let bracketed = host.parse::<std::net::Ipv6Addr>().map(|ip| format!("[{ip}]"));
        let address = format!("{}:{port}", bracketed.as_ref().unwrap_or(host));
        let bad = |why: String| format!("{place}.backends[{n}]: {why}");
        if *weight > MAX_WEIGHT {
            return Err(bad(format!("weight {weight} is above {MAX_WEIGHT}")));
        }
        let backend = BackendConfig::parse(&address, *weight).map_err(bad)?;
        if read.iter().any(|(other, _)| other.name == backend.name) {
            return Err(bad(format!("{address} stands there twice")));
        }
        read.push((backend, *standby));
    }
    if read.is_empty() {
        return Err(format!("{place}.backends: the list is empty; name a backend, or remove the entry"));
    }
    Ok(read)
}

/// Where the registry is read.
struct Node<'a> {
    local: &'a LocalAddresses,
    settings: &'a Settings,
}

impl Node<'_> {
    fn pool(&self, backends: Vec<(BackendConfig, bool)>) -> PoolConfig {
        let ordered = backends.iter().any(|(_, standby)| *standby);
        let goes_first = |(backend, standby): &(BackendConfig, bool)| match ordered {
            true => !standby,
            false => self.local.has(&backend.address),
        };
        let (first, then): (Vec<_>, Vec<_>) = backends.into_iter().partition(goes_first);
        let plain = |list: Vec<(BackendConfig, bool)>| list.into_iter().map(|(backend, _)| backend).collect();
        PoolConfig {
            health: Some(self.settings.health.clone().unwrap_or(CHECK)),
            on_down: self.settings.on_down,
            loop_guard: true,
            ..PoolConfig::new(plain(first), plain(then))
        }
    }

    fn is_own_port(&self, address: &BackendAddress, port: u16) -> bool {
        port_of(address) == port && self.local.has(address) && self.binds(address)
    }

    fn binds(&self, address: &BackendAddress) -> bool {
        self.settings.bind.iter().any(|bind| match address {
            BackendAddress::Socket(address) => bind.is_unspecified() || *bind == address.ip(),
            BackendAddress::Dns { .. } => true,
        })
    }
}

fn all_of(pool: &PoolConfig) -> impl Iterator<Item = &BackendConfig> {
    pool.backends.iter().chain(&pool.fallback)
}

fn port_of(address: &BackendAddress) -> u16 {
    match address {
        BackendAddress::Socket(address) => address.port(),
        BackendAddress::Dns { port, .. } => *port,
    }
}

impl From<document::Balance> for Balance {
    fn from(balance: document::Balance) -> Self {
        match balance {
            document::Balance::RoundRobin => Self::RoundRobin,
            document::Balance::LeastConnections => Self::LeastConnections,
            document::Balance::SourceHash => Self::SourceHash,
        }
    }
}

/// Each node judges by itself, whatever the registry claims.
const CHECK: HealthConfig = HealthConfig {
    probe: ProbeConfig::Tcp,
    port: None,
    interval: Duration::from_secs(2),
    timeout: Duration::from_millis(500),
    rise: 2,
    fall: 3,
};
const MAX_WEIGHT: u32 = 256;

#[cfg(test)]
mod tests;
