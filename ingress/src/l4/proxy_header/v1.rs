//! Version 1, one line of text (section 2.1): `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n`.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::{Addresses, BadHeader, Command, Parsed, ProxyHeader, Tlvs};

/// Longest line, its CRLF included.
pub const MAX_V1_HEADER: usize = 107;

/// Whether this is, or may become, a version 1 header.
pub(super) fn starts(received: &[u8]) -> bool {
    received.iter().zip(PREFIX).all(|(byte, wanted)| byte == wanted)
}

pub(super) fn parse(received: &[u8]) -> Parsed {
    let line = &received[..received.len().min(MAX_V1_HEADER)];
    let Some(end) = line.iter().position(|&byte| byte == b'\n') else {
        return if line.len() < MAX_V1_HEADER { Ok(None) } else { Err(BadHeader::UnendedLine) };
    };
    let text = line[..end].strip_suffix(b"\r").ok_or(BadHeader::Line("ends in LF without CR"))?;
    let addresses = addresses(&String::from_utf8_lossy(text))?;
    Ok(Some((ProxyHeader { command: Command::Proxy, addresses, tlvs: Tlvs::default() }, end + 1)))
}

pub(super) fn encode(addresses: Addresses) -> Vec<u8> {
    let mut line = String::with_capacity(MAX_V1_HEADER);
    let Addresses { source, destination } = addresses;
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (Text(source.ip()), Text(destination.ip()));
    write!(line, "PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port())
        .expect("a String takes everything");
    line.into_bytes()
}

/// The addresses in a line without its CRLF; exactly one space between fields.
fn addresses(line: &str) -> Result<Option<Addresses>, BadHeader> {
    let mut fields = line.split(' ');
    if fields.next() != Some("PROXY") {
        return Err(BadHeader::Line("has no space after PROXY"));
    }
    let parse = match fields.next() {
        Some("TCP4") => endpoint::<Ipv4Addr>,
        Some("TCP6") => endpoint::<Ipv6Addr>,
        // Whatever else the line says is ignored.
        Some("UNKNOWN") => return Ok(None),
        Some(_) | None => return Err(BadHeader::Line("names no known protocol")),
    };
    let (Some(from), Some(to), Some(from_port), Some(to_port), None) =
        (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(BadHeader::Line("does not hold two addresses and two ports"));
    };
    Ok(Some(Addresses::new(parse(from, from_port)?, parse(to, to_port)?)))
}

fn endpoint<T: FromStr + Into<IpAddr>>(address: &str, port: &str) -> Result<SocketAddr, BadHeader> {
    let address: T = address.parse().map_err(|_| BadHeader::Line("holds a bad address"))?;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit()) && (port == "0" || !port.starts_with('0'));
    let port = port.parse().ok().filter(|_| digits).ok_or(BadHeader::Line("holds a bad port"))?;
    Ok(SocketAddr::new(address.into(), port))
}

/// An address in hexadecimal groups only: section 2.1 knows no `::ffff:192.0.2.1`.
struct Text(IpAddr);

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
                let [.., high, low] = v6.segments();
                write!(f, "::ffff:{high:x}:{low:x}")
            }
            IpAddr::V4(_) | IpAddr::V6(_) => self.0.fmt(f),
        }
    }
}

/// No version 2 header and no ClientHello starts like this.
const PREFIX: &[u8] = b"PROXY";
