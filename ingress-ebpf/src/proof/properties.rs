//! `observe` under arbitrary packets, and over whole connections whose truth is known.

use proptest::prelude::*;

use super::tests::{START_BACKEND, START_CLIENT, data, halves, with};
use super::*;
use crate::connection::Connection;

prop_compose! {
    fn any_halves()(
        (acked, high, window_end, fin, flags, start) in any::<(u64, u32, u32, u32, u32, u32)>(),
        packets in 0u64..1 << 40,
    ) -> Half {
        Half { last_seen: 1, packets, acked: acked >> 1, high, window_end, fin, flags: flags & 63, start, ..Half::default() }
    }
}

prop_compose! {
    fn any_packets()(
        (seq, ack, flags) in any::<(u32, u32, u8)>(),
        len in 0u32..1 << 20,
        window in 0u32..1 << 30,
    ) -> Packet {
        Packet { seq, ack, len, flags, window }
    }
}

proptest! {
    #[test]
    fn nothing_panics_and_what_proves_nothing_changes_nothing(
        (own, other) in (any_halves(), any_halves()),
        packet in any_packets(),
    ) {
        let mut after = own;
        if !observe(&mut after, &other, &packet, 2) {
            prop_assert_eq!(after, own);
        } else {
            prop_assert_eq!((after.last_seen, after.start), (2, own.start));
            prop_assert!(after.acked >= own.acked && after.acked - own.acked < 1 << 31);
            prop_assert!(!before(after.high, own.high) && !before(after.window_end, own.window_end));
        }
    }

    #[test]
    fn packets_outside_the_windows_prove_nothing(
        distance in OLD + OVERSHOOT + 1..1 << 30,
        (len, flags) in (0u32..1_500, any::<u8>()),
        inside in 0u32..500,
        case in 0usize..4,
    ) {
        let (client, backend) = halves();
        let (seq, ack) = (START_CLIENT.wrapping_add(inside), START_BACKEND);
        let (seq, ack) = match case {
            0 => (START_CLIENT.wrapping_sub(distance), ack),
            1 => (backend.window_end.wrapping_add(distance), ack),
            2 => (seq, ack.wrapping_sub(distance)),
            _ => (seq, backend.high.wrapping_add(distance)),
        };
        let flags = (flags | ACK) & !RST;
        let mut own = client;
        let packet = Packet { seq, ack, len, flags, window: 1 << 20 };
        prop_assert!(!observe(&mut own, &backend, &packet, 2));
        prop_assert_eq!(own, client);
    }

    #[test]
    fn bytes_are_counted_right_whatever_is_reordered_lost_or_sent_twice(
        (start_client, start_backend) in any::<(u32, u32)>(),
        seed in any::<u64>(),
        mean in 1u32..30_000,
    ) {
        let mut talk = Talk::new(start_client, start_backend, seed);
        for _ in 0..500 {
            talk.step(mean);
        }
        talk.check();
        talk.close();
    }
}

#[test]
fn bytes_are_counted_right_over_many_wraps() {
    let mut talk = Talk::new(u32::MAX - 5, 17, 4);
    for _ in 0..500_000 {
        talk.step(60_000);
    }
    assert!(talk.sent[0] > 2 << 32 && talk.sent[1] > 2 << 32, "{:?}", talk.sent);
    talk.check();
    talk.close();
}

/// A receiver may take what its window, as we know it, did not yet allow: an update that got lost on its way to us, a probe
/// of a closed window, a window that scaling rounded up. If the sender's numbers never caught up, no later packet of either
/// end would prove anything, and a busy connection would end as an idle one.
#[test]
fn a_byte_beyond_the_known_window_does_not_end_all_proof() {
    let (mut client, mut backend) = halves();
    let edge = backend.window_end;
    assert!(observe(&mut client, &backend, &data(edge.wrapping_sub(1_000), START_BACKEND, 1_000), 1));
    assert!(observe(&mut backend, &client, &Packet { window: 0, ..data(START_BACKEND, edge, 0) }, 2));
    assert!(observe(&mut client, &backend, &data(edge, START_BACKEND, 1), 3), "a probe of one byte");
    assert!(observe(&mut backend, &client, &data(START_BACKEND, edge.wrapping_add(1), 0), 4));
    assert!(observe(&mut client, &backend, &data(edge.wrapping_add(1), START_BACKEND, 1_000), 5));
}

