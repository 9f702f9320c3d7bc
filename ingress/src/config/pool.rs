//! Backends that can stand in for one another, and how they are checked.

use std::net::SocketAddr;
use std::time::Duration;

use super::{RedisProbe, RedisRole, defaults};

/// A set of backends that can stand in for one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    pub backends: Vec<BackendConfig>,
    /// Used only while no backend of `backends` is up.
    pub fallback: Vec<BackendConfig>,
    pub balance: Balance,
    pub proxy_protocol: ProxyProtocol,
    pub connect_timeout: Duration,
    /// How many further backends are tried after a failed connect.
    pub connect_retries: u32,
    pub handoff: HandoffPolicy,
    pub health: Option<HealthConfig>,
    /// What happens to a backend's live connections when its checks fail.
    pub on_down: OnDown,
    /// Weight ramps up linearly over this time after a backend returns. Zero: at once.
    pub slow_start: Duration,
    /// A client that is itself one of the backends came through its own node: it is given to `backends` only, never to
    /// `fallback`, which may lead back.
    pub loop_guard: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendConfig {
    /// What logs, metrics and verbs call it; the address as written unless named.
    pub name: String,
    pub address: BackendAddress,
    /// 0 takes no new connection.
    pub weight: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BackendAddress {
    Socket(SocketAddr),
    /// Resolved again when its TTL ends; the last good answer is kept.
    Dns {
        host: String,
        port: u16,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    LeastConnections,
    /// Consistent hash of the client address.
    SourceHash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    None,
    V1,
    V2(ProxyTlvs),
}

/// TLVs that are added to a PROXY v2 header (PROXY protocol section 2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyTlvs {
    pub authority: bool,
    pub alpn: bool,
    pub unique_id: bool,
    pub crc32c: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandoffPolicy {
    /// Every connection that can be handed off is.
    Always,
    /// Those of clients whose round trip is shorter.
    RttBelow(Duration),
    /// Relayed first; handed off once nothing was said for this long.
    WhenIdle(Duration),
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDown {
    Cut,
    Keep,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    pub probe: ProbeConfig,
    /// Another port than the traffic's.
    pub port: Option<u16>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Good probes in a row until a backend is up.
    pub rise: u32,
    /// Failed probes in a row until it is down.
    pub fall: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeConfig {
    Tcp,
    /// A whole handshake; the certificate is not judged.
    Tls {
        server_name: Option<String>,
    },
    Http(HttpProbe),
    Https {
        http: HttpProbe,
        server_name: Option<String>,
    },
    /// Its role, by `ROLE`.
    Redis(RedisProbe),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    pub path: String,
    /// `Host` header; the backend's address unless given.
    pub host: Option<String>,
    /// Inclusive ranges of status codes that count as good.
    pub expect: Vec<(u16, u16)>,
}

impl PoolConfig {
    /// These backends; all else as where the file says nothing.
    pub fn new(backends: Vec<BackendConfig>, fallback: Vec<BackendConfig>) -> Self {
        Self {
            backends,
            fallback,
            balance: Balance::RoundRobin,
            proxy_protocol: ProxyProtocol::None,
            connect_timeout: defaults::CONNECT_TIMEOUT,
            connect_retries: defaults::CONNECT_RETRIES,
            handoff: HandoffPolicy::Always,
            health: None,
            on_down: OnDown::Keep,
            slow_start: defaults::SLOW_START,
            loop_guard: false,
        }
    }

    /// Whether one backend at most takes connections: the primary that the checks find.
    pub fn follows_primary(&self) -> bool {
        let probe = self.health.as_ref().map(|health| &health.probe);
        matches!(probe, Some(ProbeConfig::Redis(RedisProbe { role: RedisRole::Primary, .. })))
    }
}
