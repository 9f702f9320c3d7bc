//! Headers of the specification and of HAProxy, round trips, and what must not be accepted.

use proptest::prelude::*;

use super::*;
use crate::config::ProxyTlvs;

macro_rules! capture {
    ($name:literal) => {
        include_bytes!(concat!("../../../../tests/data/proxy_header/", $name, ".bin"))
    };
}

const HAPROXY_V1_IPV4: &[u8] = capture!("haproxy-v1-ipv4");
const HAPROXY_V1_IPV6: &[u8] = capture!("haproxy-v1-ipv6");
const HAPROXY_V2_IPV4: &[u8] = capture!("haproxy-v2-ipv4");
const HAPROXY_V2_IPV6: &[u8] = capture!("haproxy-v2-ipv6");
const HAPROXY_V2_TLS: &[u8] = capture!("haproxy-v2-tls");

const ALL_TLVS: ProxyTlvs = ProxyTlvs { authority: true, alpn: true, unique_id: true, crc32c: true };
const FACTS: Facts<'_> =
    Facts { authority: Some("app.example.com"), alpn: Some("h2,http/1.1"), unique_id: Some(42), passed_on: None };

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}

fn addresses(source: &str, destination: &str) -> Option<Addresses> {
    Some(Addresses { source: socket(source), destination: socket(destination) })
}

fn header(bytes: &[u8]) -> ProxyHeader {
    match parse(bytes) {
        HeaderOutcome::Header { header, length } => {
            assert_eq!(length, bytes.len());
            header
        }
        outcome @ (HeaderOutcome::NeedMore | HeaderOutcome::NotProxy | HeaderOutcome::Malformed(_)) => {
            panic!("{} is {outcome:?}", bytes.escape_ascii())
        }
    }
}

fn bad(bytes: &[u8]) -> BadHeader {
    match parse(bytes) {
        HeaderOutcome::Malformed(bad) => bad,
        outcome @ (HeaderOutcome::NeedMore | HeaderOutcome::NotProxy | HeaderOutcome::Header { .. }) => {
            panic!("{} is {outcome:?}", bytes.escape_ascii())
        }
    }
}

/// A version 2 header from its 13th and 14th byte and what follows the length.
fn v2_header(version_and_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).expect("a short test block").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[version_and_command, family][..], &length, block].concat()
}

const IPV4_BLOCK: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb];

#[test]
fn the_specifications_line_is_read_and_written() {
    let line = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n";
    let read = header(line);
    assert_eq!(read.command, Command::Proxy);
    assert_eq!(read.addresses, addresses("192.168.0.1:56324", "192.168.0.11:443"));
    let written = for_backend(ProxyProtocol::V1, socket("192.168.0.1:56324"), socket("192.168.0.11:443"), &FACTS);
    assert_eq!(written.escape_ascii().to_string(), line.escape_ascii().to_string());
}

#[test]
fn a_binary_header_is_written_as_specified() {
    let wanted = ProxyProtocol::V2(ProxyTlvs::default());
    let written = for_backend(wanted, socket("192.0.2.1:56324"), socket("198.51.100.1:443"), &FACTS);
    assert_eq!(written, v2_header(0x21, 0x11, &IPV4_BLOCK));
    let written = for_backend(wanted, socket("[2001:db8::1]:56324"), socket("[2001:db8::2]:443"), &FACTS);
    let mut block = vec![0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    block.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    block.extend([0xdc, 0x04, 0x01, 0xbb]);
    assert_eq!(written, v2_header(0x21, 0x21, &block));
}

#[test]
fn haproxys_headers_are_read() {
    let v1 = header(HAPROXY_V1_IPV4);
    assert_eq!(v1.addresses, addresses("127.0.0.1:41392", "127.0.0.1:21444"));
    assert_eq!(header(HAPROXY_V1_IPV6).addresses, addresses("[::1]:35400", "[::1]:21444"));
    let v2 = header(HAPROXY_V2_IPV4);
    assert_eq!(v2.addresses, addresses("127.0.0.1:50122", "127.0.0.1:21443"));
    assert_eq!(v2.tlvs.find(Tlv::UNIQUE_ID), Some(&b"445781-1795232308"[..]));
    assert_eq!(header(HAPROXY_V2_IPV6).addresses, addresses("[::1]:54624", "[::1]:21443"));
    let tls = header(HAPROXY_V2_TLS).tlvs;
    assert_eq!(tls.find(Tlv::AUTHORITY), Some(&b"app.example.com"[..]));
    assert_eq!(tls.find(Tlv::ALPN), Some(&b"h2"[..]));
    assert_eq!(tls.iter().map(|tlv| tlv.kind).collect::<Vec<_>>(), [3, 1, 2, 5, 0x20]);
}

#[test]
fn a_flipped_bit_anywhere_breaks_haproxys_checksum() {
    for at in 16..HAPROXY_V2_IPV4.len() {
        let mut damaged = HAPROXY_V2_IPV4.to_vec();
        damaged[at] ^= 1;
        // The checksum TLV's own type and length: then it is no checksum any more, or not one of four bytes.
        if at != 28 && at != 29 && at != 30 {
            assert!(matches!(parse(&damaged), HeaderOutcome::Malformed(_)), "byte {at}");
        }
    }
    let mut damaged = HAPROXY_V2_IPV4.to_vec();
    damaged[16] ^= 1;
    assert!(matches!(bad(&damaged), BadHeader::Checksum { received: 0xd565_b48b, .. }));
}

#[test]
fn every_truncation_needs_more() {
    for whole in [HAPROXY_V1_IPV4, HAPROXY_V1_IPV6, HAPROXY_V2_IPV4, HAPROXY_V2_IPV6, HAPROXY_V2_TLS] {
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), HeaderOutcome::NeedMore, "{} of {}", cut, whole.escape_ascii());
        }
        let more = [whole, b"\x16\x03\x01"].concat();
        assert!(matches!(parse(&more), HeaderOutcome::Header { length, .. } if length == whole.len()));
    }
}

