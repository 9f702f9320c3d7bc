//! Installs a connection: label, slot, both entries, in this order; takes all back unless the handoff is completed.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use aya::maps::MapError;
use ingress_ebpf::connection::{Connection, FIRST_FLIGHT_ACKED, FOLLOWS, Half, STAYS, State, WindowScales};
use ingress_ebpf::flow::{Direction, FlowEntry, FlowKey};

use super::following::hop;
use super::{Flows, Live, Way, key, keys, monotonic};
use crate::dataplane::Held;
use crate::dataplane::labels::Words;
use crate::dataplane::ports::PortGuard;
use crate::dataplane::reset::endpoint;
use crate::dataplane::slots::SlotId;
use crate::flow::Transferred;
use crate::l4::outcome::{ConnectionInfo, EndReason, RelayReason};

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

/// Everything about a connection that the sockets and the route decision know.
pub(crate) struct Plan<'a> {
    pub(crate) info: &'a ConnectionInfo,
    /// Wire addresses.
    pub(crate) client: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) source: SocketAddr,
    pub(crate) backend: SocketAddr,
    /// Client-side: the next byte that we would read from the client.
    pub(crate) client_read: u32,
    /// Client-side: the first payload byte of the client's stream that goes to the backend.
    pub(crate) client_start: u32,
    /// Client-side: the next byte that we would send to the client.
    pub(crate) client_write: u32,
    /// Backend-side: the next byte that we would read from the backend.
    pub(crate) backend_read: u32,
    /// Backend-side: the end of the first flight.
    pub(crate) first_flight_end: u32,
    /// What must be acknowledged before anything is spliced to the client; equals `first_flight_end` unless held back.
    pub(crate) min_ack: u32,
    /// What both ends had acknowledged before; nothing, unless the connection was relayed.
    pub(crate) carried: Transferred,
    pub(crate) scale: WindowScales,
    pub(crate) to_backend: Way,
    pub(crate) to_client: Way,
    pub(crate) idle_timeout: Duration,
}

/// Entries that stand while the first flight is still to be sent, or while both sockets are looked at. Dropping it without
/// [`Arming::done`] or [`Arming::thaw`] takes them away.
pub(crate) struct Arming {
    flows: Arc<Flows>,
    pub(crate) slot: SlotId,
    keys: [FlowKey; 2],
    label: u32,
    follows: [bool; 2],
    done: bool,
}

impl Flows {
    /// Installs both entries, the backend's first: from here on the client's packets go to the backend.
    pub(crate) fn arm(self: &Arc<Self>, plan: &Plan) -> Result<Arming, RelayReason> {
        self.install(plan, State::Armed)
    }

    /// Installs both entries of a connection that was relayed, and lets nothing through: from here on neither end gets a packet
    /// of the other, nor a word of our sockets.
    pub(crate) fn freeze(self: &Arc<Self>, plan: &Plan) -> Result<Arming, RelayReason> {
        self.install(plan, State::Moving)
    }

    fn install(self: &Arc<Self>, plan: &Plan, state: State) -> Result<Arming, RelayReason> {
        let words = Words::of(plan.info, plan.client);
        let label = self.labels.lock().intern(words).ok_or(RelayReason::Full)?;
        let Some(slot) = self.slots.take() else {
            self.labels.lock().release(label);
            return Err(RelayReason::Full);
        };
        let connection = plan.connection(label, state);
        self.slots.write(slot, &connection, state);
        self.trust(&connection);
        let keys = [key(plan.backend, plan.source), key(plan.client, plan.local)];
        let follows = [plan.to_backend.follows, plan.to_client.follows];
        let mut arming = Arming { flows: Arc::clone(self), slot, keys, label, follows, done: false };
        for (key, direction) in arming.keys.into_iter().zip([Direction::ToClient, Direction::ToBackend]) {
            if let Err(reason) = self.insert(key, slot, direction) {
                arming.take_back();
                return Err(reason);
            }
        }
        Ok(arming)
    }

    fn insert(&self, key: FlowKey, slot: SlotId, direction: Direction) -> Result<(), RelayReason> {
        let entry =
            FlowEntry { slot: slot.index, generation: slot.generation, direction: direction as u32, reserved: 0 };
        let mut entries = self.entries.lock();
        match entries.map.insert(key, entry, NO_EXIST) {
            Ok(()) => return Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
                return Err(RelayReason::Full);
            }
            Err(error) => {
                tracing::warn!(%error, "flow entry refused");
                return Err(RelayReason::Error);
            }
        }
        // The tuple of a connection that has ended and still waits for stragglers may be taken over.
        let standing = entries.map.get(&key, 0).map_err(|_| RelayReason::Error)?;
        match self.slots.state(standing.slot) {
            State::Draining | State::Free | State::Cut => {
                entries.map.insert(key, entry, 0).map_err(|_| RelayReason::Error)?;
                entries.overtaken.insert((standing.slot, standing.direction));
                Ok(())
            }
            State::Armed | State::Spliced | State::Moving => {
                tracing::warn!(slot = standing.slot, "a live flow stands on this tuple");
                Err(RelayReason::Error)
            }
        }
    }

    /// Removes the entries of a connection that was never completed, as far as they are its own.
    fn remove_entries(&self, index: u32, connection: &Connection) {
        let mut entries = self.entries.lock();
        for (key, _) in keys(connection) {
            let ours = entries
                .map
                .get(&key, 0)
                .is_ok_and(|entry| entry.slot == index && entry.generation == connection.generation);
            if ours {
                let _ = entries.map.remove(&key);
            }
        }
    }
}

