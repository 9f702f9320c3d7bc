//! What is not a whole, plain IPv4 TCP packet: never spliced, and on a live flow never given to the stack.

use ingress_ebpf::connection::{RST_SENT, State};
use ingress_ebpf::flow::Direction;
use ingress_ebpf::header::{ACK, RST, SYN};
use ingress_ebpf::verdict::Verdict;

use super::frame::{restore_checksums, with_ip_options};
use super::rig::{CLIENT, LOCAL, SLOT, connection, flagged, from_client, key, packet, rig};

const MORE_FRAGMENTS: u8 = 0x20;

#[test]
fn odd_packets_of_a_live_flow_are_dropped_and_of_others_passed() {
    let Some(mut rig) = rig() else { return };
    let live = from_client(0, 0, b"0123456789abcdef").bytes();
    let other = packet("203.0.113.9:50001", LOCAL, 1, 2, b"0123456789abcdef").bytes();
    rig.install(&connection(), State::Spliced);
    let before = rig.connection().from_client;
    let fragment = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[20] = MORE_FRAGMENTS;
        restore_checksums(&mut bytes);
        bytes
    };
    for (bytes, verdict) in [(&live, Verdict::DropFragment), (&other, Verdict::Miss)] {
        assert_eq!(rig.arrives(&fragment(bytes)).verdict, Some(verdict));
    }
    for options in [&[1, 1, 1, 1][..], &[148, 4, 0, 0], &[1; 40]] {
        assert_eq!(rig.arrives(&with_ip_options(&live, options)).verdict, Some(Verdict::DropIpOptions));
        assert_eq!(rig.arrives(&with_ip_options(&other, options)).verdict, Some(Verdict::Miss));
    }
    let mut later = live.clone();
    (later[20], later[21]) = (0, 100);
    assert_eq!(
        rig.arrives(&later).verdict,
        Some(Verdict::Miss),
        "no header in it; the stack waits for its first in vain"
    );
    assert_eq!(rig.connection().from_client, before);
}

#[test]
fn a_frame_for_a_neighbour_or_for_a_group_is_none_of_ours() {
    let Some(mut rig) = rig() else { return };
    let live = from_client(0, 0, b"0123").bytes();
    rig.install(&connection(), State::Spliced);
    rig.listen("192.0.2.1:8443");
    let before = rig.connection().from_client;
    for to in [[2, 0, 0, 0, 0, 9], [0xff; 6], [1, 0, 0x5e, 0, 0, 18]] {
        for bytes in [&live, &flagged(SYN, packet(CLIENT, "192.0.2.1:8443", 9, 0, b"")).bytes()] {
            let frame = [&to, &bytes[6..]].concat();
            assert_eq!(rig.arrives(&frame).verdict, Some(Verdict::Miss), "to {to:02x?}");
        }
    }
    assert_eq!(rig.connection().from_client, before);
}

#[test]
fn a_header_that_does_not_fit_its_packet_is_dropped() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    let before = rig.connection().from_client;
    let good = from_client(0, 0, b"01234567").bytes();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    for (what, bytes) in [
        ("data offset 0", with(46, 0)),
        ("data offset 4", with(46, 4 << 4)),
        ("data offset beyond the end", with(46, 8 << 4)),
        ("data offset 15", with(46, 15 << 4)),
        ("total length below the headers", with(17, 39)),
        ("total length beyond the frame", with(17, 49)),
        ("total length of 64 KiB", with(16, 0xff)),
    ] {
        assert_eq!(rig.arrives(&bytes).verdict, Some(Verdict::DropMalformed), "{what}");
    }
    assert_eq!(rig.connection().from_client, before);
    // All eight bytes may be options.
    assert_eq!(rig.arrives(&with(46, 7 << 4)).verdict, Some(Verdict::SplicedToBackend));
}

#[test]
fn a_packet_at_its_last_hop_is_dropped() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    for (ttl, verdict) in [(0, Verdict::DropTtl), (1, Verdict::DropTtl), (2, Verdict::SplicedToBackend)] {
        let mut frame = from_client(0, 0, b"");
        frame.ip.ttl = ttl;
        assert_eq!(rig.arrives(&frame.bytes()).verdict, Some(verdict));
    }
}

#[test]
fn an_entry_whose_slot_is_another_connections_drops() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    let before = rig.connection().from_client;
    let bytes = from_client(0, 0, b"x").bytes();
    for generation in [SLOT.generation - 1, SLOT.generation + 1] {
        rig.enter(key(CLIENT, LOCAL), generation, Direction::ToBackend);
        assert_eq!(rig.arrives(&bytes).verdict, Some(Verdict::DropStale));
    }
    rig.enter(key(CLIENT, LOCAL), SLOT.generation, Direction::ToBackend);
    rig.set_state(State::Free);
    assert_eq!(rig.arrives(&bytes).verdict, Some(Verdict::DropStale));
    assert_eq!(rig.connection().from_client, before);
}

#[test]
fn packets_of_a_moving_connection_change_nothing() {
    let Some(mut rig) = rig() else { return };
    let mut ended = connection();
    ended.from_client.flags |= RST_SENT;
    rig.install(&ended, State::Moving);
    let before = (rig.connection().from_client, rig.connection().from_backend);
    for packet in [from_client(0, 0, b"x"), flagged(SYN, from_client(0, 0, b"")), flagged(RST, from_client(0, 0, b""))]
    {
        assert_eq!(rig.arrives(&packet.bytes()).verdict, Some(Verdict::DropMoving));
    }
    assert_eq!((rig.connection().from_client, rig.connection().from_backend), before);
    rig.set_state(State::Spliced);
    assert_eq!(rig.arrives(&flagged(SYN, from_client(0, 0, b"")).bytes()).verdict, Some(Verdict::SynOnEnded));
}

#[test]
fn what_is_not_plain_ipv4_tcp_passes() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    let tcp = from_client(0, 0, b"0123456789").bytes();
    let ethertype = |kind: [u8; 2]| [&tcp[..12], &kind, &tcp[14..]].concat();
    let mut udp = tcp.clone();
    udp[23] = 17;
    for (what, bytes) in [
        ("VLAN 5", [&tcp[..12], &[0x81, 0, 0, 5, 8, 0], &tcp[14..]].concat()),
        ("QinQ", [&tcp[..12], &[0x88, 0xa8, 0, 5, 8, 0], &tcp[14..]].concat()),
        ("IPv6", ethertype([0x86, 0xdd])),
        ("ARP", ethertype([8, 6])),
        ("UDP", udp),
        ("half a TCP header", tcp[..44].to_vec()),
        ("an Ethernet header and an IP header", tcp[..34].to_vec()),
    ] {
        assert_eq!(rig.arrives(&bytes).verdict, Some(Verdict::Miss), "{what}");
        assert_eq!(rig.leaves(&bytes, 0).verdict, None, "{what}");
    }
    let unknown = packet("203.0.113.9:50001", LOCAL, 1, 2, b"");
    for flags in [ACK, SYN | ACK, SYN] {
        assert_eq!(rig.arrives(&flagged(flags, unknown.clone()).bytes()).verdict, Some(Verdict::Miss));
    }
}
