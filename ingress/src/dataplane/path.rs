//! Asks the kernel which way a packet would go (RTM_GETROUTE, rtnetlink(7)).

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ingress_ebpf::header::IPPROTO_TCP;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteType,
    RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// One netlink socket; one question at a time. Answers are good for a second: who opens one connection opens more.
pub(crate) struct Paths {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
    known: HashMap<Question, (Path, Instant)>,
    generation: u64,
}

const GOOD_FOR: Duration = Duration::from_secs(1);
const KNOWN_MAX: usize = 4_096;

/// All that routing tables and rules look at, of a TCP packet that this host sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// 0: any.
    pub(crate) source_port: u16,
    /// 0: any.
    pub(crate) destination_port: u16,
    /// The firewall mark.
    pub(crate) mark: u32,
    /// The device that it has to leave by; 0: any.
    pub(crate) device: u32,
    /// The route as it stands in its table, with all of its next hops. Where there is none by that device, IPv4 would else take the
    /// destination for a neighbour.
    pub(crate) listed: bool,
}

/// Where a packet goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Out(Hop),
    /// To one of these, as a hash of the connection's addresses or ports decides. Only of a question for what is listed; empty, if the
    /// kernel does not say which there are.
    Several(Arc<[Hop]>),
    /// To this host itself, or nowhere that a splice could send.
    NotForwardable,
}

/// The next host on a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) device: u32,
    /// `None`: the destination itself.
    pub(crate) gateway: Option<IpAddr>,
}

impl Paths {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, buffer: Vec::with_capacity(4096), sequence: 0, known: HashMap::new(), generation: 0 })
    }

    /// Forgets all answers that were given before routing became what it is in this generation.
    pub(crate) fn renew(&mut self, generation: u64) {
        if self.generation != generation {
            self.generation = generation;
            self.known.clear();
        }
    }

    pub(crate) fn ask(&mut self, question: Question, now: Instant) -> io::Result<Path> {
        if let Some((path, asked)) = self.known.get(&question)
            && now.duration_since(*asked) < GOOD_FOR
        {
            return Ok(path.clone());
        }
        self.ask_anew(question, now)
    }

    /// Whatever is remembered.
    pub(crate) fn ask_anew(&mut self, question: Question, now: Instant) -> io::Result<Path> {
        let path = self.ask_kernel(&question)?;
        if self.known.len() >= KNOWN_MAX {
            self.known.retain(|_, (_, asked)| now.duration_since(*asked) < GOOD_FOR);
        }
        if self.known.len() < KNOWN_MAX || self.known.contains_key(&question) {
            self.known.insert(question, (path.clone(), now));
        }
        Ok(path)
    }

    /// Without remembering the answer: no other connection will ask this.
    pub(crate) fn ask_once(&mut self, question: Question) -> io::Result<Path> {
        self.ask_kernel(&question)
    }

    fn ask_kernel(&mut self, question: &Question) -> io::Result<Path> {
        let mut route = RouteMessage::default();
        let (family, bits) =
            if question.destination.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
        route.header = RouteHeader {
            address_family: family,
            source_prefix_length: bits,
            destination_prefix_length: bits,
            flags: if question.listed { RouteFlags::FibMatch } else { RouteFlags::empty() },
            ..RouteHeader::default()
        };
        route.attributes = question.attributes();
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

impl Question {
    /// Of any packet of one address to another that nothing else is known of.
    pub(crate) fn plain(source: IpAddr, destination: IpAddr) -> Self {
        Self { source, destination, source_port: 0, destination_port: 0, mark: 0, device: 0, listed: false }
    }

    fn attributes(&self) -> Vec<RouteAttribute> {
        let Self { source, destination, source_port, destination_port, mark, device, listed: _ } = *self;
        let mut attributes = vec![
            RouteAttribute::Destination(route_address(destination)),
            RouteAttribute::Source(route_address(source)),
            RouteAttribute::IpProto(IPPROTO_TCP),
        ];
        if source_port != 0 {
            attributes.push(RouteAttribute::Sport(source_port));
        }
        if destination_port != 0 {
            attributes.push(RouteAttribute::Dport(destination_port));
        }
        if mark != 0 {
            attributes.push(RouteAttribute::Mark(mark));
        }
        if device != 0 {
            attributes.push(RouteAttribute::Oif(device));
        }
        attributes
    }
}

/// The device that a socket is bound to; 0: none.
pub(super) fn bound_device(fd: RawFd) -> io::Result<u32> {
    let mut device: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let at = (&raw mut device).cast();
    // SAFETY: the kernel writes at most `len` bytes.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, at, &raw mut len) };
    if result == 0 { Ok(device as u32) } else { Err(io::Error::last_os_error()) }
}

fn path(route: &RouteMessage) -> Path {
    if route.header.kind != RouteType::Unicast {
        return Path::NotForwardable;
    }
    if has_several_hops(route) {
        let all = route.attributes.iter().filter_map(|attribute| {
            let RouteAttribute::MultiPath(hops) = attribute else { return None };
            Some(hops)
        });
        return Path::Several(all.flatten().filter(|hop| is_usable(hop)).map(next_hop).collect());
    }
    let gateway = route.attributes.iter().find_map(gateway);
    device(route).map_or(Path::NotForwardable, |device| Path::Out(Hop { device, gateway }))
}

/// Of a route as it stands in its table. Where `net.ipv4.nexthop_compat_mode` is 0, the kernel names a nexthop object and not what is in it.
pub(super) fn has_several_hops(route: &RouteMessage) -> bool {
    let named = route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::NhId(_)));
    route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::MultiPath(_)))
        || named && route.header.kind == RouteType::Unicast && device(route).is_none()
}

