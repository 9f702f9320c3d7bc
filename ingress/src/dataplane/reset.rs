//! Sends an RST to either end of a connection whose sockets are gone.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;

use ingress_ebpf::connection::{Connection, Endpoint};
use ingress_ebpf::header::{ACK, IPPROTO_TCP, Ipv4, RST, Tcp};
use ingress_ebpf::names::PRIORITY_BYPASS;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// A raw socket whose packets tc egress lets pass on handed-off tuples.
pub(super) struct Resetter(Socket);

impl Resetter {
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
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
        Ok(Self(socket))
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
        let (Some(source), Some(destination)) = (v4(from), v4(to)) else { return Ok(()) };
        let packet = packet(source, destination, seq, ack);
        self.0.send_to(&packet, &SockAddr::from(SocketAddr::V4(SocketAddrV4::new(*destination.ip(), 0)))).map(drop)
    }
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

fn v4(endpoint: &Endpoint) -> Option<SocketAddrV4> {
    match socket_address(endpoint) {
        SocketAddr::V4(v4) => Some(v4),
        SocketAddr::V6(_) => None,
    }
}

fn packet(source: SocketAddrV4, destination: SocketAddrV4, seq: u32, ack: u32) -> [u8; 40] {
    let address = |a: SocketAddrV4| u32::from_ne_bytes(a.ip().octets());
    // The kernel fills in id and IPv4 checksum (raw(7), IP_HDRINCL).
    let ip = Ipv4 {
        version_ihl: 0x45,
        total_len: 40u16.to_be(),
        ttl: 64,
        protocol: IPPROTO_TCP,
        source: address(source),
        destination: address(destination),
        ..Ipv4::default()
    };
    let tcp = Tcp {
        source_port: source.port().to_be(),
        destination_port: destination.port().to_be(),
        seq: seq.to_be(),
        ack: ack.to_be(),
        offset: 5 << 4,
        flags: RST | ACK,
        ..Tcp::default()
    };
    let mut bytes = [0u8; 40];
    bytes[0] = ip.version_ihl;
    bytes[2..4].copy_from_slice(&ip.total_len.to_ne_bytes());
    bytes[8] = ip.ttl;
    bytes[9] = ip.protocol;
    bytes[12..16].copy_from_slice(&ip.source.to_ne_bytes());
    bytes[16..20].copy_from_slice(&ip.destination.to_ne_bytes());
    bytes[20..22].copy_from_slice(&tcp.source_port.to_ne_bytes());
    bytes[22..24].copy_from_slice(&tcp.destination_port.to_ne_bytes());
    bytes[24..28].copy_from_slice(&tcp.seq.to_ne_bytes());
    bytes[28..32].copy_from_slice(&tcp.ack.to_ne_bytes());
    bytes[32] = tcp.offset;
    bytes[33] = tcp.flags;
    let check = checksum(&bytes[12..40], u32::from(IPPROTO_TCP) + 20);
    bytes[36..38].copy_from_slice(&check.to_be_bytes());
    bytes
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
        let from = "10.0.0.1:20000".parse().expect("test address");
        let to = "10.0.0.2:443".parse().expect("test address");
        let bytes = packet(from, to, 0x0102_0304, 0x0a0b_0c0d);
        assert_eq!(checksum(&bytes[12..40], u32::from(IPPROTO_TCP) + 20), 0);
    }

    #[test]
    fn endpoints_keep_addresses() {
        for text in ["10.0.0.1:443", "[2001:db8::1]:8443"] {
            let address: SocketAddr = text.parse().expect("test address");
            assert_eq!(socket_address(&endpoint(address)), address);
        }
    }
}
