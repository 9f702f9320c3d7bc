//! The arithmetic of `rewrite` against RFC 1071 done the slow way.

use proptest::prelude::*;

use super::*;
use crate::flow::mapped;
use crate::header::{FIN, IPPROTO_TCP, Ipv4, RST};

/// RFC 1071 section 4.1, byte by byte; `seed` counts as further words.
fn checksum(bytes: &[u8], seed: u32) -> u16 {
    let mut sum = u64::from(seed);
    for (at, byte) in bytes.iter().enumerate() {
        sum += if at % 2 == 0 { u64::from(*byte) << 8 } else { u64::from(*byte) };
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn ip_bytes(ip: &Ipv4) -> Vec<u8> {
    let Ipv4 { version_ihl, tos, total_len, id, fragment, ttl, protocol, check, source, destination } = *ip;
    let mut bytes = vec![version_ihl, tos];
    for word in [total_len, id, fragment, u16::from_ne_bytes([ttl, protocol]), check] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(source.to_ne_bytes());
    bytes.extend(destination.to_ne_bytes());
    bytes
}

fn tcp_bytes(tcp: &Tcp, rest: &[u8]) -> Vec<u8> {
    let Tcp { source_port, destination_port, seq, ack, offset, flags, window, check, urgent } = *tcp;
    let mut bytes = Vec::new();
    bytes.extend(source_port.to_ne_bytes());
    bytes.extend(destination_port.to_ne_bytes());
    bytes.extend(seq.to_ne_bytes());
    bytes.extend(ack.to_ne_bytes());
    bytes.extend([offset, flags]);
    for word in [window, check, urgent] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(rest);
    bytes
}

/// Of the segment whose check field is zero, as it belongs into the field.
fn tcp_checksum(ip: &Ipv4, tcp: &Tcp, rest: &[u8]) -> u16 {
    let segment = tcp_bytes(&Tcp { check: 0, ..*tcp }, rest);
    let addresses = [ip.source.to_ne_bytes(), ip.destination.to_ne_bytes()].concat();
    let pseudo = !checksum(&addresses, u32::from(IPPROTO_TCP) + segment.len() as u32);
    checksum(&segment, u32::from(pseudo)).to_be()
}

prop_compose! {
    /// Any connection, as its packets to the backend need it.
    fn connections()(
        (source, backend) in any::<([u8; 4], [u8; 4])>(),
        (source_port, backend_port) in any::<([u8; 2], [u8; 2])>(),
        (to_backend_delta, to_client_delta) in any::<(u32, u32)>(),
        (client, to_backend) in (0u8..=14, 0u8..=14),
    ) -> Connection {
        Connection {
            to_backend_delta,
            to_client_delta,
            scale: WindowScales { client, to_backend, ..WindowScales::default() },
            source: Endpoint { address: mapped(source), port: source_port },
            backend: Endpoint { address: mapped(backend), port: backend_port },
            ..Connection::default()
        }
    }
}

prop_compose! {
    /// Headers whose checksums are right, and the options and payload behind them.
    fn packets()(
        (tos, id, ttl) in (any::<u8>(), any::<u16>(), 2u8..),
        (source, destination) in any::<(u32, u32)>(),
        (source_port, destination_port) in any::<(u16, u16)>(),
        (seq, ack, window, urgent) in any::<(u32, u32, u16, u16)>(),
        flags in prop_oneof![4 => Just(ACK), 1 => Just(ACK | FIN), 1 => Just(RST), 1 => Just(SYN), 2 => any::<u8>()],
        options in 0usize..=10,
        rest in prop::collection::vec(any::<u8>(), 40..400),
    ) -> (Ipv4, Tcp, Vec<u8>) {
        let rest = rest[40 - options * 4..].to_vec();
        let total_len = (40 + rest.len() as u16).to_be();
        let mut ip = Ipv4 {
            version_ihl: 0x45, tos, total_len, id, fragment: 0, ttl, protocol: IPPROTO_TCP, check: 0, source, destination,
        };
        ip.check = checksum(&ip_bytes(&ip), 0).to_be();
        let offset = (5 + options as u8) << 4;
        let mut tcp = Tcp { source_port, destination_port, seq, ack, offset, flags, window, check: 0, urgent };
        tcp.check = tcp_checksum(&ip, &tcp, &rest);
        (ip, tcp, rest)
    }
}

fn to_backend(connection: &Connection) -> Translation<'_> {
    Translation::of(connection, Direction::ToBackend)
}

/// As `Packet::rewrite` does in the kernel.
fn rewrite<I: Ip>(translation: &Translation, ip: &mut I, tcp: &mut Tcp) {
    let Difference { pseudo, header, uncovered: _ } = translation.apply(ip, tcp);
    tcp.check = apply(apply(tcp.check, pseudo), header);
}

proptest! {
    #[test]
    fn both_checksums_after_a_rewrite_equal_a_full_recompute(
        (mut ip, mut tcp, rest) in packets(),
        connection in connections(),
    ) {
        rewrite(&to_backend(&connection), &mut ip, &mut tcp);
        prop_assert_eq!(ip.check, checksum(&ip_bytes(&Ipv4 { check: 0, ..ip }), 0).to_be());
        prop_assert_eq!(tcp.check, tcp_checksum(&ip, &tcp, &rest));
    }

    #[test]
    fn a_broken_checksum_stays_broken(
        (ip, tcp, rest) in packets(),
        connection in connections(),
        error in 1u16..0xffff,
    ) {
        let (mut ip, mut tcp) = (ip, tcp);
        tcp.check = apply(tcp.check, error.into());
        rewrite(&to_backend(&connection), &mut ip, &mut tcp);
        prop_assert_ne!(tcp.check, tcp_checksum(&ip, &tcp, &rest), "the end must notice what the network damaged");
    }

    #[test]
    fn the_inverse_rewrite_gives_the_packet_back(
        (ip, tcp, _rest) in packets(),
        connection in connections(),
        window in 0u16..0x4000,
        (coarse, fine) in (0u8..=2).prop_flat_map(|shift| (0u8..=12).prop_map(move |fine| (fine + shift, fine))),
    ) {
        // A coarser sender and a finer receiver, and a window that does not clamp: nothing is rounded away.
        let endpoint = |address: u32, port: u16| Endpoint { address: mapped(address.to_ne_bytes()), port: port.to_ne_bytes() };
        let (source, destination) = (endpoint(ip.source, tcp.source_port), endpoint(ip.destination, tcp.destination_port));
        let translation = Translation { scale_up: coarse, scale_down: fine, ..to_backend(&connection) };
        let inverse = Translation {
            source: &source,
            destination: &destination,
            seq_delta: translation.seq_delta.wrapping_neg(),
            ack_delta: translation.ack_delta.wrapping_neg(),
            scale_up: fine,
            scale_down: coarse,
        };
        let mut before = (ip, Tcp { window: window.to_be(), ..tcp });
        before.1.check = tcp_checksum(&before.0, &before.1, &[]);
        let (mut ip, mut tcp) = before;
        rewrite(&translation, &mut ip, &mut tcp);
        prop_assert_eq!(ip.ttl, before.0.ttl - 1);
        rewrite(&inverse, &mut ip, &mut tcp);
        prop_assert_eq!(ip.ttl, before.0.ttl.wrapping_sub(2));
        prop_assert_eq!(tcp, before.1);
        prop_assert_eq!(Ipv4 { ttl: before.0.ttl, check: before.0.check, ..ip }, before.0);
    }

    #[test]
    fn fields_that_mean_nothing_are_left_alone((mut ip, mut tcp, _rest) in packets(), connection in connections()) {
        let old = tcp;
        rewrite(&to_backend(&connection), &mut ip, &mut tcp);
        prop_assert_eq!((tcp.offset, tcp.flags, tcp.urgent), (old.offset, old.flags, old.urgent));
        if !old.has(ACK) {
            prop_assert_eq!(tcp.ack, old.ack);
        }
        if old.has(SYN) {
            prop_assert_eq!(tcp.window, old.window, "a SYN's window is never scaled (RFC 7323 section 2.2)");
        }
    }

    #[test]
    fn what_one_direction_adds_the_other_takes_away(
        (to_backend_delta, to_client_delta) in any::<(u32, u32)>(),
        (client, to_client, backend, to_backend) in (0u8..=14, 0u8..=14, 0u8..=14, 0u8..=14),
    ) {
        let endpoint = |address, port: u16| Endpoint { address: mapped(address), port: port.to_be_bytes() };
        let connection = Connection {
            to_backend_delta,
            to_client_delta,
            scale: WindowScales { client, to_client, backend, to_backend },
            client: endpoint([203, 0, 113, 9], 50_000),
            local: endpoint([192, 0, 2, 1], 443),
            source: endpoint([10, 0, 0, 1], 20_000),
            backend: endpoint([10, 0, 0, 2], 8_443),
            ..Connection::default()
        };
        let of = |direction| Translation::of(&connection, direction);
        let (there, back) = (of(Direction::ToBackend), of(Direction::ToClient));
        prop_assert_eq!(there.seq_delta.wrapping_add(back.ack_delta), 0);
        prop_assert_eq!(there.ack_delta.wrapping_add(back.seq_delta), 0);
        prop_assert_eq!((there.scale_up, there.scale_down, back.scale_up, back.scale_down), (client, to_backend, backend, to_client));
        prop_assert_eq!(there.destination.address, mapped([10, 0, 0, 2]));
        prop_assert_eq!(there.source.port, 20_000u16.to_be_bytes());
        prop_assert_eq!(back.source.address, mapped([192, 0, 2, 1]));
        prop_assert_eq!(back.destination.port, 50_000u16.to_be_bytes());
    }

    #[test]
    fn replaced_words_at_any_offset_keep_the_sum_right(
        mut bytes in prop::collection::vec(any::<u8>(), 64),
        changes in prop::collection::vec((0usize..60, any::<u32>(), any::<bool>()), 1..12),
    ) {
        // Never all zeros, as a segment with its pseudo header never is.
        let mut check = checksum(&bytes, 6).to_be();
        for (at, new, wide) in changes {
            let mut sum = Sum::default();
            if wide {
                sum.replace32(u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]), new);
                bytes[at..at + 4].copy_from_slice(&new.to_ne_bytes());
            } else {
                sum.replace16(u16::from_ne_bytes([bytes[at], bytes[at + 1]]), new as u16);
                bytes[at..at + 2].copy_from_slice(&(new as u16).to_ne_bytes());
            }
            let difference = if at % 2 == 0 { sum.fold32() } else { at_odd_offset(sum.fold32()) };
            check = apply(check, difference);
            prop_assert_eq!(check, checksum(&bytes, 6).to_be(), "at {}", at);
        }
    }

    #[test]
    fn many_replacements_fit_one_sum(words in prop::collection::vec(any::<(u32, u32)>(), 1..64)) {
        let bytes = |pick: fn(&(u32, u32)) -> u32| -> Vec<u8> { words.iter().flat_map(|w| pick(w).to_ne_bytes()).collect() };
        let mut sum = Sum::default();
        for (old, new) in &words {
            sum.replace32(*old, *new);
        }
        let before = checksum(&bytes(|w| w.0), 6).to_be();
        prop_assert_eq!(apply(before, sum.fold32()), checksum(&bytes(|w| w.1), 6).to_be());
    }

    #[test]
    fn a_sack_block_above_the_start_is_shifted_and_nothing_else(
        (start, delta) in any::<(u32, u32)>(),
        acked in 0u32..1 << 31,
        (gap, len) in (0u32..1 << 29, 1u32..1 << 28),
    ) {
        let ack = start.wrapping_add(acked);
        let (left, right) = (ack.wrapping_add(gap), ack.wrapping_add(gap).wrapping_add(len));
        let block = sack_block(left.wrapping_sub(delta), right.wrapping_sub(delta), delta, start, ack);
        prop_assert_eq!(block, Some((left, right)));
    }

    #[test]
    fn no_sack_block_speaks_of_what_the_client_never_sent(
        (start, delta, left, right) in any::<(u32, u32, u32, u32)>(),
        acked in 0u32..1 << 30,
    ) {
        if let Some((left, _)) = sack_block(left, right, delta, start, start.wrapping_add(acked)) {
            prop_assert!(!before(left, start));
        }
    }

    #[test]
    fn before_orders_numbers_less_than_half_the_space_apart(a in any::<u32>(), distance in 1u32..1 << 31) {
        prop_assert!(before(a, a.wrapping_add(distance)));
        prop_assert!(!before(a.wrapping_add(distance), a));
        prop_assert!(!before(a, a));
    }
}

