//! The PROXY header that the backend expects in front of the hello, checked down to its addresses
//! (HAProxy's proxy-protocol.txt, sections 2.1 and 2.2).

use std::net::{Ipv4Addr, SocketAddrV4};

use clap::ValueEnum;

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;
/// The longest v1 line, CRLF included.
const V1_MAX: usize = 107;

/// What a peer puts in front of the client's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::bench) enum ProxyHeader {
    None,
    V1,
    V2,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    NeedMore,
    /// `length` bytes long; `None` where no header is expected.
    Header {
        addresses: Option<Addresses>,
        length: usize,
    },
    Invalid(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) source: SocketAddrV4,
    pub(super) destination: SocketAddrV4,
}

pub(super) fn parse(expected: ProxyHeader, bytes: &[u8]) -> Parsed {
    match expected {
        ProxyHeader::None => Parsed::Header { addresses: None, length: 0 },
        ProxyHeader::V1 => parse_v1(bytes),
        ProxyHeader::V2 => parse_v2(bytes),
    }
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    let Some(end) = bytes.windows(2).take(V1_MAX).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < V1_MAX { Parsed::NeedMore } else { Parsed::Invalid("PROXY v1 line without an end") };
    };
    let line = String::from_utf8_lossy(&bytes[..end]);
    let words: Vec<&str> = line.split(' ').collect();
    let ["PROXY", "TCP4", source, destination, source_port, destination_port] = words[..] else {
        return Parsed::Invalid("not a PROXY v1 line for TCP4");
    };
    match (endpoint(source, source_port), endpoint(destination, destination_port)) {
        (Some(source), Some(destination)) => {
            Parsed::Header { addresses: Some(Addresses { source, destination }), length: end + 2 }
        }
        (None, _) | (_, None) => Parsed::Invalid("PROXY v1 line with a bad address"),
    }
}

fn endpoint(address: &str, port: &str) -> Option<SocketAddrV4> {
    Some(SocketAddrV4::new(address.parse().ok()?, port.parse().ok()?))
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    let Some(fixed) = bytes.first_chunk::<V2_FIXED>() else { return Parsed::NeedMore };
    if !fixed.starts_with(V2_SIGNATURE) {
        return Parsed::Invalid("no PROXY v2 signature");
    }
    // Version 2, command PROXY; AF_INET over STREAM.
    if fixed[12..14] != [0x21, 0x11] {
        return Parsed::Invalid("not a PROXY v2 header for TCP over IPv4");
    }
    let length = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let Some(body) = bytes.get(V2_FIXED..length) else { return Parsed::NeedMore };
    let Some(a) = body.first_chunk::<12>() else { return Parsed::Invalid("PROXY v2 header without addresses") };
    let source = SocketAddrV4::new(Ipv4Addr::new(a[0], a[1], a[2], a[3]), u16::from_be_bytes([a[8], a[9]]));
    let destination = SocketAddrV4::new(Ipv4Addr::new(a[4], a[5], a[6], a[7]), u16::from_be_bytes([a[10], a[11]]));
    Parsed::Header { addresses: Some(Addresses { source, destination }), length }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Addresses {
        Addresses {
            source: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 7), 40_000),
            destination: SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 443),
        }
    }

    #[test]
    fn a_v1_line_is_read_whole_and_the_hello_behind_it_stays() {
        let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";
        let bytes = [&line[..], b"\x16\x03\x01"].concat();
        assert_eq!(parse(ProxyHeader::V1, &bytes), Parsed::Header { addresses: Some(addresses()), length: line.len() });
        assert_eq!(parse(ProxyHeader::V1, &line[..line.len() - 1]), Parsed::NeedMore);
        assert!(matches!(parse(ProxyHeader::V1, &[0x16; V1_MAX]), Parsed::Invalid(_)));
    }

    #[test]
    fn a_v2_header_with_tlvs_is_read_whole() {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([0x21, 0x11, 0, 12 + 4]);
        bytes.extend([192, 0, 2, 7, 198, 51, 100, 1, 0x9c, 0x40, 0x01, 0xbb]);
        bytes.extend([0x04, 0, 1, 0]); // a NOOP TLV
        let length = bytes.len();
        assert_eq!(parse(ProxyHeader::V2, &bytes[..length - 1]), Parsed::NeedMore);
        assert_eq!(parse(ProxyHeader::V2, &bytes), Parsed::Header { addresses: Some(addresses()), length });
        bytes[12] = 0x20; // LOCAL
        assert!(matches!(parse(ProxyHeader::V2, &bytes), Parsed::Invalid(_)));
    }
}
