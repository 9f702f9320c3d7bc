//! The same over IPv6, and what differs from IPv4: no checksum of the header's own.

use super::*;
use crate::header::{Ipv6, TCP_LEN};

fn ip_bytes6(ip: &Ipv6) -> Vec<u8> {
    let Ipv6 { class_and_label, payload_len, next_header, hop_limit, source, destination } = *ip;
    let mut all = class_and_label.to_ne_bytes().to_vec();
    all.extend(payload_len.to_ne_bytes());
    all.extend([next_header, hop_limit]);
    all.extend(bytes(source));
    all.extend(bytes(destination));
    all
}

fn bytes(words: [u32; 4]) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// RFC 8200 section 8.1.
fn tcp_checksum6(ip: &Ipv6, tcp: &Tcp, rest: &[u8]) -> u16 {
    let segment = tcp_bytes(&Tcp { check: 0, ..*tcp }, rest);
    let addresses = [bytes(ip.source), bytes(ip.destination)].concat();
    let pseudo = !checksum(&addresses, u32::from(IPPROTO_TCP) + segment.len() as u32);
    checksum(&segment, u32::from(pseudo)).to_be()
}

prop_compose! {
    fn connections6()(
        (source, backend) in any::<([u8; 16], [u8; 16])>(),
        mut connection in connections(),
    ) -> Connection {
        connection.source.address = source;
        connection.backend.address = backend;
        connection
    }
}

prop_compose! {
    fn packets6()(
        (class_and_label, hop_limit) in (0u32..1 << 28, 2u8..),
        (source, destination) in any::<([u32; 4], [u32; 4])>(),
        (_, mut tcp, rest) in packets(),
    ) -> (Ipv6, Tcp, Vec<u8>) {
        let ip = Ipv6 {
            class_and_label: (6 << 28 | class_and_label).to_be(),
            payload_len: (TCP_LEN as u16 + rest.len() as u16).to_be(),
            next_header: IPPROTO_TCP,
            hop_limit,
            source,
            destination,
        };
        tcp.check = tcp_checksum6(&ip, &tcp, &rest);
        (ip, tcp, rest)
    }
}

proptest! {
    #[test]
    fn the_checksum_after_a_rewrite_equals_a_full_recompute(
        (mut ip, mut tcp, rest) in packets6(),
        connection in connections6(),
    ) {
        let (old, untouched) = (ip.hop_limit, (ip.class_and_label, ip.payload_len, ip.next_header));
        rewrite(&to_backend(&connection), &mut ip, &mut tcp);
        prop_assert_eq!(tcp.check, tcp_checksum6(&ip, &tcp, &rest));
        prop_assert_eq!(bytes(ip.source), connection.source.address);
        prop_assert_eq!(bytes(ip.destination), connection.backend.address);
        prop_assert_eq!(ip.hop_limit, old - 1);
        prop_assert_eq!((ip.class_and_label, ip.payload_len, ip.next_header), untouched);
    }

    #[test]
    fn tcp_changes_as_it_does_over_four((ip, tcp, _) in packets(), (ip6, _, _) in packets6(), connection in connections()) {
        let (mut ip, mut over_four, mut ip6, mut over_six) = (ip, tcp, ip6, tcp);
        let four = to_backend(&connection).apply(&mut ip, &mut over_four);
        let six = to_backend(&connection).apply(&mut ip6, &mut over_six);
        prop_assert_eq!((over_four, four.header), (over_six, six.header));
    }

    #[test]
    fn a_devices_sum_over_the_whole_packet_stays_right(
        (mut ip, mut tcp, rest) in packets(),
        connection in connections(),
        (mut ip6, mut tcp6, rest6) in packets6(),
        connection6 in connections6(),
    ) {
        let sum = |ip: Vec<u8>, tcp: &Tcp, rest: &[u8]| !checksum(&[ip, tcp_bytes(tcp, rest)].concat(), 0);
        let before = sum(ip_bytes(&ip), &tcp, &rest);
        let difference = to_backend(&connection).apply(&mut ip, &mut tcp);
        tcp.check = apply(apply(tcp.check, difference.pseudo), difference.header);
        prop_assert_eq!(complete(before, difference), sum(ip_bytes(&ip), &tcp, &rest) % 0xffff);

        let before = sum(ip_bytes6(&ip6), &tcp6, &rest6);
        let difference = to_backend(&connection6).apply(&mut ip6, &mut tcp6);
        tcp6.check = apply(apply(tcp6.check, difference.pseudo), difference.header);
        prop_assert_eq!(complete(before, difference), sum(ip_bytes6(&ip6), &tcp6, &rest6) % 0xffff);
    }
}

/// What `bpf_l4_csum_replace` with BPF_F_PSEUDO_HDR and then `bpf_csum_update` make of CHECKSUM_COMPLETE, modulo 0xffff, as
/// sums in one's complement are.
fn complete(sum: u16, difference: Difference) -> u16 {
    let fold = |word: u32| (u32::from((word >> 16) as u16) + u32::from(word as u16)) % 0xffff;
    // Differences are in the machine's order, sums here in the network's: bytes change places.
    let network = |word: u32| u32::from((fold(word) as u16).to_be()) % 0xffff;
    ((u32::from(sum) + 0xffff - network(difference.pseudo) + network(difference.uncovered)) % 0xffff) as u16
}
