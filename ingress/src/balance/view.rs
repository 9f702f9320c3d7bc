//! What `ingress pools`, `ingress status` and the dashboard see of a pool. Plain data, serialisable.

use std::net::SocketAddr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{AdminChange, AdminState, Backend, HealthState, Pool, PrimaryView, Transition, select};
use crate::config::{
    BackendAddress, BackendConfig, Balance, HandoffPolicy, HealthConfig, OnDown, ProbeConfig, ProxyProtocol,
    RedisProbe, RedisRole,
};

/// One pool at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolView {
    pub name: String,
    /// `round_robin`, `least_connections` or `source_hash`.
    pub balance: String,
    /// `none`, `v1` or `v2`.
    pub proxy_protocol: String,
    /// The checks in words; `None`: no checks.
    pub health: Option<String>,
    /// `cut` or `keep`.
    pub on_down: String,
    /// `always` or `never`.
    pub handoff: String,
    pub backends: Vec<BackendView>,
    pub fallback: Vec<BackendView>,
    /// Of a pool that follows one.
    #[serde(default)]
    pub primary: Option<PrimaryView>,
}

/// One backend at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendView {
    pub name: String,
    /// As configured.
    pub address: String,
    /// What `address` stands for now; empty: a name without an answer yet.
    pub addresses: Vec<SocketAddr>,
    pub weight: u32,
    /// Other than `weight` during slow start, and where operators gave another one.
    pub effective_weight: f64,
    /// `up`, `standby`, `down`, `unchecked` or `unresolved`.
    pub state: String,
    /// Seconds since the health state last changed.
    pub since: f64,
    pub last_check: Option<CheckView>,
    /// What operators said last; `None`: nothing.
    #[serde(default)]
    pub admin: Option<AdminChange>,
    pub in_flight: u64,
    pub connections_total: u64,
    pub connect_failures: u64,
    /// Payload of ended connections, without PROXY headers.
    pub bytes_to_backend: u64,
    pub bytes_to_client: u64,
    pub checks_failed_total: u64,
    /// The last changes of its health, the newest first.
    #[serde(default)]
    pub history: Vec<TransitionView>,
}

/// One change of health.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransitionView {
    /// `up`, `down` or `unchecked`.
    pub from: String,
    pub to: String,
    /// Of the check that decided it; `None` for a good one.
    pub error: Option<String>,
    /// Seconds.
    pub age: f64,
}

/// The last finished probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckView {
    pub ok: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Of a good one.
    pub latency_ms: Option<f64>,
    /// Seconds.
    pub age: f64,
}

impl BackendView {
    pub fn admin_state(&self) -> AdminState {
        self.admin.as_ref().map_or(AdminState::Ready, |change| change.state)
    }
}

pub(super) fn pool(pool: &Pool, now: Instant) -> PoolView {
    let view = |list: &[std::sync::Arc<Backend>], config: &[BackendConfig]| {
        list.iter().zip(config).map(|(b, c)| backend(b, c.weight, pool, now)).collect()
    };
    PoolView {
        name: pool.name.to_string(),
        balance: match pool.config.balance {
            Balance::RoundRobin => "round_robin",
            Balance::LeastConnections => "least_connections",
            Balance::SourceHash => "source_hash",
        }
        .into(),
        proxy_protocol: match pool.config.proxy_protocol {
            ProxyProtocol::None => "none",
            ProxyProtocol::V1 => "v1",
            ProxyProtocol::V2(_) => "v2",
        }
        .into(),
        health: pool.config.health.as_ref().map(describe),
        on_down: match pool.config.on_down {
            OnDown::Cut => "cut",
            OnDown::Keep => "keep",
        }
        .into(),
        handoff: match pool.config.handoff {
            HandoffPolicy::Always => "always".into(),
            HandoffPolicy::RttBelow(limit) => format!("rtt_below {limit:?}"),
            HandoffPolicy::WhenIdle(after) => format!("when_idle {after:?}"),
            HandoffPolicy::Never => "never".into(),
        },
        backends: view(&pool.backends, &pool.config.backends),
        fallback: view(&pool.fallback, &pool.config.fallback),
        primary: pool.primary.as_ref().map(|primary| primary.view(now)),
    }
}

