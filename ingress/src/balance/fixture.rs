//! Small pools for the tests of balancing, health checks and resolving.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{Backend, Check, HealthState, Pool};
use crate::config::{
    AdminConfig, AdmissionConfig, BackendAddress, BackendConfig, Balance, Config, ConnectionLog, HandoffPolicy,
    HealthConfig, KernelConfig, Limits, LogConfig, OnDown, PoolConfig, ProbeConfig, ProxyProtocol, RedisLogin,
    RedisProbe, RedisRole,
};
use crate::route::RouteTable;
use crate::snapshot::{Generation, Snapshot};

/// At 10.0.0.x, where x is the first byte of the name.
pub(crate) fn backend(name: &str, weight: u32) -> BackendConfig {
    let last = name.bytes().next().unwrap_or_default();
    let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, last), 443));
    BackendConfig { name: name.into(), address: BackendAddress::Socket(address), weight }
}

/// Round robin, no checks, no PROXY protocol, no slow start.
pub(crate) fn pool_config(
    backends: impl IntoIterator<Item = BackendConfig>,
    fallback: impl IntoIterator<Item = BackendConfig>,
) -> PoolConfig {
    PoolConfig {
        backends: backends.into_iter().collect(),
        fallback: fallback.into_iter().collect(),
        balance: Balance::RoundRobin,
        proxy_protocol: ProxyProtocol::None,
        connect_timeout: Duration::from_secs(1),
        connect_retries: 1,
        handoff: HandoffPolicy::Always,
        health: None,
        on_down: OnDown::Keep,
        slow_start: Duration::ZERO,
        loop_guard: false,
    }
}

/// Asks for the primary.
pub(crate) fn redis_check() -> HealthConfig {
    let (role, login) = (RedisRole::Primary, RedisLogin::default());
    HealthConfig {
        probe: ProbeConfig::Redis(RedisProbe { role, login, tls: None, sentinel: None }),
        port: None,
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
        rise: 2,
        fall: 3,
    }
}

/// As if a probe had just decided so.
pub(crate) fn mark(backend: &Backend, state: HealthState) {
    backend.checked(state, Check::failed("set by the test", Instant::now()));
}

/// A snapshot of just these pools.
pub(crate) fn snapshot(pools: impl IntoIterator<Item = Pool>) -> Arc<Snapshot> {
    let pools: BTreeMap<_, _> = pools.into_iter().map(|p| (p.name.clone(), Arc::new(p))).collect();
    let config = Config {
        listeners: BTreeMap::new(),
        routes: Vec::new(),
        pools: pools.iter().map(|(name, pool)| (name.clone(), pool.config.clone())).collect(),
        providers: BTreeMap::new(),
        peers: None,
        ddns: None,
        etcd: None,
        hooks: BTreeMap::new(),
        limits: Limits::default(),
        admin: AdminConfig::default(),
        kernel: KernelConfig::default(),
        interfaces: BTreeMap::new(),
        admission: AdmissionConfig::default(),
        log: LogConfig { connections: ConnectionLog::End },
        state_dir: PathBuf::from("/nonexistent"),
    };
    Arc::new(Snapshot {
        generation: Generation(1),
        published: SystemTime::now(),
        config: Arc::new(config),
        routes: Arc::new(RouteTable::default()),
        pools,
        awaited: Vec::new(),
    })
}
