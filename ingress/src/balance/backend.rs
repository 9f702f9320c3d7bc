//! One backend: identity, addresses, health and counters. Shared by all snapshots that name it unchanged.
//!
//! Read without locks on the way of a connection; health is written by the health task only, addresses by the resolver
//! only, and counters by whoever carries a connection.

mod addresses;
mod health;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use self::addresses::Addresses;
pub use self::health::{Check, Health, HealthState};
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
    addresses: Addresses,
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

impl Backend {
    /// More answers for one DNS name than this are left out.
    pub const MAX_ADDRESSES: usize = Addresses::MOST;

    pub(super) fn new(pool: PoolName, config: &BackendConfig) -> Self {
        let BackendConfig { name, address, weight: _ } = config;
        let now = Instant::now();
        Self {
            pool,
            name: name.clone(),
            target: address.clone(),
            born: now,
            hash_seed: hash::seed(name),
            addresses: Addresses::new(address),
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
        self.addresses.first()
    }

    /// All addresses, in ascending order.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.all()
    }

    pub fn is_resolved(&self) -> bool {
        self.addresses.is_known()
    }

    /// The resolver's newest answer. Addresses that stay keep what their last probe said.
    pub fn set_addresses(&self, sockets: Vec<SocketAddr>) {
        self.addresses.set(sockets);
    }

    /// What the last probe of one address said.
    pub fn address_checked(&self, socket: SocketAddr, good: bool) {
        self.addresses.checked(socket, good);
    }

    /// Goes round the addresses; with a `key` (source hash) always to the same one.
    pub(super) fn next_address(&self, key: Option<IpAddr>) -> Option<SocketAddr> {
        self.addresses.next(key)
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
        self.addresses.forget_checks();
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

#[cfg(test)]
mod tests;
