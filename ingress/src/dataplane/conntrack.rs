//! Takes handed-off connections out of the host's connection tracking.
//!
//! Conntrack sees the handshake and never the FIN: each connection would leave two entries for five days, until a full table
//! locks the host. Only our own connections are touched, and only where the host tracks at all.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ingress_ebpf::connection::{Connection, Endpoint};
use ingress_ebpf::header::IPPROTO_TCP;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use parking_lot::Mutex;

use super::reset::socket_address;

/// The reaper's door to ctnetlink.
pub(super) struct Conntrack(Mutex<State>);

struct State {
    socket: Option<Socket>,
    /// Whether the host tracks, and when that was looked up.
    tracks: bool,
    looked: Option<Instant>,
}

const LOOK_AGAIN: Duration = Duration::from_secs(1);
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// linux/netfilter/nfnetlink_conntrack.h
const CT_DELETE: u16 = 1 << 8 | 2;
const NLM_F_REQUEST: u16 = 1;
const TUPLE_ORIG: u16 = 1;
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
        Self(Mutex::new(State { socket: None, tracks: false, looked: None }))
    }

    /// Forgets both legs. An entry that is not there is no error.
    pub(super) fn forget(&self, connection: &Connection) {
        let mut state = self.0.lock();
        if !state.tracks(Instant::now()) {
            return;
        }
        let legs = [(&connection.client, &connection.local), (&connection.source, &connection.backend)];
        for (from, to) in legs {
            if let Err(error) = state.delete(from, to) {
                tracing::debug!(%error, "conntrack entry not removed");
            }
        }
    }
}

impl State {
    fn tracks(&mut self, now: Instant) -> bool {
        if self.looked.is_none_or(|looked| now.duration_since(looked) > LOOK_AGAIN) {
            let count = fs::read_to_string(COUNT).ok().and_then(|text| text.trim().parse::<u64>().ok());
            self.tracks = count.is_some_and(|count| count > 0);
            self.looked = Some(now);
        }
        self.tracks
    }

    fn delete(&mut self, from: &Endpoint, to: &Endpoint) -> io::Result<()> {
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
        let sent = socket.send(&message(from, to), 0).map(drop);
        // Answers are errors only, and the only one that comes says that the entry has gone by itself.
        let mut answer = [0u8; 1024];
        while socket.recv(&mut &mut answer[..], 0).is_ok() {}
        sent
    }
}

fn message(from: &Endpoint, to: &Endpoint) -> Vec<u8> {
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
    let tuple = attribute(TUPLE_ORIG | NESTED, &tuple);
    // nlmsghdr, then nfgenmsg {family, version, resource}.
    let length = 16 + 4 + tuple.len() as u32;
    let mut bytes = Vec::with_capacity(length as usize);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&CT_DELETE.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[family as u8, 0, 0, 0]);
    bytes.extend_from_slice(&tuple);
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
    fn a_message_names_the_connection_as_the_kernel_expects() {
        for (from, to, family) in [
            ("192.0.2.7:40000", "192.0.2.1:443", libc::AF_INET),
            ("[2001:db8::7]:40000", "[2001:db8::1]:443", libc::AF_INET6),
        ] {
            let [from, to]: [std::net::SocketAddr; 2] = [from, to].map(|text| text.parse().expect("test address"));
            let bytes = message(&endpoint(from), &endpoint(to));
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
