//! What an operator may write: the shape of the YAML file, and its JSON schema.
//!
//! The comments on the keys are shipped: they are the schema's descriptions and the tables of `docs/configuration.md`.
//! Each value is checked on its own here (see `words`); how values fit together is `convert`'s part.

#[macro_use]
mod shapes;
mod admission;
mod ddns;
mod etcd;
pub(super) mod hooks;
mod peers;
mod pool;
mod provider;
mod redis;
pub(super) mod registration;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) use self::admission::{FileAdmission, FileConnectionRate, FileInterface, FileSide, FileXdp};
pub(super) use self::ddns::{FileAddressSource, FileDdns, FileDdnsProvider, FileDdnsZone};
pub(super) use self::etcd::{FileEtcd, FileEtcdTls};
pub(super) use self::hooks::FileHook;
pub(super) use self::peers::FilePeers;
pub(super) use self::pool::{
    FileBackend, FileBalance, FileHandoff, FileHealth, FileOnDown, FilePool, FileProxyProtocol, FileTlv, FullBackend,
    FullHandoff, FullProxyProtocol, HandoffWord, ProbeType, ProxyVersion, ProxyWord,
};
pub(super) use self::provider::{
    FileEntryPoint, FileHttpPoll, FileLastGood, FileProvider, FileRegistry, FileTraefik, KeptFor, LastGoodWord,
    OpenPort,
};
pub(super) use self::redis::{FileRedis, FileRedisRole, FileRedisTls, FileSentinel};
use super::decode::{Located, OneOrMany};
use super::defaults;
use super::words::{
    AbsolutePath, Bind, Count, Device, EnvName, FileMode, Name, Network, Pattern, Ports, SocketPath, Time,
};

pub(super) type Connections = Count<1, 100_000_000>;

