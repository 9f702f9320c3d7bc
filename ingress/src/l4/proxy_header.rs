//! The PROXY protocol, both ways: headers that trusted sources put before a connection, and those that backends are told
//! the client's address with. Pure; the accept and connect paths call it.
//!
//! Specification: "The PROXY protocol", versions 1 and 2, <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>;
//! sections below are its. A header says who the client is, so it is parsed only where the configuration trusts the
//! source, and it is either wholly valid or ends the connection.

mod tlv;
mod v1;
mod v2;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::reader::Malformed;
use crate::config::ProxyProtocol;

pub use tlv::{MAX_UNIQUE_ID, Tlv, Tlvs};
pub use v1::MAX_V1_HEADER;
pub use v2::MAX_V2_HEADER;

/// What the bytes that were received so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderOutcome {
    /// A whole header in the first `length` bytes; the connection's own bytes follow.
    Header { header: ProxyHeader, length: usize },
    /// All bytes may still become a header. Only ever answered to fewer than [`MAX_V2_HEADER`] bytes.
    NeedMore,
    /// The first bytes are not those of a PROXY header.
    NotProxy,
    /// They are, and then the header breaks the specification: the connection must be closed.
    Malformed(BadHeader),
}

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyHeader {
    pub command: Command,
    /// `None`: the socket's own addresses count. So it is with LOCAL, v1 UNKNOWN, and what is not TCP over IPv4 or IPv6.
    pub addresses: Option<Addresses>,
    /// None in v1, and with LOCAL.
    pub tlvs: Tlvs,
}

/// Both ends of the connection that is told of, of one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// What the client called.
    pub destination: SocketAddr,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Command {
    /// The sender's own connection, such as a health check.
    Local,
    /// On behalf of the client that `addresses` names.
    #[default]
    Proxy,
}

/// How a header breaks the specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    #[error("the PROXY v1 line does not end within {MAX_V1_HEADER} bytes")]
    UnendedLine,
    #[error("the PROXY v1 line {0}")]
    Line(&'static str),
    #[error("PROXY version {0} instead of 2")]
    Version(u8),
    #[error("unknown PROXY v2 command {0}")]
    Command(u8),
    #[error("unknown PROXY v2 address family and protocol {0:#04x}")]
    Family(u8),
    #[error("a PROXY v2 header of {0} bytes; {MAX_V2_HEADER} are read at most")]
    TooLong(usize),
    #[error("PROXY v2 {0}")]
    Malformed(&'static str),
    #[error("the PROXY v2 header's CRC32C is {computed:#010x}, but it says {received:#010x}")]
    Checksum { received: u32, computed: u32 },
}

/// What is known of a connection, for the TLVs that a pool asks for ([`crate::config::ProxyTlvs`]).
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// The client's SNI.
    pub authority: Option<&'a str>,
    /// The client's ALPN offers, joined by `,`; which of them is spoken, only the backend decides.
    pub alpn: Option<&'a str>,
    /// Sent as decimal digits, the way the log writes it, so that a backend's log can be searched for it.
    pub unique_id: Option<u64>,
    /// TLVs of the header that the connection came with. They reach a v2 backend as they are, and win over a fact of the
    /// same type: who sent them was nearer to the client.
    pub passed_on: Option<&'a Tlvs>,
}

/// Judges all bytes that were received so far. Its work is bounded by the header's length, which is short; ask again with
/// all bytes after each read.
pub fn parse(received: &[u8]) -> HeaderOutcome {
    let parsed = if v1::starts(received) {
        v1::parse(received)
    } else if v2::starts(received) {
        v2::parse(received)
    } else {
        return HeaderOutcome::NotProxy;
    };
    match parsed {
        Ok(Some((header, length))) => HeaderOutcome::Header { header, length },
        Ok(None) => HeaderOutcome::NeedMore,
        Err(bad) => HeaderOutcome::Malformed(bad),
    }
}

/// The header that a backend is sent before the client's first byte; empty where the pool wants none.
pub fn for_backend(protocol: ProxyProtocol, source: SocketAddr, destination: SocketAddr, facts: &Facts<'_>) -> Vec<u8> {
    let addresses = Addresses::new(source, destination);
    match protocol {
        ProxyProtocol::None => Vec::new(),
        ProxyProtocol::V1 => v1::encode(addresses),
        ProxyProtocol::V2(wanted) => v2::encode(addresses, wanted, facts),
    }
}

/// The header that a health check sends to a pool that expects one: v2 LOCAL, and in v1, which has no such command, the
/// check's own addresses (section 2.1 advises against UNKNOWN).
pub fn for_probe(protocol: ProxyProtocol, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    match protocol {
        ProxyProtocol::None => Vec::new(),
        ProxyProtocol::V1 => v1::encode(Addresses::new(source, destination)),
        ProxyProtocol::V2(_) => v2::LOCAL_HEADER.to_vec(),
    }
}

impl Addresses {
    /// Both in one family, as the header has room for only one: IPv4 if both are (an IPv6 socket's `::ffff:192.0.2.1`
    /// too), else IPv6 with the IPv4 one mapped (RFC 4291 section 2.5.5.2). Zones and flow labels have no place in it.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        let (from, to) = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
            (from @ IpAddr::V4(_), to @ IpAddr::V4(_)) => (from, to),
            (from, to) => (mapped(from).into(), mapped(to).into()),
        };
        Self { source: SocketAddr::new(from, source.port()), destination: SocketAddr::new(to, destination.port()) }
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

impl From<Malformed> for BadHeader {
    fn from(Malformed(field): Malformed) -> Self {
        Self::Malformed(field)
    }
}

/// What a version's parser answers: the header and its length, or `None` for "more bytes".
type Parsed = Result<Option<(ProxyHeader, usize)>, BadHeader>;

#[cfg(test)]
mod tests;
