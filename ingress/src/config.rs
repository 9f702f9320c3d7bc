//! The configuration, valid by construction: whoever holds a [`Config`] need not check it again.
//!
//! `config::file` is what an operator may write, `config::problems` is what is said about it. Everything else in the
//! daemon sees only the types on this page. On its way in, a file is a tree with places (`yaml`), then serde types
//! (`decode`, `file`, `words`), then these types (`convert`, `checks`); each step reports all the problems it finds.

mod checks;
mod convert;
mod ddns;
mod decode;
mod defaults;
mod document;
mod etcd;
mod file;
mod hooks;
mod load;
mod networks;
mod peers;
mod problems;
mod redis;
mod registration;
mod report;
mod schema;
#[cfg(test)]
mod tests;
mod words;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub(crate) use self::checks::share_a_port;
pub use self::ddns::{AddressSource, DdnsApi, DdnsConfig, DdnsProvider, DdnsZone};
pub use self::defaults::STATE_DIR;
pub use self::document::{decode_yaml, read_yaml};
pub use self::etcd::{EtcdConfig, EtcdIdentity, EtcdLogin};
pub use self::hooks::{CommandConfig, HookConfig, HookTarget, WebhookBody, WebhookConfig, WebhookUrl};
pub use self::load::{LoadError, Loaded, load, parse};
pub use self::networks::Networks;
pub use self::peers::PeersConfig;
pub use self::problems::{Place, Problem, Problems, Severity};
pub use self::redis::{RedisLogin, RedisProbe, RedisRole, RedisTls, SentinelConfig};
pub use self::registration::{
    ForwardAuthConfig, PassthroughConfig, PathMatch, RegistrationConfig, TemplateConfig, TemplateRoute, TokenConfig,
    TokenSource,
};
pub use self::schema::schema;
use crate::route::{ListenerName, OnRemove, PoolName, ProviderName, RouteSpec};

/// One whole configuration: what `ingress check` accepts and the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub listeners: BTreeMap<ListenerName, ListenerConfig>,
    pub routes: Vec<Arc<RouteSpec>>,
    pub pools: BTreeMap<PoolName, Arc<PoolConfig>>,
    /// Who else says what is routed where.
    pub providers: BTreeMap<ProviderName, ProviderConfig>,
    /// `None`: this node stands alone.
    pub peers: Option<PeersConfig>,
    /// `None`: this node keeps no DNS records.
    pub ddns: Option<DdnsConfig>,
    /// A store that this node shares with others. Not together with `peers`.
    pub etcd: Option<EtcdConfig>,
    /// Who is told what happens.
    pub hooks: BTreeMap<String, HookConfig>,
    pub limits: Limits,
    pub admin: AdminConfig,
    pub kernel: KernelConfig,
    /// What the operator says about network devices, by name.
    pub interfaces: BTreeMap<String, InterfaceConfig>,
    pub admission: AdmissionConfig,
    pub log: LogConfig,
    /// Where last-good configurations are kept. Default `/var/lib/ingress`.
    pub state_dir: PathBuf,
}

/// Where further routes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderConfig {
    pub source: ProviderSource,
    /// Who wins a name that several claim: the file, then the highest, then the first by name.
    pub priority: u32,
    /// How old what it said last may be at a start, when the source does not answer. `None`: it is not kept on disk.
    pub last_good: Option<Duration>,
    /// Its source may fail for so long before hooks are told.
    pub stale_after: Duration,
    pub on_remove: OnRemove,
    pub on_down: OnDown,
    /// Checks of its backends, where the source names none.
    pub health: Option<HealthConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderSource {
    Registry(RegistryConfig),
    File(TraefikConfig),
    HttpPoll(HttpPollConfig),
    Registration(RegistrationConfig),
}

/// Traefik's dynamic configuration in files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraefikConfig {
    /// A file or a directory.
    pub path: PathBuf,
    pub entry_points: BTreeMap<String, EntryPoint>,
}

