//! Asks the kernel which way a packet would go (RTM_GETROUTE, rtnetlink(7)), so that a flow is only installed where both of
//! its ways leave by devices that carry our programs.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// One netlink socket; one question at a time. Answers are good for a second: who opens one connection opens more.
pub(crate) struct Paths {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
    known: HashMap<(IpAddr, IpAddr), (Path, Instant)>,
}

const GOOD_FOR: Duration = Duration::from_secs(1);
const KNOWN_MAX: usize = 4_096;

/// Where packets from `source` to `destination` go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Out by this device.
    Out(u32),
    /// To this host itself, or nowhere that a splice could send.
    NotForwardable,
}

impl Paths {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, buffer: Vec::with_capacity(4096), sequence: 0, known: HashMap::new() })
    }

    pub(crate) fn ask(&mut self, source: IpAddr, destination: IpAddr, now: Instant) -> io::Result<Path> {
        if let Some((path, asked)) = self.known.get(&(source, destination))
            && now.duration_since(*asked) < GOOD_FOR
        {
            return Ok(*path);
        }
        self.ask_anew(source, destination, now)
    }

    /// Whatever is remembered.
    pub(crate) fn ask_anew(&mut self, source: IpAddr, destination: IpAddr, now: Instant) -> io::Result<Path> {
        let path = self.ask_kernel(source, destination)?;
        if self.known.len() >= KNOWN_MAX {
            self.known.retain(|_, (_, asked)| now.duration_since(*asked) < GOOD_FOR);
        }
        if self.known.len() < KNOWN_MAX || self.known.contains_key(&(source, destination)) {
            self.known.insert((source, destination), (path, now));
        }
        Ok(path)
    }

    fn ask_kernel(&mut self, source: IpAddr, destination: IpAddr) -> io::Result<Path> {
        let mut route = RouteMessage::default();
        let (family, bits) =
            if destination.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
        route.header = RouteHeader {
            address_family: family,
            source_prefix_length: bits,
            destination_prefix_length: bits,
            ..RouteHeader::default()
        };
        route.attributes = vec![
            RouteAttribute::Destination(route_address(destination)),
            RouteAttribute::Source(route_address(source)),
        ];
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::GetRoute(route)));
        message.finalize();
        self.buffer.clear();
        self.buffer.resize(message.buffer_len(), 0);
        message.serialize(&mut self.buffer);
        self.socket.send(&self.buffer, 0)?;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.buffer).map_err(io::Error::other)?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            // Anything else is ENETUNREACH or its kin: no way at all.
            let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = answer.payload else {
                return Ok(Path::NotForwardable);
            };
            return Ok(path(&route));
        }
    }
}

fn path(route: &RouteMessage) -> Path {
    if route.header.kind != RouteType::Unicast {
        return Path::NotForwardable;
    }
    let device = route.attributes.iter().find_map(|attribute| {
        let RouteAttribute::Oif(index) = attribute else { return None };
        Some(*index)
    });
    device.map_or(Path::NotForwardable, Path::Out)
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_not_forwardable() {
        let mut paths = Paths::open().expect("a netlink socket");
        let loopback = "127.0.0.1".parse().expect("test address");
        assert_eq!(paths.ask(loopback, loopback, Instant::now()).expect("an answer"), Path::NotForwardable);
    }
}
