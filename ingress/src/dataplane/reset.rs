//! Speaks to either end of a connection whose sockets are gone: an RST, or a question whether it still lives.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use ingress_ebpf::connection::{Connection, Endpoint};
use ingress_ebpf::flow::Direction;
use ingress_ebpf::header::{ACK, IPPROTO_TCP, IPV4_LEN, IPV6_LEN, RST, TCP_LEN};
use ingress_ebpf::names::PRIORITY_BYPASS;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Raw sockets whose packets tc egress lets pass on handed-off tuples.
pub(super) struct Resetter {
    four: Socket,
    /// `None`: this host has no IPv6, and no flows over it.
    six: Option<Socket>,
}

impl Resetter {
    pub(super) fn open() -> io::Result<Self> {
        let six = match raw(Domain::IPV6) {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { four: raw(Domain::IPV4)?, six })
    }

    /// RST both ways, each with exactly the number that its receiver last acknowledged (RFC 5961 section 3.2).
    pub(super) fn reset(&self, connection: &Connection) -> io::Result<()> {
        let to_client = self.reset_one(connection, Direction::ToClient);
        let to_backend = self.reset_one(connection, Direction::ToBackend);
        to_client.and(to_backend)
    }

    /// RST to the end of this way alone.
    pub(super) fn reset_one(&self, connection: &Connection, towards: Direction) -> io::Result<()> {
        self.send(connection, towards, Segment { flags: RST | ACK, ..Segment::next(connection, towards) })
    }

    /// An empty segment in front of what the end of this way has acknowledged: whoever lives answers it (RFC 9293 section 3.8.4).
    pub(super) fn probe(&self, connection: &Connection, towards: Direction) -> io::Result<()> {
        let next = Segment::next(connection, towards);
        self.send(connection, towards, Segment { seq: next.seq.wrapping_sub(1), ..next })
    }

    fn send(&self, connection: &Connection, towards: Direction, segment: Segment) -> io::Result<()> {
        let (from, to) = match towards {
            Direction::ToClient => (&connection.local, &connection.client),
            Direction::ToBackend => (&connection.source, &connection.backend),
        };
        let (from, to) = (socket_address(from), socket_address(to));
        self.deliver(to, &packet(from, to, segment))
    }

    /// `packet` has its IP header.
    pub(super) fn deliver(&self, mut to: SocketAddr, packet: &[u8]) -> io::Result<()> {
        let socket = match to {
            SocketAddr::V4(_) => Some(&self.four),
            SocketAddr::V6(_) => self.six.as_ref(),
        };
        let Some(socket) = socket else { return Err(io::ErrorKind::Unsupported.into()) };
        // The port of a raw socket's destination is a protocol, and 0 is the socket's own (raw(7), ipv6(7)).
        to.set_port(0);
        socket.send_to(packet, &SockAddr::from(to)).map(drop)
    }
}

/// What an empty segment says, in the numbers and the scale of whoever gets it.
#[derive(Clone, Copy, Debug)]
struct Segment {
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
}

impl Segment {
    /// What the other end would say now, with nothing new to say.
    fn next(connection: &Connection, towards: Direction) -> Self {
        let (client, backend) = (&connection.from_client, &connection.from_backend);
        let (acked_by_client, acked_by_backend) = (client.acked as u32, backend.acked as u32);
        let (seq, ack, other, scale) = match towards {
            Direction::ToClient => (acked_by_client, acked_by_backend, backend, connection.scale.to_client),
            Direction::ToBackend => (
                acked_by_backend.wrapping_add(connection.to_backend_delta),
                acked_by_client.wrapping_sub(connection.to_client_delta),
                client,
                connection.scale.to_backend,
            ),
        };
        let open = other.window_end.wrapping_sub(other.acked as u32) >> (scale & 15);
        Self { seq, ack, flags: ACK, window: u16::try_from(open).unwrap_or(u16::MAX) }
    }
}

