//! What a packet proves. State changes only for packets whose numbers show that they come from the peer itself: both the
//! sequence number and the acknowledgement must fit what the two ends have said so far (RFC 5961 section 5.2, applied in the
//! middle). Everything else is still translated and forwarded; the ends judge it by the same rules.

use crate::connection::{FIN_ACKED, FIN_FIRST, FIN_SENT, Half, RST_SENT};
use crate::header::{ACK, FIN, RST};
use crate::raise::{acknowledge, mark, reach, set};
use crate::rewrite::before;

/// A packet in client-side numbers, host order.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub seq: u32,
    pub ack: u32,
    /// Payload bytes, without FIN.
    pub len: u32,
    pub flags: u8,
    /// Bytes, scale applied.
    pub window: u32,
}

/// How far below the last acknowledgement a packet may lie and still prove itself. A full retransmitted window lies lower;
/// it is forwarded and proves nothing, which costs nothing.
const OLD: u32 = 1 << 16;
/// How far beyond the last window that we know of a packet may reach and still prove itself. A receiver may take such bytes
/// (the update that allowed them was lost, a probe, a window rounded up to the receiver's scale); if we did not, the sender's
/// numbers would be behind for ever and no later packet of either end could prove anything.
const OVERSHOOT: u32 = 1 << 16;

