//! The same over IPv6: every packet that the rig runs, every flow, listener and note has a twin, and the programs must treat
//! both alike. Below, what only IPv6 has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ingress_ebpf::connection::{Connection, Endpoint, State};
use ingress_ebpf::flow::FlowKey;
use ingress_ebpf::header::{ETHERNET_LEN, IPPROTO_TCP, IPV4_LEN, IPV6_LEN};
use ingress_ebpf::verdict::Verdict;

use super::frame::checksum;
use super::rig::{LOCAL, connection, from_client, packet, rig};

const PREFIX: [u8; 12] = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0];
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;
const TCP_CHECK: usize = 16;

/// The twin of an IPv4 address, which stays what it is as any.
pub(super) fn address(four: Ipv4Addr) -> Ipv6Addr {
    if four.is_unspecified() {
        return Ipv6Addr::UNSPECIFIED;
    }
    let [a, b, c, d] = four.octets();
    let mut octets = [0; 16];
    octets[..12].copy_from_slice(&PREFIX);
    octets[12..].copy_from_slice(&[a, b, c, d]);
    octets.into()
}

pub(super) fn key_of(four: FlowKey) -> FlowKey {
    let twin = |octets: [u8; 16]| match IpAddr::from(octets).to_canonical() {
        IpAddr::V4(four) => address(four).octets(),
        IpAddr::V6(_) => panic!("keys of tests are IPv4"),
    };
    FlowKey { source: twin(four.source), destination: twin(four.destination), ..four }
}

pub(super) fn connection_of(four: &Connection) -> Connection {
    let twin = |four: &Endpoint| {
        let key = key_of(FlowKey { source: four.address, destination: four.address, ..FlowKey::default() });
        Endpoint { address: key.source, port: four.port }
    };
    Connection {
        client: twin(&four.client),
        local: twin(&four.local),
        source: twin(&four.source),
        backend: twin(&four.backend),
        ..*four
    }
}

/// The frame over IPv6, options and fragments in extension headers. `None`: it is not IPv4, or has a header that cannot be.
pub(super) fn frame(four: &[u8]) -> Option<Vec<u8>> {
    if four.get(12..14) != Some(&[8, 0]) || four.len() < ETHERNET_LEN + IPV4_LEN {
        return None;
    }
    let ip = &four[ETHERNET_LEN..];
    let header_len = usize::from(ip[0] & 0x0f) * 4;
    if !(IPV4_LEN..=ip.len()).contains(&header_len) {
        return None;
    }
    if ip[9] == ICMP {
        return too_big(four);
    }
    let word = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
    let (fragment, mut extensions, mut next) = (word(6) & 0x3fff, Vec::new(), ip[9]);
    if fragment != 0 {
        let offset_and_more = fragment << 3 | u16::from(fragment & 0x2000 != 0);
        let [high, low] = offset_and_more.to_be_bytes();
        extensions.splice(0..0, [next, 0, high, low, 0, 0, 0x12, 0x34]);
        next = FRAGMENT;
    }
    if header_len > IPV4_LEN {
        let len = (2 + header_len - IPV4_LEN).next_multiple_of(8);
        let mut options = vec![next, (len / 8 - 1) as u8, 1, len as u8 - 4];
        options.resize(len, 0);
        extensions.splice(0..0, options);
        next = DESTINATION_OPTIONS;
    }
    let payload_len = word(2).wrapping_sub(header_len as u16).wrapping_add(extensions.len() as u16);

    let mut six = [&four[..12], &[0x86, 0xdd], &[0x60 | ip[1] >> 4, ip[1] << 4, 0, 0]].concat();
    six.extend(payload_len.to_be_bytes());
    six.extend([next, ip[8]]);
    six.extend(PREFIX.iter().chain(&ip[12..16]).chain(&PREFIX).chain(&ip[16..20]));
    six.extend(&extensions);
    six.extend(&ip[header_len..]);
    let check = ETHERNET_LEN + IPV6_LEN + extensions.len() + TCP_CHECK;
    if ip[9] == IPPROTO_TCP && fragment & 0x1fff == 0 && six.len() >= check + 2 {
        // Only the prefixes are new in the pseudo header (RFC 8200 section 8.1); what was wrong stays wrong.
        let old = u16::from_be_bytes([six[check], six[check + 1]]);
        let mut sum = u32::from(!old) + 2 * (0x2001 + 0x0db8);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        six[check..check + 2].copy_from_slice(&(!sum as u16).to_be_bytes());
    }
    Some(six)
}

