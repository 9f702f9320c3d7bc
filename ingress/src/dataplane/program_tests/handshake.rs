//! SYNs are made ready for a handoff: a listener's as they come in, ours towards backends as they leave.

use ingress_ebpf::flow::{SYN_AGAIN, SYN_ECN_CLEARED, SYN_OURS, SYN_SACK, SYN_TIMESTAMP_REMOVED, SynSeen};
use ingress_ebpf::header::{ACK, AE, CWR, ECE, OPTION_NOP, RST, SYN};
use ingress_ebpf::names::{PRIORITY_SYN, PRIORITY_SYN_NO_SACK};
use ingress_ebpf::verdict::Verdict;

use super::frame::Frame;
use super::rig::{BACKEND, CLIENT, LOCAL, Rig, SOURCE, flagged, key, packet, rig};

const MSS: [u8; 4] = [2, 4, 5, 180];
const SACK_PERMITTED: [u8; 2] = [4, 2];
const TIMESTAMP: [u8; 10] = [8, 10, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0];
const SCALE: [u8; 3] = [3, 3, 7];
const NOPS: [u8; 10] = [OPTION_NOP; 10];

fn syn(from: &str, to: &str, options: &[&[u8]]) -> Frame {
    Frame { options: options.concat(), ..flagged(SYN, packet(from, to, 0xfedc_ba98, 0, b"")) }
}

