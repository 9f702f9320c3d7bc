//! Takes handed-off connections out of the host's connection tracking.
//!
//! Conntrack sees the handshake and never the FIN: each connection would leave two entries for five days, until a full table
//! locks the host. Only our own connections are touched, and only where the host tracks at all.
//!
//! What comes by a bridge may pass conntrack all the same, before it comes to us, and the answers do not. Such a leg stays tracked as
//! long as it lives, with both ends' numbers unchecked: else a firewall would take the one end's packets for nobody's.

use std::fs;
use std::io;
use std::net::IpAddr;

use ingress_ebpf::connection::{Connection, Endpoint};
use ingress_ebpf::header::IPPROTO_TCP;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use parking_lot::Mutex;

use super::reset::socket_address;

/// The reaper's door to ctnetlink.
pub(super) struct Conntrack(Mutex<State>);

#[derive(Default)]
struct State {
    socket: Option<Socket>,
    /// The host has tracked something. It may not do so at this moment, and for the next connection again.
    tracks: bool,
}

/// Not there without connection tracking.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// One half of a connection, as conntrack knows it: who opened it, and whom it opened it to.
pub(super) type Leg<'a> = (&'a Endpoint, &'a Endpoint);

/// By [`ingress_ebpf::flow::Direction`] of what their far ends send, each with the device by which that comes.
pub(super) fn legs(connection: &Connection) -> [(Leg<'_>, u32); 2] {
    let Connection { client, local, source, backend, ifindex: [to_backend, to_client], .. } = connection;
    [((client, local), *to_client), ((source, backend), *to_backend)]
}

/// linux/netfilter/nfnetlink_conntrack.h
const CT_NEW: u16 = 1 << 8;
const CT_DELETE: u16 = 1 << 8 | 2;
const NLM_F_REQUEST: u16 = 1;
const TUPLE_ORIG: u16 = 1;
const PROTO_INFO: u16 = 4;
const PROTO_INFO_TCP: u16 = 1;
const TCP_FLAGS_ORIGINAL: u16 = 4;
const TCP_FLAGS_REPLY: u16 = 5;
/// linux/netfilter/nf_conntrack_tcp.h
const BE_LIBERAL: u8 = 8;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const NESTED: u16 = 1 << 15;
const IP_V4_SOURCE: u16 = 1;
const IP_V4_DESTINATION: u16 = 2;
const IP_V6_SOURCE: u16 = 3;
const IP_V6_DESTINATION: u16 = 4;
const PROTO_NUMBER: u16 = 1;
const PROTO_SOURCE_PORT: u16 = 2;
const PROTO_DESTINATION_PORT: u16 = 3;

impl Conntrack {
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Forgets these legs. An entry that is not there is no error.
    pub(super) fn forget<'a>(&self, legs: impl IntoIterator<Item = Leg<'a>>) {
        self.say(legs, |leg| message(CT_DELETE, leg, &[]));
    }

    /// Lets packets of these legs pass for the connection's, whatever their numbers.
    pub(super) fn trust<'a>(&self, legs: impl IntoIterator<Item = Leg<'a>>) {
        // Value and mask.
        let liberal = |direction| attribute(direction, &[BE_LIBERAL, BE_LIBERAL]);
        let tcp = [liberal(TCP_FLAGS_ORIGINAL), liberal(TCP_FLAGS_REPLY)].concat();
        let info = attribute(PROTO_INFO | NESTED, &attribute(PROTO_INFO_TCP | NESTED, &tcp));
        self.say(legs, |leg| message(CT_NEW, leg, &info));
    }

    fn say<'a>(&self, legs: impl IntoIterator<Item = Leg<'a>>, message: impl Fn(Leg<'a>) -> Vec<u8>) {
        let mut legs = legs.into_iter().peekable();
        if legs.peek().is_none() {
            return;
        }
        let mut state = self.0.lock();
        if !state.tracks(|| fs::read_to_string(COUNT)) {
            return;
        }
        for leg in legs {
            if let Err(error) = state.send(&message(leg)) {
                tracing::debug!(%error, "conntrack entry not changed");
            }
        }
    }
}

