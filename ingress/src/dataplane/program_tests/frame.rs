//! Ethernet frames with IPv4 and TCP, built and taken apart with every checksum computed in full.

use ingress_ebpf::header::{ETHERNET_LEN, IPPROTO_TCP, IPV4_LEN, Ipv4, TCP_LEN, Tcp};

/// Loopback's address, on which the kernel runs test packets.
pub(super) const TO_US: [u8; 6] = [0; 6];
pub(super) const FROM_THEM: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A packet in the words of its headers. Lengths and checksums are made by [`Frame::bytes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) ip: Ipv4,
    pub(super) tcp: Tcp,
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// With checksums that are right.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let header_len = TCP_LEN + self.options.len();
        assert_eq!(header_len % 4, 0, "options come in words");
        let ip = Ipv4 { total_len: ((IPV4_LEN + header_len + self.payload.len()) as u16).to_be(), check: 0, ..self.ip };
        let tcp = Tcp { offset: (header_len as u8 / 4) << 4 | self.tcp.offset & 0x0f, check: 0, ..self.tcp };
        let mut bytes = [&TO_US[..], &FROM_THEM, &[8, 0]].concat();
        bytes.extend(as_bytes::<Ipv4, IPV4_LEN>(ip));
        bytes.extend(as_bytes::<Tcp, TCP_LEN>(tcp));
        bytes.extend(&self.options);
        bytes.extend(&self.payload);
        restore_checksums(&mut bytes);
        bytes
    }

    /// Takes `bytes` apart; both checksums must be right.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let (ip, tcp) = (header::<Ipv4, IPV4_LEN>(bytes, 14), header::<Tcp, TCP_LEN>(bytes, 34));
        let end = ETHERNET_LEN + usize::from(u16::from_be(ip.total_len));
        let mut right = bytes[..end].to_vec();
        restore_checksums(&mut right);
        assert_eq!(ip.check, header::<Ipv4, IPV4_LEN>(&right, 14).check, "IPv4 checksum");
        assert_eq!(tcp.check, header::<Tcp, TCP_LEN>(&right, 34).check, "TCP checksum");
        let data = ETHERNET_LEN + IPV4_LEN + tcp.header_len();
        Self { ip, tcp, options: bytes[54..data].to_vec(), payload: bytes[data..end].to_vec() }
    }

    /// As [`Frame::parse`] would give it back.
    pub(super) fn complete(&self) -> Self {
        Self::parse(&self.bytes())
    }
}

/// Fills both checksum fields of a frame without IP options.
pub(super) fn restore_checksums(bytes: &mut [u8]) {
    bytes[24..26].fill(0);
    let check = checksum(&bytes[14..34], 0);
    bytes[24..26].copy_from_slice(&check.to_be_bytes());
    bytes[50..52].fill(0);
    let length = u32::from(u16::from_be_bytes([bytes[16], bytes[17]])) - 20;
    let check = checksum(&bytes[26..ETHERNET_LEN + 20 + length as usize], u32::from(IPPROTO_TCP) + length);
    bytes[50..52].copy_from_slice(&check.to_be_bytes());
}

/// The frame with `options` (whole words) behind the IPv4 header.
pub(super) fn with_ip_options(bytes: &[u8], options: &[u8]) -> Vec<u8> {
    let mut longer = [&bytes[..34], options, &bytes[34..]].concat();
    longer[14] = 0x45 + options.len() as u8 / 4;
    let total_len = u16::from_be_bytes([longer[16], longer[17]]) + options.len() as u16;
    longer[16..18].copy_from_slice(&total_len.to_be_bytes());
    longer
}

/// RFC 1071.
pub(super) fn checksum(bytes: &[u8], seed: u32) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum = bytes.chunks(2).map(word).sum::<u32>() + seed;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn as_bytes<T, const N: usize>(header: T) -> [u8; N] {
    const { assert!(size_of::<T>() == N) };
    // SAFETY: both headers are repr(C) integers without padding, N bytes long.
    unsafe { std::mem::transmute_copy(&header) }
}

fn header<T, const N: usize>(bytes: &[u8], at: usize) -> T {
    const { assert!(size_of::<T>() == N) };
    let bytes: [u8; N] = bytes[at..at + N].try_into().expect("N bytes");
    // SAFETY: both headers are repr(C) integers, N bytes long; every pattern is valid.
    unsafe { std::mem::transmute_copy(&bytes) }
}
