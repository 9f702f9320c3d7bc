//! Ends connections: log and free what they held, reset both ends where they are cut, and remove their entries when no straggler
//! comes any more.

use std::os::fd::AsFd;
use std::time::{Instant, SystemTime};

use ingress_ebpf::connection::{Connection, FIN_FIRST, REUSED, RST_SENT, State};
use ingress_ebpf::flow::Direction;

use super::{Flows, idle, keys, monotonic, port};
use crate::dataplane::batch;
use crate::dataplane::conntrack::legs;
use crate::dataplane::reset::socket_address;
use crate::flow::FlowFilter;
use crate::l4::outcome::{ConnectionEnd, EndReason, Mode};

/// Who has reset the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dataplane) enum Reset {
    Client,
    Backend,
}

/// Connections whose entries go with one system call. Workers wait for the lock meanwhile, so not too many.
const REAP_AT_ONCE: usize = 64;

impl Flows {
    /// The connection is over: log it, free its port, keep its entries for stragglers. One whose handoff is not finished is
    /// ended by that, and a second end is none.
    pub(in crate::dataplane) fn end(&self, index: u32, connection: &Connection, reason: EndReason, state: State) {
        let Some(live) = self.live.lock().remove(&index) else { return };
        self.slots.set_state(index, state);
        if connection.state == State::Armed as u32 {
            // It ends before it was spliced.
            self.conntrack.forget(legs(connection).map(|(leg, _)| leg));
        }
        let rests = connection.from_backend.flags & FIN_FIRST != 0
            && (connection.from_client.flags | connection.from_backend.flags) & RST_SENT == 0;
        let backend = socket_address(&connection.backend);
        self.ports.free(backend, port(&connection.source.port), rests, Instant::now());
        let info = self.info(connection);
        let duration = SystemTime::now().duration_since(info.started).unwrap_or_default();
        let end = ConnectionEnd {
            info,
            mode: Mode::Kernel,
            reason,
            bytes_to_backend: connection.bytes_to_backend(),
            bytes_to_client: connection.bytes_to_client(),
            duration,
        };
        self.sink.ended(end, live.told);
        self.leftovers.lock().add(index, Instant::now());
    }

    /// One end has reset the other. Neither has anything more to say: whatever still arrives is answered with an RST, as on a
    /// connection that was cut.
    pub(in crate::dataplane) fn end_reset(&self, index: u32, connection: &Connection, by: Reset) {
        let (towards, reason) = match by {
            Reset::Client => (Direction::ToBackend, EndReason::ClientReset),
            Reset::Backend => (Direction::ToClient, EndReason::BackendReset),
        };
        // An RST is never sent again. This one may be lost behind us, come with a wrong checksum, or have a number that its
        // receiver does not expect (RFC 5961 section 3.2); that end would then live on, and be nobody's any more.
        if let Err(error) = self.resetter.reset_one(connection, towards) {
            tracing::debug!(%error, "RST not sent; the next packet of that end is answered with one");
        }
        self.end(index, connection, reason, State::Cut);
    }

    /// Resets both ends now; whatever still arrives is answered with an RST in the kernel.
    pub(in crate::dataplane) fn cut_slot(&self, index: u32, connection: &Connection, reason: EndReason) {
        self.slots.set_state(index, State::Cut);
        if let Err(error) = self.resetter.reset(connection) {
            tracing::debug!(%error, "RST not sent; the next packet of either end is answered with one");
        }
        self.end(index, connection, reason, State::Cut);
    }

    pub(in crate::dataplane) fn cut(&self, filter: &FlowFilter, reason: EndReason) -> usize {
        let now = monotonic();
        let mut cut = 0;
        for (index, connection) in self.slots.live() {
            if filter.matches(&self.view(&connection, now)) {
                self.cut_slot(index, &connection, reason);
                cut += 1;
            }
        }
        cut
    }

    /// Takes away ended connections for which nobody comes any more. A few at a time: a worker that hands off waits for the same
    /// lock.
    pub(in crate::dataplane) fn reap_due(&self) {
        let now = monotonic();
        let over = self.leftovers.lock().take(Instant::now(), |index| idle(&self.slots.read(index), now));
        self.reap(&over);
    }

    /// Removes ended connections and gives their slots back.
    fn reap(&self, slots: &[u32]) {
        let mut doomed = Vec::with_capacity(slots.len() * 2);
        // Stragglers that come by a bridge were to pass the host's firewall until now. By which device is not asked: routes move.
        let some_are_tracked = self.some_are_tracked();
        for chunk in slots.chunks(REAP_AT_ONCE) {
            doomed.clear();
            let mut tracked = Vec::new();
            // Under the lock nobody can install a newer connection on a key between the look and the delete.
            let mut entries = self.entries.lock();
            for index in chunk {
                let connection = self.slots.read(*index);
                for (key, direction) in keys(&connection) {
                    let half = match direction {
                        Direction::ToBackend => &connection.from_client,
                        Direction::ToClient => &connection.from_backend,
                    };
                    let overtaken = entries.overtaken.remove(&(*index, direction as u32));
                    if !overtaken && half.flags & REUSED == 0 {
                        doomed.push(key);
                        if some_are_tracked {
                            tracked.push((connection, direction as usize));
                        }
                    }
                }
            }
            if let Err(error) = batch::delete(entries.fd.as_fd(), &doomed) {
                tracing::warn!(%error, "flow entries not removed; trying again");
                self.leftovers.lock().again(chunk, Instant::now());
                continue;
            }
            drop(entries);
            self.conntrack.forget(tracked.iter().map(|(connection, direction)| legs(connection)[*direction].0));
            let mut labels = self.labels.lock();
            for index in chunk {
                labels.release(self.slots.read(*index).label);
                self.slots.release(*index);
            }
        }
    }
}
