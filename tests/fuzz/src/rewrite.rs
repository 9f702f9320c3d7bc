//! `ingress_ebpf::{rewrite, proof}`: whatever two ends and a stranger send over a handed-off connection, checksums stay right,
//! the way back undoes the way there, and only what is proven counts.
//!
//! Input: 20 bytes of connection, then packets of 24 bytes.

use ingress_ebpf::connection::{Connection, Endpoint, Half, WindowScales};
use ingress_ebpf::flow::{Direction, mapped};
use ingress_ebpf::header::{ACK, IPPROTO_TCP, Ipv4, RST, SYN, Tcp};
use ingress_ebpf::proof::{Packet, observe};
use ingress_ebpf::rewrite::{Translation, apply, before, sack_block, window};

const CONNECTION: usize = 20;
const PACKET: usize = 24;

pub fn check(data: &[u8]) {
    let Some((head, packets)) = data.split_at_checked(CONNECTION) else { return };
    let mut connection = connection(head);
    for bytes in packets.chunks_exact(PACKET) {
        let direction = if bytes[0] & 1 == 0 { Direction::ToBackend } else { Direction::ToClient };
        let (ip, tcp, len) = packet(&connection, direction, bytes);
        check_rewrite(&Translation::of(&connection, direction), ip, tcp, len);
        check_proof(&mut connection, direction, &tcp, len);
    }
}

fn connection(head: &[u8]) -> Connection {
    let endpoint = |last, port: u16| Endpoint { address: mapped([192, 0, 2, last]), port: port.to_be_bytes() };
    let (client_start, local_start) = (word(head, 12), word(head, 16));
    let half = |own: u32, other: u32| Half {
        acked: other.into(),
        start: other,
        high: own,
        window_end: other.wrapping_add(1 << 20),
        ..Half::default()
    };
    Connection {
        to_backend_delta: word(head, 0),
        to_client_delta: word(head, 4),
        scale: WindowScales { client: head[8], to_client: head[9], backend: head[10], to_backend: head[11] },
        client: endpoint(1, 50_000),
        local: endpoint(2, 443),
        source: endpoint(3, 20_000),
        backend: endpoint(4, 8_443),
        from_client: half(client_start, local_start),
        from_backend: half(local_start, client_start),
        ..Connection::default()
    }
}

/// Numbers in the input are distances from what is expected next, so that small ones prove themselves.
fn packet(connection: &Connection, direction: Direction, bytes: &[u8]) -> (Ipv4, Tcp, u32) {
    let half = |word: usize| u16::from_ne_bytes([bytes[word], bytes[word + 1]]);
    let (own, other) = match direction {
        Direction::ToBackend => (&connection.from_client, &connection.from_backend),
        Direction::ToClient => (&connection.from_backend, &connection.from_client),
    };
    let (mut seq, mut ack) = (own.high.wrapping_add(word(bytes, 8)), other.high.wrapping_add(word(bytes, 12)));
    if direction == Direction::ToClient {
        seq = seq.wrapping_sub(connection.to_client_delta);
        ack = ack.wrapping_add(connection.to_backend_delta);
    }
    let len = half(2);
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        total_len: len.saturating_add(40).to_be(),
        ttl: bytes[1].max(2),
        protocol: IPPROTO_TCP,
        source: word(bytes, 20),
        ..Ipv4::default()
    };
    ip.check = checksum(&ip_words(&ip));
    let mut tcp = Tcp {
        source_port: half(4),
        destination_port: half(6),
        seq: seq.to_be(),
        ack: ack.to_be(),
        offset: 5 << 4,
        flags: bytes[16],
        window: half(17),
        check: 0,
        urgent: 0,
    };
    tcp.check = checksum(&tcp_words(&ip, &tcp));
    (ip, tcp, len.into())
}

