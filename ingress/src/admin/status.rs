//! One page of everything: what `ingress status` prints. The CLI reads it back with these types.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Admin, ConfigState, ProviderStatus};
use crate::balance::{AdminState, BackendView, PoolView, PrimaryView};
use crate::dataplane::view::KernelStatus;
use crate::ddns::view::DnsRecordView;
use crate::etcd::view::EtcdStatus;
use crate::hooks::view::HookStatus;
use crate::l4::outcome::RelayReason;
use crate::metrics::scrape::{EtcdGauge, ListenerGauge, PeerGauge, is_up};
use crate::metrics::{ListenerCounts, Scrape, process::ProcessUse};
use crate::peers::view::{PeerStatus, PeersStatus};
use crate::route::ListenerName;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    /// Seconds.
    pub uptime: f64,
    /// Host name.
    pub node: String,
    pub ready: bool,
    /// By `ingress drain`.
    #[serde(default)]
    pub drained: bool,
    pub config: ConfigStatus,
    pub providers: Vec<ProviderStatus>,
    /// `None`: this node stands alone.
    pub peers: Option<PeersStatus>,
    /// That this node keeps.
    #[serde(default)]
    pub dns_records: Vec<DnsRecordView>,
    /// `None`: there is no shared store.
    #[serde(default)]
    pub etcd: Option<EtcdStatus>,
    #[serde(default)]
    pub hooks: Vec<HookStatus>,
    pub kernel: KernelStatus,
    pub listeners: Vec<ListenerStatus>,
    pub pools: Vec<PoolSummary>,
    pub connections: ConnectionSummary,
    /// The addresses of `admin.http`.
    pub http: Vec<HttpStatus>,
    /// `admin.haproxy_socket`; `None`: not set.
    #[serde(default)]
    pub haproxy_socket: Option<SocketStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    pub path: String,
    pub generation: u64,
    /// Unix seconds.
    pub loaded_at: f64,
    /// `file` or `last-good`.
    pub source: String,
    /// Why the file as it is now is not in use.
    pub last_error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerStatus {
    pub name: String,
    pub bind: Vec<SocketAddr>,
    /// `listening` or `degraded`.
    pub state: String,
    /// Why it is degraded.
    pub error: Option<String>,
    /// Seconds in this state.
    pub since: f64,
    #[serde(flatten)]
    pub counts: ListenerCounts,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolSummary {
    pub name: String,
    pub up: usize,
    pub backends: usize,
    /// Kept from new connections by operators, fallback included.
    #[serde(default)]
    pub drained: usize,
    pub fallback_up: usize,
    pub fallback: usize,
    pub in_flight: u64,
    /// Of a pool that follows one.
    #[serde(default)]
    pub primary: Option<PrimaryView>,
}

/// Since the daemon started, except what is open.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionSummary {
    pub open_kernel: u64,
    pub open_relay: u64,
    pub opening: u64,
    pub accepted_total: u64,
    pub handed_off_total: u64,
    /// Of those: relayed before, and counted there too.
    #[serde(default)]
    pub handed_off_later_total: u64,
    pub relayed_total: u64,
    pub refused_total: u64,
    /// 0 to 1, of all that reached a backend. `None`: none did yet.
    pub share_handed_off: Option<f64>,
    /// The same without those that configuration, host and path keep in userspace.
    pub share_handed_off_of_eligible: Option<f64>,
    pub relay_reasons: BTreeMap<String, u64>,
    pub refused_causes: BTreeMap<String, u64>,
    pub end_reasons: BTreeMap<String, u64>,
}

/// A Unix socket that may or may not be there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SocketStatus {
    pub path: String,
    pub error: Option<String>,
}

/// One address of `admin.http`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpStatus {
    pub bind: SocketAddr,
    pub error: Option<String>,
}

impl ListenerStatus {
    pub const LISTENING: &'static str = "listening";
    pub const DEGRADED: &'static str = "degraded";

    pub fn is_up(&self) -> bool {
        self.state == Self::LISTENING
    }
}

