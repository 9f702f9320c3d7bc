//! An attacker who knows all addresses and ports, but not both numbers, changes nothing.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use ingress_tests::counters::tcp_counter;
use ingress_tests::forge::{ACK, FIN, Forger, RST, SYN, Segment, Unreachable};
use ingress_tests::lab::LabOptions;
use ingress_tests::node::Node;
use ingress_tests::payload::Random;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::scripted::{Outcome, Scripted, answer, ask, check_random};
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Numbers, client_hello, numbers};
use serde_json::Value;
use socket2::SockRef;

#[test]
fn random_forgeries_change_nothing_and_the_clients_own_reset_ends_it_at_once() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions { clients: 2, ..LabOptions::default() })?;
    let _backend = Scripted::start(&s1.lab.backends[0], answer)?;
    let node = s1.node_with(s1.config_without_checks())?;
    let hello = client_hello(Some(NAME))?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.set_read_timeout(Some(Duration::from_secs(20)))?;
    client.write_all(&hello)?;
    ask(&mut client, 1, 1_000)?;
    assert_eq!(check_random(&mut client, 1, 1_000)?, Outcome::Complete);
    let before = node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;
    let attack = Attack::prepare(&s1, client.local_addr()?, &before)?;

    let over = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    std::thread::scope(|scope| -> Result<()> {
        let attacker = scope.spawn(|| attack.spray(2, || over.load(Ordering::Acquire), &sent));
        let mut transfer = || -> Result<()> {
            ask(&mut client, 2, TRANSFER)?;
            assert_eq!(check_random(&mut client, 2, TRANSFER)?, Outcome::Complete);
            wait_until(Duration::from_secs(20), "thousands of forgeries", || sent.load(Ordering::Acquire) >= SPRAY)
        };
        let result = transfer();
        over.store(true, Ordering::Release);
        attacker.join().map_err(|_| anyhow!("the attacker panicked"))??;
        result
    })?;
    // And once more while nothing moves.
    let idle = AtomicU64::new(0);
    attack.spray(3, || idle.load(Ordering::Acquire) >= SPRAY, &idle)?;

    let after = node.wait_for_flow("the connection goes on", |f| f["id"] == before["id"])?;
    assert_eq!(after["state"], "spliced", "{after}");
    assert_eq!(after["bytes_to_client"], 1_000 + TRANSFER, "{after}");
    assert_eq!(after["bytes_to_backend"], hello.len() as u64 + 2 * 16, "{after}");
    // They did arrive where they were to be judged.
    let judged = node.verdict("spliced_unproven")? + node.verdict("drop_syn")?;
    assert!(judged >= sent.load(Ordering::Acquire) + SPRAY, "{judged}");
    ask(&mut client, 4, 50_000)?;
    assert_eq!(check_random(&mut client, 4, 50_000)?, Outcome::Complete);

    SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    drop(client);
    let end = node.wait_for_log("the end", |l| l["message"] == "connection ended" && l["id"] == before["id"])?;
    assert_eq!(end["end_reason"], "client_reset", "{end}");
    node.all_in_kernel()
}