#[test]
fn other_protocols_are_no_headers() {
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01", b"PROX\r", b"\r\n\r\n\0\r\nQUIT\r", b"\r\n\r\n\r"] {
        assert_eq!(parse(bytes), HeaderOutcome::NotProxy, "{}", bytes.escape_ascii());
    }
}

#[test]
fn lines_that_break_the_specification_are_refused() {
    for line in [
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
        "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
        "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2  2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
        "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP6 fe80::1%lo fe80::2 1 2\r\n",
        "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY UNKNOWN4\r\n",
        "PROXYTCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY\tTCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\rx\r\n",
        "PROXY\r\n",
    ] {
        assert!(matches!(bad(line.as_bytes()), BadHeader::Line(_)), "{line:?}");
    }
}

#[test]
fn a_line_ends_within_107_bytes() {
    let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(MAX_V1_HEADER - 16));
    assert_eq!(header(longest.as_bytes()).addresses, None);
    let longer = format!("PROXY UNKNOWN {}\r\n", "f".repeat(MAX_V1_HEADER - 15));
    assert_eq!(bad(longer.as_bytes()), BadHeader::UnendedLine);
    assert_eq!(parse(&longer.as_bytes()[..MAX_V1_HEADER - 1]), HeaderOutcome::NeedMore);
}

#[test]
fn unknown_leaves_the_sockets_addresses() {
    for line in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN ffff::1 what ever \xf0\x9f\x90\xa2\r\n"] {
        assert_eq!(header(line), ProxyHeader::default());
    }
}

#[test]
fn local_leaves_the_sockets_addresses_whatever_its_block_says() {
    for (family, block) in [(0x00, &[][..]), (0x11, &IPV4_BLOCK), (0xff, &[1, 2, 3]), (0x00, &[4, 0, 1, 0])] {
        let read = header(&v2_header(0x20, family, block));
        assert_eq!(read, ProxyHeader { command: Command::Local, ..ProxyHeader::default() });
    }
}

#[test]
fn families_that_are_not_tcp_over_ip_leave_the_sockets_addresses_and_keep_their_tlvs() {
    let noop = [Tlv::NOOP, 0, 1, 0];
    for (family, length) in [(0x00, 0), (0x12, 12), (0x22, 36), (0x31, 216), (0x32, 216)] {
        let read = header(&v2_header(0x21, family, &[&vec![9; length][..], &noop].concat()));
        assert_eq!(read.addresses, None, "{family:#x}");
        assert_eq!(read.tlvs.as_bytes(), noop, "{family:#x}");
    }
}

