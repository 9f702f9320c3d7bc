//! How a connection begins to be the kernel's and how it ends: which packets move its state, and which only try.

use ingress_ebpf::connection::{
    Connection, FIN_ACKED, FIN_FIRST, FIN_SENT, FIRST_FLIGHT_ACKED, Half, REUSED, RST_SENT, State,
};
use ingress_ebpf::event::{Event, Kind, RING};
use ingress_ebpf::flow::{SYN_ECN_CLEARED, SYN_TIMESTAMP_REMOVED};
use ingress_ebpf::header::{ACK, CWR, ECE, FIN, OPTION_NOP, RST, SYN};
use ingress_ebpf::verdict::Verdict;

use super::frame::{FROM_THEM, Frame, TO_US};
use super::rig::{
    BACKEND, CLIENT, CLIENT_START, HELLO, LOCAL, Rig, SOURCE, connection, flagged, from_backend, from_client, key,
    packet, rig,
};

const EARLY: u32 = 1u32.wrapping_neg();

fn spliced(rig: &mut Rig) {
    rig.install(&connection(), State::Spliced);
    rig.arrives(&from_backend(0, 0, b"").bytes());
    rig.events();
}

#[test]
fn until_the_first_flight_is_acknowledged_the_backend_talks_to_our_socket() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Armed);
    let before = rig.connection().from_backend;
    for (frame, verdict) in [
        (from_backend(0, EARLY, b""), Verdict::ToLocalSocket),
        (from_backend(0, EARLY, b"early"), Verdict::DropEarlyData),
        (flagged(FIN | ACK, from_backend(0, EARLY, b"")), Verdict::DropEarlyData),
    ] {
        assert_eq!(rig.arrives(&frame.bytes()).verdict, Some(verdict));
    }
    assert_eq!(rig.connection().from_backend, before);
    assert_eq!(rig.events(), [0u32; 0]);

    assert_eq!(rig.arrives(&from_backend(0, 0, b"").bytes()).verdict, Some(Verdict::SplicedToClient));
    assert_eq!(rig.connection().from_backend.flags, FIRST_FLIGHT_ACKED);
    assert_eq!(rig.events(), [Kind::FirstFlightAcked as u32]);
    // An old acknowledgement that was overtaken goes to the client like any other.
    assert_eq!(rig.arrives(&from_backend(0, EARLY, b"").bytes()).verdict, Some(Verdict::SplicedToClient));
}

#[test]
fn a_full_ring_loses_hints_and_nothing_else() {
    let Some(mut rig) = rig() else { return };
    // Each record takes 8 bytes more than it has; half of them are of the twin.
    let fits = RING as usize / (size_of::<Event>() + 8) / 2;
    let reset = flagged(RST, from_client(0, 0, b"")).bytes();
    for _ in 0..fits + 100 {
        rig.install(&connection(), State::Spliced);
        assert_eq!(rig.arrives(&reset).verdict, Some(Verdict::SplicedToBackend));
        assert_eq!(rig.connection().from_client.flags & RST_SENT, RST_SENT);
    }
    let told = rig.events().len();
    assert!((fits - 1..=fits).contains(&told), "{told} of {fits}");
    rig.install(&connection(), State::Spliced);
    rig.arrives(&reset);
    assert_eq!(rig.events(), [Kind::Ended as u32]);
}

#[test]
fn what_our_socket_sent_for_the_client_counts_as_sent() {
    let Some(mut rig) = rig() else { return };
    // 40 more bytes of the client were read before the handoff; no packet of its own has shown them.
    let mut raised = connection();
    raised.min_ack += 40;
    rig.install(&raised, State::Armed);
    assert_eq!(rig.arrives(&from_backend(0, 0, b"").bytes()).verdict, Some(Verdict::ToLocalSocket));
    assert_eq!(rig.arrives(&from_backend(0, 40, b"").bytes()).verdict, Some(Verdict::SplicedToClient));
    assert_eq!(rig.connection().bytes_to_backend(), u64::from(HELLO) + 40);
    assert_eq!(rig.events(), [Kind::FirstFlightAcked as u32]);
}

#[test]
fn a_backend_that_refuses_the_first_flight_resets_the_client() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Armed);
    let run = rig.arrives(&flagged(RST | ACK, from_backend(0, EARLY, b"")).bytes());
    assert_eq!(run.verdict, Some(Verdict::SplicedToClient));
    assert_eq!(rig.connection().from_backend.flags, RST_SENT);
    assert_eq!(rig.events(), [Kind::Ended as u32]);
}