/// Takes what `packet` proves into `own`, its sender's half. False: it proves nothing and `own` is unchanged.
#[inline(always)]
pub fn observe(own: &mut Half, other: &Half, packet: &Packet, now: u64) -> bool {
    let acked_by_other = other.acked as u32;
    if packet.flags & RST != 0 {
        // The receiver of an RST acts on it only where the number is exact (RFC 5961 section 3.2); so do we.
        let proven = packet.seq == acked_by_other || packet.seq == own.high;
        if proven {
            set(own, RST_SENT);
            own.last_seen = now;
        }
        return proven;
    }
    if packet.flags & ACK == 0 {
        return false;
    }
    let fin = (packet.flags & FIN != 0) as u32;
    let end = packet.seq.wrapping_add(packet.len).wrapping_add(fin);
    let too_old = before(packet.seq, acked_by_other.wrapping_sub(OLD));
    let beyond_window = before(other.window_end.wrapping_add(OVERSHOOT), end);
    let ack_too_old = before(packet.ack, (own.acked as u32).wrapping_sub(OLD));
    let ack_unsent = before(other.high, packet.ack);
    if too_old || beyond_window || ack_too_old || ack_unsent {
        return false;
    }

    own.last_seen = now;
    own.packets += 1;
    acknowledge(own, packet.ack);
    reach(own, end, packet.ack.wrapping_add(packet.window));
    let (other_flags, other_fin) = (other.flags, other.fin);
    mark(own, |own_fin, flags| {
        let acked = if other_flags & FIN_SENT != 0 && packet.ack == other_fin { FIN_ACKED } else { 0 };
        if fin != 0 {
            let first = if acked == 0 { FIN_FIRST } else { 0 };
            (end, flags | FIN_SENT | first | acked)
        } else if flags & FIN_SENT != 0 && before(own_fin, end) {
            // Data beyond a FIN: that FIN was not the peer's.
            (own_fin, flags & !(FIN_SENT | FIN_FIRST) | acked)
        } else {
            (own_fin, flags | acked)
        }
    });
    true
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Connection;

    pub(super) const START_CLIENT: u32 = 0xffff_f000;
    pub(super) const START_BACKEND: u32 = 7_000;

    /// A connection after its first flight of 500 bytes.
    pub(super) fn halves() -> (Half, Half) {
        let from_client = Half {
            acked: START_BACKEND as u64,
            start: START_BACKEND,
            high: START_CLIENT.wrapping_add(500),
            window_end: START_BACKEND + 65_535,
            ..Half::default()
        };
        let from_backend = Half {
            acked: START_CLIENT as u64,
            start: START_CLIENT,
            high: START_BACKEND,
            window_end: START_CLIENT.wrapping_add(65_535),
            ..Half::default()
        };
        (from_client, from_backend)
    }

    pub(super) fn data(seq: u32, ack: u32, len: u32) -> Packet {
        Packet { seq, ack, len, flags: ACK, window: 65_535 }
    }

    pub(super) fn with(flags: u8, packet: Packet) -> Packet {
        Packet { flags: packet.flags | flags, ..packet }
    }

    #[test]
    fn payload_is_counted_across_the_wrap_of_sequence_numbers_and_without_the_fins() {
        let (mut client, mut backend) = halves();
        let hello_end = START_CLIENT.wrapping_add(500);
        assert!(observe(&mut backend, &client, &data(START_BACKEND, hello_end, 1_000), 1));
        assert!(observe(&mut client, &backend, &data(hello_end, START_BACKEND + 1_000, 6_000), 2));
        let end = hello_end.wrapping_add(6_000);
        assert!(observe(&mut backend, &client, &with(FIN, data(START_BACKEND + 1_000, end, 0)), 3));
        assert!(observe(&mut client, &backend, &with(FIN, data(end, START_BACKEND + 1_001, 0)), 4));
        assert!(observe(&mut backend, &client, &data(START_BACKEND + 1_001, end.wrapping_add(1), 0), 5));
        assert!(Connection::ended(client.flags, backend.flags));
        let connection = Connection { from_client: client, from_backend: backend, ..Connection::default() };
        assert_eq!(connection.bytes_to_backend(), 6_500);
        assert_eq!(connection.bytes_to_client(), 1_000);
    }

    #[test]
    fn rst_counts_only_with_the_exact_number() {
        let (mut client, backend) = halves();
        let rst = |seq| Packet { seq, ack: 0, len: 0, flags: RST, window: 0 };
        for wrong in [START_CLIENT.wrapping_add(1), START_CLIENT.wrapping_sub(1), 0, 0x8000_0000] {
            assert!(!observe(&mut client, &backend, &rst(wrong), 9), "{wrong:#x}");
            assert_eq!((client.flags, client.last_seen), (0, 0));
        }
        assert!(observe(&mut client, &backend, &rst(START_CLIENT), 9));
        assert!(Connection::ended(client.flags, backend.flags));
    }

    #[test]
    fn forged_packets_change_nothing() {
        let (client, backend) = halves();
        let high = client.high;
        let forgeries = [
            ("beyond the window", data(high.wrapping_add(1 << 20), START_BACKEND, 10)),
            ("acknowledges what was never sent", data(high, START_BACKEND + 1, 0)),
            ("far below", data(START_CLIENT.wrapping_sub(1 << 17), START_BACKEND, 10)),
            ("acknowledgement far below", data(high, START_BACKEND.wrapping_sub(1 << 17), 10)),
            ("FIN beyond the window", with(FIN, data(high.wrapping_add(1 << 20), START_BACKEND, 0))),
            ("no ACK", Packet { flags: 0, ..data(high, START_BACKEND, 10) }),
        ];
        for (what, packet) in forgeries {
            let mut own = client;
            assert!(!observe(&mut own, &backend, &packet, 9), "{what}");
            assert_eq!(format!("{own:?}"), format!("{client:?}"), "{what}");
        }
    }

    #[test]
    fn a_fin_is_over_when_data_follows_it() {
        let (mut client, mut backend) = halves();
        let high = client.high;
        assert!(observe(&mut client, &backend, &with(FIN, data(high, START_BACKEND, 0)), 1));
        assert!(observe(&mut client, &backend, &data(high, START_BACKEND, 100), 2));
        assert_eq!(client.flags & FIN_SENT, 0);
        assert!(observe(&mut backend, &client, &data(START_BACKEND, high.wrapping_add(1), 0), 3));
        assert_eq!(backend.flags & FIN_ACKED, 0);
    }
}