fn check_rewrite(translation: &Translation, ip: Ipv4, tcp: Tcp, len: u32) {
    let (mut new_ip, mut new_tcp) = (ip, tcp);
    let difference = translation.apply(&mut new_ip, &mut new_tcp);
    new_tcp.check = apply(apply(new_tcp.check, difference.pseudo), difference.header);
    assert_eq!(new_ip.check, checksum(&ip_words(&Ipv4 { check: 0, ..new_ip })));
    assert_eq!(new_tcp.check, checksum(&tcp_words(&new_ip, &Tcp { check: 0, ..new_tcp })));
    assert_eq!(new_ip.ttl, ip.ttl - 1);

    let old_field = u16::from_be(tcp.window);
    let field = u16::from_be(new_tcp.window);
    if tcp.has(SYN) {
        assert_eq!(field, old_field);
    } else {
        assert_eq!(field, window(old_field, translation.scale_up, translation.scale_down));
        assert_eq!(field == 0, old_field == 0, "open stays open, closed stays closed");
    }

    let endpoint =
        |address: u32, port: u16| Endpoint { address: mapped(address.to_ne_bytes()), port: port.to_ne_bytes() };
    let (source, destination) = (endpoint(ip.source, tcp.source_port), endpoint(ip.destination, tcp.destination_port));
    let back = Translation {
        source: &source,
        destination: &destination,
        seq_delta: translation.seq_delta.wrapping_neg(),
        ack_delta: translation.ack_delta.wrapping_neg(),
        scale_up: 0,
        scale_down: 0,
    };
    let there_tcp = new_tcp;
    back.apply(&mut new_ip, &mut new_tcp);
    assert_eq!(Tcp { window: tcp.window, check: tcp.check, ..new_tcp }, tcp);
    assert_eq!(Ipv4 { ttl: ip.ttl, check: ip.check, ..new_ip }, ip);

    // SACK speaks beside an acknowledgement only.
    if !tcp.has(ACK) {
        return;
    }
    let ack = u32::from_be(there_tcp.ack);
    let (left, right) = (u32::from_be(tcp.ack).wrapping_add(len), u32::from_be(tcp.ack).wrapping_add(len * 2));
    let start = ack.wrapping_sub(len);
    if let Some((left, right)) = sack_block(left, right, translation.ack_delta, start, ack) {
        assert!(!before(left, start) && !before(right, left));
    }
}

fn check_proof(connection: &mut Connection, direction: Direction, tcp: &Tcp, len: u32) {
    let old = *connection;
    let (seq, ack) = (u32::from_be(tcp.seq), u32::from_be(tcp.ack));
    let field = u32::from(u16::from_be(tcp.window));
    let (own, other, seq, ack, scale) = match direction {
        Direction::ToBackend => (&mut connection.from_client, &old.from_backend, seq, ack, old.scale.client),
        Direction::ToClient => {
            let (seq, ack) = (seq.wrapping_add(old.to_client_delta), ack.wrapping_sub(old.to_backend_delta));
            (&mut connection.from_backend, &old.from_client, seq, ack, old.scale.backend)
        }
    };
    let before_it = *own;
    let packet = Packet { seq, ack, len, flags: tcp.flags, window: field << (scale & 15) };
    if !observe(own, other, &packet, 7) {
        assert_eq!(*own, before_it, "what proves nothing changes nothing");
        return;
    }
    assert_eq!(own.last_seen, 7);
    assert!(own.acked >= before_it.acked);
    assert!(!before(other.high, own.acked as u32), "nothing is acknowledged that was not sent");
    assert!(!before(own.high, before_it.high) && !before(own.window_end, before_it.window_end));
    assert!(packet.flags & (ACK | RST) != 0);
    assert!(connection.bytes_to_backend() <= connection.from_backend.acked - u64::from(connection.from_backend.start));
    assert!(connection.bytes_to_client() <= connection.from_client.acked - u64::from(connection.from_client.start));
}

fn ip_words(ip: &Ipv4) -> Vec<u16> {
    let Ipv4 { version_ihl, tos, total_len, id, fragment, ttl, protocol, check, source, destination } = *ip;
    let mut words = vec![u16::from_ne_bytes([version_ihl, tos]), total_len, id, fragment];
    words.extend([u16::from_ne_bytes([ttl, protocol]), check]);
    words.extend(halves(source).into_iter().chain(halves(destination)));
    words
}

/// With the pseudo header; the payload is zeros.
fn tcp_words(ip: &Ipv4, tcp: &Tcp) -> Vec<u16> {
    let Tcp { source_port, destination_port, seq, ack, offset, flags, window, check, urgent } = *tcp;
    let mut words = vec![u16::from(IPPROTO_TCP).to_be(), ip.total_len];
    words.extend([ip.source, ip.destination, seq, ack].into_iter().flat_map(halves));
    words.extend([source_port, destination_port, u16::from_ne_bytes([offset, flags]), window, check, urgent]);
    words
}

/// RFC 1071; words and result in network order (section 2 (B): the order of bytes does not matter).
fn checksum(words: &[u16]) -> u16 {
    let mut sum = words.iter().map(|word| u32::from(*word)).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
