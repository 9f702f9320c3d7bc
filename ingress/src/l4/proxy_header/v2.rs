//! Version 2, binary (section 2.2):
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |                  signature (12 bytes)                        ...
//! +-------+-------+-------+-------+-------------------------------+
//! |ver = 2|command| family|  proto|   length of what follows      |
//! +-------+-------+-------+-------+-------------------------------+
//! |  source address, destination address, source port,           ...
//! |  destination port: 12 bytes (IPv4), 36 (IPv6), 216 (UNIX)     |
//! +---------------+-------------------------------+---------------+
//! |     type      |            length             |    value     ...
//! +---------------+-------------------------------+---------------+
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::reader::Reader;
use super::tlv::{self, Tlvs};
use super::{Addresses, BadHeader, Command, Facts, Parsed, ProxyHeader};
use crate::config::ProxyTlvs;

/// Longest header that is read or written. The specification allows 65,551 bytes, but no sender comes near.
pub const MAX_V2_HEADER: usize = 4096;

/// What a health check sends: command LOCAL, no addresses.
pub(super) const LOCAL_HEADER: [u8; FIXED] = {
    let mut header = [0; FIXED];
    let (signature, rest) = header.split_at_mut(SIGNATURE.len());
    signature.copy_from_slice(&SIGNATURE);
    rest[0] = VERSION << 4 | LOCAL;
    header
};

/// Whether this is, or may become, a version 2 header.
pub(super) fn starts(received: &[u8]) -> bool {
    received.iter().zip(SIGNATURE).all(|(byte, wanted)| *byte == wanted)
}

pub(super) fn parse(received: &[u8]) -> Parsed {
    let Some(&version_and_command) = received.get(SIGNATURE.len()) else { return Ok(None) };
    if version_and_command >> 4 != VERSION {
        return Err(BadHeader::Version(version_and_command >> 4));
    }
    let command = match version_and_command & 0xf {
        LOCAL => Command::Local,
        PROXY => Command::Proxy,
        unknown => return Err(BadHeader::Command(unknown)),
    };
    let Some(&[family, high, low]) = received.get(SIGNATURE.len() + 1..).and_then(|rest| rest.first_chunk()) else {
        return Ok(None);
    };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_V2_HEADER {
        return Err(BadHeader::TooLong(length));
    }
    let Some(header) = received.get(..length) else { return Ok(None) };
    let block = Reader::new(&header[FIXED..]);
    let parsed = match command {
        // The block is discarded, whatever family it claims, and with it what may look like TLVs.
        Command::Local => ProxyHeader { command, addresses: None, tlvs: Tlvs::default() },
        Command::Proxy => {
            let (addresses, tlvs) = block_of(family, block)?;
            verify(header, &tlvs)?;
            ProxyHeader { command, addresses, tlvs }
        }
    };
    Ok(Some((parsed, length)))
}

/// Addresses and TLVs of a PROXY command. Of the families only TCP over IP says who the client is; from the others it is
/// known how many bytes their addresses take.
fn block_of(family: u8, mut block: Reader<'_>) -> Result<(Option<Addresses>, Tlvs), BadHeader> {
    let addresses = match family {
        TCP4 => Some(addresses::<4, Ipv4Addr>(&mut block)?),
        TCP6 => Some(addresses::<16, Ipv6Addr>(&mut block)?),
        _ => {
            let length = match (family >> 4, family & 0xf) {
                (0, 0..=2) => 0,
                (1, 0 | 2) => 12,
                (2, 0 | 2) => 36,
                (3, 0..=2) => 216,
                _ => return Err(BadHeader::Family(family)),
            };
            block.take(length, "addresses")?;
            None
        }
    };
    Ok((addresses, Tlvs::parse(block.rest())?))
}

fn addresses<const N: usize, T: From<[u8; N]> + Into<IpAddr>>(block: &mut Reader<'_>) -> Result<Addresses, BadHeader> {
    let source: T = block.array("source address")?.into();
    let destination: T = block.array("destination address")?.into();
    let source = SocketAddr::new(source.into(), block.u16("source port")?);
    let destination = SocketAddr::new(destination.into(), block.u16("destination port")?);
    Ok(Addresses::new(source, destination))
}

/// Section 2.2.3: over the whole header with the checksum's own field zero.
fn verify(header: &[u8], tlvs: &Tlvs) -> Result<(), BadHeader> {
    let Some(received) = tlvs.checksum()? else { return Ok(()) };
    let before = header.len() - tlvs.as_bytes().len() + received.offset;
    let sum = crc32c::crc32c(&header[..before]);
    let sum = crc32c::crc32c_append(sum, &[0; 4]);
    let computed = crc32c::crc32c_append(sum, &header[before + 4..]);
    if computed == received.value { Ok(()) } else { Err(BadHeader::Checksum { received: received.value, computed }) }
}

pub(super) fn encode(addresses: Addresses, wanted: ProxyTlvs, facts: &Facts<'_>) -> Vec<u8> {
    let mut header = Vec::with_capacity(256);
    header.extend(SIGNATURE);
    header.push(VERSION << 4 | PROXY);
    header.push(if addresses.source.is_ipv4() { TCP4 } else { TCP6 });
    // The length, once it is known.
    header.extend([0; 2]);
    for ip in [addresses.source.ip(), addresses.destination.ip()] {
        match ip {
            IpAddr::V4(v4) => header.extend(v4.octets()),
            IpAddr::V6(v6) => header.extend(v6.octets()),
        }
    }
    header.extend(addresses.source.port().to_be_bytes());
    header.extend(addresses.destination.port().to_be_bytes());
    let checksum = tlv::append(&mut header, wanted, facts);
    let length = u16::try_from(header.len() - FIXED).expect("at most MAX_V2_HEADER is written");
    header[FIXED - 2..FIXED].copy_from_slice(&length.to_be_bytes());
    if let Some(at) = checksum {
        let sum = crc32c::crc32c(&header);
        header[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    }
    header
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length.
const FIXED: usize = 16;
const VERSION: u8 = 2;
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
