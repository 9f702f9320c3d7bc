//! One backend: identity, addresses, health and counters. Shared by all snapshots that name it unchanged.
//!
//! Read without locks on the way of a connection; health is written by the health task only, addresses by the resolver
//! only, and counters by whoever carries a connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;

use super::history::{History, Transition};
use super::{AdminChange, AdminState, AdminWeight, hash, select};
use crate::config::{BackendAddress, BackendConfig};
use crate::route::PoolName;

#[derive(Debug)]
pub struct Backend {
    pub pool: PoolName,
    /// Unique within the pool.
    pub name: String,
    /// As configured; a DNS name's answers are in [`Backend::addresses`].
    pub target: BackendAddress,
    born: Instant,
    hash_seed: u64,
    addresses: ArcSwap<Vec<Address>>,
    /// `addresses` is not empty; apart, because a pick asks every backend of a pool.
    resolved: AtomicBool,
    /// Counts picks, so that they go round the addresses of a DNS name.
    turn: AtomicUsize,
    /// `health.state` is not [`HealthState::Down`]; apart, so that a pick takes no lock.
    up: AtomicBool,
    /// Milliseconds from `born` to the last return from Down, drain or maintenance, plus 1; 0: never.
    returned: AtomicU64,
    /// What operators said last.
    admin: ArcSwapOption<AdminChange>,
    /// Whether `admin` lets it take connections; apart, as `up` is.
    ready: AtomicBool,
    /// The weight in `admin`, packed; 0: the configured one.
    weight: AtomicU64,
    health: Mutex<Health>,
    history: Mutex<History>,
    in_flight: AtomicU64,
    connections: AtomicU64,
    connect_failures: AtomicU64,
    bytes_to_backend: AtomicU64,
    bytes_to_client: AtomicU64,
    failed_checks: AtomicU64,
}

/// One address that a DNS name stands for.
#[derive(Debug)]
struct Address {
    socket: SocketAddr,
    /// Its last probe failed; passed over while the name has a better one.
    failing: AtomicBool,
}

/// What the health checks say.
#[derive(Clone, Debug)]
pub struct Health {
    pub state: HealthState,
    /// When `state` began.
    pub since: Instant,
    pub last_check: Option<Check>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// No probe has ended yet, or the pool has no checks. Takes connections.
    Unchecked,
    Up,
    /// It is well, and another one takes the connections.
    Standby,
    Down,
}

/// One finished probe.
#[derive(Clone, Debug)]
pub struct Check {
    pub at: Instant,
    /// From the first packet to the verdict; `None` if it failed.
    pub latency: Option<Duration>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Backend {
    /// More answers for one DNS name than this are left out.
    pub const MAX_ADDRESSES: usize = 64;

    pub(super) fn new(pool: PoolName, config: &BackendConfig) -> Self {
        let BackendConfig { name, address, weight: _ } = config;
        let now = Instant::now();
        let addresses = match address {
            BackendAddress::Socket(socket) => vec![Address::new(*socket)],
            BackendAddress::Dns { .. } => Vec::new(),
        };
        Self {
            pool,
            name: name.clone(),
            target: address.clone(),
            born: now,
            hash_seed: hash::seed(name),
            resolved: AtomicBool::new(!addresses.is_empty()),
            addresses: ArcSwap::from_pointee(addresses),
            turn: AtomicUsize::new(0),
            up: AtomicBool::new(true),
            returned: AtomicU64::new(0),
            admin: ArcSwapOption::empty(),
            ready: AtomicBool::new(true),
            weight: AtomicU64::new(0),
            health: Mutex::new(Health { state: HealthState::Unchecked, since: now, last_check: None }),
            history: Mutex::default(),
            in_flight: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            bytes_to_backend: AtomicU64::new(0),
            bytes_to_client: AtomicU64::new(0),
            failed_checks: AtomicU64::new(0),
        }
    }

    /// Whether `config` names this backend; the weight is not part of its identity.
    pub(super) fn is(&self, config: &BackendConfig) -> bool {
        let BackendConfig { name, address, weight: _ } = config;
        self.name == *name && self.target == *address
    }

    pub(super) fn hash_seed(&self) -> u64 {
        self.hash_seed
    }

    /// The first address that did not fail its last probe, else the first. `None`: the name has no answer yet.
    pub fn address(&self) -> Option<SocketAddr> {
        let addresses = self.addresses.load();
        addresses.iter().find(|a| !a.failing.load(Relaxed)).or(addresses.first()).map(|a| a.socket)
    }

    /// All addresses, in ascending order.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.load().iter().map(|a| a.socket).collect()
    }

