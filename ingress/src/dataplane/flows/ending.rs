//! Ends connections: log and free what they held, reset both ends where they are cut, and remove their entries when no straggler
//! comes any more.

use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use ingress_ebpf::connection::{Connection, FIN_FIRST, REUSED, RST_SENT, State};
use ingress_ebpf::flow::Direction;

use super::{Flows, idle, keys, monotonic, port};
use crate::dataplane::batch;
use crate::dataplane::reset::socket_address;
use crate::flow::FlowFilter;
use crate::l4::outcome::{ConnectionEnd, EndReason, Mode};

/// How long an ended connection's entries stay for stragglers: a lost last ACK and its answers.
const DRAIN: Duration = Duration::from_secs(3);
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
            self.conntrack.forget(connection);
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
        self.draining.lock().push_back((Instant::now() + DRAIN, index));
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

    /// Takes away connections that have been silent for [`DRAIN`] since they ended. A few at a time: a worker that hands off
    /// waits for the same lock.
    pub(in crate::dataplane) fn reap_due(&self) {
        let (now, at) = (monotonic(), Instant::now());
        let mut silent = Vec::new();
        loop {
            let mut draining = self.draining.lock();
            let Some((due, index)) = draining.front().copied().filter(|(due, _)| *due <= at) else { break };
            draining.pop_front();
            match DRAIN.checked_sub(idle(&self.slots.read(index), now)) {
                Some(rest) if !rest.is_zero() => draining.push_back((due + rest, index)),
                Some(_) | None => silent.push(index),
            }
        }
        self.reap(&silent);
    }

    /// Removes ended connections and gives their slots back.
    fn reap(&self, slots: &[u32]) {
        let mut doomed = Vec::with_capacity(slots.len() * 2);
        for chunk in slots.chunks(REAP_AT_ONCE) {
            doomed.clear();
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
                    }
                }
            }
            if let Err(error) = batch::delete(entries.fd.as_fd(), &doomed) {
                tracing::warn!(%error, "flow entries not removed; trying again");
                let again = Instant::now() + DRAIN;
                self.draining.lock().extend(chunk.iter().map(|index| (again, *index)));
                continue;
            }
            drop(entries);
            let mut labels = self.labels.lock();
            for index in chunk {
                labels.release(self.slots.read(*index).label);
                self.slots.release(*index);
            }
        }
    }
}
