//! What differs between IPv4 and IPv6. The programs are compiled once for each: which family a packet is of is asked once,
//! before anything else.

use crate::flow::{Address, FlowKey, mapped_words};
use crate::header::{IPPROTO_TCP, IPV4_LEN, IPV6_LEN, Ipv4, Ipv6};
use crate::rewrite::{Sum, apply, fold_pair};

/// The fixed header of one IP version, as it lies in a packet.
pub trait Ip: Copy {
    /// Bytes.
    const LEN: usize;

    /// Source and destination, in words of network byte order.
    fn addresses(&self) -> ([u32; 4], [u32; 4]);

    /// ICMP's number as a payload of this version.
    const ICMP: u8;

    /// Type and code of ICMP's "packet too big".
    const TOO_BIG: (u8, u8);

    /// `protocol` in one piece, right behind this header.
    fn is_plain(&self, protocol: u8) -> bool;

    #[inline(always)]
    fn is_plain_tcp(&self) -> bool {
        self.is_plain(IPPROTO_TCP)
    }

    /// Of what is not plain: where TCP stands all the same, in bytes from the start of this header, and what stands between.
    /// `None`: something else, or out of sight. `load` reads four bytes at such a distance.
    fn odd_tcp(&self, load: impl Fn(usize) -> Option<[u8; 4]>) -> Option<(usize, Odd)>;

    /// Bytes of TCP's header and payload; 0 where the header claims more than is there. `carried`: bytes of the packet from
    /// the IP header on. Neither length alone will do: a frame may be padded, and a GSO packet above 64 KiB states zero.
    fn segment_len(&self, carried: u32) -> u32;

    /// Hops that are left.
    fn hops(&self) -> u8;

    /// New addresses, and one hop less. A checksum in the header itself is right afterwards.
    fn forward(&mut self, source: &Address, destination: &Address) -> Readdressed;

    /// New addresses, of a header that is quoted. A checksum in the header itself is right afterwards. Returns what a checksum over all of it
    /// has to take in.
    fn readdress(&mut self, source: &Address, destination: &Address) -> Sum;

    /// Back to the sender. No checksum notices.
    fn turn_around(&mut self);
}

/// What [`Ip::forward`] has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readdressed {
    /// Difference of the pseudo header.
    pub pseudo: u32,
    /// What `bpf_csum_update` must be told, because the IP header has no checksum that takes its own changes back.
    pub uncovered: u32,
}

/// Why a TCP packet is not plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odd {
    /// IPv4 options or IPv6 extension headers.
    Options,
    /// The first fragment of several, or one that says it were.
    Fragment,
}

impl Ip for Ipv4 {
    const LEN: usize = IPV4_LEN;

    #[inline(always)]
    fn addresses(&self) -> ([u32; 4], [u32; 4]) {
        (mapped_words(self.source), mapped_words(self.destination))
    }

    const ICMP: u8 = 1;
    const TOO_BIG: (u8, u8) = (3, 4);

    #[inline(always)]
    fn is_plain(&self, protocol: u8) -> bool {
        self.protocol == protocol && self.version_ihl == 0x45 && !self.is_fragment()
    }

    #[inline(always)]
    fn odd_tcp(&self, _load: impl Fn(usize) -> Option<[u8; 4]>) -> Option<(usize, Odd)> {
        if self.protocol != IPPROTO_TCP || self.is_later_fragment() {
            None
        } else if self.version_ihl != 0x45 {
            Some((self.header_len(), Odd::Options))
        } else {
            Some((IPV4_LEN, Odd::Fragment))
        }
    }

    #[inline(always)]
    fn segment_len(&self, carried: u32) -> u32 {
        let stated = u16::from_be(self.total_len) as u32;
        within(stated, carried).saturating_sub(IPV4_LEN as u32)
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn forward(&mut self, source: &Address, destination: &Address) -> Readdressed {
        let (source, destination) = (word(source, 3), word(destination, 3));
        let mut pseudo = Sum::default();
        pseudo.replace32(self.source, source);
        pseudo.replace32(self.destination, destination);
        let pseudo = pseudo.fold32();

        let hops = u16::from_ne_bytes([self.ttl, self.protocol]);
        self.ttl = self.ttl.wrapping_sub(1);
        let mut own = Sum::default();
        own.replace16(hops, u16::from_ne_bytes([self.ttl, self.protocol]));
        self.check = apply(self.check, fold_pair(own.fold32(), pseudo));
        self.source = source;
        self.destination = destination;
        Readdressed { pseudo, uncovered: 0 }
    }

    #[inline(always)]
    fn readdress(&mut self, source: &Address, destination: &Address) -> Sum {
        let (source, destination) = (word(source, 3), word(destination, 3));
        let mut sum = Sum::default();
        sum.replace32(self.source, source);
        sum.replace32(self.destination, destination);
        self.check = apply(self.check, sum.fold32());
        self.source = source;
        self.destination = destination;
        // The header's checksum has taken its own changes back.
        Sum::default()
    }

    #[inline(always)]
    fn turn_around(&mut self) {
        core::mem::swap(&mut self.source, &mut self.destination);
    }
}

impl Ip for Ipv6 {
    const LEN: usize = IPV6_LEN;