/// Traefik's dynamic configuration from a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpPollConfig {
    pub url: String,
    pub interval: Duration,
    /// For the whole answer.
    pub timeout: Duration,
    pub token_file: Option<PathBuf>,
    /// Trusted instead of the system's certificates.
    pub ca_file: Option<PathBuf>,
    pub entry_points: BTreeMap<String, EntryPoint>,
}

/// What Traefik calls an entry point, in our words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryPoint {
    Listener(ListenerName),
    /// A port that takes everything.
    Open(Vec<SocketAddr>),
}

/// A YAML file that lists hosts and ports with their backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryConfig {
    pub path: PathBuf,
    /// Where its ports are opened.
    pub bind: Vec<IpAddr>,
    /// Of single `tcp` services, by name, in place of the provider's `health`.
    pub checks: BTreeMap<String, HealthConfig>,
}

impl ProviderSource {
    /// The key under which it is written.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Registry(_) => "registry",
            Self::File(_) => "file",
            Self::HttpPoll(_) => "http_poll",
            Self::Registration(_) => "registration",
        }
    }

    /// For people: where it reads.
    pub fn place(&self) -> String {
        match self {
            Self::Registry(registry) => registry.path.display().to_string(),
            Self::File(file) => file.path.display().to_string(),
            Self::Registration(api) => {
                let (bind, device) = (api.bind.iter().map(ToString::to_string), api.device.as_deref());
                bind.collect::<Vec<_>>().join(", ") + &device.map_or_else(String::new, |device| format!(" on {device}"))
            }
            // A query may hold a secret.
            Self::HttpPoll(poll) => poll.url.split('?').next().unwrap_or_default().to_owned(),
        }
    }
}

impl ListenerConfig {
    /// A port that a provider opens; all else as where the file says nothing.
    pub fn tcp(bind: Vec<SocketAddr>, pool: PoolName) -> Self {
        Self {
            bind,
            device: None,
            protocol: ListenerProtocol::Tcp { pool },
            accept_proxy_from: Vec::new(),
            hello_timeout: defaults::HELLO_TIMEOUT,
            idle_timeout: defaults::IDLE_TIMEOUT,
            max_connections: defaults::LISTENER_MAX_CONNECTIONS,
            max_connections_per_source: defaults::MAX_CONNECTIONS_PER_SOURCE,
        }
    }
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
}

/// Several addresses with one behaviour. `:443` in the file is `[::]:443` and `0.0.0.0:443` here, each for its own family
/// (`IPV6_V6ONLY`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    pub bind: Vec<SocketAddr>,
    /// `SO_BINDTODEVICE`: accept only what arrives on this device.
    pub device: Option<String>,
    pub protocol: ListenerProtocol,
    /// Networks whose connections start with a PROXY protocol header. Empty: none do.
    pub accept_proxy_from: Vec<IpNet>,
    /// From accept to a whole ClientHello (or PROXY header).
    pub hello_timeout: Duration,
    /// No byte in either direction for this long ends a connection.
    pub idle_timeout: Duration,
    pub max_connections: u32,
    /// Counted per client address (after an accepted PROXY header: per its source).
    pub max_connections_per_source: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// Routed by the ClientHello's SNI.
    Tls { default: DefaultRoute },
    /// Every connection goes to one pool; nothing is read before the handoff.
    Tcp { pool: PoolName },
}

/// Where a TLS connection goes when no route claims its SNI, or it has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefaultRoute {
    /// TLS alert `unrecognized_name` (RFC 6066 section 3), then close.
    Reject,
    Pool(PoolName),
}

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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Over all listeners.
    pub max_connections: u32,
    /// How long a stopping daemon waits for connections that it still relays.
    pub drain_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// The Unix socket that `ingress status` and the other verbs talk to.
    pub socket: PathBuf,
    /// A second one that speaks as HAProxy's.
    pub haproxy_socket: Option<HaproxySocketConfig>,
    /// `/metrics` and the dashboard; `None`: no TCP listener.
    pub http: Option<AdminHttpConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaproxySocketConfig {
    pub path: PathBuf,
    /// Permission bits of the socket's file.
    pub mode: u32,
    /// The file's group; `None`: the daemon's own.
    pub group: Option<String>,
    pub level: SocketLevel,
}

