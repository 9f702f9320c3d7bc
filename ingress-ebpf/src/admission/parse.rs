//! From the Ethernet header to the ports, past priority tags, IP options and IPv6 extension headers.

use super::{Bytes, Plain};
use crate::flow::{Address, mapped};
use crate::header::{ETHERNET_LEN, IPPROTO_TCP, Ipv4};

/// What a packet turned out to be.
pub(super) enum Parsed {
    /// Nothing with a port for this device: ARP, ICMP, a later fragment, another VLAN's.
    Other,
    /// IP, of a length that cannot be. The stack would drop it.
    Malformed,
    /// TCP or UDP may be in it, but not where this parser looks.
    Unreadable,
    Found(Found),
}

/// TCP or UDP, and where it is going.
pub(super) struct Found {
    pub(super) source: Address,
    pub(super) destination: Address,
    /// Network byte order.
    pub(super) destination_port: [u8; 2],
    pub(super) protocol: u8,
    /// Where its header starts in the packet.
    pub(super) offset: usize,
    /// Bytes of it in this packet.
    pub(super) len: usize,
    /// The first of several: it need not hold all of the header.
    pub(super) fragment: bool,
}

/// RFC 8200 section 3.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Ipv6 {
    version_flow: u32,
    payload_len: u16,
    next_header: u8,
    hop_limit: u8,
    source: Address,
    destination: Address,
}

const IPV6_LEN: usize = 40;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
const IPPROTO_UDP: u8 = 17;

/// Extension headers (RFC 8200 section 4, RFC 4302).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// RFC 8200 recommends an order of six at most.
const MOST_EXTENSIONS: usize = 6;
/// Priority tags in one packet; Linux unwraps any number.
const MOST_TAGS: usize = 2;

#[inline(always)]
pub(super) fn parse(packet: &impl Bytes) -> Parsed {
    if packet.is_of_vlan() {
        return Parsed::Other;
    }
    if let Some(kind) = packet.unlinked() {
        return network(packet, kind, 0);
    }
    let mut kind = 0u16;
    let mut offset = ETHERNET_LEN;
    if packet.load(ETHERNET_LEN - 2, &mut kind).is_none() {
        return Parsed::Other;
    }
    // A constant offset, so that the compiler can read most packets directly.
    if !is_tag(kind) {
        return network(packet, kind, ETHERNET_LEN);
    }
    for _ in 0..MOST_TAGS {
        if !is_tag(kind) {
            break;
        }
        let mut tag = [0u16; 2];
        if packet.load(offset, &mut tag).is_none() {
            return Parsed::Other;
        }
        let [control, inner] = tag;
        // Id 0 is a priority only, and the packet this device's own (IEEE 802.1Q section 6.9).
        if u16::from_be(control) & 0x0fff != 0 {
            return Parsed::Other;
        }
        (kind, offset) = (inner, offset + 4);
    }
    network(packet, kind, offset)
}

#[inline(always)]
fn network(packet: &impl Bytes, kind: u16, offset: usize) -> Parsed {
    match u16::from_be(kind) {
        ETH_P_IP => ipv4(packet, offset),
        ETH_P_IPV6 => ipv6(packet, offset),
        ETH_P_8021Q | ETH_P_8021AD => Parsed::Unreadable,
        _ => Parsed::Other,
    }
}

#[inline(always)]
const fn is_tag(kind: u16) -> bool {
    matches!(u16::from_be(kind), ETH_P_8021Q | ETH_P_8021AD)
}

#[inline(always)]
fn ipv4(packet: &impl Bytes, offset: usize) -> Parsed {
    let mut ip = Ipv4::default();
    if packet.load(offset, &mut ip).is_none() {
        return Parsed::Malformed;
    }
    let header_len = ip.header_len();
    let Some(len) = length(packet, offset, u16::from_be(ip.total_len) as usize) else { return Parsed::Malformed };
    if ip.version_ihl >> 4 != 4 || header_len < size_of::<Ipv4>() || len < header_len {
        return Parsed::Malformed;
    }
    if ip.is_later_fragment() {
        return Parsed::Other;
    }
    let found = Found {
        source: mapped(ip.source.to_ne_bytes()),
        destination: mapped(ip.destination.to_ne_bytes()),
        destination_port: [0; 2],
        protocol: ip.protocol,
        offset: offset + header_len,
        len: len - header_len,
        fragment: ip.is_fragment(),
    };
    ports(packet, found)
}

#[inline(always)]
fn ipv6(packet: &impl Bytes, offset: usize) -> Parsed {
    let mut ip = Ipv6::default();
    if packet.load(offset, &mut ip).is_none() {
        return Parsed::Malformed;
    }
    // Zero: a jumbogram (RFC 2675), or one that the host has put together.
    let stated = match u16::from_be(ip.payload_len) as usize {
        0 => 0,
        payload => payload + IPV6_LEN,
    };
    let Some(len) = length(packet, offset, stated) else { return Parsed::Malformed };
    if u32::from_be(ip.version_flow) >> 28 != 6 {
        return Parsed::Malformed;
    }
    let (mut next, mut at, mut fragment) = (ip.next_header, IPV6_LEN, false);
    for _ in 0..MOST_EXTENSIONS {
        let mut head = [0u8; 4];
        let known = matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS);
        if !known {
            break;
        }
        if packet.load(offset + at, &mut head).is_none() {
            return Parsed::Unreadable;
        }
        let [following, words, ..] = head;
        if next == FRAGMENT {
            if u16::from_be_bytes([head[2], head[3]]) & !7 != 0 {
                return Parsed::Other;
            }
            fragment = true;
        }
        at += match next {
            FRAGMENT => 8,
            AUTHENTICATION => (words as usize + 2) * 4,
            _ => (words as usize + 1) * 8,
        };
        next = following;
    }
    if matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS) || at > len {
        return Parsed::Unreadable;
    }
    let found = Found {
        source: ip.source,
        destination: ip.destination,
        destination_port: [0; 2],
        protocol: next,
        offset: offset + at,
        len: len - at,
        fragment,
    };
    ports(packet, found)
}

#[inline(always)]
fn ports(packet: &impl Bytes, found: Found) -> Parsed {
    if found.protocol != IPPROTO_TCP && found.protocol != IPPROTO_UDP {
        return Parsed::Other;
    }
    let mut both = [0u8; 4];
    if found.len < both.len() || packet.load(found.offset, &mut both).is_none() {
        return Parsed::Unreadable;
    }
    let [_, _, high, low] = both;
    Parsed::Found(Found { destination_port: [high, low], ..found })
}

/// The length of the IP packet at `offset`: as stated, unless that is more than there is. A host's own larger packets
/// (GRO above 64 KiB) state zero.
#[inline(always)]
fn length(packet: &impl Bytes, offset: usize, stated: usize) -> Option<usize> {
    let carried = packet.size().checked_sub(offset)?;
    match stated {
        0 => Some(carried),
        stated if stated > carried => None,
        stated => Some(stated),
    }
}

const _: () = assert!(size_of::<Ipv6>() == IPV6_LEN);

// SAFETY: an integer.
unsafe impl Plain for u16 {}
// SAFETY: integers.
unsafe impl Plain for [u16; 2] {}
// SAFETY: bytes.
unsafe impl Plain for [u8; 2] {}
// SAFETY: bytes.
unsafe impl Plain for [u8; 4] {}
// SAFETY: repr(C), integers, 20 bytes without padding.
unsafe impl Plain for Ipv4 {}
// SAFETY: repr(C), integers and bytes, 40 bytes without padding.
unsafe impl Plain for Ipv6 {}