/// IPPROTO_RAW: we write the IP header (raw(7)).
fn raw(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    let priority = PRIORITY_BYPASS as libc::c_int;
    // SAFETY: an int option with its own size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PRIORITY,
            (&raw const priority).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

pub(super) fn socket_address(endpoint: &Endpoint) -> SocketAddr {
    let ip = std::net::Ipv6Addr::from(endpoint.address);
    SocketAddr::new(IpAddr::from(ip).to_canonical(), u16::from_be_bytes(endpoint.port))
}

pub(super) fn endpoint(address: SocketAddr) -> Endpoint {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    Endpoint { address: ip.octets(), port: address.port().to_be_bytes() }
}

/// A segment with its IP header.
fn packet(source: SocketAddr, destination: SocketAddr, segment: Segment) -> Vec<u8> {
    let tcp_len = TCP_LEN as u8;
    let mut packet = ip_header(source.ip(), destination.ip(), IPPROTO_TCP, u32::from(tcp_len));
    let addresses = packet[packet.len() - if source.is_ipv4() { 8 } else { 32 }..].to_vec();
    let mut tcp = [0; TCP_LEN];
    tcp[0..2].copy_from_slice(&source.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&destination.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&segment.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&segment.ack.to_be_bytes());
    tcp[12] = (tcp_len / 4) << 4;
    tcp[13] = segment.flags;
    tcp[14..16].copy_from_slice(&segment.window.to_be_bytes());
    let check = checksum(&[&addresses[..], &tcp].concat(), u32::from(IPPROTO_TCP) + u32::from(tcp_len));
    tcp[16..18].copy_from_slice(&check.to_be_bytes());
    packet.extend(tcp);
    packet
}

/// The fixed header before `len` bytes of `protocol`; it ends with both addresses. Of an IPv4 header the kernel fills in id and
/// checksum where it is a packet's own (raw(7), IP_HDRINCL).
pub(super) fn ip_header(source: IpAddr, destination: IpAddr, protocol: u8, len: u32) -> Vec<u8> {
    const HOPS: u8 = 64;
    let bytes = |len: u32| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    let mut header = match source {
        IpAddr::V4(_) => {
            let [high, low] = bytes(len + IPV4_LEN as u32);
            vec![0x45, 0, high, low, 0, 0, 0, 0, HOPS, protocol, 0, 0]
        }
        IpAddr::V6(_) => {
            let [high, low] = bytes(len);
            vec![0x60, 0, 0, 0, high, low, protocol, HOPS]
        }
    };
    for ip in [source, destination] {
        match ip {
            IpAddr::V4(four) => header.extend(four.octets()),
            IpAddr::V6(six) => header.extend(six.octets()),
        }
    }
    debug_assert!([IPV4_LEN, IPV6_LEN].contains(&header.len()));
    if source.is_ipv4() {
        let check = checksum(&header, 0);
        header[10..12].copy_from_slice(&check.to_be_bytes());
    }
    header
}

/// RFC 1071, over an even number of bytes and `seed`.
pub(super) fn checksum(bytes: &[u8], seed: u32) -> u16 {
    let mut sum = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>() + seed;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rst_carries_a_checksum_that_verifies() {
        for (from, to, addresses) in
            [("10.0.0.1:20000", "10.0.0.2:443", 12..20), ("[2001:db8::1]:20000", "[2001:db8:f::2]:443", 8..40)]
        {
            let end = |text: &str| text.parse().expect("test address");
            let segment = Segment { seq: 0x0102_0304, ack: 0x0a0b_0c0d, flags: RST | ACK, window: 0 };
            let bytes = packet(end(from), end(to), segment);
            assert_eq!(bytes.len(), addresses.end + TCP_LEN);
            assert_eq!(checksum(&bytes[addresses.start..], u32::from(IPPROTO_TCP) + 20), 0, "{from}");
        }
    }

    #[test]
    fn endpoints_keep_addresses() {
        for text in ["10.0.0.1:443", "[2001:db8::1]:8443"] {
            let address: SocketAddr = text.parse().expect("test address");
            assert_eq!(socket_address(&endpoint(address)), address);
        }
    }
}