/// The configuration of ingress.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys `listeners`, `routes` and `pools`")]
#[schemars(title = "ingress.yaml", extend("required" = ["listeners"]))]
pub(super) struct FileConfig {
    /// Where clients connect, by name. At least one.
    #[serde(default)]
    pub(super) listeners: BTreeMap<Name, Located<FileListener>>,
    /// Which host name goes to which pool. The order does not matter: an exact name wins over a wildcard.
    #[serde(default)]
    pub(super) routes: Vec<Located<FileRoute>>,
    /// The backends, by the name of their pool.
    #[serde(default)]
    pub(super) pools: BTreeMap<Name, Located<FilePool>>,
    /// Where further routes come from, by the name of the provider. What it says is called `name@provider`.
    #[serde(default)]
    pub(super) providers: BTreeMap<Name, Located<FileProvider>>,
    /// The other nodes. What is registered at one is routed on all. A change takes a restart.
    pub(super) peers: Option<Located<FilePeers>>,
    /// DNS records that this node keeps: its own addresses, under names that it is given.
    pub(super) ddns: Option<Located<FileDdns>>,
    /// An etcd that this node and others share, in the place of `peers`. A change takes a restart.
    pub(super) etcd: Option<Located<FileEtcd>>,
    /// Who is told what happens: webhooks and commands, by name.
    #[serde(default)]
    pub(super) hooks: BTreeMap<Name, Located<FileHook>>,
    /// Bounds of the whole daemon.
    #[serde(default)]
    pub(super) limits: FileLimits,
    /// How to ask the daemon what it does.
    #[serde(default)]
    pub(super) admin: FileAdmin,
    /// The kernel path for established connections.
    #[serde(default)]
    pub(super) kernel: FileKernel,
    /// What the host's network devices face, by their names. Those that face the world get the programs in any case.
    #[serde(default)]
    pub(super) interfaces: BTreeMap<Device, Located<FileInterface>>,
    /// Who may come in.
    #[serde(default)]
    pub(super) admission: FileAdmission,
    /// What is logged.
    #[serde(default)]
    pub(super) log: FileLog,
    /// Directory for what must survive a restart, such as the last good configuration.
    #[serde(default = "default_state_dir")]
    pub(super) state_dir: AbsolutePath,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a listener: a mapping with the key `bind`")]
pub(super) struct FileListener {
    /// Address and port, or a list of them. `:443` means all IPv6 and IPv4 addresses; port 0 lets the kernel choose.
    pub(super) bind: OneOrMany<Located<Bind>>,
    /// Accept only what arrives on this network device.
    pub(super) device: Option<Device>,
    /// `tls` reads the ClientHello and routes by its SNI; `tcp` sends every connection to one pool.
    #[serde(default)]
    pub(super) protocol: FileProtocol,
    /// For `tls`: what happens to a connection whose SNI no route claims, or that has none. `reject` answers with the
    /// TLS alert unrecognized_name; `{pool: name}` forwards it.
    #[serde(default)]
    pub(super) default: FileDefault,
    /// For `tcp`, and needed there: the pool of every connection.
    pub(super) pool: Option<Located<Name>>,
    /// Networks whose connections start with a PROXY protocol header (v1 or v2). Nobody else's header is believed.
    #[serde(default)]
    pub(super) accept_proxy_from: Vec<Located<Network>>,
    /// Time for the whole ClientHello, and for the PROXY protocol header, to arrive.
    #[serde(default = "default_hello_timeout")]
    pub(super) hello_timeout: Located<Time>,
    /// A connection without a byte in either direction for this long is reset at both ends. In the kernel, keepalives count
    /// as well.
    #[serde(default = "default_idle_timeout")]
    pub(super) idle_timeout: Located<Time>,
    /// Connections of this listener at one time.
    #[serde(default = "default_listener_connections")]
    pub(super) max_connections: Connections,
    /// Connections of one client address at one time, on this listener.
    #[serde(default = "default_connections_per_source")]
    pub(super) max_connections_per_source: Connections,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FileProtocol {
    #[default]
    Tls,
    Tcp,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum FileDefault {
    Word(DefaultWord),
    Pool(DefaultPool),
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum DefaultWord {
    Reject,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DefaultPool {
    /// The pool for every connection that no route claims.
    pub(super) pool: Located<Name>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a route: a mapping with the keys `sni` and `pool`")]
pub(super) struct FileRoute {
    /// Host name, or a list of them. `*.example.com` stands for every name with exactly one label more.
    pub(super) sni: OneOrMany<Located<Pattern>>,
    /// Where its connections go.
    pub(super) pool: Located<Name>,
    /// What logs and metrics call the route; its first `sni` otherwise.
    pub(super) name: Option<Located<Name>>,
    /// Only on these listeners; on every `tls` listener otherwise.
    #[serde(default)]
    pub(super) listeners: Vec<Located<Name>>,
    /// What happens to its connections when the route is removed: `drain` lets them go on until they end, `{drain: 30s}`
    /// for so long at most, `cut` resets them at both ends.
    #[serde(default)]
    pub(super) on_remove: FileOnRemove,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum FileOnRemove {
    Word(OnRemoveWord),
    Drain(DrainFor),
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnRemoveWord {
    Drain,
    Cut,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainFor {
    /// How long they may go on before they are reset.
    pub(super) drain: Time,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a mapping with the keys of `limits`")]
pub(super) struct FileLimits {
    /// Connections over all listeners at one time.
    pub(super) max_connections: Connections,
    /// How long a stopping daemon waits for the connections that it still relays.
    pub(super) drain_timeout: Time,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a mapping with the keys `socket`, `haproxy_socket` and `http`")]
pub(super) struct FileAdmin {
    /// Unix socket of `ingress status` and the other verbs.
    pub(super) socket: SocketPath,
    /// A second Unix socket that understands HAProxy's commands, for tools and runbooks that know those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) haproxy_socket: Option<Located<FileHaproxySocket>>,
    /// `/metrics` and the dashboard over HTTP. Without it there is no such port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http: Option<Located<FileAdminHttp>>,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys `path`, `mode`, `group` and `level`")]
pub(super) struct FileHaproxySocket {
    /// Such as `/run/haproxy/admin.sock`.
    pub(super) path: Located<SocketPath>,
    /// Permissions of the socket's file, in octal.
    #[serde(default = "default_socket_mode")]
    pub(super) mode: FileMode,
    /// Group of the socket's file, by name. Otherwise the daemon's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group: Option<Name>,
    /// What may be said: `user` reads numbers, `operator` connections too, `admin` changes things.
    #[serde(default)]
    pub(super) level: FileSocketLevel,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FileSocketLevel {
    User,
    Operator,
    #[default]
    Admin,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys `bind` and `basic_auth`")]
pub(super) struct FileAdminHttp {
    /// Address and port, or a list of them.
    #[serde(default = "default_admin_http_bind")]
    pub(super) bind: OneOrMany<Located<Bind>>,
    /// Ask for user and password. Without it the dashboard is read-only.
    pub(super) basic_auth: Option<Located<FileBasicAuth>>,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys `username_env` and `password_env`")]
pub(super) struct FileBasicAuth {
    /// Environment variable that holds the user.
    pub(super) username_env: Located<EnvName>,
    /// Environment variable that holds the password.
    pub(super) password_env: Located<EnvName>,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a mapping with the keys of `kernel`")]
pub(super) struct FileKernel {
    /// `false`: every connection is relayed in userspace.
    pub(super) enabled: bool,
    /// Network devices that get the programs, whenever they appear. Otherwise every Ethernet, tun and WireGuard device that is not part of a bond or bridge; members of a VRF, and not the VRF.
    pub(super) interfaces: Vec<Device>,
    /// Source ports towards backends. Reserve them with `net.ipv4.ip_local_reserved_ports`, so that the host gives none
    /// away.
    pub(super) port_range: Ports,
    /// Connections that the kernel can carry at one time; sized from the host's memory otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_connections: Option<Count<1, 16_000_000>>,
    /// Ask clients and backends that are silent whether they still live, and end connections of those that do not answer. Without it
    /// nobody is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keepalive: Option<FileKeepalive>,
    /// Directory of the pinned kernel state, on a bpffs. The version of its layout is appended.
    pub(super) pin_dir: AbsolutePath,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the key `after`")]
pub(super) struct FileKeepalive {
    /// How long one end has been silent when it is asked first. Longer than 0s; NATs forget connections after some minutes.
    pub(super) after: Located<Time>,
    /// From a question without answer to the next one.
    #[serde(default = "default_keepalive_interval")]
    pub(super) interval: Located<Time>,
    /// Questions without answer until both ends are reset (`keepalive`).
    #[serde(default = "default_keepalive_probes")]
    pub(super) probes: Count<1, 100>,
}

#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a mapping with the key `connections`")]
pub(super) struct FileLog {
    /// Log lines per connection: at its `end`, at its start too (`both`), or `none`.
    pub(super) connections: FileConnectionLog,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FileConnectionLog {
    #[default]
    End,
    Both,
    None,
}

impl Default for FileDefault {
    fn default() -> Self {
        Self::Word(DefaultWord::Reject)
    }
}

impl Default for FileOnRemove {
    fn default() -> Self {
        Self::Word(OnRemoveWord::Drain)
    }
}

impl Default for FileLimits {
    fn default() -> Self {
        Self { max_connections: Count(defaults::MAX_CONNECTIONS), drain_timeout: Time(defaults::DRAIN_TIMEOUT) }
    }
}

impl Default for FileAdmin {
    fn default() -> Self {
        Self { socket: SocketPath(defaults::ADMIN_SOCKET.into()), haproxy_socket: None, http: None }
    }
}

impl Default for FileKernel {
    fn default() -> Self {
        Self {
            enabled: defaults::KERNEL_ENABLED,
            interfaces: Vec::new(),
            port_range: Ports(defaults::PORT_RANGE),
            max_connections: None,
            keepalive: None,
            pin_dir: AbsolutePath::new(defaults::PIN_DIR),
        }
    }
}

default_functions! {
    default_state_dir() -> AbsolutePath = AbsolutePath::new(defaults::STATE_DIR);
    default_hello_timeout() -> Located<Time> = Located::unwritten(Time(defaults::HELLO_TIMEOUT));
    default_idle_timeout() -> Located<Time> = Located::unwritten(Time(defaults::IDLE_TIMEOUT));
    default_keepalive_interval() -> Located<Time> = Located::unwritten(Time(defaults::KEEPALIVE_INTERVAL));
    default_keepalive_probes() -> Count<1, 100> = Count(defaults::KEEPALIVE_PROBES);
    default_listener_connections() -> Connections = Count(defaults::LISTENER_MAX_CONNECTIONS);
    default_connections_per_source() -> Connections = Count(defaults::MAX_CONNECTIONS_PER_SOURCE);
    default_socket_mode() -> FileMode = FileMode(defaults::HAPROXY_SOCKET_MODE);
    default_admin_http_bind() -> OneOrMany<Located<Bind>> =
        OneOrMany(vec![Located::unwritten(Bind(vec![defaults::ADMIN_HTTP_BIND]))]);
}

word_or_mapping!(FileDefault, "`reject` or `{pool: name}`", Word, Pool);
word_or_mapping!(FileOnRemove, "`drain`, `{drain: 30s}` or `cut`", Word, Drain);