    #[inline(always)]
    fn addresses(&self) -> ([u32; 4], [u32; 4]) {
        (self.source, self.destination)
    }

    const ICMP: u8 = 58;
    const TOO_BIG: (u8, u8) = (2, 0);

    #[inline(always)]
    fn is_plain(&self, protocol: u8) -> bool {
        self.next_header == protocol && self.version() == 6 && !is_mapped(self.source)
    }

    /// RFC 8200 section 4. A chain that is longer than anybody's goes to the stack, whose answer tc egress drops.
    #[inline(always)]
    fn odd_tcp(&self, load: impl Fn(usize) -> Option<[u8; 4]>) -> Option<(usize, Odd)> {
        if self.version() != 6 || is_mapped(self.source) {
            return None;
        }
        let (mut kind, mut at, mut odd) = (self.next_header, IPV6_LEN, Odd::Options);
        for _ in 0..EXTENSIONS_MAX {
            if !is_extension(kind) {
                return None;
            }
            let [next, len, high, low] = load(at)?;
            at += 8 + if kind == FRAGMENT {
                if u16::from_be_bytes([high, low]) & FRAGMENT_OFFSET != 0 {
                    return None;
                }
                odd = Odd::Fragment;
                0
            } else if kind == AUTHENTICATION {
                len as usize * 4
            } else {
                len as usize * 8
            };
            if next == IPPROTO_TCP {
                return Some((at, odd));
            }
            kind = next;
        }
        None
    }

