//! SACK blocks (RFC 2018, RFC 2883) in every layout that a sender may choose.

use ingress_ebpf::connection::State;
use ingress_ebpf::header::{OPTION_NOP, OPTION_SACK, OPTION_TIMESTAMP};
use ingress_ebpf::verdict::Verdict;

use super::frame::Frame;
use super::rig::{
    BACKEND_START, CLIENT_START, FLIGHT_END, HELLO, LOCAL_START, connection, from_backend, from_client, rig,
};

/// `lead` NOPs, a SACK option with these blocks, NOPs up to the next word.
fn sack(lead: usize, blocks: &[(u32, u32)]) -> Vec<u8> {
    let mut options = vec![OPTION_NOP; lead];
    options.extend([OPTION_SACK, 2 + blocks.len() as u8 * 8]);
    for (left, right) in blocks {
        options.extend(left.to_be_bytes());
        options.extend(right.to_be_bytes());
    }
    options.resize(options.len().next_multiple_of(4), OPTION_NOP);
    options
}

/// `count` blocks above `from`.
fn blocks(count: u32, from: u32) -> Vec<(u32, u32)> {
    (1..=count).map(|n| (from.wrapping_add(n * 3_000), from.wrapping_add(n * 3_000 + 1_448))).collect()
}

#[test]
fn one_to_four_blocks_are_translated_at_every_alignment_both_ways() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    let client_end = CLIENT_START.wrapping_add(HELLO);
    for count in 1..=4u32 {
        for lead in 0..=6usize {
            // 40 bytes of options at most.
            if sack(lead, &blocks(count, 0)).len() > 40 {
                continue;
            }
            let options = sack(lead, &blocks(count, LOCAL_START));
            let run = rig.arrives(&Frame { options, ..from_client(0, 0, b"x") }.bytes());
            assert_eq!(run.verdict, Some(Verdict::SplicedToBackend));
            assert_eq!(
                run.frame().options,
                sack(lead, &blocks(count, BACKEND_START)),
                "{count} blocks behind {lead} NOPs"
            );

            let options = sack(lead, &blocks(count, FLIGHT_END));
            let run = rig.arrives(&Frame { options, ..from_backend(0, 0, b"x") }.bytes());
            assert_eq!(run.verdict, Some(Verdict::SplicedToClient));
            assert_eq!(
                run.frame().options,
                sack(lead, &blocks(count, client_end)),
                "{count} blocks behind {lead} NOPs"
            );
        }
    }
}

#[test]
fn a_sack_option_behind_others_is_found() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    let mut before = vec![OPTION_NOP, OPTION_NOP, OPTION_TIMESTAMP, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    // An experimental option of odd length (RFC 6994) puts what follows on an odd offset.
    before.extend([253, 3, 9]);
    let with = |from| {
        let mut options = before.clone();
        options.extend(&sack(1, &blocks(2, from))[..19]);
        options.extend([0, 0]);
        options
    };
    let run = rig.arrives(&Frame { options: with(LOCAL_START), ..from_client(0, 0, b"") }.bytes());
    assert_eq!(run.frame().options, with(BACKEND_START));
}

#[test]
fn what_lies_behind_the_end_or_behind_nonsense_is_left_alone() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    let block = sack(2, &blocks(1, LOCAL_START));
    for (what, lead) in [
        ("end of options", [0, 0, 0, 0]),
        ("length 0", [253, 0, 1, 1]),
        ("length 1", [253, 1, 1, 1]),
        ("length beyond the header", [253, 17, 1, 1]),
    ] {
        let options = [&lead[..], &block].concat();
        let run = rig.arrives(&Frame { options: options.clone(), ..from_client(0, 0, b"0123456789abcdef") }.bytes());
        assert_eq!(run.frame().options, options, "{what}");
    }
    for len in [2u8, 9] {
        // Too short to hold a block.
        let mut options = vec![OPTION_NOP; 12];
        (options[0], options[1]) = (OPTION_SACK, len);
        let run = rig.arrives(&Frame { options: options.clone(), ..from_client(0, 0, b"") }.bytes());
        assert_eq!(run.frame().options, options, "SACK of length {len}");
    }
}

#[test]
fn a_dsack_of_what_only_we_sent_is_removed() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    // The backend has seen our PROXY header twice: 600 to 550 bytes before the end of a flight whose hello had 500.
    let ours = (FLIGHT_END - 600, FLIGHT_END - 550);
    for lead in 0..=3 {
        let run = rig.arrives(&Frame { options: sack(lead, &[ours]), ..from_backend(0, 0, b"x") }.bytes());
        let options = run.frame().options;
        assert_eq!(options, vec![OPTION_NOP; options.len()], "alone it goes, behind {lead} NOPs");
    }

    let hole = (FLIGHT_END + 3_000, FLIGHT_END + 4_448);
    let client_end = CLIENT_START.wrapping_add(HELLO);
    let seen = (client_end.wrapping_add(3_000), client_end.wrapping_add(4_448));
    let run = rig.arrives(&Frame { options: sack(2, &[ours, hole]), ..from_backend(0, 0, b"x") }.bytes());
    assert_eq!(run.frame().options, sack(2, &[(client_end, client_end), seen]), "beside others it is empty");

    let across = (FLIGHT_END - 600, FLIGHT_END - 400);
    let run = rig.arrives(&Frame { options: sack(3, &[across]), ..from_backend(0, 0, b"x") }.bytes());
    let start = CLIENT_START;
    assert_eq!(run.frame().options, sack(3, &[(start, start.wrapping_add(100))]), "cut at the client's first byte");
}

#[test]
fn a_clients_dsack_is_kept_from_the_first_byte_of_the_backend_on() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Spliced);
    rig.arrives(&from_backend(0, 0, &[0; 1_000]).bytes());
    let mut translated =
        |block| rig.arrives(&Frame { options: sack(2, &[block]), ..from_client(0, 1_000, b"") }.bytes());
    let run = translated((LOCAL_START, LOCAL_START + 500));
    assert_eq!(run.frame().options, sack(2, &[(BACKEND_START, BACKEND_START.wrapping_add(500))]));
    let run = translated((LOCAL_START - 200, LOCAL_START - 100));
    assert_eq!(run.frame().options, [OPTION_NOP; 12], "the backend never sent that");
}