    pub fn is_resolved(&self) -> bool {
        self.resolved.load(Relaxed)
    }

    /// The resolver's newest answer. Addresses that stay keep what their last probe said.
    pub fn set_addresses(&self, mut sockets: Vec<SocketAddr>) {
        sockets.sort_unstable();
        sockets.dedup();
        sockets.truncate(Self::MAX_ADDRESSES);
        let old = self.addresses.load();
        let carried = |socket| old.iter().find(|a| a.socket == socket).is_some_and(|a| a.failing.load(Relaxed));
        let new: Vec<_> =
            sockets.into_iter().map(|s| Address { socket: s, failing: AtomicBool::new(carried(s)) }).collect();
        self.resolved.store(!new.is_empty(), Relaxed);
        self.addresses.store(Arc::new(new));
    }

    /// What the last probe of one address said.
    pub fn address_checked(&self, socket: SocketAddr, good: bool) {
        if let Some(address) = self.addresses.load().iter().find(|a| a.socket == socket) {
            address.failing.store(!good, Relaxed);
        }
    }

    /// Goes round the addresses; with a `key` (source hash) always to the same one.
    pub(super) fn next_address(&self, key: Option<IpAddr>) -> Option<SocketAddr> {
        let addresses = self.addresses.load();
        match addresses.as_slice() {
            [] => return None,
            [only] => return Some(only.socket),
            [..] => {}
        }
        let mut usable: Vec<SocketAddr> =
            addresses.iter().filter(|a| !a.failing.load(Relaxed)).map(|a| a.socket).collect();
        if usable.is_empty() {
            usable = addresses.iter().map(|a| a.socket).collect();
        }
        match key {
            Some(client) => usable.into_iter().max_by_key(|socket| hash::of_address(client, *socket)),
            None => {
                let turn = self.turn.fetch_add(1, Relaxed);
                turn.checked_rem(usable.len()).and_then(|at| usable.get(at).copied())
            }
        }
    }

    /// Not [`HealthState::Down`]. A backend that nobody has checked counts as up.
    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    pub fn health(&self) -> Health {
        self.health.lock().clone()
    }

    /// The last changes of its health, the newest first; a few.
    pub fn history(&self) -> Vec<Transition> {
        self.history.lock().newest_first().cloned().collect()
    }

    /// A probe has ended and left the backend in `state`. The health task of this backend is the only caller.
    pub fn checked(&self, state: HealthState, check: Check) {
        let now = check.at;
        self.answered(check);
        self.enter(state, now);
    }

    /// A probe has ended; what it means depends on others.
    pub fn answered(&self, check: Check) {
        if check.error.is_some() {
            self.failed_checks.fetch_add(1, Relaxed);
        }
        self.health.lock().last_check = Some(check);
    }

    /// Is in this state from now on, whatever it answered last.
    pub fn enter(&self, state: HealthState, now: Instant) {
        let mut health = self.health.lock();
        if health.state != state {
            let error = health.last_check.as_ref().and_then(|check| check.error.clone());
            self.history.lock().push(Transition { at: now, from: health.state, to: state, error });
            if health.state == HealthState::Down {
                self.returned.store(self.millis(now) + 1, Relaxed);
            }
            health.state = state;
            health.since = now;
            self.up.store(state != HealthState::Down, Relaxed);
        }
    }

    /// The pool has no health checks any more: nobody would ever call this backend up again.
    pub fn forget_health(&self, now: Instant) {
        self.addresses.load().iter().for_each(|address| address.failing.store(false, Relaxed));
        let mut health = self.health.lock();
        if health.state != HealthState::Unchecked {
            let forgotten = Transition { at: now, from: health.state, to: HealthState::Unchecked, error: None };
            self.history.lock().push(forgotten);
            *health = Health { state: HealthState::Unchecked, since: now, last_check: None };
            self.up.store(true, Relaxed);
        }
    }

    /// What operators said last about it; `None`: nothing.
    pub fn admin(&self) -> Option<Arc<AdminChange>> {
        self.admin.load_full()
    }

    pub fn admin_state(&self) -> AdminState {
        self.admin.load().as_ref().map_or(AdminState::Ready, |change| change.state)
    }

    /// Takes new connections as far as operators are asked.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// Whether a new connection may come here: it is up, has an address, and no operator keeps it back.
    pub fn takes_connections(&self) -> bool {
        self.is_up() && self.is_resolved() && self.is_ready()
    }