impl State {
    /// Asks only until it knows: of a table that is empty for a moment nothing follows for the next.
    fn tracks(&mut self, count: impl FnOnce() -> io::Result<String>) -> bool {
        self.tracks =
            self.tracks || count().is_ok_and(|count| count.trim().parse::<u64>().is_ok_and(|count| count > 0));
        self.tracks
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            None => {
                let mut socket = Socket::new(NETLINK_NETFILTER)?;
                socket.bind_auto()?;
                socket.connect(&SocketAddr::new(0, 0))?;
                socket.set_non_blocking(true)?;
                self.socket.insert(socket)
            }
        };
        let sent = socket.send(message, 0).map(drop);
        // Answers are errors only, and the only one that comes says that the entry has gone by itself.
        let mut answer = [0u8; 1024];
        while socket.recv(&mut &mut answer[..], 0).is_ok() {}
        sent
    }
}

/// `more`: attributes behind the one that names the leg.
fn message(what: u16, (from, to): Leg<'_>, more: &[u8]) -> Vec<u8> {
    let (family, ip) = match (socket_address(from).ip(), socket_address(to).ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (
            libc::AF_INET,
            [attribute(IP_V4_SOURCE, &from.octets()), attribute(IP_V4_DESTINATION, &to.octets())].concat(),
        ),
        _ => (
            libc::AF_INET6,
            [attribute(IP_V6_SOURCE, &from.address), attribute(IP_V6_DESTINATION, &to.address)].concat(),
        ),
    };
    let proto = [
        attribute(PROTO_NUMBER, &[IPPROTO_TCP]),
        attribute(PROTO_SOURCE_PORT, &from.port),
        attribute(PROTO_DESTINATION_PORT, &to.port),
    ]
    .concat();
    let tuple = [attribute(TUPLE_IP | NESTED, &ip), attribute(TUPLE_PROTO | NESTED, &proto)].concat();
    let attributes = [&attribute(TUPLE_ORIG | NESTED, &tuple), more].concat();
    // nlmsghdr, then nfgenmsg {family, version, resource}.
    let length = 16 + 4 + attributes.len() as u32;
    let mut bytes = Vec::with_capacity(length as usize);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&what.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[family as u8, 0, 0, 0]);
    bytes.extend_from_slice(&attributes);
    bytes
}

/// nlattr: length, type, value, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + 7);
    bytes.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::reset::endpoint;

    #[test]
    fn a_host_that_has_tracked_is_taken_to_track_although_nothing_is_tracked_at_this_moment() {
        let (mut state, says) = (State::default(), |count: &str| Ok(format!("{count}\n")));
        assert!(!state.tracks(|| Err(io::ErrorKind::NotFound.into())));
        assert!(!state.tracks(|| says("0")));
        assert!(state.tracks(|| says("3")), "asked again at once");
        assert!(state.tracks(|| says("0")));
        assert!(state.tracks(|| Err(io::ErrorKind::NotFound.into())));
    }

    #[test]
    fn a_message_names_the_connection_as_the_kernel_expects() {
        for (from, to, family) in [
            ("192.0.2.7:40000", "192.0.2.1:443", libc::AF_INET),
            ("[2001:db8::7]:40000", "[2001:db8::1]:443", libc::AF_INET6),
        ] {
            let [from, to]: [std::net::SocketAddr; 2] = [from, to].map(|text| text.parse().expect("test address"));
            let bytes = message(CT_DELETE, (&endpoint(from), &endpoint(to)), &[]);
            assert_eq!(bytes.len() as u32, u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes")));
            assert_eq!((bytes.len() % 4, bytes[16]), (0, family as u8));
            let octets = |ip| match ip {
                IpAddr::V4(four) => four.octets().to_vec(),
                IpAddr::V6(six) => six.octets().to_vec(),
            };
            let parts =
                [octets(from.ip()), octets(to.ip()), from.port().to_be_bytes().into(), to.port().to_be_bytes().into()];
            for part in parts {
                assert!(bytes.windows(part.len()).any(|window| window == part), "{part:?} of {from}");
            }
        }
    }
}
