//! `pools`: where connections go, how a backend is picked and checked.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::redis::FileRedis;
use crate::config::decode::{Located, OneOrMany};
use crate::config::defaults;
use crate::config::words::{Backend, Count, HostHeader, HostName, Name, Status, Time, UrlPath};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a pool: a mapping with the key `backends`")]
pub(in crate::config) struct FilePool {
    /// Each one `address:port`, or a mapping with `address`. At least one.
    #[schemars(length(min = 1))]
    pub(in crate::config) backends: Vec<Located<FileBackend>>,
    /// Used only while no backend of `backends` is up.
    #[serde(default)]
    pub(in crate::config) fallback: Vec<Located<FileBackend>>,
    /// How a backend is picked. `source_hash` keeps a client address on its backend.
    #[serde(default)]
    pub(in crate::config) balance: FileBalance,
    /// PROXY protocol header that tells backends the client's address. `{version: v2, tlvs: [...]}` adds TLVs.
    #[serde(default)]
    pub(in crate::config) proxy_protocol: FileProxyProtocol,
    /// Time for one connect to a backend.
    #[serde(default = "default_connect_timeout")]
    pub(in crate::config) connect_timeout: Located<Time>,
    /// How many further backends are tried when a connect fails.
    #[serde(default = "default_connect_retries")]
    pub(in crate::config) connect_retries: Count<0, 100>,
    /// `always`: every connection that can run in the kernel does. `never`: all are relayed in userspace. `{rtt_below: 50ms}`: only
    /// clients that answer within that time there and back. `when_idle`: each is relayed first, and goes to the kernel once neither end
    /// has said anything for a second, or as long as `{when_idle: 5s}` says: for backends that speak first.
    #[serde(default)]
    pub(in crate::config) handoff: FileHandoff,
    /// What happens to a backend's connections when its checks say that it is down: `cut` resets them at both ends, so
    /// that clients come again at once; `keep` lets them go on for as long as they can.
    #[serde(default)]
    pub(in crate::config) on_down: FileOnDown,
    /// A backend that comes back gets its share of new connections step by step over this time.
    #[serde(default = "default_slow_start")]
    pub(in crate::config) slow_start: Time,
    /// How backends are checked. Without it every backend counts as up.
    pub(in crate::config) health: Option<Located<FileHealth>>,
}

#[derive(Clone, Debug, JsonSchema)]
#[schemars(untagged)]
pub(in crate::config) enum FileBackend {
    Address(Backend),
    Full(FullBackend),
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct FullBackend {
    /// `10.0.0.3:8443`, `[2001:db8::3]:8443` or `app.internal:8443`. A name is resolved again when its TTL ends.
    pub(in crate::config) address: Backend,
    /// Its share of the new connections, beside the other backends' weights. 0 takes none.
    #[serde(default = "default_weight")]
    pub(in crate::config) weight: Count<0, 256>,
    /// What logs, metrics and verbs call it; the address otherwise.
    pub(in crate::config) name: Option<Name>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum FileBalance {
    #[default]
    RoundRobin,
    LeastConnections,
    SourceHash,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum FileProxyProtocol {
    Word(ProxyWord),
    Full(FullProxyProtocol),
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum ProxyWord {
    None,
    V1,
    V2,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct FullProxyProtocol {
    /// Version of the header.
    pub(in crate::config) version: ProxyVersion,
    /// What is added to a v2 header: the SNI (`authority`), the protocol of the ClientHello (`alpn`), a `unique_id`, a
    /// `crc32c` of the header.
    #[serde(default)]
    pub(in crate::config) tlvs: Vec<Located<FileTlv>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum ProxyVersion {
    V1,
    V2,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum FileTlv {
    Authority,
    Alpn,
    UniqueId,
    Crc32c,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum FileHandoff {
    Word(HandoffWord),
    Full(FullHandoff),
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum HandoffWord {
    Always,
    WhenIdle,
    Never,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct FullHandoff {
    /// The client's round-trip time as its handshake showed it; from this on, the connection is relayed.
    pub(in crate::config) rtt_below: Option<Located<Time>>,
    /// How long neither end has said anything when the connection leaves the relay. With far clients and backends that use BBR,
    /// `10s`: that is how long BBR takes the short way to this host for the way to the client.
    pub(in crate::config) when_idle: Option<Located<Time>>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum FileOnDown {
    Cut,
    #[default]
    Keep,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "health checks: a mapping with the key `type`")]
pub(in crate::config) struct FileHealth {
    /// `tcp` connects; `tls` also shakes hands, without judging the certificate; `http` and `https` send a GET; `redis` asks
    /// for the server's role.
    pub(in crate::config) r#type: ProbeType,
    /// From one check of a backend to its next.
    #[serde(default = "default_health_interval")]
    pub(in crate::config) interval: Time,
    /// A check that takes longer has failed. At most the interval.
    #[serde(default = "default_health_timeout")]
    pub(in crate::config) timeout: Time,
    /// Good checks in a row until a backend is up.
    #[serde(default = "default_health_rise")]
    pub(in crate::config) rise: Count<1, 1000>,
    /// Failed checks in a row until a backend is down.
    #[serde(default = "default_health_fall")]
    pub(in crate::config) fall: Count<1, 1000>,
    /// Check this port; the backend's own otherwise.
    pub(in crate::config) port: Option<Count<1, 65_535>>,
    /// For `http` and `https`: what to GET.
    #[serde(default = "default_health_path")]
    pub(in crate::config) path: UrlPath,
    /// For `http` and `https`: the Host header; the backend's address otherwise.
    pub(in crate::config) host: Option<HostHeader>,
    /// For `http` and `https`: the good statuses, one or a list of statuses and ranges.
    #[serde(default = "default_health_expect")]
    pub(in crate::config) expect: OneOrMany<Status>,
    /// For `tls` and `https`: the SNI to send; none otherwise.
    pub(in crate::config) server_name: Option<HostName>,
    /// For `redis`: which role takes connections, and how to ask.
    pub(in crate::config) redis: Option<Located<FileRedis>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum ProbeType {
    Tcp,
    Tls,
    Http,
    Https,
    Redis,
}

impl Default for FileHandoff {
    fn default() -> Self {
        Self::Word(HandoffWord::Always)
    }
}

impl Default for FileProxyProtocol {
    fn default() -> Self {
        Self::Word(ProxyWord::None)
    }
}

default_functions! {
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
}

word_or_mapping!(FileProxyProtocol, "`none`, `v1`, `v2` or `{version: v2, tlvs: [...]}`", Word, Full);
word_or_mapping!(FileBackend, "an address such as 10.0.0.3:8443, or a mapping with the key `address`", Address, Full);
word_or_mapping!(FileHandoff, "`always`, `never`, `when_idle` or `{rtt_below: 50ms}`", Word, Full);