    /// An operator's word holds from now on. Who returns from drain or maintenance starts slowly.
    pub fn administer(&self, change: Arc<AdminChange>, now: Instant) {
        if self.admin.load().as_ref().is_some_and(|before| *before == change) {
            return;
        }
        let ready = change.state == AdminState::Ready;
        self.weight.store(change.weight.map_or(0, AdminWeight::pack), Relaxed);
        self.admin.store(Some(change));
        if ready && !self.is_ready() {
            self.returned.store(self.millis(now) + 1, Relaxed);
        }
        self.ready.store(ready, Relaxed);
    }

    /// The configured `weight`, or the operators', in [`select::UNIT`]s; less during slow start: linear from 1 % to 100 % over
    /// `slow_start` after the backend returned from Down, drain or maintenance.
    pub(super) fn effective_weight(&self, weight: u32, slow_start: Duration, now: Instant) -> u64 {
        let by_hand = AdminWeight::unpack(self.weight.load(Relaxed));
        let full = by_hand.map_or(u64::from(weight) * select::UNIT, |by_hand| by_hand.units(weight));
        let Some(returned) = self.returned.load(Relaxed).checked_sub(1) else { return full };
        let total = u64::try_from(slow_start.as_millis()).unwrap_or(u64::MAX);
        let elapsed = self.millis(now).saturating_sub(returned);
        if elapsed >= total {
            return full;
        }
        let part = u128::from(select::UNIT) * u128::from(elapsed) / u128::from(total);
        let part = u64::try_from(part).unwrap_or(select::UNIT).max(select::UNIT / 100);
        if full == 0 { 0 } else { (full * part / select::UNIT).max(1) }
    }

    /// A connection to this backend begins, in userspace or in the kernel.
    pub fn connection_started(&self) {
        self.in_flight.fetch_add(1, Relaxed);
        self.connections.fetch_add(1, Relaxed);
    }

    /// Payload bytes that moved while their connections go on.
    pub fn moved(&self, to_backend: u64, to_client: u64) {
        self.bytes_to_backend.fetch_add(to_backend, Relaxed);
        self.bytes_to_client.fetch_add(to_client, Relaxed);
    }

    /// The counterpart of [`Backend::connection_started`], with the payload bytes that [`Backend::moved`] was not told of.
    pub fn connection_ended(&self, to_backend: u64, to_client: u64) {
        self.moved(to_backend, to_client);
        // Saturating: an end too many must not make this the busiest backend for ever.
        let _ = self.in_flight.fetch_update(Relaxed, Relaxed, |n| Some(n.saturating_sub(1)));
    }

    pub fn connect_failed(&self) {
        self.connect_failures.fetch_add(1, Relaxed);
    }

    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }

    /// Ever started, those in flight included.
    pub fn connections_total(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    pub fn connect_failures(&self) -> u64 {
        self.connect_failures.load(Relaxed)
    }

    /// Of ended connections.
    pub fn bytes_to_backend(&self) -> u64 {
        self.bytes_to_backend.load(Relaxed)
    }

    /// Of ended connections.
    pub fn bytes_to_client(&self) -> u64 {
        self.bytes_to_client.load(Relaxed)
    }

    pub fn checks_failed_total(&self) -> u64 {
        self.failed_checks.load(Relaxed)
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }
}

impl Address {
    fn new(socket: SocketAddr) -> Self {
        Self { socket, failing: AtomicBool::new(false) }
    }
}

impl Check {
    pub fn good(latency: Duration, at: Instant) -> Self {
        Self { at, latency: Some(latency), error: None }
    }

    pub fn failed(error: impl fmt::Display, at: Instant) -> Self {
        Self { at, latency: None, error: Some(error.to_string()) }
    }
}

impl HealthState {
    /// The word in views and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Up => "up",
            Self::Standby => "standby",
            Self::Down => "down",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn one() -> Backend {
        Backend::new(PoolName::new("web"), &fixture::backend("a", 1))
    }

    fn named() -> Backend {
        let address = BackendAddress::Dns { host: "app.example.com".into(), port: 443 };
        Backend::new(PoolName::new("web"), &BackendConfig { name: "app".into(), address, weight: 1 })
    }

