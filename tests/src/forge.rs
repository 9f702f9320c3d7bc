//! Packets written by hand: what an attacker sends under another's address, and what a TCP stack of our own sends.

use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Namespace;

pub const FIN: u16 = 0x01;
pub const SYN: u16 = 0x02;
pub const RST: u16 = 0x04;
pub const PSH: u16 = 0x08;
pub const ACK: u16 = 0x10;
pub const ECE: u16 = 0x40;
pub const CWR: u16 = 0x80;
/// Accurate ECN (RFC 9768), in the byte before the other flags.
pub const AE: u16 = 0x100;

/// The firewall mark of what a [`Forger`] sends, by which its host can tell it from what its own stack says.
pub const FORGED: u32 = 0x666f;

/// Sends from its namespace under anybody's address.
#[derive(Debug)]
pub struct Forger {
    socket: Socket,
}

/// One TCP header, its options and its payload, over IPv4.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub flags: u16,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    /// A multiple of four bytes, at most 40.
    pub options: &'a [u8],
    pub payload: &'a [u8],
}

/// An ICMP error about a segment.
#[derive(Clone, Copy, Debug)]
pub enum Unreachable {
    Port,
    /// Segments of this many bytes, IP header included, would pass.
    FragmentationNeeded(u16),
}

impl Forger {
    pub fn new(ns: &Namespace) -> Result<Self> {
        // IPPROTO_RAW: the IP header is ours too (raw(7)).
        let socket = ns.exec(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))));
        let socket = socket.context("opening a raw socket")?;
        socket.set_mark(FORGED)?;
        Ok(Self { socket })
    }

    pub fn send(&self, segment: &Segment) -> Result<()> {
        let to = segment.to.ip();
        self.write(&segment.packet()?, to)
    }

    /// Tells the sender of `about`, in the name of its receiver, that it did not arrive.
    pub fn send_error(&self, error: Unreachable, about: &Segment) -> Result<()> {
        let (code, mtu) = match error {
            Unreachable::Port => (3, 0),
            Unreachable::FragmentationNeeded(mtu) => (4, mtu),
        };
        let quoted = about.whole_packet()?;
        let mut icmp = vec![3, code, 0, 0, 0, 0];
        icmp.extend(mtu.to_be_bytes());
        icmp.extend(quoted);
        let sum = checksum(&[&icmp]).to_be_bytes();
        icmp[2..4].copy_from_slice(&sum);
        let (to, from) = about.addresses()?;
        self.write(&[ip_header(libc::IPPROTO_ICMP, from, to), icmp].concat(), to.into())
    }

    fn write(&self, packet: &[u8], to: IpAddr) -> Result<()> {
        self.socket.send_to(packet, &SocketAddr::new(to, 0).into()).context("sending a packet written by hand")?;
        Ok(())
    }
}

/// Sends frames as they are, Ethernet header included (packet(7)).
#[derive(Debug)]
pub struct FrameSocket {
    socket: Socket,
    device: libc::c_uint,
}

impl FrameSocket {
    pub fn open(ns: &Namespace, device: &str) -> Result<Self> {
        let name = CString::new(device)?;
        let (socket, device) = ns.exec(|| {
            // SAFETY: the name is a C string.
            (Socket::new(Domain::PACKET, Type::RAW, None), unsafe { libc::if_nametoindex(name.as_ptr()) })
        });
        Ok(Self { socket: socket.context("opening a packet socket")?, device })
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: all zeroes is a valid sockaddr_ll.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as libc::c_ushort;
        to.sll_ifindex = self.device.cast_signed();
        // SAFETY: the kernel reads `frame` and one sockaddr_ll.
        let sent = unsafe {
            let len = size_of_val(&to) as libc::socklen_t;
            libc::sendto(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), len)
        };
        ensure!(sent == frame.len() as isize, "sending a frame: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

impl Segment<'_> {
    /// With what the kernel fills in for raw sockets, and for nobody else.
    pub fn whole_packet(&self) -> Result<Vec<u8>> {
        let mut packet = self.packet()?;
        let length = u16::try_from(packet.len())?.to_be_bytes();
        packet[2..4].copy_from_slice(&length);
        let sum = checksum(&[&packet[..20]]).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        Ok(packet)
    }

    fn addresses(&self) -> Result<(Ipv4Addr, Ipv4Addr)> {
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Ok((from, to)),
            _ => bail!("{self:?} is not IPv4, as everything in the lab"),
        }
    }

    /// From the IP header on, of which length and checksum are left to the kernel.
    fn packet(&self) -> Result<Vec<u8>> {
        let (from, to) = self.addresses()?;
        let mut tcp = Vec::with_capacity(20 + self.options.len() + self.payload.len());
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        let words = u16::try_from(5 + self.options.len() / 4)?;
        tcp.extend((words << 12 | self.flags).to_be_bytes());
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(self.options);
        tcp.extend(self.payload);
        let sum = checksum_of_segment(from, to, &tcp)?.to_be_bytes();
        tcp[16..18].copy_from_slice(&sum);
        Ok([ip_header(libc::IPPROTO_TCP, from, to), tcp].concat())
    }
}

fn ip_header(protocol: libc::c_int, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol as u8, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

/// Of a TCP header with its payload; 0 if the right one stands in it.
pub fn checksum_of_segment(from: Ipv4Addr, to: Ipv4Addr, tcp: &[u8]) -> Result<u16> {
    let length = u16::try_from(tcp.len())?.to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 6], &length].concat();
    Ok(checksum(&[&pseudo, tcp]))
}

/// RFC 1071. Every part but the last has an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_has_the_value_of_the_rfc() {
        // RFC 1071 section 3: the sum of these is ddf2.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }

    #[test]
    fn flags_stand_where_the_rfc_draws_them() -> Result<()> {
        let to = SocketAddr::from(([192, 0, 2, 1], 443));
        let options: &[u8] = &[2, 4, 5, 180];
        let syn =
            Segment { from: to, to, flags: AE | CWR | ECE | SYN, seq: 1, ack: 0, window: 9, options, payload: b"" };
        assert_eq!(syn.packet()?[32..34], [0x61, 0xc2]);
        Ok(())
    }
}
