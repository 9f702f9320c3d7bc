//! No verdict is out of reach: each has a packet here that makes it happen.

use ingress_ebpf::admission::DEVICE_PUBLIC;
use ingress_ebpf::connection::State;
use ingress_ebpf::flow::Direction;
use ingress_ebpf::header::{ACK, RST, SYN};
use ingress_ebpf::names::PRIORITY_SYN;
use ingress_ebpf::verdict::Verdict;

use super::admission::rules;
use super::frame::{Frame, restore_checksums, with_ip_options};
use super::rig::{
    BACKEND, CLIENT, LOCAL, Rig, Run, SLOT, SOURCE, connection, flagged, from_backend, from_client, key, packet, rig,
};
use super::too_big::too_big;
use crate::config::{AdmissionConfig, ConnectionRate};

#[test]
fn every_verdict_happens() {
    let Some(mut rig) = rig() else { return };
    for verdict in Verdict::ALL {
        rig.install(&connection(), State::Armed);
        assert_eq!(provoke(verdict, &mut rig).verdict, Some(verdict));
    }
}

/// A packet for each verdict on a connection that is armed.
fn provoke(verdict: Verdict, rig: &mut Rig) -> Run {
    let early = 1u32.wrapping_neg();
    let client = from_client(0, 0, b"0123456789");
    let syn = |from, to| flagged(SYN, packet(from, to, 7, 0, b""));
    match verdict {
        Verdict::Miss => rig.arrives(&packet("203.0.113.9:50001", LOCAL, 1, 2, b"").bytes()),
        Verdict::SplicedToBackend => rig.arrives(&client.bytes()),
        Verdict::SplicedToClient => rig.arrives(&from_backend(0, 0, b"").bytes()),
        Verdict::SplicedUnproven => rig.arrives(&from_client(1 << 24, 0, b"").bytes()),
        Verdict::ToLocalSocket => rig.arrives(&from_backend(0, early, b"").bytes()),
        Verdict::SynPrepared => {
            rig.listen("192.0.2.1:8443");
            rig.arrives(&syn(CLIENT, "192.0.2.1:8443").bytes())
        }
        Verdict::SynPreparedOut => rig.leaves(&syn(SOURCE, BACKEND).bytes(), PRIORITY_SYN),
        Verdict::SynOnEnded => {
            rig.arrives(&flagged(RST, from_client(0, 0, b"")).bytes());
            rig.arrives(&syn(CLIENT, LOCAL).bytes())
        }
        Verdict::CutAnswered => {
            rig.set_state(State::Cut);
            rig.arrives(&client.bytes())
        }
        Verdict::TooBigReturned => {
            let sent = rig.arrives(&from_backend(0, 0, b"0123456789").bytes()).bytes;
            rig.arrives(&too_big(LOCAL, &sent))
        }
        Verdict::DropTooBig => {
            let sent = rig.arrives(&from_backend(0, 0, b"").bytes()).bytes;
            rig.arrives(&too_big(LOCAL, &sent))
        }
        Verdict::DropEarlyData => rig.arrives(&from_backend(0, early, b"early").bytes()),
        Verdict::DropFragment => {
            let mut bytes = client.bytes();
            bytes[20] = 0x20;
            restore_checksums(&mut bytes);
            rig.arrives(&bytes)
        }
        Verdict::DropIpOptions => rig.arrives(&with_ip_options(&client.bytes(), &[1; 4])),
        Verdict::DropMalformed => {
            let mut bytes = client.bytes();
            bytes[46] = 0;
            rig.arrives(&bytes)
        }
        Verdict::DropStale => {
            rig.enter(key(CLIENT, LOCAL), SLOT.generation + 1, Direction::ToBackend);
            rig.arrives(&client.bytes())
        }
        Verdict::DropSyn => rig.arrives(&flagged(SYN | ACK, packet(CLIENT, LOCAL, 9, 8, b"")).bytes()),
        Verdict::DropTtl => {
            let mut frame = client;
            frame.ip.ttl = 1;
            rig.arrives(&frame.bytes())
        }
        Verdict::DropLocalStack => rig.leaves(&packet(LOCAL, CLIENT, 1, 2, b"").bytes(), 0),
        // The header claims a timestamp of which the packet holds only the beginning.
        Verdict::DropRewriteFailed => {
            rig.listen("192.0.2.1:8443");
            let mut bytes = Frame { options: vec![1, 1, 8, 10], ..syn(CLIENT, "192.0.2.1:8443") }.bytes();
            bytes[46] = 15 << 4;
            rig.arrives(&bytes)
        }
        Verdict::DropPrivatePort => {
            rig.admit(&rules(), DEVICE_PUBLIC);
            rig.arrives(&syn(CLIENT, "192.0.2.1:9876").bytes())
        }
        Verdict::DropUnreadable => {
            rig.admit(&rules(), DEVICE_PUBLIC);
            let mut bytes = syn(CLIENT, "192.0.2.1:9876").bytes()[..36].to_vec();
            bytes[17] = 22;
            rig.arrives(&bytes)
        }
        Verdict::DropDenied => {
            rig.admit(&rules(), 0);
            rig.listen("192.0.2.1:8443");
            rig.arrives(&syn("198.51.100.9:50000", "192.0.2.1:8443").bytes())
        }
        Verdict::DropBadFlags => {
            rig.admit(&rules(), 0);
            rig.listen("192.0.2.1:8443");
            rig.arrives(&flagged(SYN | RST, packet(CLIENT, "192.0.2.1:8443", 7, 0, b"")).bytes())
        }
        Verdict::DropSourceRate => {
            let limit = Some(ConnectionRate { rate: 1, burst: 1 });
            let rules = AdmissionConfig { new_connections_per_source: limit, ..AdmissionConfig::default() };
            rig.admit(&rules, 0);
            rig.listen("192.0.2.1:8443");
            rig.arrives(&syn("203.0.113.99:50000", "192.0.2.1:8443").bytes());
            rig.arrives(&syn("203.0.113.99:50001", "192.0.2.1:8443").bytes())
        }
        Verdict::DropMoving => {
            rig.set_state(State::Moving);
            rig.arrives(&from_client(0, 0, b"x").bytes())
        }
        // Loopback takes 65,536 bytes.
        Verdict::DropNarrow => rig.arrives_uncut(&from_client(0, 0, &[b'x'; 1_000]).bytes(), 65_500),
    }
}