impl Plan<'_> {
    fn connection(&self, label: u32, state: State) -> Connection {
        let now = monotonic();
        let started = self.info.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        // Until the ends have spoken: a window that either may fill, no more than our sockets ever offered.
        const FIRST_WINDOW: u32 = 1 << 20;
        let half = |start: u32, carried: u64, high: u32, way: Way| Half {
            last_seen: now,
            acked: u64::from(start) + carried,
            high,
            window_end: start.wrapping_add(carried as u32).wrapping_add(FIRST_WINDOW),
            start,
            flags: if way.follows { FOLLOWS } else { STAYS },
            hop: hop(way.hop),
            ..Half::default()
        };
        let Transferred { to_backend, to_client } = self.carried;
        // Of a relay's connection, the backend has acknowledged all that our socket sent.
        let flags = if state == State::Moving { FIRST_FLIGHT_ACKED } else { 0 };
        let from_backend = half(self.client_start, to_backend, self.client_write, self.to_client);
        Connection {
            #[cfg(feature = "layout-probe")]
            probe: Default::default(),
            state: State::Free as u32,
            generation: 0,
            min_ack: self.min_ack,
            label,
            id: self.info.id,
            started,
            to_backend_delta: self.first_flight_end.wrapping_sub(self.client_read),
            to_client_delta: self.client_write.wrapping_sub(self.backend_read),
            ifindex: [self.to_backend.device, self.to_client.device],
            scale: self.scale,
            idle_timeout: u32::try_from(self.idle_timeout.as_secs().max(1)).unwrap_or(u32::MAX),
            client: endpoint(self.client),
            local: endpoint(self.local),
            source: endpoint(self.source),
            backend: endpoint(self.backend),
            from_client: half(
                self.client_write.wrapping_sub(to_client as u32),
                to_client,
                self.client_read,
                self.to_backend,
            ),
            from_backend: Half { flags: from_backend.flags | flags, ..from_backend },
        }
    }
}

impl Arming {
    /// `extra` more bytes of the client belong to the first flight.
    pub(crate) fn raise_min_ack(&self, min_ack: u32) {
        self.flows.slots.set_min_ack(self.slot.index, min_ack);
    }

    /// The first flight is with the backend's socket, which the reaper closes once it is acknowledged. `held` is dropped when the
    /// connection ends.
    ///
    /// `silent`: the first flight is empty, so there is nothing to wait for.
    pub(crate) fn done(mut self, backend_socket: OwnedFd, port: PortGuard, held: Held, silent: bool) {
        self.done = true;
        port.pass_on();
        let live = Live {
            backend_socket: Some(backend_socket),
            armed_at: Some(Instant::now()),
            told: Transferred::default(),
            follows: Some(self.follows),
            _held: held,
        };
        self.flows.live.lock().insert(self.slot.index, live);
        if self.flows.slots.state(self.slot.index) == State::Cut {
            let connection = self.flows.slots.read(self.slot.index);
            return self.flows.end(self.slot.index, &connection, EndReason::Killed, State::Cut);
        }
        if silent {
            return self.flows.spliced(self.slot);
        }
        // The event may have come before the socket was there to be closed.
        self.flows.first_flight_acked(self.slot);
    }

    /// Of a frozen connection: its packets go through from now on. `told`: bytes that the sink has heard of.
    pub(crate) fn thaw(mut self, backend_socket: OwnedFd, port: PortGuard, told: Transferred, held: Held) {
        self.done = true;
        port.pass_on();
        let live = Live {
            backend_socket: Some(backend_socket),
            armed_at: None,
            told,
            follows: Some(self.follows),
            _held: held,
        };
        self.flows.live.lock().insert(self.slot.index, live);
        self.flows.spliced(self.slot);
    }

    fn take_back(&mut self) {
        self.done = true;
        let connection = self.flows.slots.read(self.slot.index);
        self.flows.remove_entries(self.slot.index, &connection);
        self.flows.labels.lock().release(self.label);
        self.flows.slots.release(self.slot.index);
    }
}

impl Drop for Arming {
    fn drop(&mut self) {
        if !self.done {
            self.take_back();
        }
    }
}