/// ICMP's "fragmentation needed" as ICMPv6's "packet too big", with a checksum of its own.
fn too_big(four: &[u8]) -> Option<Vec<u8>> {
    let (outer, message) = four.split_at(ETHERNET_LEN + IPV4_LEN);
    if message.get(..2)? != [3, 4] {
        return None;
    }
    let quoted = frame(&[&four[..ETHERNET_LEN], &message[8..]].concat())?.split_off(ETHERNET_LEN);
    let mut outer = outer.to_vec();
    outer[ETHERNET_LEN + 9] = NO_NEXT_HEADER;
    let mut six = frame(&outer)?;
    let length = 8 + quoted.len() as u16;
    six[18..20].copy_from_slice(&length.to_be_bytes());
    six[20] = ICMPV6;
    six.extend([2, 0, 0, 0, 0, 0, message[6], message[7]]);
    six.extend(quoted);
    let check = checksum(&six[ETHERNET_LEN + 8..], u32::from(ICMPV6) + u32::from(length));
    six[ETHERNET_LEN + IPV6_LEN + 2..][..2].copy_from_slice(&check.to_be_bytes());
    Some(six)
}

/// Without the two ways to write a checksum of zero.
pub(super) fn normal(mut six: Vec<u8>) -> Vec<u8> {
    let check = ETHERNET_LEN + IPV6_LEN + TCP_CHECK;
    if six.get(check..check + 2) == Some(&[0xff, 0xff]) {
        six[check..check + 2].fill(0);
    }
    six
}

/// `kind` (RFC 8200 section 4) before what follows the IPv6 header, `first` to `last` its bytes.
fn extended(six: &[u8], kind: u8, mut extension: Vec<u8>) -> Vec<u8> {
    const NEXT: usize = ETHERNET_LEN + 6;
    extension[0] = six[NEXT];
    let (header, rest) = six.split_at(ETHERNET_LEN + IPV6_LEN);
    let mut longer = [header, &extension, rest].concat();
    longer[NEXT] = kind;
    let payload_len = u16::from_be_bytes([six[18], six[19]]) + extension.len() as u16;
    longer[18..20].copy_from_slice(&payload_len.to_be_bytes());
    longer
}

#[test]
fn extension_headers_on_a_live_flow_are_dropped_and_of_others_passed() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    let live = frame(&from_client(0, 0, b"0123456789").bytes()).expect("an IPv4 frame");
    let other = frame(&packet("203.0.113.9:50001", LOCAL, 1, 2, b"0123456789").bytes()).expect("an IPv4 frame");
    let eight = || vec![0, 0, 1, 4, 0, 0, 0, 0];
    let long = || [vec![0, 31, 1, 254], vec![0; 252]].concat();
    for (what, kind, extension, verdict) in [
        ("hop by hop", 0, eight(), Verdict::DropIpOptions),
        ("routing", 43, eight(), Verdict::DropIpOptions),
        ("destination", 60, eight(), Verdict::DropIpOptions),
        ("destination, 256 bytes", 60, long(), Verdict::DropIpOptions),
        ("authentication", 51, vec![0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2], Verdict::DropIpOptions),
        ("first fragment", 44, vec![0, 0, 0, 1, 0, 0, 0, 9], Verdict::DropFragment),
        ("only fragment", 44, vec![0, 0, 0, 0, 0, 0, 0, 9], Verdict::DropFragment),
        ("later fragment", 44, vec![0, 0, 0, 8, 0, 0, 0, 9], Verdict::Miss),
        ("no next header", 59, eight(), Verdict::Miss),
        ("ESP", 50, eight(), Verdict::Miss),
    ] {
        assert_eq!(rig.arrives_alone(&extended(&live, kind, extension.clone())), Some(verdict), "{what}");
        assert_eq!(rig.arrives_alone(&extended(&other, kind, extension)), Some(Verdict::Miss), "{what}");
    }
    let two = extended(&extended(&live, 60, long()), 0, eight());
    assert_eq!(rig.arrives_alone(&two), Some(Verdict::DropIpOptions), "a chain");
    let fragmented = extended(&extended(&live, 60, eight()), 44, vec![0, 0, 0, 1, 0, 0, 0, 9]);
    assert_eq!(rig.arrives_alone(&fragmented), Some(Verdict::DropFragment), "a chain in fragments");
    let endless = (0..8).fold(live, |packet, _| extended(&packet, 60, eight()));
    assert_eq!(rig.arrives_alone(&endless), Some(Verdict::Miss), "the stack's answer is dropped on egress");
}

#[test]
fn one_family_never_meets_a_flow_of_the_other() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    // IPv4-mapped addresses do not belong on a wire (RFC 4291 section 2.5.5.2), and must not pass for IPv4.
    let mut bytes = frame(&from_client(0, 0, b"x").bytes()).expect("an IPv4 frame");
    for at in [ETHERNET_LEN + 8, ETHERNET_LEN + 24] {
        bytes[at..at + 12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    }
    assert_eq!(rig.arrives_alone(&bytes), Some(Verdict::Miss));
}
