//! Clients of every make, far beyond what the lab's own kernel would send: each gets the right answer, and the kernel carries it.

use anyhow::{Context as _, Result, ensure};
use ingress_tests::forge::{AE, CWR, ECE};
use ingress_tests::handmade::{Handmade, Stack};
use ingress_tests::lab::LabOptions;
use ingress_tests::node::Node;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::scripted::{Outcome, Scripted, answer, check_random, question};
use ingress_tests::wire::client_hello;
use serde_json::Value;

const MSS_1460: [u8; 4] = mss(1460);
const SACK_PERMITTED: [u8; 2] = [4, 2];
const TIMESTAMP: [u8; 10] = [8, 10, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0];
const NOP: [u8; 1] = [1];
const NOPS: [u8; 2] = [1, 1];
const END: [u8; 2] = [0, 0];

/// SYNs as they are seen on the wire.
fn makes() -> Vec<(&'static str, Stack)> {
    let stack = |options: &[&[u8]], ecn, window| Stack { options: options.concat(), ecn, window };
    let linux: [&[u8]; 5] = [&MSS_1460, &SACK_PERMITTED, &TIMESTAMP, &NOP, &scale(7)];
    let apple: [&[u8]; 7] = [&MSS_1460, &NOP, &scale(6), &NOPS, &TIMESTAMP, &SACK_PERMITTED, &END];
    vec![
        ("Linux", stack(&linux, 0, 64_240)),
        ("Linux that asks for ECN", stack(&linux, ECE | CWR, 64_240)),
        ("Linux that asks for accurate ECN", stack(&linux, AE | ECE | CWR, 64_240)),
        ("Linux with a cookie request", stack(&[&linux.concat(), &[34, 2], &NOPS], 0, 64_240)),
        ("Android", stack(&[&mss(1410), &SACK_PERMITTED, &TIMESTAMP, &NOP, &scale(9)], 0, 65_535)),
        ("Windows", stack(&[&MSS_1460, &NOP, &scale(8), &NOPS, &SACK_PERMITTED], 0, 64_240)),
        ("Windows that asks for ECN", stack(&[&MSS_1460, &NOP, &scale(8), &NOPS, &SACK_PERMITTED], ECE | CWR, 64_240)),
        ("Apple", stack(&apple, 0, 65_535)),
        ("Apple that asks for ECN", stack(&apple, ECE | CWR, 65_535)),
        ("Apple with multipath", stack(&[&apple[..6].concat(), &[30, 4, 1, 0x81], &END], 0, 65_535)),
        ("FreeBSD", stack(&[&MSS_1460, &NOP, &scale(6), &SACK_PERMITTED, &TIMESTAMP], 0, 65_535)),
        ("no SACK", stack(&[&MSS_1460, &NOP, &scale(7), &NOPS, &TIMESTAMP], 0, 65_535)),
        ("no SACK, no timestamps", stack(&[&MSS_1460, &NOP, &scale(7)], 0, 65_535)),
        ("no scale", stack(&[&MSS_1460, &NOPS, &SACK_PERMITTED], 0, 65_535)),
        ("segment size alone", stack(&[&MSS_1460], 0, 16_384)),
        ("no options", stack(&[], 0, 8_192)),
    ]
}

#[test]
fn stacks_of_all_makes_are_served_in_the_kernel() -> Result<()> {
    require!("nft", "ethtool");
    let stage = Stage::new()?;
    makes().iter().try_for_each(|(what, stack)| stage.serves(what, stack, whole))
}

#[test]
fn every_window_scale_is_served_in_the_kernel() -> Result<()> {
    require!("nft", "ethtool");
    let stage = Stage::new()?;
    for shift in 0..=14 {
        let options = [&MSS_1460[..], &NOP, &scale(shift), &NOPS, &SACK_PERMITTED].concat();
        for window in [40_000, 65_535 << shift.min(5)] {
            let stack = Stack { options: options.clone(), ecn: 0, window };
            stage.serves(&format!("scale {shift}, window {window}"), &stack, whole)?;
        }
    }
    Ok(())
}

#[test]
fn every_segment_size_is_served_in_the_kernel() -> Result<()> {
    require!("nft", "ethtool");
    let stage = Stage::new()?;
    for size in [536, 537, 1_000, 1_220, 1_380, 1_400, 1_459, 1_460, 1_461, 4_000, 8_960, 9_000, 65_535] {
        for timestamp in [&TIMESTAMP[..], &[1; 10]] {
            let options = [&mss(size)[..], &SACK_PERMITTED, timestamp, &NOP, &scale(7)].concat();
            stage.serves(&format!("segments of {size}"), &Stack { options, ecn: 0, window: 64_240 }, whole)?;
        }
    }
    Ok(())
}

#[test]
fn hello_in_any_pieces_and_any_order_is_served_in_the_kernel() -> Result<()> {
    require!("nft", "ethtool");
    let stage = Stage::new()?;
    for (what, stack) in &makes()[..8] {
        for size in [1_000, 200, 17, 1] {
            let in_pieces = |client: &mut Handmade, hello: &[u8]| hello.chunks(size).try_for_each(|p| client.write(p));
            stage.serves(&format!("{what}, {size} bytes a segment"), stack, in_pieces)?;
        }
        stage.serves(&format!("{what}, all said twice, the second time backwards"), stack, |client, hello| {
            hello.chunks(50).try_for_each(|piece| client.write(piece))?;
            client.repeat_backwards()
        })?;
        stage.serves(&format!("{what}, the last piece first"), stack, |client, hello| {
            hello.chunks(50).for_each(|piece| client.lose(piece));
            client.repeat_backwards()
        })?;
    }
    Ok(())
}