impl Admin {
    pub fn status(&self) -> Status {
        let listeners = self.listeners();
        let kernel = self.sources.kernel.status();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.started.elapsed().as_secs_f64(),
            node: self.node.clone(),
            ready: self.not_ready(&listeners).is_none(),
            drained: *self.sources.drain.borrow(),
            config: self.config(),
            providers: self.providers(),
            peers: (self.sources.peers.status)(),
            dns_records: (self.sources.dns_records)(),
            etcd: (self.sources.etcd)(),
            hooks: (self.sources.hooks.status)(),
            connections: ConnectionSummary::of(listeners.iter().map(|l| &l.counts)),
            kernel,
            listeners,
            pools: self.pools().iter().map(PoolSummary::of).collect(),
            http: self.http.lock().clone(),
            haproxy_socket: self.haproxy.lock().clone(),
        }
    }

    pub fn pools(&self) -> Vec<PoolView> {
        let snapshot = self.sources.snapshots.borrow().clone();
        let now = Instant::now();
        snapshot.pools.values().map(|pool| pool.view(now)).collect()
    }

    /// `None`: this node can take connections.
    pub fn not_ready(&self, listeners: &[ListenerStatus]) -> Option<&'static str> {
        if self.sources.draining.is_cancelled() {
            return Some("draining: the daemon takes no new connections");
        }
        if *self.sources.drain.borrow() {
            return Some("draining: an operator wants no new connections (ingress drain)");
        }
        if !listeners.iter().any(ListenerStatus::is_up) {
            return Some("no listener is bound; ingress status says why");
        }
        if !self.sources.snapshots.borrow().awaited.is_empty() {
            return Some("a provider has not said anything yet; ingress status says which");
        }
        None
    }

    pub(super) fn listeners(&self) -> Vec<ListenerStatus> {
        let mut listeners = self.sources.listeners.listeners();
        for listener in &mut listeners {
            let name = ListenerName::new(listener.name.as_str());
            listener.counts = self.sources.metrics.listener(&name).counts();
        }
        listeners
    }

    pub(super) fn scrape(&self) -> Scrape {
        let snapshot = self.sources.snapshots.borrow().clone();
        let limit = |name: &str| snapshot.config.listeners.get(&ListenerName::new(name)).map(|l| l.max_connections);
        let gauge = |listener: &ListenerStatus| ListenerGauge {
            up: listener.is_up(),
            connections_limit: limit(&listener.name).unwrap_or(0).into(),
            name: listener.name.clone(),
        };
        Scrape {
            pools: self.pools(),
            kernel: self.sources.kernel.status(),
            listeners: self.sources.listeners.listeners().iter().map(gauge).collect(),
            providers: self.providers().iter().map(ProviderStatus::gauge).collect(),
            peers: (self.sources.peers.status)().map(peer_gauges).unwrap_or_default(),
            dns_records: (self.sources.dns_records)(),
            etcd: (self.sources.etcd)().map(etcd_gauge),
            hooks: (self.sources.hooks.status)(),
            process: ProcessUse::read(),
            started: self.sources.metrics.started(),
        }
    }

    pub(super) fn config(&self) -> ConfigStatus {
        let generation = self.sources.snapshots.borrow().generation.0;
        let ConfigState { path, source, loaded_at, last_error, text: _ } = self.sources.config.borrow().clone();
        ConfigStatus {
            path: path.display().to_string(),
            generation,
            loaded_at: loaded_at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            source: source.as_str().to_owned(),
            last_error,
        }
    }
}

fn peer_gauges(peers: PeersStatus) -> Vec<PeerGauge> {
    let gauge = |PeerStatus { name, connected, waiting, refused, clock_skew, .. }| PeerGauge {
        name,
        connected: connected.is_some(),
        waiting: waiting as u64,
        refused: refused as u64,
        clock_skew,
    };
    peers.peers.into_iter().map(gauge).collect()
}

fn etcd_gauge(status: EtcdStatus) -> EtcdGauge {
    let EtcdStatus { connected, revision, waiting, resyncs, claims_lost, nodes, .. } = status;
    EtcdGauge {
        connected: connected.is_some(),
        revision: u64::try_from(revision).unwrap_or_default(),
        waiting: waiting as u64,
        resyncs,
        claims_lost,
        nodes: nodes.len() as u64,
    }
}