#[test]
fn one_right_number_of_two_is_not_enough() -> Result<()> {
    require!();
    let (_s1, node, mut talk, attack) = talking()?;
    let public = numbers(&talk.client)?;
    let private = numbers(&talk.backend)?;
    let before = [node.verdict("spliced_unproven")?, node.verdict("drop_syn")?];
    let (mut unproven, mut dropped) = (0, 0);
    for (side, right) in [(&attack.public, public), (&attack.private, private)] {
        let Numbers { write, read } = right;
        for (flags, seq, ack) in [
            (RST, 1, 0),
            (RST, -1, 0),
            (RST | ACK, 1_000, 0),
            (RST | ACK, 1 << 30, 0),
            (FIN | ACK, 0, 1 << 20),
            (FIN | ACK, 0, -(1 << 30)),
            (FIN | ACK, 1 << 30, 0),
            (ACK, 0, 1),
            (ACK, 0, 1 << 30),
            (ACK, 0, -(1 << 30)),
            (ACK, -(1 << 30), 0),
            (FIN, 0, 0),
            (0, 0, 0),
        ] {
            let data: &[u8] = if flags & RST == 0 { b"forged bytes" } else { b"" };
            side.send(flags, write.wrapping_add_signed(seq), read.wrapping_add_signed(ack), data)?;
            unproven += 1;
        }
        side.send(SYN | ACK, write, read, b"")?;
        dropped += 1;
    }
    // A client's goes to the backend, which answers it with a challenge; a backend has no business to send one.
    attack.public.send(SYN, public.write, 0, b"")?;
    attack.private.send(SYN, private.write, 0, b"")?;
    let [unproven, dropped] = [before[0] + unproven + 1, before[1] + dropped + 1];
    wait_until(PATIENCE, "all forgeries are judged", || {
        let reached = |name, count| node.verdict(name).is_ok_and(|n| n >= count);
        reached("spliced_unproven", unproven) && reached("drop_syn", dropped)
    })?;
    assert_eq!([numbers(&talk.client)?, numbers(&talk.backend)?], [public, private], "an end believed a forgery");
    node.wait_for_flow("the connection goes on", |f| f["state"] == "spliced")?;
    talk.exchange()?;
    ended_in_order(&node, talk)
}

#[test]
fn forged_icmp_errors_change_nothing() -> Result<()> {
    require!();
    let (s1, node, mut talk, attack) = talking()?;
    for round in 0..3 {
        for (side, right) in [(&attack.public, numbers(&talk.client)?), (&attack.private, numbers(&talk.backend)?)] {
            for error in [Unreachable::Port, Unreachable::FragmentationNeeded(576)] {
                // About what the proxy has sent, with the right number: the proxy is told that it does not arrive.
                side.send_error(error, right.read, true)?;
                // About what the end has sent, with a wrong one: the end itself is told.
                side.send_error(error, right.write.wrapping_add(1 << 30), false)?;
            }
        }
        talk.exchange().with_context(|| format!("round {round}"))?;
    }
    let proxy = &s1.lab.proxy.ns;
    // Those that would narrow the path are judged by the programs: what the proxy sends next is not under way.
    assert_eq!(node.verdict("drop_too_big")?, 6);
    assert_eq!(node.verdict("too_big_returned")?, 0);
    assert_eq!(tcp_counter(proxy, "Icmp", "InDestUnreachs")?, 6, "the others were to reach the proxy");
    let exceptions = proxy.run("ip", &["route", "show", "cache"])?;
    assert!(!exceptions.contains("mtu"), "a forgery moved a path MTU: {exceptions}");
    ended_in_order(&node, talk)
}

#[test]
fn ended_connection_does_not_come_back_and_its_entries_go_under_fire() -> Result<()> {
    require!();
    let (_s1, node, talk, attack) = talking()?;
    let numbers = [numbers(&talk.client)?, numbers(&talk.backend)?];
    ended_in_order(&node, talk)?;
    // Random numbers, one right number of two, and as who owns the connection both, as long as the entries stand.
    let mut random = Random::new(5);
    let spliced = ["spliced_to_backend", "spliced_to_client", "spliced_unproven"];
    let count = || -> Result<u64> { spliced.iter().map(|name| node.verdict(name)).sum() };
    let sides = [&attack.public, &attack.private];
    let mut fire = || -> Result<bool> {
        let before = count()?;
        for (side, right) in sides.into_iter().zip(numbers) {
            let wild = random.next_u64();
            side.send(ACK, (wild >> 32) as u32, wild as u32, b"forged bytes")?;
            side.send(ACK, right.write.wrapping_sub(1 << 30), right.read, b"forged bytes")?;
            side.send(ACK, right.write, right.read, b"")?;
        }
        Ok(count()? > before)
    };
    assert!(fire()?, "the entries stand for stragglers");
    wait_until(PATIENCE, "the entries are gone", || fire().is_ok_and(|spliced| !spliced))?;
    assert_eq!(node.flows()?, [Value::Null; 0]);
    let (seen, missed) = (count()?, node.verdict("miss")?);
    for (side, right) in sides.into_iter().zip(numbers) {
        side.send(ACK, right.write, right.read, b"forged bytes")?;
    }
    wait_until(PATIENCE, "they are packets of no flow", || node.verdict("miss").is_ok_and(|n| n >= missed + 2))?;
    assert_eq!(count()?, seen, "the old numbers revived the flow");
    assert_eq!(node.flows()?, [Value::Null; 0]);
    Ok(())
}