    fn socket(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 443))
    }

    #[test]
    fn an_end_too_many_leaves_in_flight_at_zero() {
        let backend = one();
        backend.connection_started();
        backend.connection_ended(10, 20);
        backend.connection_ended(1, 2);
        assert_eq!(backend.in_flight(), 0);
        assert_eq!((backend.bytes_to_backend(), backend.bytes_to_client()), (11, 22));
    }

    #[test]
    fn picks_go_round_the_addresses_of_a_name() {
        let backend = named();
        assert_eq!(backend.next_address(None), None);
        backend.set_addresses(vec![socket(2), socket(1), socket(2)]);
        let picked: Vec<_> = (0..4).filter_map(|_| backend.next_address(None)).collect();
        assert_eq!(picked, [socket(1), socket(2), socket(1), socket(2)]);
    }

    #[test]
    fn an_address_that_fails_its_probe_is_passed_over_while_another_is_good() {
        let backend = named();
        backend.set_addresses(vec![socket(1), socket(2)]);
        backend.address_checked(socket(1), false);
        assert!((0..4).all(|_| backend.next_address(None) == Some(socket(2))));
        assert_eq!(backend.address(), Some(socket(2)));
        backend.set_addresses(vec![socket(1), socket(2), socket(3)]);
        assert!((0..4).all(|_| backend.next_address(None) != Some(socket(1))), "a new answer does not forget it");
        backend.set_addresses(vec![socket(1)]);
        assert_eq!(backend.next_address(None), Some(socket(1)), "the last one is used whatever its probe said");
    }

    #[test]
    fn a_source_hash_key_stays_at_its_address() {
        let backend = named();
        backend.set_addresses((1..9).map(socket).collect());
        let client = IpAddr::from([192, 0, 2, 1]);
        let first = backend.next_address(Some(client));
        assert!((0..8).all(|_| backend.next_address(Some(client)) == first));
        let clients = (0..200).map(|i| IpAddr::from([192, 0, 2, i]));
        let used: std::collections::BTreeSet<_> = clients.map(|c| backend.next_address(Some(c))).collect();
        assert_eq!(used.len(), 8, "clients spread over all addresses");
    }

    #[test]
    fn effective_weight_is_linear_and_at_least_one_percent() {
        let backend = one();
        let ramp = Duration::from_secs(10);
        let t0 = Instant::now();
        assert_eq!(backend.effective_weight(5, ramp, t0), 5 * select::UNIT, "no slow start at first start");
        backend.checked(HealthState::Up, Check::good(Duration::ZERO, t0));
        assert_eq!(backend.effective_weight(5, ramp, t0), 5 * select::UNIT, "nor after the first good probe");
        backend.checked(HealthState::Down, Check::failed("x", t0));
        backend.checked(HealthState::Up, Check::good(Duration::ZERO, t0));
        let at = |secs| backend.effective_weight(5, ramp, t0 + Duration::from_secs(secs));
        assert_eq!(at(0), 5 * select::UNIT / 100);
        assert_eq!(at(5), 5 * select::UNIT / 2);
        assert_eq!(at(10), 5 * select::UNIT);
        assert_eq!(backend.effective_weight(5, Duration::ZERO, t0), 5 * select::UNIT, "slow start is off");
    }

    #[test]
    fn a_pool_that_loses_its_checks_frees_its_backends() {
        let backend = one();
        fixture::mark(&backend, HealthState::Down);
        assert!(!backend.is_up());
        backend.forget_health(Instant::now());
        assert!(backend.is_up());
        assert_eq!(backend.health().state, HealthState::Unchecked);

        let backend = named();
        backend.set_addresses(vec![socket(1), socket(2)]);
        backend.address_checked(socket(1), false);
        backend.forget_health(Instant::now());
        assert_eq!(backend.address(), Some(socket(1)), "no address is passed over any more");
    }

    #[test]
    fn health_tells_the_last_check_and_since_when() {
        let backend = one();
        let t0 = Instant::now();
        let t1 = t0 + Duration::from_secs(1);
        backend.checked(HealthState::Down, Check::failed("connection refused", t0));
        backend.checked(HealthState::Down, Check::failed("no answer", t1));
        let health = backend.health();
        assert_eq!((health.state, health.since), (HealthState::Down, t0));
        assert_eq!(health.last_check.and_then(|c| c.error).as_deref(), Some("no answer"));
        assert_eq!(backend.checks_failed_total(), 2);
    }

    #[test]
    fn history_tells_each_change_with_its_error_and_no_check_that_changed_nothing() {
        let backend = one();
        let t0 = Instant::now();
        let at = |secs| t0 + Duration::from_secs(secs);
        backend.checked(HealthState::Up, Check::good(Duration::ZERO, at(0)));
        backend.checked(HealthState::Up, Check::failed("once", at(1)));
        backend.checked(HealthState::Down, Check::failed("connection refused", at(2)));
        backend.checked(HealthState::Down, Check::failed("again", at(3)));
        backend.forget_health(at(4));
        let told: Vec<_> = backend.history().into_iter().map(|t| (t.at, t.to, t.error)).collect();
        let down = Some("connection refused".to_owned());
        let expected =
            [(at(4), HealthState::Unchecked, None), (at(2), HealthState::Down, down), (at(0), HealthState::Up, None)];
        assert_eq!(told, expected);
    }
}