#[test]
fn binary_headers_that_break_the_specification_are_refused() {
    assert_eq!(bad(&v2_header(0x11, 0x11, &IPV4_BLOCK)), BadHeader::Version(1));
    assert_eq!(bad(&v2_header(0x22, 0x11, &IPV4_BLOCK)), BadHeader::Command(2));
    for family in [0x13, 0x41, 0xf0, 0x03] {
        assert_eq!(bad(&v2_header(0x21, family, &[0; 300])), BadHeader::Family(family));
    }
    assert_eq!(bad(&v2_header(0x21, 0x11, &IPV4_BLOCK[..11])), BadHeader::Malformed("destination port"));
    assert_eq!(bad(&v2_header(0x21, 0x21, &[0; 35])), BadHeader::Malformed("destination port"));
    assert_eq!(bad(&v2_header(0x21, 0x31, &[0; 215])), BadHeader::Malformed("addresses"));
    for tlvs in [&[2][..], &[2, 0], &[2, 0, 1], &[2, 0, 0, 9]] {
        assert!(matches!(bad(&v2_header(0x21, 0, tlvs)), BadHeader::Malformed(_)), "{tlvs:?}");
    }
    let long_id = [&[Tlv::UNIQUE_ID, 0, 129][..], &[7; 129]].concat();
    assert_eq!(bad(&v2_header(0x21, 0, &long_id)), BadHeader::Malformed("unique ID"));
    let two_sums = [Tlv::CRC32C, 0, 4, 0, 0, 0, 0].repeat(2);
    assert_eq!(bad(&v2_header(0x21, 0, &two_sums)), BadHeader::Malformed("CRC32C"));
    assert_eq!(bad(&v2_header(0x21, 0, &[Tlv::CRC32C, 0, 3, 0, 0, 0])), BadHeader::Malformed("CRC32C"));
}

#[test]
fn a_header_that_announces_too_much_is_refused_at_once() {
    let whole = v2_header(0x21, 0, &[0; MAX_V2_HEADER - 15]);
    assert_eq!(bad(&whole[..16]), BadHeader::TooLong(MAX_V2_HEADER + 1));
    let noop = [&[Tlv::NOOP, 0x0f, 0xed][..], &[0; MAX_V2_HEADER - 19]].concat();
    assert_eq!(header(&v2_header(0x21, 0, &noop)).tlvs.as_bytes(), noop);
}

#[test]
fn facts_become_tlvs_where_the_pool_wants_them() {
    let (source, destination) = (socket("192.0.2.1:56324"), socket("198.51.100.1:443"));
    let read = header(&for_backend(ProxyProtocol::V2(ALL_TLVS), source, destination, &FACTS));
    assert_eq!(read.tlvs.find(Tlv::AUTHORITY), Some(&b"app.example.com"[..]));
    assert_eq!(read.tlvs.find(Tlv::ALPN), Some(&b"h2,http/1.1"[..]));
    assert_eq!(read.tlvs.find(Tlv::UNIQUE_ID), Some(&b"42"[..]));
    assert_eq!(read.tlvs.find(Tlv::CRC32C).map(<[u8]>::len), Some(4));
    let only_id = ProxyTlvs { unique_id: true, ..ProxyTlvs::default() };
    let read = header(&for_backend(ProxyProtocol::V2(only_id), source, destination, &FACTS));
    assert_eq!(read.tlvs.as_bytes(), [Tlv::UNIQUE_ID, 0, 2, b'4', b'2']);
    let unknown = header(&for_backend(ProxyProtocol::V2(ALL_TLVS), source, destination, &Facts::default()));
    assert_eq!(unknown.tlvs.iter().map(|tlv| tlv.kind).collect::<Vec<_>>(), [Tlv::CRC32C]);
}

#[test]
fn received_tlvs_are_passed_on_with_a_checksum_of_the_new_header() {
    let received = header(HAPROXY_V2_TLS).tlvs;
    let facts = Facts { passed_on: Some(&received), ..FACTS };
    let (source, destination) = (socket("[2001:db8::1]:1"), socket("[2001:db8::2]:443"));
    let sent = header(&for_backend(ProxyProtocol::V2(ProxyTlvs::default()), source, destination, &facts)).tlvs;
    let but_the_sum = |tlvs: &Tlvs| -> Vec<(u8, Vec<u8>)> {
        tlvs.iter().filter(|tlv| tlv.kind != Tlv::CRC32C).map(|tlv| (tlv.kind, tlv.value.to_vec())).collect()
    };
    assert_eq!(but_the_sum(&sent), but_the_sum(&received));
    assert_ne!(sent.find(Tlv::CRC32C), received.find(Tlv::CRC32C));
    let all = header(&for_backend(ProxyProtocol::V2(ALL_TLVS), source, destination, &facts)).tlvs;
    assert_eq!(but_the_sum(&all), but_the_sum(&received), "what was passed on wins over what is known here");
}