#[test]
fn every_window_at_every_scale_is_clamped_and_never_closed() {
    for up in 0..=14u8 {
        for down in 0..=14u8 {
            for field in 0..=u16::MAX {
                let exact = (u64::from(field) << up) >> down;
                let expected = if field == 0 { 0 } else { exact.clamp(1, 0xffff) };
                assert_eq!(u64::from(window(field, up, down)), expected, "{field} {up} {down}");
            }
        }
    }
}

#[test]
fn a_scale_out_of_range_does_not_panic() {
    for scale in 15..=u8::MAX {
        window(u16::MAX, scale, 0);
        window(u16::MAX, 0, scale);
    }
}

#[test]
fn dsack_blocks_below_the_start_are_cut_or_dropped() {
    const START: u32 = 0xffff_ff00;
    let near = START.wrapping_add(1_000);
    let at = |offset: i32| START.wrapping_add_signed(offset);
    let cases = [
        ("of the PROXY header", (at(-300), at(-100)), near, None),
        ("up to the start", (at(-300), at(0)), near, None),
        ("across the start", (at(-300), at(200)), near, Some((at(0), at(200)))),
        ("from the start", (at(0), at(200)), near, Some((at(0), at(200)))),
        ("a hole above", (at(5_000), at(6_000)), near, Some((at(5_000), at(6_000)))),
        ("long after", (at(-300), at(-100)), at(1 << 30), Some((at(-300), at(-100)))),
    ];
    for (what, (left, right), ack, expected) in cases {
        let delta = 0x1234_5678;
        assert_eq!(
            sack_block(left.wrapping_sub(delta), right.wrapping_sub(delta), delta, START, ack),
            expected,
            "{what}"
        );
    }
}

mod six;
