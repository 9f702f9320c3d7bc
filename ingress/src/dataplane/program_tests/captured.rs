//! A connection from the wire: the programs make of each packet what they made of it then.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use ingress_ebpf::connection::{Connection, FIRST_FLIGHT_ACKED, Half, State, WindowScales};
use ingress_ebpf::flow::FlowKey;
use ingress_ebpf::header::{ETHERNET_LEN, RST, SYN};
use ingress_ebpf::names::PRIORITY_SYN;
use ingress_ebpf::verdict::Verdict;

use super::frame::{Frame, TO_US};
use super::rig::{Rig, rig};
use crate::dataplane::reset::endpoint;

/// tests/data/splice/README.md says what it holds.
const CURL: &str = include_str!("../../../../tests/data/splice/curl.frames");
const TO_BACKEND: u64 = 754;
const TO_CLIENT: u64 = 7_007;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    Public,
    Private,
}

struct Captured {
    network: Network,
    came_in: bool,
    bytes: Vec<u8>,
}

impl Captured {
    fn frame(&self) -> Frame {
        Frame::parse(&self.bytes)
    }

    /// Source and destination.
    fn ends(&self) -> (SocketAddr, SocketAddr) {
        let Frame { ip, tcp, .. } = self.frame();
        let end = |ip: u32, port: u16| SocketAddrV4::new(Ipv4Addr::from(u32::from_be(ip)), u16::from_be(port)).into();
        (end(ip.source, tcp.source_port), end(ip.destination, tcp.destination_port))
    }

    fn is(&self, network: Network, came_in: bool) -> bool {
        self.network == network && self.came_in == came_in
    }
}

fn read(text: &str) -> VecDeque<Captured> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let mut word = || words.next().expect("network, direction, bytes");
        let network = if word() == "public" { Network::Public } else { Network::Private };
        let came_in = word() == "in";
        let hex = word();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        let mut bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        // It arrives here now.
        bytes[..6].copy_from_slice(&TO_US);
        Captured { network, came_in, bytes }
    };
    text.lines().map(line).collect()
}

/// Handshake and first flight: what the daemon would have made of them.
fn hand_off(rig: &mut Rig, frames: &mut VecDeque<Captured>) -> Connection {
    let scale = |frame: &Frame| {
        let at = frame.options.windows(2).position(|two| two == [3, 3]).expect("a window scale");
        frame.options[at + 2]
    };
    let mut next = |rig: &mut Rig, network, came_in, priority| {
        let captured = frames.pop_front().expect("a handshake");
        assert!(captured.is(network, came_in), "{:?} {}", captured.network, captured.came_in);
        let run = if came_in { rig.arrives(&captured.bytes) } else { rig.leaves(&captured.bytes, priority) };
        (captured, run.verdict)
    };
    let key = |from: SocketAddr, to: SocketAddr| {
        let (from, to) = (endpoint(from), endpoint(to));
        FlowKey { source: from.address, destination: to.address, source_port: from.port, destination_port: to.port }
    };

    let (syn, verdict) = next(rig, Network::Public, true, 0);
    assert_eq!(verdict, Some(Verdict::SynPrepared));
    let (client, local) = syn.ends();
    let (syn_ack, verdict) = next(rig, Network::Public, false, 0);
    assert_eq!(verdict, None);
    next(rig, Network::Public, true, 0);
    let (hello, verdict) = next(rig, Network::Public, true, 0);
    assert_eq!(verdict, Some(Verdict::Miss));
    let (our_syn, verdict) = next(rig, Network::Private, false, PRIORITY_SYN);
    assert_eq!(verdict, Some(Verdict::SynPreparedOut));
    let (source, backend) = our_syn.ends();
    let (their_syn_ack, verdict) = next(rig, Network::Private, true, 0);
    assert_eq!(verdict, Some(Verdict::Miss));
    let (first_flight, verdict) = next(rig, Network::Private, false, PRIORITY_SYN);
    assert_eq!(verdict, None);

    let (client_write, client_start) =
        rig.take_syn(key(client, local)).and_then(|seen| seen.numbers()).expect("numbers of the client's handshake");
    let (backend_write, backend_read) =
        rig.take_syn(key(backend, source)).and_then(|seen| seen.numbers()).expect("numbers of the backend's");
    let client_read = client_start.wrapping_add(hello.frame().payload.len() as u32);
    let flight_end = backend_write.wrapping_add(first_flight.frame().payload.len() as u32);
    let half = |start: u32, high: u32| Half {
        acked: start.into(),
        start,
        high,
        window_end: start.wrapping_add(1 << 20),
        ..Half::default()
    };
    Connection {
        min_ack: flight_end,
        to_backend_delta: flight_end.wrapping_sub(client_read),
        to_client_delta: client_write.wrapping_sub(backend_read),
        ifindex: [1; 2],
        scale: WindowScales {
            client: scale(&syn.frame()),
            to_client: scale(&syn_ack.frame()),
            backend: scale(&their_syn_ack.frame()),
            to_backend: scale(&our_syn.frame()),
        },
        client: endpoint(client),
        local: endpoint(local),
        source: endpoint(source),
        backend: endpoint(backend),
        from_client: half(client_write, client_read),
        from_backend: half(client_start, client_write),
        ..Connection::default()
    }
}

#[test]
fn a_captured_connection_is_spliced_as_it_was_on_the_wire() {
    let Some(mut rig) = rig() else { return };
    let mut frames = read(CURL);
    let (_, local) = frames.front().expect("frames").ends();
    rig.listen(&local.to_string());
    let connection = hand_off(&mut rig, &mut frames);
    rig.install(&connection, State::Armed);

    let (arrived, mut sent): (Vec<_>, Vec<_>) = frames.into_iter().partition(|captured| captured.came_in);
    assert!(arrived.len() > 10 && sent.len() == arrived.len(), "each packet that came in went out");
    for captured in arrived {
        let run = rig.arrives(&captured.bytes);
        let (expected, to) = match captured.network {
            Network::Public => (Verdict::SplicedToBackend, Network::Private),
            Network::Private => (Verdict::SplicedToClient, Network::Public),
        };
        assert_eq!(run.verdict, Some(expected));
        assert_eq!(run.frame().tcp.flags & (SYN | RST), 0);
        // On one network, packets keep their order.
        let at = sent.iter().position(|then| then.network == to).expect("what it became");
        assert_eq!(run.bytes[ETHERNET_LEN..], sent.remove(at).bytes[ETHERNET_LEN..]);
    }
    let connection = rig.connection();
    assert_eq!(connection.from_backend.flags & FIRST_FLIGHT_ACKED, FIRST_FLIGHT_ACKED);
    assert!(Connection::ended(connection.from_client.flags, connection.from_backend.flags));
    assert_eq!((connection.bytes_to_backend(), connection.bytes_to_client()), (TO_BACKEND, TO_CLIENT));
}