/// What may be said on HAProxy's socket; each includes the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SocketLevel {
    /// Numbers, no connections.
    User,
    /// All that changes nothing.
    Operator,
    Admin,
}

impl SocketLevel {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminHttpConfig {
    pub bind: Vec<SocketAddr>,
    /// HTTP basic auth; the variables' values are read once at start and at reload.
    pub basic_auth: Option<BasicAuthEnv>,
}

/// Names of the environment variables that hold user and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasicAuthEnv {
    pub username_env: String,
    pub password_env: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    pub enabled: bool,
    /// Devices that get the programs; empty: every device that carries a route to a client or a backend.
    pub interfaces: Vec<String>,
    /// Source ports towards backends, inclusive. Kept out of the host's own choice by `ip_local_reserved_ports`.
    pub port_range: (u16, u16),
    /// Slots for connections that run in the kernel; `None`: sized from the host's memory.
    pub max_connections: Option<u32>,
    /// Whether ends that are silent are asked if they still live.
    pub keepalive: Option<KeepaliveConfig>,
    /// bpffs directory; the ABI version is appended.
    pub pin_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepaliveConfig {
    /// Silence of one end, before it is asked.
    pub after: Duration,
    /// From a question without answer to the next, and from the last to the end.
    pub interval: Duration,
    /// How many questions an end may leave without answer.
    pub probes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceConfig {
    pub side: Side,
    pub xdp: XdpChoice,
}

/// Whom a network device faces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The world: private ports are dropped.
    Public,
    /// Our own machines: nothing is judged.
    Private,
}

/// Where a public device's packets are judged. tc ingress is the last rung of each but `Off`, whose only one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpChoice {
    /// Native, then generic.
    Auto,
    Native,
    Generic,
    Off,
}

/// Who may come in. Empty: everybody, everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdmissionConfig {
    /// TCP and UDP ports that are dropped on public devices.
    pub private_ports: BTreeSet<u16>,
    /// Who may not connect to our listeners.
    pub deny: Networks,
    pub new_connections_per_source: Option<ConnectionRate>,
}

/// New connections that one source may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionRate {
    /// A second, for ever; at least 1.
    pub rate: u32,
    /// At once; at least 1.
    pub burst: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    pub connections: ConnectionLog,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionLog {
    None,
    /// One line at the end of each connection.
    End,
    /// One at its start too.
    Both,
}

impl PoolConfig {
    /// Whether one backend at most takes connections: the primary that the checks find.
    pub fn follows_primary(&self) -> bool {
        let probe = self.health.as_ref().map(|health| &health.probe);
        matches!(probe, Some(ProbeConfig::Redis(RedisProbe { role: RedisRole::Primary, .. })))
    }
}

impl AdmissionConfig {
    /// As many as fit into the kernel's tables.
    pub const MOST_PORTS: usize = 1_024;
    pub const MOST_NETWORKS: usize = 65_536;

    /// Nothing is judged.
    pub fn is_empty(&self) -> bool {
        let Self { private_ports, deny, new_connections_per_source } = self;
        private_ports.is_empty() && deny.is_empty() && new_connections_per_source.is_none()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_connections: defaults::MAX_CONNECTIONS, drain_timeout: defaults::DRAIN_TIMEOUT }
    }
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            enabled: defaults::KERNEL_ENABLED,
            interfaces: Vec::new(),
            port_range: defaults::PORT_RANGE,
            max_connections: None,
            keepalive: None,
            pin_dir: PathBuf::from(defaults::PIN_DIR),
        }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { socket: PathBuf::from(defaults::ADMIN_SOCKET), haproxy_socket: None, http: None }
    }
}

impl AdminHttpConfig {
    /// Where the dashboard stands unless told otherwise.
    pub const DEFAULT_BIND: SocketAddr = defaults::ADMIN_HTTP_BIND;
}