    #[inline(always)]
    fn segment_len(&self, carried: u32) -> u32 {
        within(u16::from_be(self.payload_len) as u32, carried.saturating_sub(IPV6_LEN as u32))
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn forward(&mut self, source: &Address, destination: &Address) -> Readdressed {
        let mut pseudo = Sum::default();
        replace(&mut pseudo, &mut self.source, source);
        replace(&mut pseudo, &mut self.destination, destination);
        let pseudo = pseudo.fold32();

        let mut hops = Sum::default();
        let old = u16::from_ne_bytes([self.next_header, self.hop_limit]);
        self.hop_limit = self.hop_limit.wrapping_sub(1);
        hops.replace16(old, u16::from_ne_bytes([self.next_header, self.hop_limit]));
        // TCP's checksum takes the addresses back. bpf_l4_csum_replace believes that a header checksum has done so already
        // (BPF_F_IPV6 tells it better, but only since 6.16), and takes the pseudo header's difference off the packet's sum.
        Readdressed { pseudo, uncovered: fold_pair(pseudo, hops.fold32()) }
    }

    #[inline(always)]
    fn readdress(&mut self, source: &Address, destination: &Address) -> Sum {
        let mut sum = Sum::default();
        replace(&mut sum, &mut self.source, source);
        replace(&mut sum, &mut self.destination, destination);
        sum
    }

    #[inline(always)]
    fn turn_around(&mut self) {
        core::mem::swap(&mut self.source, &mut self.destination);
    }
}

/// More than any sender has reason for.
const EXTENSIONS_MAX: usize = 6;
/// Extension headers (IANA "IPv6 Extension Header Types"), without ESP, behind which nothing can be seen.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;
const FRAGMENT_OFFSET: u16 = 0xfff8;

#[inline(always)]
const fn is_extension(kind: u8) -> bool {
    matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY | HIP | SHIM6)
}

/// An IPv4 address in the form of a flow's key. It has no business on a wire (RFC 4291 section 2.5.5.2), and must not pass for
/// the IPv4 flow that it names.
#[inline(always)]
const fn is_mapped(address: [u32; 4]) -> bool {
    let [a, b, c, _] = address;
    a | b == 0 && c == 0xffffu32.to_be()
}

/// The key of a packet with this header and these ports.
#[inline(always)]
pub fn key<I: Ip>(ip: &I, source_port: u16, destination_port: u16) -> FlowKey {
    let (source, destination) = ip.addresses();
    FlowKey::new(source, destination, source_port, destination_port)
}

#[inline(always)]
const fn within(stated: u32, carried: u32) -> u32 {
    if stated == 0 {
        carried
    } else if stated > carried {
        0
    } else {
        stated
    }
}

/// Word by word, so that no more than one has to be kept at a time.
#[inline(always)]
fn replace(sum: &mut Sum, words: &mut [u32; 4], new: &Address) {
    let mut at = 0;
    while at < 4 {
        let new = word(new, at);
        sum.replace32(words[at], new);
        words[at] = new;
        at += 1;
    }
}

/// The word of four bytes at `at`, in network order.
#[inline(always)]
const fn word(address: &Address, at: usize) -> u32 {
    u32::from_ne_bytes([address[at * 4], address[at * 4 + 1], address[at * 4 + 2], address[at * 4 + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn six(next_header: u8) -> Ipv6 {
        Ipv6 { next_header, ..Ipv6::new() }
    }

    /// Extension headers as they lie behind the fixed one.
    fn look(first: u8, behind: &[u8]) -> Option<(usize, Odd)> {
        assert!(!six(first).is_plain_tcp());
        six(first).odd_tcp(|at| behind.get(at - IPV6_LEN..at - IPV6_LEN + 4)?.try_into().ok())
    }

    #[test]
    fn tcp_is_found_behind_every_extension_header() {
        assert!(six(IPPROTO_TCP).is_plain_tcp());
        for kind in [HOP_BY_HOP, ROUTING, DESTINATION, MOBILITY, HIP, SHIM6] {
            for len in [0u8, 1, 255] {
                let at = IPV6_LEN + 8 + usize::from(len) * 8;
                assert_eq!(look(kind, &[IPPROTO_TCP, len, 0, 0]), Some((at, Odd::Options)), "{kind}");
            }
        }
        let authentication = look(AUTHENTICATION, &[IPPROTO_TCP, 4, 0, 0]);
        assert_eq!(authentication, Some((IPV6_LEN + 24, Odd::Options)), "counts in words of four");
        let chain = [DESTINATION, 0, 0, 0, 0, 0, 0, 0, IPPROTO_TCP, 0, 0, 0];
        assert_eq!(look(HOP_BY_HOP, &chain), Some((IPV6_LEN + 16, Odd::Options)));
    }

    #[test]
    fn only_the_first_fragment_shows_its_ports() {
        let fragment = |offset_and_more: u16| {
            let [high, low] = offset_and_more.to_be_bytes();
            look(FRAGMENT, &[IPPROTO_TCP, 99, high, low])
        };
        let first = Some((IPV6_LEN + 8, Odd::Fragment));
        assert_eq!((fragment(1), fragment(0)), (first, first), "the second says that it is the only one (RFC 6946)");
        assert_eq!((fragment(8), fragment(0xfff9)), (None, None));
    }

    #[test]
    fn what_is_not_tcp_or_out_of_sight_is_other() {
        for kind in [17u8, 58, 50, 59, 41, 1] {
            assert_eq!(look(kind, &[IPPROTO_TCP, 0, 0, 0]), None, "{kind}");
        }
        assert_eq!(look(HOP_BY_HOP, &[IPPROTO_TCP, 0, 0]), None, "cut off");
        let endless: Vec<u8> = [DESTINATION, 0, 0, 0, 0, 0, 0, 0].repeat(EXTENSIONS_MAX);
        assert_eq!(look(HOP_BY_HOP, &endless), None);
        let four = Ipv6 { class_and_label: 0x4000_0000u32.to_be(), ..six(IPPROTO_TCP) };
        assert!(!four.is_plain_tcp() && four.odd_tcp(|_| Some([IPPROTO_TCP, 0, 0, 0])).is_none(), "another version");
    }

    #[test]
    fn a_segment_is_as_long_as_its_header_says_or_as_the_packet_is() {
        let four = |total_len: u16| Ipv4 { total_len: total_len.to_be(), ..Ipv4::default() };
        let six = |payload_len: u16| Ipv6 { payload_len: payload_len.to_be(), ..six(IPPROTO_TCP) };
        for (stated, carried, len) in [(40, 40, 40), (40, 46, 40), (41, 40, 0), (0, 70_000, 70_000)] {
            let total = if stated == 0 { 0 } else { stated + 20 };
            assert_eq!(four(total).segment_len(carried + 20), len, "{stated} of {carried}");
            assert_eq!(six(stated).segment_len(carried + 40), len, "{stated} of {carried}");
        }
        assert_eq!((four(19).segment_len(60), six(1).segment_len(12)), (0, 0));
    }
}
