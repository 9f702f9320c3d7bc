//! What an operator may write: the shape of the YAML file, and its JSON schema.
//!
//! The comments on the keys are shipped: they are the schema's descriptions and the tables of `docs/configuration.md`.
//! Each value is checked on its own here (see `words`); how values fit together is `convert`'s part.

mod admission;
pub(super) mod registration;

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

pub(super) use self::admission::{FileAdmission, FileConnectionRate, FileInterface, FileSide, FileXdp};
use self::registration::FileRegistration;
use super::decode::{Located, OneOrMany};
use super::defaults;
use super::words::{
    AbsolutePath, Backend, Bind, Count, Device, EnvName, HostHeader, HostName, HttpUrl, Ip, Name, Network, Pattern,
    Ports, SocketPath, Status, Time, UrlPath,
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

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a pool: a mapping with the key `backends`")]
pub(super) struct FilePool {
    /// Each one `address:port`, or a mapping with `address`. At least one.
    #[schemars(length(min = 1))]
    pub(super) backends: Vec<Located<FileBackend>>,
    /// Used only while no backend of `backends` is up.
    #[serde(default)]
    pub(super) fallback: Vec<Located<FileBackend>>,
    /// How a backend is picked. `source_hash` keeps a client address on its backend.
    #[serde(default)]
    pub(super) balance: FileBalance,
    /// PROXY protocol header that tells backends the client's address. `{version: v2, tlvs: [...]}` adds TLVs.
    #[serde(default)]
    pub(super) proxy_protocol: FileProxyProtocol,
    /// Time for one connect to a backend.
    #[serde(default = "default_connect_timeout")]
    pub(super) connect_timeout: Located<Time>,
    /// How many further backends are tried when a connect fails.
    #[serde(default = "default_connect_retries")]
    pub(super) connect_retries: Count<0, 100>,
    /// `always`: every connection that can run in the kernel does. `never`: all are relayed in userspace.
    #[serde(default)]
    pub(super) handoff: FileHandoff,
    /// What happens to a backend's connections when its checks say that it is down: `cut` resets them at both ends, so
    /// that clients come again at once; `keep` lets them go on for as long as they can.
    #[serde(default)]
    pub(super) on_down: FileOnDown,
    /// A backend that comes back gets its share of new connections step by step over this time.
    #[serde(default = "default_slow_start")]
    pub(super) slow_start: Time,
    /// How backends are checked. Without it every backend counts as up.
    pub(super) health: Option<Located<FileHealth>>,
}

#[derive(Clone, Debug, JsonSchema)]
#[schemars(untagged)]
pub(super) enum FileBackend {
    Address(Backend),
    Full(FullBackend),
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FullBackend {
    /// `10.0.0.3:8443`, `[2001:db8::3]:8443` or `app.internal:8443`. A name is resolved again when its TTL ends.
    pub(super) address: Backend,
    /// Its share of the new connections, beside the other backends' weights. 0 takes none.
    #[serde(default = "default_weight")]
    pub(super) weight: Count<0, 256>,
    /// What logs, metrics and verbs call it; the address otherwise.
    pub(super) name: Option<Name>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FileBalance {
    #[default]
    RoundRobin,
    LeastConnections,
    SourceHash,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum FileProxyProtocol {
    Word(ProxyWord),
    Full(FullProxyProtocol),
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ProxyWord {
    None,
    V1,
    V2,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FullProxyProtocol {
    /// Version of the header.
    pub(super) version: ProxyVersion,
    /// What is added to a v2 header: the SNI (`authority`), the protocol of the ClientHello (`alpn`), a `unique_id`, a
    /// `crc32c` of the header.
    #[serde(default)]
    pub(super) tlvs: Vec<Located<FileTlv>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ProxyVersion {
    V1,
    V2,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FileTlv {
    Authority,
    Alpn,
    UniqueId,
    Crc32c,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FileHandoff {
    #[default]
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FileOnDown {
    Cut,
    #[default]
    Keep,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "health checks: a mapping with the key `type`")]
pub(super) struct FileHealth {
    /// `tcp` connects; `tls` also shakes hands, without judging the certificate; `http` and `https` send a GET.
    pub(super) r#type: ProbeType,
    /// From one check of a backend to its next.
    #[serde(default = "default_health_interval")]
    pub(super) interval: Time,
    /// A check that takes longer has failed. At most the interval.
    #[serde(default = "default_health_timeout")]
    pub(super) timeout: Time,
    /// Good checks in a row until a backend is up.
    #[serde(default = "default_health_rise")]
    pub(super) rise: Count<1, 1000>,
    /// Failed checks in a row until a backend is down.
    #[serde(default = "default_health_fall")]
    pub(super) fall: Count<1, 1000>,
    /// Check this port; the backend's own otherwise.
    pub(super) port: Option<Count<1, 65_535>>,
    /// For `http` and `https`: what to GET.
    #[serde(default = "default_health_path")]
    pub(super) path: UrlPath,
    /// For `http` and `https`: the Host header; the backend's address otherwise.
    pub(super) host: Option<HostHeader>,
    /// For `http` and `https`: the good statuses, one or a list of statuses and ranges.
    #[serde(default = "default_health_expect")]
    pub(super) expect: OneOrMany<Status>,
    /// For `tls` and `https`: the SNI to send; none otherwise.
    pub(super) server_name: Option<HostName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ProbeType {
    Tcp,
    Tls,
    Http,
    Https,
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
#[serde(deny_unknown_fields, default, expecting = "a mapping with the keys `socket` and `http`")]
pub(super) struct FileAdmin {
    /// Unix socket of `ingress status` and the other verbs.
    pub(super) socket: SocketPath,
    /// `/metrics` and `/stats` over HTTP. Without it there is no such port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http: Option<Located<FileAdminHttp>>,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys `bind` and `basic_auth`")]
pub(super) struct FileAdminHttp {
    /// Address and port, or a list of them.
    #[serde(default = "default_admin_http_bind")]
    pub(super) bind: OneOrMany<Located<Bind>>,
    /// Ask for user and password.
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
    /// Network devices that get the programs when the daemon starts. Otherwise every Ethernet, tun and WireGuard device that is not part of a bond or bridge.
    pub(super) interfaces: Vec<Device>,
    /// Source ports towards backends. Reserve them with `net.ipv4.ip_local_reserved_ports`, so that the host gives none
    /// away.
    pub(super) port_range: Ports,
    /// Connections that the kernel can carry at one time; sized from the host's memory otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_connections: Option<Count<1, 16_000_000>>,
    /// Directory of the pinned kernel state, on a bpffs. The version of its layout is appended.
    pub(super) pin_dir: AbsolutePath,
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

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a provider: a mapping with `registry`, `file`, `http_poll` or `registration`"
)]
pub(super) struct FileProvider {
    /// A YAML file that lists hosts and ports with their backends, the same on every node.
    pub(super) registry: Option<Located<FileRegistry>>,
    /// Traefik's dynamic configuration in files.
    pub(super) file: Option<Located<FileTraefik>>,
    /// Traefik's dynamic configuration from a URL that is asked again and again.
    pub(super) http_poll: Option<Located<FileHttpPoll>>,
    /// Backends say themselves what they serve, over an HTTP API on the private network.
    pub(super) registration: Option<Located<FileRegistration>>,
    /// Who wins a name that several claim: first the routes of this file, then the provider of the highest priority, then
    /// the first by name.
    #[serde(default = "default_priority")]
    pub(super) priority: Count<0, 1000>,
    /// Keep what it said last on disk, for a start at which its source does not answer: `{max_age: 24h}`, or `off`.
    #[serde(default)]
    pub(super) last_good: FileLastGood,
    /// What happens to the connections of a route that it no longer names, as in `routes`.
    #[serde(default)]
    pub(super) on_remove: FileOnRemove,
    /// What happens to a backend's connections when its checks say that it is down, as in `pools`.
    #[serde(default)]
    pub(super) on_down: FileOnDown,
    /// Checks of its backends, where the source says nothing of them.
    pub(super) health: Option<Located<FileHealth>>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum FileLastGood {
    Word(LastGoodWord),
    Kept(KeptFor),
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LastGoodWord {
    Off,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeptFor {
    /// What was last confirmed longer ago is not used.
    pub(super) max_age: Time,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a registry: a mapping with the key `path`")]
pub(super) struct FileRegistry {
    /// The file. It is read again whenever it, or a file that it includes, changes.
    pub(super) path: AbsolutePath,
    /// Addresses of this host on which the ports of the registry are opened.
    #[serde(default = "default_registry_bind")]
    pub(super) bind: OneOrMany<Ip>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the key `path`")]
pub(super) struct FileTraefik {
    /// A YAML or JSON file, or a directory of them. Read again whenever one changes.
    pub(super) path: AbsolutePath,
    /// What Traefik's entry points are here, by their name there: a listener, or `{bind: ":6379"}` for a port that takes
    /// everything. Without this, every route holds on all `tls` listeners.
    #[serde(default)]
    pub(super) entry_points: BTreeMap<Name, Located<FileEntryPoint>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the key `url`")]
pub(super) struct FileHttpPoll {
    /// What to GET; `http://` or `https://`, without user and password.
    pub(super) url: Located<HttpUrl>,
    /// From one question to the next; longer while they fail.
    #[serde(default = "default_poll_interval")]
    pub(super) interval: Located<Time>,
    /// For the whole answer.
    #[serde(default = "default_poll_timeout")]
    pub(super) timeout: Located<Time>,
    /// File with the token that is sent as `Authorization: Bearer`. Read at each question.
    pub(super) token_file: Option<AbsolutePath>,
    /// File with the certificates (PEM) to trust instead of the system's.
    pub(super) ca_file: Option<AbsolutePath>,
    /// What Traefik's entry points are here, by their name there: a listener, or `{bind: ":6379"}` for a port that takes
    /// everything. Without this, every route holds on all `tls` listeners.
    #[serde(default)]
    pub(super) entry_points: BTreeMap<Name, Located<FileEntryPoint>>,
}

#[derive(Clone, Debug, JsonSchema)]
#[schemars(untagged)]
pub(super) enum FileEntryPoint {
    Listener(Name),
    Open(OpenPort),
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenPort {
    /// Address and port, or a list of them.
    pub(super) bind: OneOrMany<Located<Bind>>,
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

impl Default for FileLastGood {
    fn default() -> Self {
        Self::Kept(KeptFor { max_age: Time(defaults::LAST_GOOD_MAX_AGE) })
    }
}

impl Default for FileProxyProtocol {
    fn default() -> Self {
        Self::Word(ProxyWord::None)
    }
}

impl Default for FileLimits {
    fn default() -> Self {
        Self { max_connections: Count(defaults::MAX_CONNECTIONS), drain_timeout: Time(defaults::DRAIN_TIMEOUT) }
    }
}

impl Default for FileAdmin {
    fn default() -> Self {
        Self { socket: SocketPath(defaults::ADMIN_SOCKET.into()), http: None }
    }
}

impl Default for FileKernel {
    fn default() -> Self {
        Self {
            enabled: defaults::KERNEL_ENABLED,
            interfaces: Vec::new(),
            port_range: Ports(defaults::PORT_RANGE),
            max_connections: None,
            pin_dir: AbsolutePath::new(defaults::PIN_DIR),
        }
    }
}

/// serde wants a function for each default.
macro_rules! default_functions {
    ($($function:ident() -> $type:ty = $value:expr;)*) => {$(
        fn $function() -> $type {
            $value
        }
    )*};
}

default_functions! {
    default_state_dir() -> AbsolutePath = AbsolutePath::new(defaults::STATE_DIR);
    default_hello_timeout() -> Located<Time> = Located::unwritten(Time(defaults::HELLO_TIMEOUT));
    default_idle_timeout() -> Located<Time> = Located::unwritten(Time(defaults::IDLE_TIMEOUT));
    default_listener_connections() -> Connections = Count(defaults::LISTENER_MAX_CONNECTIONS);
    default_connections_per_source() -> Connections = Count(defaults::MAX_CONNECTIONS_PER_SOURCE);
    default_weight() -> Count<0, 256> = Count(defaults::WEIGHT);
    default_connect_timeout() -> Located<Time> = Located::unwritten(Time(defaults::CONNECT_TIMEOUT));
    default_connect_retries() -> Count<0, 100> = Count(defaults::CONNECT_RETRIES);
    default_slow_start() -> Time = Time(defaults::SLOW_START);
    default_health_interval() -> Time = Time(defaults::HEALTH_INTERVAL);
    default_health_timeout() -> Time = Time(defaults::HEALTH_TIMEOUT);
    default_health_rise() -> Count<1, 1000> = Count(defaults::HEALTH_RISE);
    default_health_fall() -> Count<1, 1000> = Count(defaults::HEALTH_FALL);
    default_health_path() -> UrlPath = UrlPath(defaults::HEALTH_PATH.to_owned());
    default_health_expect() -> OneOrMany<Status> = OneOrMany(vec![Status(defaults::HEALTH_EXPECT)]);
    default_poll_interval() -> Located<Time> = Located::unwritten(Time(defaults::POLL_INTERVAL));
    default_poll_timeout() -> Located<Time> = Located::unwritten(Time(defaults::POLL_TIMEOUT));
    default_priority() -> Count<0, 1000> = Count(0);
    default_registry_bind() -> OneOrMany<Ip> = OneOrMany(defaults::ALL_ADDRESSES.map(Ip).to_vec());
    default_admin_http_bind() -> OneOrMany<Located<Bind>> =
        OneOrMany(vec![Located::unwritten(Bind(vec![defaults::ADMIN_HTTP_BIND]))]);
}

/// Decodes what is either one word or a mapping. serde's own `untagged` would try both and say why neither fits,
/// without a place.
macro_rules! word_or_mapping {
    ($type:ident, $expecting:literal, $word:ident, $mapping:ident) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Either;

                impl<'de> Visitor<'de> for Either {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, word: &str) -> Result<$type, E> {
                        Deserialize::deserialize(StrDeserializer::new(word)).map($type::$word)
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mapping: A) -> Result<$type, A::Error> {
                        Deserialize::deserialize(MapAccessDeserializer::new(mapping)).map($type::$mapping)
                    }
                }

                deserializer.deserialize_any(Either)
            }
        }
    };
}

word_or_mapping!(FileDefault, "`reject` or `{pool: name}`", Word, Pool);
word_or_mapping!(FileOnRemove, "`drain`, `{drain: 30s}` or `cut`", Word, Drain);
word_or_mapping!(FileEntryPoint, "the name of a listener, or a mapping with the key `bind`", Listener, Open);
word_or_mapping!(FileLastGood, "`off` or `{max_age: 24h}`", Word, Kept);
word_or_mapping!(FileProxyProtocol, "`none`, `v1`, `v2` or `{version: v2, tlvs: [...]}`", Word, Full);
word_or_mapping!(FileBackend, "an address such as 10.0.0.3:8443, or a mapping with the key `address`", Address, Full);