#[test]
fn ends_that_close_at_once_are_both_heard_and_both_hold_time_wait() {
    let (mut client, mut backend) = halves();
    let high = client.high;
    assert!(observe(&mut client, &backend, &with(FIN, data(high, START_BACKEND, 0)), 1));
    assert!(observe(&mut backend, &client, &with(FIN, data(START_BACKEND, high, 0)), 2));
    assert!(observe(&mut client, &backend, &data(high.wrapping_add(1), START_BACKEND + 1, 0), 3));
    assert!(!Connection::ended(client.flags, backend.flags));
    assert!(observe(&mut backend, &client, &data(START_BACKEND + 1, high.wrapping_add(1), 0), 4));
    assert!(Connection::ended(client.flags, backend.flags));
    assert_eq!((client.flags & FIN_FIRST, backend.flags & FIN_FIRST), (FIN_FIRST, FIN_FIRST));
}

/// Two ends that talk past us, over a network that loses, repeats and reorders.
struct Talk {
    halves: [Half; 2],
    start: [u32; 2],
    /// Bytes sent, and acknowledged by the other.
    sent: [u64; 2],
    acked: [u64; 2],
    random: u64,
}

impl Talk {
    const WINDOW: u64 = 1 << 20;

    fn new(start_client: u32, start_backend: u32, random: u64) -> Self {
        let half = |own: u32, other: u32| Half {
            acked: other.into(),
            start: other,
            high: own,
            window_end: other.wrapping_add(Self::WINDOW as u32),
            ..Half::default()
        };
        Self {
            halves: [half(start_client, start_backend), half(start_backend, start_client)],
            start: [start_client, start_backend],
            sent: [0; 2],
            acked: [0; 2],
            random: random | 1,
        }
    }

    /// Xorshift: the same seed, the same conversation.
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit.max(1)
    }

    fn step(&mut self, mean: u32) {
        let from = self.below(2) as usize;
        let to = 1 - from;
        // Everything or part of what the other has sent; now and then what was said before.
        let unacked = self.sent[to] - self.acked[to];
        let ack = if self.below(4) == 0 {
            self.acked[to] - self.below(u64::from(OLD).min(self.acked[to]))
        } else {
            self.acked[to] + self.below(unacked + 1)
        };
        let room = (self.acked[from] + Self::WINDOW - self.sent[from]).min(u64::from(mean) * 2);
        let (at, len) = if self.below(4) == 0 {
            // A retransmission.
            let back = self.below((self.sent[from] - self.acked[from]).max(1));
            (self.sent[from] - back, back)
        } else {
            (self.sent[from], self.below(room + 1))
        };
        self.say(from, at, ack, len, 0);
        self.sent[from] = self.sent[from].max(at + len);
        self.acked[to] = self.acked[to].max(ack);
    }

    fn say(&mut self, from: usize, at: u64, ack: u64, len: u64, flags: u8) {
        let packet = Packet {
            seq: self.start[from].wrapping_add(at as u32),
            ack: self.start[1 - from].wrapping_add(ack as u32),
            len: len as u32,
            flags: ACK | flags,
            window: Self::WINDOW as u32,
        };
        let other = self.halves[1 - from];
        assert!(observe(&mut self.halves[from], &other, &packet, 2), "{packet:?} {:?} {other:?}", self.halves[from]);
    }

    fn connection(&self) -> Connection {
        let [from_client, from_backend] = self.halves;
        Connection { from_client, from_backend, ..Connection::default() }
    }

    fn check(&self) {
        let connection = self.connection();
        assert_eq!([connection.bytes_to_backend(), connection.bytes_to_client()], self.acked);
    }

    /// FINs, and the count still is of payload only.
    fn close(mut self) {
        let [client, backend] = self.sent;
        self.say(0, client, backend, 0, FIN);
        self.say(1, backend, client + 1, 0, FIN);
        self.say(0, client + 1, backend + 1, 0, 0);
        assert_eq!(self.halves.map(|half| half.flags & FIN_FIRST), [FIN_FIRST, 0]);
        // Again, since the answer was lost: that does not make it the first.
        self.say(1, backend, client + 1, 0, FIN);
        assert_eq!(self.halves.map(|half| half.flags & FIN_FIRST), [FIN_FIRST, 0]);
        let connection = self.connection();
        assert!(Connection::ended(connection.from_client.flags, connection.from_backend.flags));
        assert_eq!([connection.bytes_to_backend(), connection.bytes_to_client()], self.sent);
    }
}