#[test]
fn hello_that_is_also_the_last_word_is_relayed_and_answered() -> Result<()> {
    require!("nft", "ethtool");
    let stage = Stage::new()?;
    for (what, stack) in makes() {
        let host = &stage.s1.lab.clients[0];
        let port = stage.next_port();
        let converse = || -> Result<()> {
            let mut client = Handmade::connect(host, port, stage.s1.public(), &stack)?;
            client.finish(&[stage.hello.as_slice(), &question(1, ANSWER)].concat())?;
            let found = client.read_exactly(ANSWER as usize)?;
            ensure!(check_random(&mut found.as_slice(), 1, ANSWER)? == Outcome::Complete);
            client.wait_for_end()
        };
        converse().context(what)?;
        let end = stage.end_of(what, port)?;
        ensure!((&end["mode"], &end["relay_reason"]) == (&"relay".into(), &"half_closed".into()), "{what}: {end}");
    }
    Ok(())
}

#[test]
fn client_with_a_window_of_a_few_hundred_bytes_gets_the_whole_answer() -> Result<()> {
    require!("nft", "ethtool");
    let stage = Stage::new()?;
    for window in [600, 2_000, 5_000] {
        for options in [MSS_1460.to_vec(), [&MSS_1460[..], &NOP, &scale(2)].concat()] {
            stage.answers(&format!("window {window}"), &Stack { options, ecn: 0, window }, whole)?;
        }
    }
    Ok(())
}

fn whole(client: &mut Handmade, hello: &[u8]) -> Result<()> {
    client.write(hello)
}

/// The daemon, a backend that answers, and a host for handmade clients.
struct Stage {
    s1: S1,
    node: Node,
    _backend: Scripted,
    hello: Vec<u8>,
    port: std::cell::Cell<u16>,
}

impl Stage {
    fn new() -> Result<Self> {
        // A client by hand sees what the wire sees: one segment a packet, each with a checksum.
        let s1 = S1::without_backends(&LabOptions { offloads: false, ..LabOptions::default() })?;
        Handmade::mute(&s1.lab.clients[0])?;
        let backend = Scripted::start(&s1.lab.backends[0], answer)?;
        let node = s1.node_with(s1.config_without_checks())?;
        let hello = client_hello(Some("fiscalismia.com"))?;
        Ok(Self { s1, node, _backend: backend, hello, port: 30_000.into() })
    }

    fn next_port(&self) -> u16 {
        self.port.replace(self.port.get() + 1)
    }

    /// The line in the log that ends the connection from this port.
    fn end_of(&self, what: &str, port: u16) -> Result<Value> {
        let from = self.s1.lab.clients[0].socket(port).to_string();
        self.node.wait_for_log(what, |l| l["message"] == "connection ended" && l["client"] == from)
    }

    /// [`Stage::answers`], and the kernel carries it.
    fn serves(&self, what: &str, stack: &Stack, say: impl Fn(&mut Handmade, &[u8]) -> Result<()>) -> Result<()> {
        let end = self.answers(what, stack, say)?;
        ensure!(end["mode"] == "kernel", "{what}: {end}");
        Ok(())
    }

    /// One connection: hello, answer, question, answer, FIN. Its line in the log.
    fn answers(&self, what: &str, stack: &Stack, say: impl Fn(&mut Handmade, &[u8]) -> Result<()>) -> Result<Value> {
        let host = &self.s1.lab.clients[0];
        let port = self.next_port();
        let converse = || -> Result<usize> {
            let mut client = Handmade::connect(host, port, self.s1.public(), stack)?;
            say(&mut client, &[self.hello.as_slice(), &question(1, ANSWER)].concat())?;
            for seed in 1..3 {
                let found = client.read_exactly(ANSWER as usize)?;
                ensure!(check_random(&mut found.as_slice(), seed, ANSWER)? == Outcome::Complete, "answer {seed}");
                if seed == 1 {
                    client.write(&question(2, ANSWER))?;
                }
            }
            client.finish(&[])?;
            client.wait_for_end()?;
            Ok(client.beyond_window)
        };
        let beyond = converse().with_context(|| what.to_owned())?;
        ensure!(beyond == 0 || stack.window < FIRST_BURST, "{what}: {beyond} bytes beyond the window");
        let end = self.end_of(what, port)?;
        let bytes = (&end["bytes_to_backend"], &end["bytes_to_client"]);
        assert_eq!(bytes, (&(self.hello.len() + 2 * 16).into(), &(2 * ANSWER).into()), "{what}: {end}");
        assert_eq!(end["end_reason"], "closed", "{what}: {end}");
        Ok(end)
    }
}

const fn mss(size: u16) -> [u8; 4] {
    let [high, low] = size.to_be_bytes();
    [2, 4, high, low]
}

const fn scale(shift: u8) -> [u8; 3] {
    [3, 3, shift]
}

const ANSWER: u64 = 40_000;
/// Ten segments (RFC 6928): what a backend may send before it has heard of the client's window.
const FIRST_BURST: u32 = 16_384;