fn backend(backend: &Backend, weight: u32, pool: &Pool, now: Instant) -> BackendView {
    let health = backend.health();
    let addresses = backend.addresses();
    let effective = backend.effective_weight(weight, pool.config.slow_start, now);
    let seconds_since = |then: Instant| now.saturating_duration_since(then).as_secs_f64();
    BackendView {
        name: backend.name.clone(),
        address: match &backend.target {
            BackendAddress::Socket(socket) => socket.to_string(),
            BackendAddress::Dns { host, port } => format!("{host}:{port}"),
        },
        state: match (health.state, &pool.primary) {
            _ if addresses.is_empty() => "unresolved",
            // Elsewhere an unchecked backend takes connections.
            (HealthState::Unchecked, Some(_)) => HealthState::Standby.as_str(),
            (state, _) => state.as_str(),
        }
        .into(),
        addresses,
        weight,
        effective_weight: effective as f64 / select::UNIT as f64,
        since: seconds_since(health.since),
        last_check: health.last_check.map(|check| CheckView {
            ok: check.error.is_none(),
            error: check.error,
            latency_ms: check.latency.map(|l| l.as_secs_f64() * 1000.0),
            age: seconds_since(check.at),
        }),
        admin: backend.admin().map(|change| AdminChange::clone(&change)),
        in_flight: backend.in_flight(),
        connections_total: backend.connections_total(),
        connect_failures: backend.connect_failures(),
        bytes_to_backend: backend.bytes_to_backend(),
        bytes_to_client: backend.bytes_to_client(),
        checks_failed_total: backend.checks_failed_total(),
        history: backend.history().into_iter().map(|transition| TransitionView::of(transition, now)).collect(),
    }
}

impl TransitionView {
    pub(crate) fn of(transition: Transition, now: Instant) -> Self {
        let Transition { at, from, to, error } = transition;
        let age = now.saturating_duration_since(at).as_secs_f64();
        Self { from: from.as_str().to_owned(), to: to.as_str().to_owned(), error, age }
    }
}

/// `GET /healthz every 10s, timeout 2s, rise 2, fall 3`.
fn describe(health: &HealthConfig) -> String {
    let HealthConfig { probe, port, interval, timeout, rise, fall } = health;
    let probe = match probe {
        ProbeConfig::Tcp => "TCP connect".to_owned(),
        ProbeConfig::Tls { server_name: _ } => "TLS handshake".to_owned(),
        ProbeConfig::Http(http) => format!("HTTP GET {}", http.path),
        ProbeConfig::Https { http, server_name: _ } => format!("HTTPS GET {}", http.path),
        ProbeConfig::Redis(RedisProbe { role: RedisRole::Primary, sentinel: Some(sentinel), .. }) => {
            format!("Redis role primary, {} named by Sentinel", sentinel.service)
        }
        ProbeConfig::Redis(redis) => format!("Redis role {}", redis.role.as_str()),
    };
    let port = port.map_or_else(String::new, |port| format!(" on port {port}"));
    format!("{probe}{port} every {interval:?}, timeout {timeout:?}, rise {rise}, fall {fall}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::fixture::{self, mark, pool_config};
    use super::super::{Check, HealthState, Pool};
    use super::*;
    use crate::config::HttpProbe;
    use crate::route::PoolName;

    #[test]
    fn a_view_tells_state_weight_and_counters_and_survives_json() {
        let mut config = pool_config([fixture::backend("a", 4)], [fixture::backend("spare", 1)]);
        config.slow_start = Duration::from_secs(10);
        config.health = Some(HealthConfig {
            probe: ProbeConfig::Http(HttpProbe { path: "/healthz".into(), host: None, expect: vec![(200, 399)] }),
            port: Some(8080),
            interval: Duration::from_secs(10),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 3,
        });
        let pool = Pool::new(PoolName::new("web"), config, None);
        let a = &pool.backends[0];
        mark(a, HealthState::Down);
        let back = Instant::now();
        a.checked(HealthState::Up, Check::good(Duration::from_millis(3), back));
        a.connection_started();
        a.connection_started();
        a.connection_ended(5, 7);
        a.connect_failed();
        let view = pool.view(back + Duration::from_secs(5));

        let described = view.health.as_deref();
        assert_eq!(described, Some("HTTP GET /healthz on port 8080 every 10s, timeout 500ms, rise 2, fall 3"));
        let seen = &view.backends[0];
        assert_eq!((seen.state.as_str(), seen.weight, seen.since), ("up", 4, 5.0));
        assert_eq!(seen.effective_weight, 2.0);
        assert_eq!((seen.in_flight, seen.connections_total, seen.connect_failures), (1, 2, 1));
        assert_eq!((seen.bytes_to_backend, seen.bytes_to_client, seen.checks_failed_total), (5, 7, 1));
        assert_eq!(seen.last_check.as_ref().map(|c| (c.ok, c.latency_ms)), Some((true, Some(3.0))));
        assert_eq!(view.fallback[0].state, "unchecked");

        let json = serde_json::to_string(&view).expect("a view is plain data");
        assert_eq!(serde_json::from_str::<PoolView>(&json).expect("its own words"), view);
    }

    #[test]
    fn a_name_without_an_answer_shows_as_unresolved() {
        let mut named = fixture::backend("a", 1);
        named.address = BackendAddress::Dns { host: "a.example.com".into(), port: 8443 };
        let pool = Pool::new(PoolName::new("web"), pool_config([named], []), None);
        let view = pool.view(Instant::now());
        assert_eq!(
            (view.backends[0].state.as_str(), view.backends[0].address.as_str()),
            ("unresolved", "a.example.com:8443")
        );
    }
}