#[test]
fn tlvs_that_no_longer_fit_are_left_out() {
    let noop = |length: usize| -> Vec<u8> {
        let bytes = u16::try_from(length).expect("a short test value").to_be_bytes();
        [&[Tlv::NOOP][..], &bytes, &vec![0; length]].concat()
    };
    let (source, destination) = (socket("[2001:db8::1]:1"), socket("[2001:db8::2]:443"));
    // No addresses in the received header, 36 bytes of them in ours.
    let room = MAX_V2_HEADER - 16 - 36 - 7;
    for (length, fits) in [(room - 3, true), (room - 2, false)] {
        let received = header(&v2_header(0x21, 0, &noop(length))).tlvs;
        let facts = Facts { passed_on: Some(&received), ..Facts::default() };
        let sent = for_backend(ProxyProtocol::V2(ALL_TLVS), source, destination, &facts);
        assert_eq!(header(&sent).tlvs.find(Tlv::NOOP).is_some(), fits, "{length}");
        assert_eq!(sent.len() == MAX_V2_HEADER, fits, "{length}");
    }
}

#[test]
fn mixed_families_are_told_as_ipv6() {
    let (v4, v6) = (socket("192.0.2.1:56324"), socket("[2001:db8::2]:443"));
    let line = for_backend(ProxyProtocol::V1, v4, v6, &FACTS);
    assert_eq!(line.escape_ascii().to_string(), r"PROXY TCP6 ::ffff:c000:201 2001:db8::2 56324 443\r\n");
    let expected = addresses("[::ffff:192.0.2.1]:56324", "[2001:db8::2]:443");
    assert_eq!(header(&line).addresses, expected);
    let binary = for_backend(ProxyProtocol::V2(ALL_TLVS), v4, v6, &FACTS);
    assert_eq!(header(&binary).addresses, expected);
}

#[test]
fn mapped_addresses_of_a_dual_stack_socket_are_told_as_ipv4() {
    let line = for_backend(ProxyProtocol::V1, socket("[::ffff:192.0.2.1]:1"), socket("[::ffff:192.0.2.2]:2"), &FACTS);
    assert_eq!(line.escape_ascii().to_string(), r"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
    assert_eq!(header(b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:202 1 2\r\n").addresses, header(&line).addresses);
}

#[test]
fn a_probe_says_local_or_its_own_addresses() {
    let (from, to) = (socket("192.0.2.1:40000"), socket("192.0.2.2:443"));
    let probe = for_probe(ProxyProtocol::V2(ALL_TLVS), from, to);
    assert_eq!(probe, v2_header(0x20, 0, &[]));
    assert_eq!(for_probe(ProxyProtocol::V1, from, to), b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 443\r\n");
    assert!(for_probe(ProxyProtocol::None, from, to).is_empty());
    assert!(for_backend(ProxyProtocol::None, from, to, &FACTS).is_empty());
}

prop_compose! {
    fn any_tlvs()(list in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..8)) -> Vec<u8> {
        list.iter()
            .filter(|(kind, _)| *kind != Tlv::CRC32C)
            .flat_map(|(kind, value)| [&[*kind, 0, value.len() as u8], &value[..]].concat())
            .collect()
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(
        source: SocketAddr,
        destination: SocketAddr,
        tlvs in any_tlvs(),
        wanted in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        id: u64,
    ) {
        let expected = Addresses::new(source, destination);
        let passed_on = Tlvs::parse(&tlvs).expect("they were just put together");
        let facts = Facts { unique_id: Some(id), passed_on: Some(&passed_on), ..FACTS };
        let (authority, alpn, unique_id, crc32c) = wanted;
        let wanted = ProxyTlvs { authority, alpn, unique_id, crc32c };
        let binary = header(&for_backend(ProxyProtocol::V2(wanted), source, destination, &facts));
        prop_assert_eq!(binary.addresses, Some(expected));
        prop_assert!(binary.tlvs.as_bytes().starts_with(&tlvs));
        prop_assert_eq!(binary.tlvs.find(Tlv::CRC32C).is_some(), crc32c);
        let line = for_backend(ProxyProtocol::V1, source, destination, &facts);
        prop_assert!(line.len() <= MAX_V1_HEADER);
        prop_assert_eq!(header(&line).addresses, Some(expected));
    }

    #[test]
    fn random_bytes_never_panic(
        start in prop::sample::select(vec![&b""[..], b"PROXY TCP4 ", b"PROXY TCP6 ", b"\r\n\r\n\0\r\nQUIT\n"]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = [start, &rest].concat();
        if let HeaderOutcome::Header { length, .. } = parse(&bytes) {
            prop_assert!(length <= bytes.len());
            prop_assert_eq!(parse(&bytes[..length - 1]), HeaderOutcome::NeedMore);
        }
    }
}
