//! From the Ethernet header to the ports, past priority tags, IP options and IPv6 extension headers.

use super::{Bytes, Plain};
use crate::flow::{Address, mapped};
use crate::header::{ETHERNET_LEN, IPPROTO_TCP, Ipv4, TCP_LEN};

/// What a packet turned out to be.
pub(super) enum Parsed {
    /// Nothing with a port for this device: ARP, ICMP, a later fragment, another VLAN's.
    Other,
    /// IP, of a length that cannot be. The stack would drop it.
    Malformed,
    /// TCP or UDP may be in it, but not where this parser looks.
    Unreadable,
    Found,
}

/// TCP or UDP, and where it is going.
// Not a part of `Parsed`: what the compiler makes of a value that is there on some ways only, older verifiers take for uninitialised memory.
#[derive(Default)]
pub(super) struct Found {
    pub(super) source: Address,
    pub(super) destination: Address,
    /// Network byte order.
    pub(super) destination_port: [u8; 2],
    pub(super) protocol: u8,
    /// Bytes of it in this packet.
    pub(super) len: usize,
    /// Of TCP's header: where its payload starts, and its flags. Zero where the packet ends before.
    pub(super) offset_and_flags: [u8; 2],
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
/// Where they stand in TCP's header (RFC 9293 section 3.1).
const TCP_OFFSET_AND_FLAGS: usize = 12;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// How long an extension header is: (length field & `mask` + `more`) * `unit` bytes. A `unit` of 0: it is none.
#[derive(Clone, Copy)]
struct Extension {
    unit: u8,
    more: u8,
    mask: u8,
}

/// By number (RFC 8200 section 4, RFC 4302). A table, because the verifier follows each arm of a `match`, and all that comes after it, for
/// each header that a packet can have.
static EXTENSIONS: [Extension; 256] = {
    const EIGHTS: Extension = Extension { unit: 8, more: 1, mask: 0xff };
    let mut all = [Extension { unit: 0, more: 0, mask: 0 }; 256];
    all[HOP_BY_HOP as usize] = EIGHTS;
    all[ROUTING as usize] = EIGHTS;
    all[DESTINATION_OPTIONS as usize] = EIGHTS;
    // It has no length field.
    all[FRAGMENT as usize] = Extension { mask: 0, ..EIGHTS };
    all[AUTHENTICATION as usize] = Extension { unit: 4, more: 2, mask: 0xff };
    all
};
/// RFC 8200 recommends an order of six at most.
const MOST_EXTENSIONS: usize = 6;
/// Priority tags in one packet; Linux unwraps any number.
const MOST_TAGS: usize = 2;

#[inline(always)]
pub(super) fn parse(packet: &impl Bytes, found: &mut Found) -> Parsed {
    if packet.is_of_vlan() {
        return Parsed::Other;
    }
    if let Some(kind) = packet.unlinked() {
        return network(packet, kind, 0, found);
    }
    let mut kind = 0u16;
    let mut offset = ETHERNET_LEN;
    if packet.load(ETHERNET_LEN - 2, &mut kind).is_none() {
        return Parsed::Other;
    }
    // A constant offset, so that the compiler can read most packets directly.
    if !is_tag(kind) {
        return network(packet, kind, ETHERNET_LEN, found);
    }
    let packet = &Anywhere(packet);
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
    network(packet, kind, offset, found)
}

/// A packet in which something stands before what is looked for, as in few.
struct Anywhere<'a, B>(&'a B);

impl<B: Bytes> Bytes for Anywhere<'_, B> {
    #[inline(always)]
    fn size(&self) -> usize {
        self.0.size()
    }

    #[inline(always)]
    fn load<T: Plain>(&self, offset: usize, into: &mut T) -> Option<()> {
        self.0.load_anywhere(offset, into)
    }

    #[inline(always)]
    fn is_of_vlan(&self) -> bool {
        self.0.is_of_vlan()
    }
}

#[inline(always)]
fn network(packet: &impl Bytes, kind: u16, offset: usize, found: &mut Found) -> Parsed {
    match u16::from_be(kind) {
        ETH_P_IP => ipv4(packet, offset, found),
        ETH_P_IPV6 => ipv6(packet, offset, found),
        ETH_P_8021Q | ETH_P_8021AD => Parsed::Unreadable,
        _ => Parsed::Other,
    }
}

#[inline(always)]
const fn is_tag(kind: u16) -> bool {
    matches!(u16::from_be(kind), ETH_P_8021Q | ETH_P_8021AD)
}

#[inline(always)]
fn ipv4(packet: &impl Bytes, offset: usize, found: &mut Found) -> Parsed {
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
    found.source = mapped(ip.source.to_ne_bytes());
    found.destination = mapped(ip.destination.to_ne_bytes());
    found.protocol = ip.protocol;
    found.len = len - header_len;
    found.fragment = ip.is_fragment();
    transport(packet, offset + header_len, found)
}

#[inline(always)]
fn ipv6(packet: &impl Bytes, offset: usize, found: &mut Found) -> Parsed {
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
    found.source = ip.source;
    found.destination = ip.destination;
    let (mut next, mut at) = (ip.next_header, IPV6_LEN);
    if EXTENSIONS[next as usize].unit == 0 {
        (found.protocol, found.len) = (next, len - at);
        return transport(packet, offset + at, found);
    }
    let packet = &Anywhere(packet);
    for _ in 0..MOST_EXTENSIONS {
        let Extension { unit, more, mask } = EXTENSIONS[next as usize];
        if unit == 0 {
            break;
        }
        let mut head = [0u8; 4];
        if packet.load(offset + at, &mut head).is_none() {
            return Parsed::Unreadable;
        }
        let [following, length, ..] = head;
        if next == FRAGMENT {
            if u16::from_be_bytes([head[2], head[3]]) & !7 != 0 {
                return Parsed::Other;
            }
            found.fragment = true;
        }
        at += ((length & mask) as usize + more as usize) * unit as usize;
        next = following;
    }
    if EXTENSIONS[next as usize].unit != 0 || at > len {
        return Parsed::Unreadable;
    }
    (found.protocol, found.len) = (next, len - at);
    transport(packet, offset + at, found)
}

/// `offset`: where the header of TCP or UDP starts in the packet.
#[inline(always)]
fn transport(packet: &impl Bytes, offset: usize, found: &mut Found) -> Parsed {
    if found.protocol != IPPROTO_TCP && found.protocol != IPPROTO_UDP {
        return Parsed::Other;
    }
    let mut ports = [0u8; 4];
    if found.len < ports.len() || packet.load(offset, &mut ports).is_none() {
        return Parsed::Unreadable;
    }
    let [_, _, high, low] = ports;
    found.destination_port = [high, low];
    if found.protocol == IPPROTO_TCP && found.len >= TCP_LEN {
        let _ = packet.load(offset + TCP_OFFSET_AND_FLAGS, &mut found.offset_and_flags);
    }
    Parsed::Found
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