impl ConfigStatus {
    pub fn age(&self) -> f64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        (now - self.loaded_at).max(0.0)
    }
}

impl PoolSummary {
    fn of(pool: &PoolView) -> Self {
        let is_ready = |b: &BackendView| b.admin_state() == AdminState::Ready;
        let up = |backends: &[BackendView]| backends.iter().filter(|b| is_up(b) && is_ready(b)).count();
        Self {
            drained: pool.backends.iter().chain(&pool.fallback).filter(|b| !is_ready(b)).count(),
            name: pool.name.clone(),
            up: up(&pool.backends),
            backends: pool.backends.len(),
            fallback_up: up(&pool.fallback),
            fallback: pool.fallback.len(),
            in_flight: pool.backends.iter().chain(&pool.fallback).map(|b| b.in_flight).sum(),
            primary: pool.primary.clone(),
        }
    }
}

impl ConnectionSummary {
    /// From accept on.
    pub fn open(&self) -> u64 {
        self.open_kernel + self.open_relay + self.opening
    }

    pub(super) fn of<'a>(listeners: impl Iterator<Item = &'a ListenerCounts>) -> Self {
        let mut sum = Self::default();
        for listener in listeners {
            let ListenerCounts { accepted_total, handed_off_total, handed_off_later_total, .. } = listener;
            let ListenerCounts { open_kernel, open_relay, opening, .. } = listener;
            sum.accepted_total += accepted_total;
            sum.handed_off_total += handed_off_total;
            sum.handed_off_later_total += handed_off_later_total;
            sum.open_kernel += open_kernel;
            sum.open_relay += open_relay;
            sum.opening += opening;
            add(&mut sum.relay_reasons, &listener.relayed);
            add(&mut sum.refused_causes, &listener.refused);
            add(&mut sum.end_reasons, &listener.ended);
        }
        sum.relayed_total = sum.relay_reasons.values().sum();
        sum.refused_total = sum.refused_causes.values().sum();
        let missed = |reason: &&RelayReason| is_eligible(**reason);
        let missed = RelayReason::ALL.iter().filter(missed).filter_map(|r| sum.relay_reasons.get(r.as_str())).sum();
        sum.share_handed_off =
            share(sum.handed_off_total, sum.relayed_total.saturating_sub(sum.handed_off_later_total));
        sum.share_handed_off_of_eligible = share(sum.handed_off_total, missed);
        sum
    }
}

/// Whether a connection that is relayed for this reason could have run in the kernel with the same configuration, host
/// and path: a matter of the moment, not of the set-up.
const fn is_eligible(reason: RelayReason) -> bool {
    use RelayReason as R;
    match reason {
        R::KernelOff | R::Policy | R::Rtt | R::WhenIdle | R::Family | R::Local | R::Device => false,
        R::Unseen | R::Options | R::Mtu | R::Route => false,
        R::HalfClosed | R::OutOfOrder | R::ServerFirst | R::Window => true,
        R::Full | R::Ports | R::Error => true,
    }
}

fn share(part: u64, rest: u64) -> Option<f64> {
    (part + rest > 0).then(|| part as f64 / (part + rest) as f64)
}

fn add(sum: &mut BTreeMap<String, u64>, more: &BTreeMap<String, u64>) {
    for (word, n) in more {
        *sum.entry(word.clone()).or_default() += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(handed_off: u64, relayed: &[(&str, u64)]) -> ListenerCounts {
        let relayed = relayed.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect();
        ListenerCounts { handed_off_total: handed_off, relayed, ..ListenerCounts::default() }
    }

    #[test]
    fn what_the_set_up_keeps_in_userspace_is_not_held_against_the_kernel_path() {
        let listeners = [counts(90, &[("local", 50), ("window", 10)]), counts(0, &[("local", 50)])];
        let sum = ConnectionSummary::of(listeners.iter());
        assert_eq!(sum.share_handed_off, Some(0.45));
        assert_eq!(sum.share_handed_off_of_eligible, Some(0.9));
        assert_eq!(sum.relay_reasons["local"], 100);
    }

    #[test]
    fn no_connection_yet_is_no_share_rather_than_zero() {
        assert_eq!(ConnectionSummary::of(std::iter::empty()).share_handed_off, None);
    }
}
