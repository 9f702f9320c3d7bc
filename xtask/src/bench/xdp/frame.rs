//! The packets of the bench, one for each verdict of admission and each way in.

use ingress_ebpf::header::{ACK, FIN, SYN};
use ingress_ebpf::verdict::Verdict;

/// A packet, and what the rules of [`super::programs`] make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Case {
    /// No rules at all: what every packet pays who does not use admission.
    NoRules,
    AdmittedData,
    AdmittedSyn,
    AdmittedIpv6,
    DropPrivatePort,
    DropDenied,
    DropSourceRate,
    DropBadFlags,
    DropMalformed,
    DropUnreadable,
}

pub(super) const LISTENER: ([u8; 4], u16) = ([192, 0, 2, 1], 443);
pub(super) const PRIVATE_PORT: u16 = 9876;
pub(super) const DENIED: [u8; 4] = [198, 51, 100, 9];
/// To loopback, on which the kernel runs test packets.
const ETHERNET: [u8; 12] = [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2];
const CLIENT: [u8; 4] = [203, 0, 113, 9];

impl Case {
    pub(super) const ALL: [Self; 10] = [
        Self::NoRules,
        Self::AdmittedData,
        Self::AdmittedSyn,
        Self::AdmittedIpv6,
        Self::DropPrivatePort,
        Self::DropDenied,
        Self::DropSourceRate,
        Self::DropBadFlags,
        Self::DropMalformed,
        Self::DropUnreadable,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NoRules => "no_rules",
            Self::AdmittedData => "admitted_data",
            Self::AdmittedSyn => "admitted_syn",
            Self::AdmittedIpv6 => "admitted_ipv6",
            Self::DropPrivatePort => Verdict::DropPrivatePort.as_str(),
            Self::DropDenied => Verdict::DropDenied.as_str(),
            Self::DropSourceRate => Verdict::DropSourceRate.as_str(),
            Self::DropBadFlags => Verdict::DropBadFlags.as_str(),
            Self::DropMalformed => Verdict::DropMalformed.as_str(),
            Self::DropUnreadable => Verdict::DropUnreadable.as_str(),
        }
    }

    pub(super) const fn is_dropped(self) -> bool {
        match self {
            Self::NoRules | Self::AdmittedData | Self::AdmittedSyn | Self::AdmittedIpv6 => false,
            Self::DropPrivatePort
            | Self::DropDenied
            | Self::DropSourceRate
            | Self::DropBadFlags
            | Self::DropMalformed
            | Self::DropUnreadable => true,
        }
    }

    pub(super) fn packet(self) -> Vec<u8> {
        match self {
            Self::NoRules | Self::AdmittedData => tcp(CLIENT, LISTENER, ACK),
            Self::AdmittedSyn | Self::DropSourceRate => tcp(CLIENT, LISTENER, SYN),
            Self::AdmittedIpv6 => ipv6(0),
            Self::DropPrivatePort => tcp(CLIENT, (LISTENER.0, PRIVATE_PORT), SYN),
            Self::DropDenied => tcp(DENIED, LISTENER, SYN),
            Self::DropBadFlags => tcp(CLIENT, LISTENER, SYN | FIN),
            Self::DropMalformed => {
                let mut packet = tcp(CLIENT, LISTENER, ACK);
                packet[46] = 4 << 4;
                packet
            }
            Self::DropUnreadable => ipv6(7),
        }
    }
}

/// 64 bytes of Ethernet, IPv4 and TCP, the latter without a checksum: nobody gets to look at it.
pub(super) fn tcp(from: [u8; 4], (to, port): ([u8; 4], u16), flags: u8) -> Vec<u8> {
    let mut packet = [&ETHERNET[..], &[8, 0]].concat();
    packet.extend([0x45, 0, 0, 50, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    packet.extend(from);
    packet.extend(to);
    let sum: u32 = packet[14..].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet.extend(header(port, flags));
    packet.resize(64, 0);
    packet
}

/// TCP over IPv6 behind as many extension headers.
fn ipv6(extensions: u8) -> Vec<u8> {
    const DESTINATION_OPTIONS: u8 = 60;
    let next = |left: u8| if left == 0 { 6 } else { DESTINATION_OPTIONS };
    let mut packet = [&ETHERNET[..], &[0x86, 0xdd]].concat();
    packet.extend([0x60, 0, 0, 0, 0, 20 + 8 * extensions, next(extensions), 64]);
    packet.extend([0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    packet.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    for left in (0..extensions).rev() {
        packet.extend([next(left), 0, 0, 0, 0, 0, 0, 0]);
    }
    packet.extend(header(LISTENER.1, ACK));
    packet
}

fn header(port: u16, flags: u8) -> [u8; 20] {
    let [high, low] = port.to_be_bytes();
    [0xc3, 0x50, high, low, 0, 0, 0, 7, 0, 0, 0, 8, 5 << 4, flags, 4, 0, 0, 0, 0, 0]
}