/// A spliced connection that stands still, and its attackers.
fn talking() -> Result<(S1, Node, Talk, Attack)> {
    let s1 = S1::without_backends(&LabOptions { clients: 2, ..LabOptions::default() })?;
    let host = &s1.lab.backends[0];
    let listener = host.ns.listen(host.socket(443))?;
    let node = s1.node_with(s1.config_of_bytes())?;
    let hello = client_hello(Some(NAME))?;
    let mut client: TcpStream = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&hello)?;
    let mut talk = Talk::accept(client, &listener, &hello)?;
    talk.exchange()?;
    let flow = node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;
    let attack = Attack::prepare(&s1, talk.client.local_addr()?, &flow)?;
    Ok((s1, node, talk, attack))
}

fn ended_in_order(node: &Node, talk: Talk) -> Result<()> {
    let carried = talk.close()?;
    let end = node.wait_for_log("its end", |l| l["message"] == "connection ended")?;
    assert_eq!((&end["end_reason"], &end["mode"]), (&"closed".into(), &"kernel".into()), "{end}");
    assert_eq!(end["bytes_to_backend"], carried.to_backend, "{end}");
    assert_eq!(end["bytes_to_client"], carried.to_client, "{end}");
    Ok(())
}

/// Two attackers: a neighbour of the client, and a neighbour of the backend.
struct Attack {
    public: Side,
    private: Side,
}

/// Where an attacker stands, in whose name it speaks, and to which address of the proxy.
struct Side {
    forger: Forger,
    end: SocketAddr,
    proxy: SocketAddr,
}

impl Attack {
    fn prepare(s1: &S1, client: SocketAddr, flow: &Value) -> Result<Self> {
        let source: SocketAddr = flow["source"].as_str().context("a flow has a source")?.parse()?;
        let (neighbour, backend) = (Forger::new(&s1.lab.clients[1].ns)?, Forger::new(&s1.lab.backends[1].ns)?);
        Ok(Self {
            public: Side { forger: neighbour, end: client, proxy: s1.public() },
            private: Side { forger: backend, end: s1.lab.backends[0].socket(443), proxy: source },
        })
    }

    /// Random numbers, all kinds of packets, both directions, until `over`; counts what it sent.
    fn spray(&self, seed: u64, over: impl Fn() -> bool, sent: &AtomicU64) -> Result<()> {
        let mut random = Random::new(seed);
        while !over() {
            for flags in [RST, RST | ACK, FIN | ACK, ACK, SYN, SYN | ACK, FIN, 0] {
                for side in [&self.public, &self.private] {
                    let numbers = random.next_u64();
                    let payload: &[u8] = if flags == ACK { b"forged bytes" } else { b"" };
                    side.send(flags, (numbers >> 32) as u32, numbers as u32, payload)?;
                    sent.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
        Ok(())
    }
}

impl Side {
    fn send(&self, flags: u16, seq: u32, ack: u32, payload: &[u8]) -> Result<()> {
        let (from, to) = (self.end, self.proxy);
        self.forger.send(&Segment { from, to, flags, seq, ack, window: 0x2000, options: &[], payload })
    }

    /// About a segment that the proxy has sent to the end, or about one of the end's own.
    fn send_error(&self, error: Unreachable, seq: u32, of_proxy: bool) -> Result<()> {
        let (from, to) = if of_proxy { (self.proxy, self.end) } else { (self.end, self.proxy) };
        let about = Segment { from, to, flags: ACK, seq, ack: 0, window: 1, options: &[], payload: &[] };
        self.forger.send_error(error, &about)
    }
}

const NAME: &str = "fiscalismia.com";
/// Packets that an attack has at least.
const SPRAY: u64 = 5_000;
const TRANSFER: u64 = 64 << 20;