#[test]
fn both_fins_acknowledged_end_the_connection_once() {
    let Some(mut rig) = rig() else { return };
    spliced(&mut rig);
    rig.arrives(&from_client(0, 0, b"0123456789").bytes());
    rig.arrives(&flagged(FIN | ACK, from_backend(0, 10, b"bye")).bytes());
    rig.arrives(&flagged(FIN | ACK, from_client(10, 4, b"")).bytes());
    assert_eq!(rig.events(), [0u32; 0], "the client's FIN is still to be acknowledged");
    rig.arrives(&from_backend(4, 11, b"").bytes());
    assert_eq!(rig.events(), [Kind::Ended as u32]);
    rig.arrives(&from_backend(4, 11, b"").bytes());
    assert_eq!(rig.events(), [0u32; 0], "told once");

    let after = rig.connection();
    assert_eq!(after.from_client.flags, FIN_SENT | FIN_ACKED);
    assert_eq!(after.from_backend.flags, FIN_SENT | FIN_FIRST | FIN_ACKED | FIRST_FLIGHT_ACKED);
    assert_eq!((after.bytes_to_backend(), after.bytes_to_client()), (u64::from(HELLO) + 10, 3));
}

#[test]
fn of_two_packets_that_one_sender_has_under_way_none_takes_back_what_the_other_proved() {
    let Some(mut rig) = rig() else { return };
    spliced(&mut rig);
    rig.arrives(&from_backend(0, 0, &[7; 100]).bytes());
    // A client's CPU answers the backend's bytes while another closes the socket.
    let answer = from_client(0, 100, b"").bytes();
    let close = flagged(FIN | ACK, from_client(0, 40, b"bye")).bytes();
    let mut lost = Vec::new();
    rig.arrive_at_once([&answer, &close], 20_000, |round, after| {
        let Half { flags, acked, high, .. } = after.from_client;
        if (flags, after.bytes_to_client(), high) != (FIN_SENT | FIN_FIRST, 100, CLIENT_START.wrapping_add(HELLO + 4)) {
            lost.push(format!("round {round}: flags {flags}, acknowledged {acked}, sent {high}"));
        }
    });
    assert!(lost.is_empty(), "{} lost something: {:?}", lost.len(), &lost[..lost.len().min(5)]);
}

#[test]
fn an_rst_with_the_exact_number_ends_the_connection_and_no_other_does() {
    let Some(mut rig) = rig() else { return };
    for (frame, exact) in [
        (from_client(1, 0, b""), false),
        (from_client(EARLY, 0, b""), false),
        (from_client(0, 0, b""), true),
        (from_backend(1, 0, b""), false),
        (from_backend(EARLY, 0, b""), false),
        (from_backend(0, 0, b""), true),
    ] {
        for flags in [RST, RST | ACK] {
            spliced(&mut rig);
            let run = rig.arrives(&flagged(flags, frame.clone()).bytes());
            assert_eq!(run.verdict != Some(Verdict::SplicedUnproven), exact, "{:?}", frame.tcp);
            run.frame();
            let after = rig.connection();
            assert_eq!(Connection::ended(after.from_client.flags, after.from_backend.flags), exact);
            assert_eq!(rig.events().is_empty(), !exact);
        }
    }
}

#[test]
fn a_thousand_forged_packets_are_forwarded_and_change_nothing() {
    let Some(mut rig) = rig() else { return };
    spliced(&mut rig);
    rig.arrives(&from_client(0, 0, b"x").bytes());
    let before = rig.connection();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..1_000u32 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // At least 2^21 off: beyond every window, in either number or both.
        let far = |bits: u64| (1 << 21) + bits as u32 % (u32::MAX - (1 << 22));
        let (mut seq, mut ack) = (far(random >> 32), far(random >> 16));
        let flags = [RST, RST | ACK, FIN | ACK, ACK, FIN, 0][round as usize % 6];
        match round % 3 {
            // An RST has no acknowledgement that counts.
            0 if flags & RST == 0 => seq = 0,
            1 => ack = 0,
            _ => {}
        }
        let payload = &b"forged"[..if flags & RST == 0 { round as usize % 7 } else { 0 }];
        let frame = if round % 2 == 0 { from_client(seq, ack, payload) } else { from_backend(seq, ack, payload) };
        let run = rig.arrives(&flagged(flags, frame).bytes());
        assert_eq!(run.verdict, Some(Verdict::SplicedUnproven), "round {round}: {flags:#x} {seq:#x} {ack:#x}");
        run.frame();
    }
    let after = rig.connection();
    assert_eq!((after.from_client, after.from_backend), (before.from_client, before.from_backend));
    assert_eq!(rig.events(), [0u32; 0]);
}

#[test]
fn a_syn_on_an_ended_connection_takes_its_own_entry_away() {
    let Some(mut rig) = rig() else { return };
    let (client, backend) = (key(CLIENT, LOCAL), key(BACKEND, SOURCE));
    spliced(&mut rig);
    rig.arrives(&flagged(RST, from_client(0, 0, b"")).bytes());
    assert_eq!(rig.arrives(&flagged(SYN, packet(CLIENT, LOCAL, 9, 0, b"")).bytes()).verdict, Some(Verdict::SynOnEnded));
    assert_eq!((rig.has_entry(client), rig.has_entry(backend)), (false, true));
    assert_eq!(
        (rig.connection().from_client.flags & REUSED, rig.connection().from_backend.flags & REUSED),
        (REUSED, 0)
    );

    let answer = flagged(SYN | ACK, packet(BACKEND, SOURCE, 9, 8, b""));
    assert_eq!(rig.arrives(&answer.bytes()).verdict, Some(Verdict::SynOnEnded));
    assert!(!rig.has_entry(backend));
    assert_eq!(rig.connection().from_backend.flags & REUSED, REUSED);
    assert_eq!(rig.arrives(&answer.bytes()).verdict, Some(Verdict::Miss));
}

