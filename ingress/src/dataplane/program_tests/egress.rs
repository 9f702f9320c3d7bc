//! Our own stack is silent on handed-off tuples, and nobody else is.

use ingress_ebpf::connection::{FIRST_FLIGHT_ACKED, State};
use ingress_ebpf::flow::Direction;
use ingress_ebpf::header::{ACK, FIN, RST, SYN};
use ingress_ebpf::names::{PRIORITY_BYPASS, PRIORITY_SYN};
use ingress_ebpf::verdict::Verdict;

use super::rig::{BACKEND, CLIENT, LOCAL, SLOT, SOURCE, connection, flagged, key, packet, rig};

#[test]
fn what_the_stack_says_on_a_spliced_connection_is_dropped() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    for state in [State::Spliced, State::Cut, State::Draining] {
        rig.set_state(state);
        for flags in [RST, RST | ACK, FIN | ACK, ACK, SYN | ACK] {
            for (from, to) in [(LOCAL, CLIENT), (SOURCE, BACKEND)] {
                let run = rig.leaves(&flagged(flags, packet(from, to, 5, 6, b"")).bytes(), 0);
                assert_eq!(run.verdict, Some(Verdict::DropLocalStack), "{state:?} {flags:#x} {from}");
            }
        }
    }
}

#[test]
fn the_backend_socket_speaks_until_the_first_flight_is_acknowledged() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Armed);
    let to_backend = packet(SOURCE, BACKEND, 5, 6, b"hello").bytes();
    let to_client = packet(LOCAL, CLIENT, 5, 6, b"").bytes();
    for priority in [0, PRIORITY_SYN] {
        assert_eq!(rig.leaves(&to_backend, priority).verdict, None);
        assert_eq!(rig.leaves(&to_client, priority).verdict, Some(Verdict::DropLocalStack));
    }
    let mut acked = connection();
    acked.from_backend.flags = FIRST_FLIGHT_ACKED;
    rig.install(&acked, State::Armed);
    assert_eq!(rig.leaves(&to_backend, 0).verdict, Some(Verdict::DropLocalStack));
}

#[test]
fn forwarded_packets_and_the_daemons_own_resets_pass() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Cut);
    for (from, to) in [(LOCAL, CLIENT), (SOURCE, BACKEND)] {
        let bytes = flagged(RST | ACK, packet(from, to, 5, 6, b"")).bytes();
        assert_eq!(rig.is_forwarded(&bytes).verdict, None);
        let run = rig.leaves(&bytes, PRIORITY_BYPASS);
        assert_eq!((run.verdict, run.priority), (None, 0));
    }
}

#[test]
fn other_tuples_and_stale_entries_hold_nothing_back() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    for (from, to) in [("192.0.2.1:444", CLIENT), (LOCAL, "203.0.113.9:50001"), (CLIENT, LOCAL), (BACKEND, SOURCE)] {
        assert_eq!(rig.leaves(&packet(from, to, 5, 6, b"").bytes(), 0).verdict, None, "{from} {to}");
    }
    rig.enter(key(CLIENT, LOCAL), SLOT.generation - 1, Direction::ToBackend);
    assert_eq!(rig.leaves(&packet(LOCAL, CLIENT, 5, 6, b"").bytes(), 0).verdict, None);
}
