//! Packets of a live connection come out as the other end must see them.

use ingress_ebpf::connection::{FIRST_FLIGHT_ACKED, State};
use ingress_ebpf::event::Kind;
use ingress_ebpf::flow::Direction;
use ingress_ebpf::header::{ACK, FIN, Ipv4, RST, Tcp};
use ingress_ebpf::rewrite::Translation;
use ingress_ebpf::verdict::Verdict;

use super::frame::{FROM_THEM, Frame, TO_US};
use super::rig::{
    BACKEND, BACKEND_START, CLIENT, CLIENT_START, FLIGHT_END, HELLO, LOCAL, LOCAL_START, SOURCE, connection,
    from_backend, from_client, packet, rig,
};

#[test]
fn a_client_packet_reaches_the_backend_as_our_own() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    let run = rig.arrives(&from_client(0, 0, b"GET /").bytes());
    assert_eq!(run.verdict, Some(Verdict::SplicedToBackend));
    let expected = packet(SOURCE, BACKEND, FLIGHT_END, BACKEND_START, b"GET /");
    // 1,000 units of 2^8 bytes, for a backend that counts in 2^9.
    let tcp = Tcp { window: 500u16.to_be(), ..expected.tcp };
    assert_eq!(run.frame(), Frame { ip: Ipv4 { ttl: 63, ..expected.ip }, tcp, ..expected }.complete());
    assert_eq!(run.bytes[..12], [TO_US, FROM_THEM].concat(), "bpf_redirect_neigh writes the Ethernet addresses");

    let half = rig.connection().from_client;
    assert_eq!((half.packets, half.acked), (1, u64::from(LOCAL_START)));
    assert_eq!(half.high, CLIENT_START.wrapping_add(HELLO + 5));
    assert!(half.last_seen > 0);
}

#[test]
fn a_backend_packet_reaches_the_client_as_our_own() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Armed);
    let run = rig.arrives(&from_backend(0, 0, b"HTTP/1.1 200 OK").bytes());
    assert_eq!(run.verdict, Some(Verdict::SplicedToClient));
    let expected = packet(LOCAL, CLIENT, LOCAL_START, CLIENT_START.wrapping_add(HELLO), b"HTTP/1.1 200 OK");
    // 1,000 units of 2^5 bytes, for a client that counts in 2^7.
    let tcp = Tcp { window: 250u16.to_be(), ..expected.tcp };
    assert_eq!(run.frame(), Frame { ip: Ipv4 { ttl: 63, ..expected.ip }, tcp, ..expected }.complete());

    let after = rig.connection();
    assert_eq!(after.bytes_to_backend(), u64::from(HELLO));
    assert_eq!(after.from_backend.high, LOCAL_START + 15);
    assert_eq!(after.from_backend.flags, FIRST_FLIGHT_ACKED);
    assert_eq!(rig.events(), [Kind::FirstFlightAcked as u32]);

    rig.arrives(&from_backend(15, 0, b"!").bytes());
    assert_eq!(rig.events(), [0u32; 0], "told once");
}

#[test]
fn the_kernel_rewrites_exactly_as_the_library_says() {
    let Some(mut rig) = rig() else { return };
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..400u32 {
        let mut connection = connection();
        (connection.to_backend_delta, connection.to_client_delta) = (next() as u32, next() as u32);
        rig.install(&connection, State::Draining);
        let to_backend = round % 2 == 0;
        let direction = if to_backend { Direction::ToBackend } else { Direction::ToClient };
        let mut payload = vec![0u8; next() as usize % 1_400];
        payload.fill_with(|| next() as u8);
        let mut frame = if to_backend { from_client(0, 0, &payload) } else { from_backend(0, 0, &payload) };
        frame.tcp.seq = next() as u32;
        frame.tcp.ack = connection.min_ack.wrapping_add(next() as u32 % 1_000_000).to_be();
        frame.tcp.window = next() as u16;
        frame.tcp.urgent = next() as u16;
        frame.tcp.offset = next() as u8 & 0x0f;
        frame.tcp.flags = [ACK, ACK | FIN, RST, RST | ACK, 0][next() as usize % 5] | next() as u8 & 0xe8;
        (frame.ip.tos, frame.ip.ttl, frame.ip.id) = (next() as u8, next() as u8 | 2, next() as u16);
        // Unknown options are nobody's business.
        for _ in 0..next() % 5 {
            frame.options.extend([253, 4, next() as u8, next() as u8, 1, 253, 3, next() as u8]);
        }
        let mut expected = frame.complete();
        let run = rig.arrives(&frame.bytes());
        if frame.tcp.flags & (ACK | RST) == 0 {
            assert_ne!(run.verdict, Some(Verdict::SplicedToBackend), "without ACK nothing is proven");
        }
        Translation::of(&connection, direction).apply(&mut expected.ip, &mut expected.tcp);
        assert_eq!(run.frame(), expected.complete(), "round {round}, {:?}", run.verdict);
    }
}

#[test]
fn ethernet_padding_is_no_payload() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    let mut bytes = from_client(0, 0, b"").bytes();
    bytes.resize(60, 0);
    let run = rig.arrives(&bytes);
    assert_eq!(run.verdict, Some(Verdict::SplicedToBackend));
    assert_eq!(run.bytes.len(), 60);
    assert_eq!(run.frame().payload, b"");
    assert_eq!(rig.connection().from_client.high, CLIENT_START.wrapping_add(HELLO));
}

#[test]
fn a_window_is_never_closed_nor_overflown_by_scaling() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    rig.arrives(&from_backend(0, 0, b"").bytes());
    // Client counts in 2^8, backend in 2^9 and 2^5, we towards the client in 2^7.
    let mut window = |mut frame: Frame, field: u16| {
        frame.tcp.window = field.to_be();
        u16::from_be(rig.arrives(&frame.bytes()).frame().tcp.window)
    };
    for (field, to_backend, to_client) in
        [(0, 0, 0), (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 2, 1), (u16::MAX, 0x7fff, 0x3fff)]
    {
        assert_eq!(window(from_client(0, 0, b""), field), to_backend);
        assert_eq!(window(from_backend(0, 0, b""), field), to_client);
    }
    let mut coarse = connection();
    (coarse.scale.client, coarse.scale.to_backend) = (14, 0);
    rig.install(&coarse, State::Spliced);
    let run = rig.arrives(&from_client(0, 0, b"").bytes());
    assert_eq!(run.frame().tcp.window, u16::MAX);
}

#[test]
fn a_draining_connection_still_carries_stragglers() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Draining);
    assert_eq!(rig.arrives(&from_client(0, 0, b"").bytes()).verdict, Some(Verdict::SplicedToBackend));
}