fn device(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| {
        let RouteAttribute::Oif(index) = attribute else { return None };
        Some(*index)
    })
}

fn is_usable(hop: &RouteNextHop) -> bool {
    !hop.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown)
}

fn next_hop(hop: &RouteNextHop) -> Hop {
    Hop { device: hop.interface_index, gateway: hop.attributes.iter().find_map(gateway) }
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    if let RouteAttribute::Gateway(RouteAddress::Inet(four)) = attribute {
        return Some(IpAddr::V4(*four));
    }
    if let RouteAttribute::Gateway(RouteAddress::Inet6(six)) | RouteAttribute::Via(RouteVia::Inet6(six)) = attribute {
        return Some(IpAddr::V6(*six));
    }
    None
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
        let question = Question { mark: 1, source_port: 443, ..Question::plain(loopback, loopback) };
        assert_eq!(paths.ask(question, Instant::now()).expect("an answer"), Path::NotForwardable);
    }

    fn route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.attributes = attributes;
        route
    }

    #[test]
    fn a_route_with_several_next_hops_tells_those_that_can_be_used() {
        let hop = |device, flags, gateway: &str| {
            let mut hop = RouteNextHop::default();
            (hop.interface_index, hop.flags) = (device, flags);
            hop.attributes = vec![RouteAttribute::Gateway(route_address(gateway.parse().expect("test address")))];
            hop
        };
        let hops = vec![
            hop(2, RouteNextHopFlags::empty(), "192.0.2.1"),
            hop(3, RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown, "198.51.100.1"),
            hop(4, RouteNextHopFlags::Onlink, "203.0.113.1"),
        ];
        let Path::Several(found) = path(&route(vec![RouteAttribute::MultiPath(hops)])) else { panic!("several") };
        let expected = [(2, "192.0.2.1"), (4, "203.0.113.1")]
            .map(|(device, gateway)| Hop { device, gateway: gateway.parse().ok() });
        assert_eq!(*found, expected);
    }

    #[test]
    fn a_next_hop_that_only_has_a_number_may_be_several() {
        assert_eq!(path(&route(vec![RouteAttribute::NhId(7)])), Path::Several(Arc::new([])));
        let one = route(vec![RouteAttribute::NhId(7), RouteAttribute::Oif(2)]);
        assert_eq!(path(&one), Path::Out(Hop { device: 2, gateway: None }));
    }

    #[test]
    fn a_socket_that_is_bound_to_no_device_says_so() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        assert_eq!(bound_device(std::os::fd::AsRawFd::as_raw_fd(&socket)).expect("an answer"), 0);
    }
}
