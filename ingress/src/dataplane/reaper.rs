//! The thread that ends things: closes backend sockets whose first flight has arrived, logs ended connections, cuts idle ones,
//! removes entries. Events only make it faster; its scan finds everything by itself.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use ingress_ebpf::connection::{Connection, FIRST_FLIGHT_ACKED, RST_SENT, State};
use ingress_ebpf::event::{Event, Kind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::flows::{ARMED_DEADLINE, Flows, Reset, idle, is_live, monotonic};
use super::keepalive::{Keepalive, Life};
use super::narrow::Narrow;
use super::program_log::ProgramLog;
use super::slots::SlotId;
use crate::flow::Transferred;
use crate::l4::outcome::EndReason;

/// Between scans of the connection table.
const SCAN: Duration = Duration::from_millis(500);

/// How long events gather after the first: each wake-up takes a CPU from somebody who waits for a first byte. The ring holds
/// those of 270,000 connections a second for that time.
const GATHER: Duration = Duration::from_millis(20);

pub(super) struct Reaper {
    flows: Arc<Flows>,
    events: RingBuf<MapData>,
    log: ProgramLog,
    keepalive: Keepalive,
}

impl Reaper {
    pub(super) fn spawn(
        flows: Arc<Flows>,
        events: RingBuf<MapData>,
        log: ProgramLog,
        keepalive: Keepalive,
    ) -> io::Result<()> {
        let mut reaper = Self { flows, events, log, keepalive };
        std::thread::Builder::new().name("reaper".to_owned()).spawn(move || reaper.run())?;
        Ok(())
    }

    fn run(&mut self) {
        let mut next_scan = Instant::now() + SCAN;
        let mut narrow = Narrow::default();
        while !self.flows.stopping.load(Ordering::Acquire) {
            let wait = next_scan.saturating_duration_since(Instant::now()).as_millis() as u16;
            // SAFETY: the ring outlives the call.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.events.as_raw_fd()) };
            if let Err(error) = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(wait))
                && error != nix::errno::Errno::EINTR
            {
                tracing::error!(%error, "waiting for kernel events");
                std::thread::sleep(SCAN);
            }
            // One wake-up for many events: nobody waits for what is done here.
            std::thread::sleep(GATHER);
            while let Some(record) = self.events.next() {
                let event = parse(&record);
                drop(record);
                if let Some((kind, slot, detail)) = event {
                    match kind {
                        Kind::FirstFlightAcked => self.flows.first_flight_acked(slot),
                        Kind::Ended => self.flows.ended(slot),
                        Kind::Narrow => narrow.note(slot, detail),
                    }
                }
            }
            self.flows.tell_narrow(&mut narrow);
            self.flows.reap_due();
            if Instant::now() >= next_scan {
                self.flows.scan(&mut self.keepalive);
                self.log.flush();
                next_scan = Instant::now() + SCAN;
            }
        }
    }
}

impl Flows {
    /// Our backend socket has done its work. In repair mode, closing says nothing on the wire.
    pub(super) fn first_flight_acked(&self, slot: SlotId) {
        let Some(connection) = self.slots.get(slot) else { return };
        if connection.from_backend.flags & FIRST_FLIGHT_ACKED == 0 || self.slots.state(slot.index) != State::Armed {
            return;
        }
        self.spliced(slot);
    }

    pub(super) fn spliced(&self, slot: SlotId) {
        // Before the state says that it is done: whoever takes over from a daemon that was killed here does it again.
        self.untrack(&self.slots.read(slot.index));
        let socket = match self.live.lock().get_mut(&slot.index) {
            Some(live) => {
                live.armed_at = None;
                // Under the lock: a cut at this moment comes before or after, and wins.
                self.slots.set_state(slot.index, State::Spliced);
                live.backend_socket.take()
            }
            None => return,
        };
        if let Some(socket) = socket {
            crate::dataplane::repair::close_silently(socket);
        }
    }

    pub(super) fn ended(&self, slot: SlotId) {
        let Some(connection) = self.slots.get(slot) else { return };
        if is_live(&connection) && has_ended(&connection) {
            let socket = match self.live.lock().get_mut(&slot.index) {
                Some(live) => live.backend_socket.take(),
                // Its handoff is not finished; the scan comes back.
                None => return,
            };
            // A backend that refuses the first flight leaves our socket behind.
            if let Some(socket) = socket {
                crate::dataplane::repair::close_silently(socket);
            }
            match reset_by(&connection) {
                Some(by) => self.end_reset(slot.index, &connection, by),
                None => self.end(slot.index, &connection, EndReason::Closed, State::Draining),
            }
        }
    }

    /// Finds what no event told.
    fn scan(&self, keepalive: &mut Keepalive) {
        keepalive.begin();
        let now = monotonic();
        let mut moving = Vec::new();
        for (index, connection) in self.slots.live() {
            let slot = SlotId { index, generation: connection.generation };
            match State::from_u32(connection.state) {
                Some(State::Armed | State::Spliced) if has_ended(&connection) => self.ended(slot),
                Some(State::Armed) if connection.from_backend.flags & FIRST_FLIGHT_ACKED != 0 => {
                    self.first_flight_acked(slot);
                }
                Some(State::Armed) => {
                    let overdue = |at: Instant| at.elapsed() > ARMED_DEADLINE;
                    if self.live.lock().get(&index).is_some_and(|live| live.armed_at.is_some_and(overdue)) {
                        self.cut_slot(index, &connection, EndReason::Error);
                    }
                }
                Some(State::Spliced) => {
                    if idle(&connection, now) > Duration::from_secs(connection.idle_timeout.into()) {
                        self.cut_slot(index, &connection, EndReason::IdleTimeout);
                    } else if self.keep_alive(keepalive, index, &connection) == Life::Goes {
                        let to_backend = connection.bytes_to_backend();
                        let to_client = connection.bytes_to_client();
                        moving.push((index, connection.label, Transferred { to_backend, to_client }));
                    }
                }
                // Each is in the queue of `reap_due`.
                Some(State::Draining | State::Cut | State::Moving | State::Free) | None => {}
            }
        }
        keepalive.end(|slot| self.slots.get(slot).is_some_and(|connection| is_live(&connection)));
        self.tell_progress(&moving);
    }
}

fn has_ended(connection: &Connection) -> bool {
    Connection::ended(connection.from_client.flags, connection.from_backend.flags)
}

/// Whose reset ended it. `None`: nobody's.
fn reset_by(connection: &Connection) -> Option<Reset> {
    if connection.from_client.flags & RST_SENT != 0 {
        Some(Reset::Client)
    } else if connection.from_backend.flags & RST_SENT != 0 {
        Some(Reset::Backend)
    } else {
        None
    }
}

fn parse(record: &[u8]) -> Option<(Kind, SlotId, u32)> {
    let word = |at: usize| record.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    const _: () = assert!(size_of::<Event>() == 16);
    Some((Kind::from_u32(word(0)?)?, SlotId { index: word(4)?, generation: word(8)? }, word(12)?))
}