/// Layouts of the common stacks, and worse: with and without a hole where the timestamp was.
fn layouts() -> [(&'static str, Vec<u8>, Vec<u8>, u32); 8] {
    let n = &[OPTION_NOP][..];
    let both = SYN_TIMESTAMP_REMOVED | SYN_SACK;
    [
        (
            "Linux",
            [&MSS[..], &SACK_PERMITTED, &TIMESTAMP, n, &SCALE].concat(),
            [&MSS[..], &SACK_PERMITTED, &NOPS, n, &SCALE].concat(),
            both,
        ),
        (
            "Apple",
            [&MSS[..], n, &SCALE, n, n, &TIMESTAMP, &SACK_PERMITTED, &[0, 0]].concat(),
            [&MSS[..], n, &SCALE, n, n, &NOPS, &SACK_PERMITTED, &[0, 0]].concat(),
            both,
        ),
        (
            "Windows",
            [&MSS[..], n, &SCALE, n, n, &SACK_PERMITTED].concat(),
            [&MSS[..], n, &SCALE, n, n, &SACK_PERMITTED].concat(),
            SYN_SACK,
        ),
        ("first", [&TIMESTAMP[..], n, n].concat(), [&NOPS[..], n, n].concat(), SYN_TIMESTAMP_REMOVED),
        ("odd", [n, &TIMESTAMP, n].concat(), [n, &NOPS, n].concat(), SYN_TIMESTAMP_REMOVED),
        (
            "odd, between neighbours",
            [&SCALE[..], &TIMESTAMP, &SCALE].concat(),
            [&SCALE[..], &NOPS, &SCALE].concat(),
            SYN_TIMESTAMP_REMOVED,
        ),
        (
            "odd, at the end of 40 bytes",
            [&[OPTION_NOP; 29][..], &TIMESTAMP, n].concat(),
            [&[OPTION_NOP; 29][..], &NOPS, n].concat(),
            SYN_TIMESTAMP_REMOVED,
        ),
        ("none", Vec::new(), Vec::new(), 0),
    ]
}

#[test]
fn a_listeners_syn_loses_its_timestamp_wherever_it_stands() {
    let Some(mut rig) = rig() else { return };
    rig.listen(LOCAL);
    for (what, options, expected, flags) in layouts() {
        let frame = syn(CLIENT, LOCAL, &[&options]);
        let run = rig.arrives(&frame.bytes());
        assert_eq!(run.verdict, Some(Verdict::SynPrepared), "{what}");
        assert_eq!(run.frame(), Frame { options: expected, ..frame }.complete(), "{what}");
        let seen = rig.take_syn(key(CLIENT, LOCAL)).expect("the SYN is remembered");
        assert_eq!((seen.ifindex, seen.flags), (1, flags), "{what}");
    }
}

#[test]
fn ecn_is_not_negotiated() {
    let Some(mut rig) = rig() else { return };
    rig.listen(LOCAL);
    for (flags, accurate) in [(ECE | CWR, 0), (ECE, 0), (CWR, 0), (ECE | CWR, AE), (0, AE)] {
        let mut frame = flagged(SYN | flags, syn(CLIENT, LOCAL, &[&MSS, &SACK_PERMITTED, &TIMESTAMP]));
        frame.tcp.offset = accurate;
        let run = rig.arrives(&frame.bytes());
        let after = run.frame();
        assert_eq!((after.tcp.flags, after.tcp.offset & AE), (SYN, 0), "{flags:#x} {accurate}");
        assert_eq!(after.options, [&MSS[..], &SACK_PERMITTED, &NOPS].concat());
        let seen = rig.take_syn(key(CLIENT, LOCAL)).expect("the SYN is remembered");
        assert_eq!(seen.flags, SYN_ECN_CLEARED | SYN_TIMESTAMP_REMOVED | SYN_SACK);
    }
}

#[test]
fn a_listener_on_all_addresses_is_found_and_no_other_port_is() {
    let Some(mut rig) = rig() else { return };
    rig.listen("0.0.0.0:443");
    let options = [&MSS[..], &SACK_PERMITTED, &TIMESTAMP].concat();
    assert_eq!(rig.arrives(&syn(CLIENT, LOCAL, &[&options]).bytes()).verdict, Some(Verdict::SynPrepared));
    // The rig itself compares the bytes of a miss.
    let ecn = flagged(SYN | ECE | CWR, syn(CLIENT, "192.0.2.1:444", &[&options]));
    assert_eq!(rig.arrives(&ecn.bytes()).verdict, Some(Verdict::Miss));
    assert_eq!(rig.take_syn(key(CLIENT, "192.0.2.1:444")), None);

    let answer = flagged(SYN | ACK, packet(CLIENT, LOCAL, 1, 2, b""));
    assert_eq!(rig.arrives(&answer.bytes()).verdict, Some(Verdict::Miss), "no first SYN");
}

#[test]
fn a_syn_with_broken_options_keeps_them() {
    let Some(mut rig) = rig() else { return };
    rig.listen(LOCAL);
    for (what, options) in [
        ("timestamp of another length", [8, 8, 0, 0, 0, 0, 0, 0].to_vec()),
        ("SACK-permitted of another length", [4, 4, 0, 0].to_vec()),
        ("an option beyond the header", [&[1, 1][..], &TIMESTAMP[..6]].concat()),
        ("length 0", [&[253, 0][..], &TIMESTAMP].concat()),
        ("behind the end", [&[0, 0][..], &TIMESTAMP].concat()),
    ] {
        let frame = syn(CLIENT, LOCAL, &[&options]);
        let run = rig.arrives(&frame.bytes());
        assert_eq!(run.frame(), frame.complete(), "{what}");
        assert_eq!(rig.take_syn(key(CLIENT, LOCAL)).map(|seen| seen.flags), Some(0), "{what}");
    }
    let mut short = syn(CLIENT, LOCAL, &[]).bytes();
    short[46] = 4 << 4;
    assert_eq!(rig.arrives(&short).verdict, Some(Verdict::Miss), "a header shorter than a header");
}

#[test]
fn our_syn_towards_a_backend_loses_its_timestamp_and_on_demand_sack() {
    let Some(mut rig) = rig() else { return };
    for (what, options, expected, flags) in layouts() {
        let frame = syn(SOURCE, BACKEND, &[&options]);
        let run = rig.leaves(&frame.bytes(), PRIORITY_SYN);
        assert_eq!(run.verdict, Some(Verdict::SynPreparedOut), "{what}");
        assert_eq!(run.priority, 0, "no queueing discipline sees our tag");
        assert_eq!(run.frame(), Frame { options: expected.clone(), ..frame.clone() }.complete(), "{what}");
        // Under the key of the SYN-ACK that will arrive.
        assert_eq!(
            rig.take_syn(key(BACKEND, SOURCE)).map(|seen| (seen.left_by, seen.flags)),
            Some((1, flags | SYN_OURS)),
            "{what}"
        );

        let run = rig.leaves(&frame.bytes(), PRIORITY_SYN | PRIORITY_SYN_NO_SACK);
        let mut without = expected;
        if let Some(at) = without.windows(2).position(|pair| pair == SACK_PERMITTED) {
            without[at..at + 2].fill(OPTION_NOP);
        }
        assert_eq!(run.frame(), Frame { options: without, ..frame }.complete(), "{what}, no SACK");
        assert_eq!(
            rig.take_syn(key(BACKEND, SOURCE)).map(|seen| seen.flags),
            Some(flags & !SYN_SACK | SYN_OURS),
            "{what}, no SACK"
        );
    }
}

#[test]
fn our_syn_announces_no_larger_segment_than_the_client_takes() {
    let Some(mut rig) = rig() else { return };
    let n = &[OPTION_NOP][..];
    for (limit, announced) in [(536, 536), (1_459, 1_459), (1_460, 1_460), (1_461, 1_460), (0x3fff, 1_460), (0, 1_460)]
    {
        for [before, after] in [[&[][..], &SCALE[..]], [n, &TIMESTAMP], [&SCALE, n], [&TIMESTAMP, &SACK_PERMITTED]] {
            let pad =
                vec![OPTION_NOP; (before.len() + 4 + after.len()).next_multiple_of(4) - before.len() - 4 - after.len()];
            let frame = syn(SOURCE, BACKEND, &[before, &MSS, after, &pad]);
            let run = rig.leaves(&frame.bytes(), PRIORITY_SYN | limit);
            assert_eq!(run.verdict, Some(Verdict::SynPreparedOut));
            let [high, low] = (announced as u16).to_be_bytes();
            let mut options = [before, &[2, 4, high, low], after, &pad].concat();
            if let Some(at) = options.windows(10).position(|ten| ten == TIMESTAMP) {
                options[at..at + 10].copy_from_slice(&NOPS);
            }
            assert_eq!(run.frame(), Frame { options, ..frame }.complete(), "{limit}, behind {before:?}");
            assert!(rig.take_syn(key(BACKEND, SOURCE)).is_some());
        }
    }
}

#[test]
fn our_syn_without_an_mss_is_not_noted_because_the_backend_may_send_what_it_likes() {
    let Some(mut rig) = rig() else { return };
    let frame = syn(SOURCE, BACKEND, &[&SCALE, &[OPTION_NOP]]);
    let run = rig.leaves(&frame.bytes(), PRIORITY_SYN | 1_400);
    assert_eq!((run.verdict, run.priority), (Some(Verdict::SynPreparedOut), 0));
    assert_eq!((run.frame(), rig.take_syn(key(BACKEND, SOURCE))), (frame.complete(), None));
}

#[test]
fn sack_permitted_at_an_odd_offset_is_removed() {
    let Some(mut rig) = rig() else { return };
    let frame = syn(SOURCE, BACKEND, &[&SCALE, &SACK_PERMITTED, &SCALE]);
    let run = rig.leaves(&frame.bytes(), PRIORITY_SYN | PRIORITY_SYN_NO_SACK);
    let options = [&SCALE[..], &[OPTION_NOP; 2], &SCALE].concat();
    assert_eq!(run.frame(), Frame { options, ..frame }.complete());
}

#[test]
fn a_syn_without_our_tag_and_a_tagged_packet_that_is_no_syn_leave_as_they_are() {
    let Some(mut rig) = rig() else { return };
    let frame = syn(SOURCE, BACKEND, &[&MSS, &SACK_PERMITTED, &TIMESTAMP]);
    for foreign in [0, 6, 0x4946_ffff, 0x4948_0001] {
        let run = rig.leaves(&frame.bytes(), foreign);
        assert_eq!((run.verdict, run.priority, &run.bytes), (None, foreign, &frame.bytes()));
    }
    assert_eq!(rig.take_syn(key(BACKEND, SOURCE)), None);
    let data = packet(SOURCE, BACKEND, 1, 2, b"hello").bytes();
    let run = rig.leaves(&data, PRIORITY_SYN);
    assert_eq!((run.verdict, run.priority, run.bytes), (None, 0, data));
}

const CLIENT_ISN: u32 = 0xffff_ffff;
const LOCAL_ISN: u32 = 0x1234_5678;

fn client_syn(rig: &mut Rig, isn: u32) {
    let run = rig.arrives(&flagged(SYN, packet(CLIENT, LOCAL, isn, 0, b"")).bytes());
    assert_eq!(run.verdict, Some(Verdict::SynPrepared));
}

fn syn_ack(rig: &mut Rig, seq: u32, ack: u32) {
    let run = rig.leaves(&flagged(SYN | ACK, packet(LOCAL, CLIENT, seq, ack, b"")).bytes(), 0);
    assert_eq!(run.verdict, None);
}

fn client_numbers(rig: &mut Rig) -> Option<(u32, u32)> {
    rig.take_syn(key(CLIENT, LOCAL)).and_then(|seen| SynSeen::numbers(&seen))
}

#[test]
fn our_syn_ack_tells_where_both_streams_begin() {
    let Some(mut rig) = rig() else { return };
    rig.listen(LOCAL);
    client_syn(&mut rig, CLIENT_ISN);
    syn_ack(&mut rig, LOCAL_ISN, 0);
    // A second one, sent again or with another cookie, changes nothing.
    syn_ack(&mut rig, LOCAL_ISN + 7, 0);
    assert_eq!(client_numbers(&mut rig), Some((LOCAL_ISN + 1, 0)));
}

#[test]
fn the_device_of_our_first_answer_is_noted_and_kept_when_the_syn_comes_again() {
    let Some(mut rig) = rig() else { return };
    rig.listen(LOCAL);
    client_syn(&mut rig, CLIENT_ISN);
    assert_eq!(rig.take_syn(key(CLIENT, LOCAL)).map(|seen| seen.left_by), Some(0), "unanswered");

    client_syn(&mut rig, CLIENT_ISN);
    syn_ack(&mut rig, LOCAL_ISN, 0);
    client_syn(&mut rig, CLIENT_ISN);
    let seen = rig.take_syn(key(CLIENT, LOCAL)).expect("the SYN is remembered");
    assert_eq!((seen.left_by, seen.mark, seen.flags & SYN_AGAIN), (1, 0, SYN_AGAIN));
}

#[test]
fn numbers_that_are_not_certain_are_none() {
    let Some(mut rig) = rig() else { return };
    rig.listen(LOCAL);
    client_syn(&mut rig, CLIENT_ISN);
    assert_eq!(client_numbers(&mut rig), None, "unanswered");

    client_syn(&mut rig, CLIENT_ISN);
    syn_ack(&mut rig, LOCAL_ISN, 1);
    assert_eq!(client_numbers(&mut rig), None, "the answer to another SYN");

    client_syn(&mut rig, CLIENT_ISN);
    syn_ack(&mut rig, LOCAL_ISN, 0);
    client_syn(&mut rig, CLIENT_ISN);
    syn_ack(&mut rig, LOCAL_ISN + 7, 0);
    assert_eq!(client_numbers(&mut rig), None, "a SYN that came twice may have got two answers");

    client_syn(&mut rig, CLIENT_ISN);
    syn_ack(&mut rig, LOCAL_ISN, 0);
    client_syn(&mut rig, 7);
    assert_eq!(client_numbers(&mut rig), None, "another SYN, forged or of the port's next connection");
}

#[test]
fn a_backends_answer_to_our_syn_tells_where_both_streams_begin() {
    let Some(mut rig) = rig() else { return };
    let answer = |flags, seq, ack| flagged(flags, packet(BACKEND, SOURCE, seq, ack, b"")).bytes();
    let first = (SYN | ACK, 76, 0);
    for (what, answers, numbers) in [
        ("one answer", &[first][..], Some((0, 77))),
        ("the same again", &[first, first], Some((0, 77))),
        ("another one, as with cookies", &[first, (SYN | ACK, 80, 0)], None),
        ("once in doubt, always in doubt", &[first, (SYN | ACK, 80, 0), (SYN | ACK, 80, 0)], None),
        ("one that does not know our number", &[(SYN | ACK, 80, 5)], None),
        ("one that does not, after one that does", &[first, (SYN | ACK, 80, 5)], Some((0, 77))),
        ("a reset", &[(RST | ACK, 76, 0)], None),
    ] {
        rig.leaves(&flagged(SYN, packet(SOURCE, BACKEND, CLIENT_ISN, 0, b"")).bytes(), PRIORITY_SYN);
        for (flags, seq, ack) in answers {
            assert_eq!(rig.arrives(&answer(*flags, *seq, *ack)).verdict, Some(Verdict::Miss), "{what}");
        }
        let seen = rig.take_syn(key(BACKEND, SOURCE)).expect("the SYN is remembered");
        assert_eq!(seen.numbers(), numbers, "{what}");
    }
}

#[test]
fn a_client_cannot_answer_for_us() {
    let Some(mut rig) = rig() else { return };
    rig.listen(LOCAL);
    client_syn(&mut rig, CLIENT_ISN);
    rig.arrives(&flagged(SYN | ACK, packet(CLIENT, LOCAL, 76, 0, b"")).bytes());
    assert_eq!(client_numbers(&mut rig), None);
}
