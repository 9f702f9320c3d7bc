//! Sends an RST to either end of a connection whose sockets are gone.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use ingress_ebpf::connection::{Connection, Endpoint};
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
        let for_client = connection.from_client.acked as u32;
        let from_client = connection.from_backend.acked as u32;
        let to_client = self.send(&connection.local, &connection.client, for_client, from_client);
        let for_backend = from_client.wrapping_add(connection.to_backend_delta);
        let from_backend = for_client.wrapping_sub(connection.to_client_delta);
        let to_backend = self.send(&connection.source, &connection.backend, for_backend, from_backend);
        to_client.and(to_backend)
    }

    fn send(&self, from: &Endpoint, to: &Endpoint, seq: u32, ack: u32) -> io::Result<()> {
        let (source, mut destination) = (socket_address(from), socket_address(to));
        let socket = match destination {
            SocketAddr::V4(_) => Some(&self.four),
            SocketAddr::V6(_) => self.six.as_ref(),
        };
        let Some(socket) = socket else { return Err(io::ErrorKind::Unsupported.into()) };
        let packet = packet(source, destination, seq, ack);
        // The port of a raw socket's destination is a protocol, and 0 is the socket's own (raw(7), ipv6(7)).
        destination.set_port(0);
        socket.send_to(&packet, &SockAddr::from(destination)).map(drop)
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

/// An RST with its IP header. Of an IPv4 header the kernel fills in id and checksum (raw(7), IP_HDRINCL).
fn packet(source: SocketAddr, destination: SocketAddr, seq: u32, ack: u32) -> Vec<u8> {
    const HOPS: u8 = 64;
    let mut addresses = Vec::with_capacity(32);
    for ip in [source.ip(), destination.ip()] {
        match ip {
            IpAddr::V4(four) => addresses.extend(four.octets()),
            IpAddr::V6(six) => addresses.extend(six.octets()),
        }
    }
    let tcp_len = TCP_LEN as u8;
    let mut packet = match source {
        SocketAddr::V4(_) => vec![0x45, 0, 0, IPV4_LEN as u8 + tcp_len, 0, 0, 0, 0, HOPS, IPPROTO_TCP, 0, 0],
        SocketAddr::V6(_) => vec![0x60, 0, 0, 0, 0, tcp_len, IPPROTO_TCP, HOPS],
    };
    packet.extend(&addresses);
    debug_assert!([IPV4_LEN, IPV6_LEN].contains(&packet.len()));
    let mut tcp = [0; TCP_LEN];
    tcp[0..2].copy_from_slice(&source.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&destination.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    tcp[12] = (tcp_len / 4) << 4;
    tcp[13] = RST | ACK;
    let check = checksum(&[&addresses[..], &tcp].concat(), u32::from(IPPROTO_TCP) + u32::from(tcp_len));
    tcp[16..18].copy_from_slice(&check.to_be_bytes());
    packet.extend(tcp);
    packet
}

/// RFC 1071, over an even number of bytes and `seed`.
fn checksum(bytes: &[u8], seed: u32) -> u16 {
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
            let bytes = packet(end(from), end(to), 0x0102_0304, 0x0a0b_0c0d);
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
