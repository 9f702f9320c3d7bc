//! The configuration, valid by construction: whoever holds a [`Config`] need not check it again.
//!
//! `config::file` is what an operator may write, `config::problems` is what is said about it. Everything else in the
//! daemon sees only the types that are public here, a module for each section of the file. On its way in, a file is a
//! tree with places (`yaml`), then serde types (`decode`, `file`, `words`), then these types (`convert`, `checks`); each
//! step reports all the problems it finds.

mod admin;
mod admission;
mod checks;
mod convert;
mod ddns;
mod decode;
mod defaults;
mod document;
mod etcd;
mod file;
mod hooks;
mod listener;
mod load;
mod networks;
mod peers;
mod pool;
mod problems;
mod provider;
mod redis;
mod registration;
mod report;
mod schema;
#[cfg(test)]
mod tests;
mod words;
mod yaml;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::admin::{AdminConfig, AdminHttpConfig, BasicAuthEnv, HaproxySocketConfig, SocketLevel};
pub use self::admission::{AdmissionConfig, ConnectionRate, InterfaceConfig, Side, XdpChoice};
pub(crate) use self::checks::share_a_port;
pub use self::ddns::{AddressSource, DdnsApi, DdnsConfig, DdnsProvider, DdnsZone};
pub use self::defaults::STATE_DIR;
pub use self::document::{decode_yaml, read_yaml};
pub use self::etcd::{EtcdConfig, EtcdIdentity, EtcdLogin};
pub use self::hooks::{CommandConfig, HookConfig, HookTarget, WebhookBody, WebhookConfig, WebhookUrl};
pub use self::listener::{DefaultRoute, ListenerConfig, ListenerProtocol};
pub use self::load::{LoadError, Loaded, load, parse};
pub use self::networks::Networks;
pub use self::peers::PeersConfig;
pub use self::pool::{
    BackendAddress, BackendConfig, Balance, HandoffPolicy, HealthConfig, HttpProbe, OnDown, PoolConfig, ProbeConfig,
    ProxyProtocol, ProxyTlvs,
};
pub use self::problems::{Place, Problem, Problems, Severity};
pub use self::provider::{EntryPoint, HttpPollConfig, ProviderConfig, ProviderSource, RegistryConfig, TraefikConfig};
pub use self::redis::{RedisLogin, RedisProbe, RedisRole, RedisTls, SentinelConfig};
pub use self::registration::{
    ForwardAuthConfig, PassthroughConfig, PathMatch, RegistrationConfig, TemplateConfig, TemplateRoute, TokenConfig,
    TokenSource,
};
pub use self::schema::schema;
use crate::route::{ListenerName, PoolName, ProviderName, RouteSpec};

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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Over all listeners.
    pub max_connections: u32,
    /// How long a stopping daemon waits for connections that it still relays.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_connections: defaults::MAX_CONNECTIONS, drain_timeout: defaults::DRAIN_TIMEOUT }
    }
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
