//! IPv4, IPv6 and TCP headers as they lie in a packet. Multi-byte fields keep network byte order; the accessors convert.

pub const ETHERNET_LEN: usize = 14;
pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;
pub const TCP_LEN: usize = 20;
pub const IPPROTO_TCP: u8 = 6;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;
/// Accurate ECN (RFC 9768), in the byte that holds the data offset.
pub const AE: u8 = 0x01;

/// Option kinds (RFC 9293 section 3.1, RFC 2018, RFC 7323).
pub const OPTION_END: u8 = 0;
pub const OPTION_NOP: u8 = 1;
pub const OPTION_SEGMENT: u8 = 2;
pub const OPTION_SACK_PERMITTED: u8 = 4;
pub const OPTION_SACK: u8 = 5;
pub const OPTION_TIMESTAMP: u8 = 8;

/// RFC 791 section 3.1, without options.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub check: u16,
    pub source: u32,
    pub destination: u32,
}

/// RFC 8200 section 3, without extension headers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ipv6 {
    /// Version, traffic class and flow label.
    pub class_and_label: u32,
    /// Of what follows the 40 bytes.
    pub payload_len: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: [u32; 4],
    pub destination: [u32; 4],
}

/// RFC 9293 section 3.1, without options.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    pub source_port: u16,
    pub destination_port: u16,
    pub seq: u32,
    pub ack: u32,
    /// Data offset in the upper four bits, in words.
    pub offset: u8,
    pub flags: u8,
    pub window: u16,
    pub check: u16,
    pub urgent: u16,
}

const _: () = assert!(size_of::<Ipv4>() == IPV4_LEN);
const _: () = assert!(size_of::<Ipv6>() == IPV6_LEN);
const _: () = assert!(size_of::<Tcp>() == TCP_LEN);

impl Ipv4 {
    /// Header length in bytes.
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        (self.version_ihl & 0x0f) as usize * 4
    }

    /// A fragment, first or later (RFC 791: MF set or offset above zero).
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        u16::from_be(self.fragment) & 0x3fff != 0
    }

    /// A fragment that does not hold the TCP header.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        u16::from_be(self.fragment) & 0x1fff != 0
    }
}

impl Ipv6 {
    /// Of TCP, with all else zero.
    pub fn new() -> Self {
        Self { class_and_label: (6u32 << 28).to_be(), next_header: IPPROTO_TCP, ..Self::default() }
    }

    #[inline(always)]
    pub const fn version(&self) -> u8 {
        (u32::from_be(self.class_and_label) >> 28) as u8
    }
}

impl Tcp {
    /// Header length in bytes, options included.
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        (self.offset >> 4) as usize * 4
    }

    #[inline(always)]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}