#[test]
fn a_syn_on_a_cut_connection_takes_its_own_entry_away_too() {
    let Some(mut rig) = rig() else { return };
    for (from, to, flags) in [(CLIENT, LOCAL, SYN), (BACKEND, SOURCE, SYN | ACK)] {
        rig.install(&connection(), State::Cut);
        let run = rig.arrives(&flagged(flags, packet(from, to, 9, 8, b"")).bytes());
        assert_eq!(run.verdict, Some(Verdict::SynOnEnded));
        let (ours, other) =
            (rig.has_entry(key(from, to)), rig.has_entry(key(CLIENT, LOCAL)) || rig.has_entry(key(BACKEND, SOURCE)));
        assert_eq!((ours, other), (false, true), "{from}");
        let halves = rig.connection();
        let reused = if from == CLIENT { halves.from_client } else { halves.from_backend };
        assert_eq!(reused.flags & REUSED, REUSED, "{from}");
    }
}

#[test]
fn a_clients_syn_on_a_connection_that_is_over_is_prepared_as_any_other() {
    let Some(mut rig) = rig() else { return };
    rig.listen(LOCAL);
    let timestamp = vec![1, 1, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0];
    let syn = Frame { options: timestamp, ..flagged(SYN | ECE | CWR, packet(CLIENT, LOCAL, 9, 0, b"")) };
    for state in [State::Draining, State::Cut] {
        spliced(&mut rig);
        rig.arrives(&flagged(RST, from_client(0, 0, b"")).bytes());
        rig.set_state(state);
        let run = rig.arrives(&syn.bytes());
        assert_eq!(run.verdict, Some(Verdict::SynOnEnded));
        let prepared = Frame { options: vec![OPTION_NOP; 12], ..flagged(SYN, packet(CLIENT, LOCAL, 9, 0, b"")) };
        assert_eq!(run.frame(), prepared.complete());
        let seen = rig.take_syn(key(CLIENT, LOCAL)).expect("the SYN is remembered");
        assert_eq!(seen.flags, SYN_TIMESTAMP_REMOVED | SYN_ECN_CLEARED);
    }
}

#[test]
fn a_syn_on_a_live_connection_changes_nothing() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Armed);
    let from_client = flagged(SYN, packet(CLIENT, LOCAL, 9, 0, b"")).bytes();
    let from_backend_again = flagged(SYN | ACK, from_backend(EARLY, EARLY, b"")).bytes();
    let before = rig.connection().from_client;
    assert_eq!(
        rig.arrives(&from_client).verdict,
        Some(Verdict::SplicedUnproven),
        "the backend answers with a challenge ACK"
    );
    assert_eq!(rig.connection().from_client, before);
    assert_eq!(rig.arrives(&from_backend_again).verdict, Some(Verdict::ToLocalSocket), "our ACK was lost");
    rig.arrives(&from_backend(0, 0, b"").bytes());
    assert_eq!(rig.arrives(&from_backend_again).verdict, Some(Verdict::DropSyn));
    assert!(rig.has_entry(key(CLIENT, LOCAL)) && rig.has_entry(key(BACKEND, SOURCE)));
}

#[test]
fn a_cut_connection_answers_with_an_rst_that_its_receiver_believes() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Cut);
    let options = vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    for (from, to) in [(CLIENT, LOCAL), (BACKEND, SOURCE)] {
        for (flags, payload, next) in
            [(ACK, &b""[..], 0), (ACK, b"five!", 5), (ACK | FIN, b"", 1), (ACK | FIN, b"odd", 4)]
        {
            let seq = 0xffff_fffe;
            let frame =
                Frame { options: options.clone(), ..flagged(flags, packet(from, to, seq, 0x1234_5678, payload)) };
            let run = rig.arrives(&frame.bytes());
            assert_eq!(run.verdict, Some(Verdict::CutAnswered));
            let mut expected = flagged(RST | ACK, packet(to, from, 0x1234_5678, seq.wrapping_add(next), payload));
            expected.tcp.window = 0;
            assert_eq!(run.frame(), Frame { options: options.clone(), ..expected }.complete());
            assert_eq!(run.bytes[..12], [FROM_THEM, TO_US].concat(), "back to where it came from");
        }
        for flags in [RST, RST | ACK, 0] {
            let run = rig.arrives(&flagged(flags, packet(from, to, 1, 2, b"")).bytes());
            assert_eq!(
                run.verdict,
                Some(Verdict::DropStale),
                "an RST is not answered, and what holds no number cannot be"
            );
        }
    }
}
