//! Bad networks: what is lost, doubled, late or far away arrives all the same, in the kernel, and SACK still means what it said.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use ingress_tests::counters::tcp_counter;
use ingress_tests::distance::Distance;
use ingress_tests::lab::{Host, LabOptions};
use ingress_tests::node::Node;
use ingress_tests::payload::{Fingerprint, fingerprint};
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::scripted::{Outcome, Scripted, answer, check_random, exchange, read_proxy_header, send_random};
use ingress_tests::talk::{Talk, accept};
use ingress_tests::wait::wait_until;
use ingress_tests::wire::{Ending, client_hello, ending};

#[test]
fn transfers_survive_loss_at_both_ends() -> Result<()> {
    require!("nft");
    let s1 = S1::without_backends(&LabOptions::default())?;
    lose(&s1, 1)?;
    transfers_both_ways(&s1, 24 << 20, Bad { never: &STRICT, loses: true }).map(drop)
}

#[test]
fn transfers_survive_loss_at_both_ends_without_offloads() -> Result<()> {
    require!("nft", "ethtool");
    let s1 = S1::without_backends(&LabOptions { offloads: false, ..LabOptions::default() })?;
    lose(&s1, 1)?;
    transfers_both_ways(&s1, 24 << 20, Bad { never: &STRICT, loses: true }).map(drop)
}

#[test]
fn transfers_survive_heavy_loss_at_both_ends() -> Result<()> {
    require!("nft", "ethtool");
    let s1 = S1::without_backends(&LabOptions { offloads: false, ..LabOptions::default() })?;
    lose(&s1, 5)?;
    transfers_both_ways(&s1, 8 << 20, Bad { never: &STRICT, loses: true }).map(drop)
}

/// Round trips to the client, milliseconds, over a line that loses 1%: across a country, an ocean, half the globe.
macro_rules! far_clients {
    ($($name:ident: $round_trip:literal,)+) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                require!();
                let s1 = S1::without_backends(&LabOptions::default())?;
                let delay = Duration::from_millis($round_trip / 2);
                let _line = s1.lab.move_away(&s1.lab.clients[0], Distance { delay, lost: 10, ..Distance::default() })?;
                transfers_both_ways(&s1, 2 << 20, Bad { never: &STRICT, loses: true }).map(drop)
            }
        )+
    };
}

far_clients! {
    transfers_survive_a_lossy_line_of_30_ms: 30,
    transfers_survive_a_lossy_line_of_100_ms: 100,
    transfers_survive_a_lossy_line_of_260_ms: 260,
}

#[test]
fn backend_never_takes_the_short_way_to_the_proxy_for_the_way_to_a_far_client() -> Result<()> {
    require!("ss");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let delay = Duration::from_millis(50);
    let _line = s1.lab.move_away(&s1.lab.clients[0], Distance { delay, ..Distance::default() })?;
    let backend = s1.lab.backends[0].ns.listen(s1.lab.backends[0].socket(443))?;
    let node = s1.node_with(s1.config_without_checks())?;
    let hello = client_hello(Some("fiscalismia.com"))?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&hello)?;
    let backend = accept(&backend)?;
    read_proxy_header(&backend)?;
    let mut talk = Talk::of(client, backend);
    talk.arrives(&hello)?;
    talk.exchange()?;
    // What a BBR sender paces by: the shortest round trip that it has seen, of the handshake or later.
    let seen = s1.lab.backends[0].ns.run("ss", &["-tinHO", "state", "established"])?;
    let shortest: Vec<f64> =
        seen.split_whitespace().filter_map(|word| word.strip_prefix("minrtt:")?.parse().ok()).collect();
    let [milliseconds] = shortest[..] else { anyhow::bail!("one connection with a round trip in {seen}") };
    assert!(milliseconds >= 100.0, "the backend believes in {milliseconds} ms");
    talk.finish()?;
    node.all_in_kernel()
}

#[test]
fn first_byte_reaches_a_far_client_after_two_round_trips() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let distance = Distance { delay: Duration::from_millis(50), ..Distance::default() };
    let _line = s1.lab.move_away(&s1.lab.clients[0], distance)?;
    let _backend = Scripted::start(&s1.lab.backends[0], |mut stream| stream.write_all(b"x"))?;
    let node = s1.node_with(s1.config_without_checks())?;
    let hello = client_hello(Some("fiscalismia.com"))?;
    let time_to_first_byte = || -> Result<Duration> {
        let begun = Instant::now();
        let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
        client.write_all(&hello)?;
        client.read_exact(&mut [0])?;
        Ok(begun.elapsed())
    };
    // One for SYN and SYN-ACK, one for the hello and its answer. A busy machine delays some, but not all.
    let tries = (0..10).map(|_| time_to_first_byte()).collect::<Result<Vec<_>>>()?;
    let best = tries.iter().min().copied().unwrap_or_default();
    ensure!((200..235).contains(&best.as_millis()), "{tries:?}");
    node.all_in_kernel()
}

#[test]
fn transfers_survive_a_client_and_a_backend_that_are_both_far_away() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions { private_mtu: 1420, ..LabOptions::default() })?;
    let far = |ms| Distance { delay: Duration::from_millis(ms), lost: 5, ..Distance::default() };
    let _to_client = s1.lab.move_away(&s1.lab.clients[0], far(30))?;
    let _to_backend = s1.lab.move_away(&s1.lab.backends[0], far(10))?;
    transfers_both_ways(&s1, 2 << 20, Bad { never: &STRICT, loses: true }).map(drop)
}

#[test]
fn transfers_survive_lines_that_lose_double_and_reorder_on_both_sides() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let bad = |ms| Distance { delay: Duration::from_millis(ms), lost: 5, doubled: 10, late: 10, bottleneck: None };
    let _to_client = s1.lab.move_away(&s1.lab.clients[0], bad(20))?;
    let _to_backend = s1.lab.move_away(&s1.lab.backends[0], bad(4))?;
    // Copies that come late make a sender discard a block now and then on the plain path too.
    transfers_both_ways(&s1, 2 << 20, Bad { never: &["TCPSACKReneging"], loses: true }).map(drop)
}

#[test]
fn transfers_survive_lines_on_which_everything_comes_twice_and_a_tenth_late() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let echoing =
        |ms| Distance { delay: Duration::from_millis(ms), lost: 0, doubled: 1_000, late: 100, bottleneck: None };
    let _to_client = s1.lab.move_away(&s1.lab.clients[0], echoing(20))?;
    let _to_backend = s1.lab.move_away(&s1.lab.backends[0], echoing(4))?;
    transfers_both_ways(&s1, 2 << 20, Bad { never: &["TCPSACKReneging"], loses: false }).map(drop)
}

#[test]
fn first_flights_that_are_lost_are_sent_again() -> Result<()> {
    require!("nft");
    let s1 = S1::without_backends(&LabOptions::default())?;
    lose(&s1, 10)?;
    let _backend = Scripted::start(&s1.lab.backends[0], answer)?;
    let mut config = s1.config_without_checks();
    // SYNs are lost as well.
    config["pools"]["web"]["connect_timeout"] = "30s".into();
    let node = s1.node_with(config)?;
    let hello = client_hello(Some("fiscalismia.com"))?;
    let one = |seed| s1.lab.clients[0].ns.exec(|| exchange(s1.public(), &hello, seed, 20_000, LONG));
    std::thread::scope(|scope| -> Result<()> {
        let crowd: Vec<_> = (0..200).map(|seed| scope.spawn(move || one(seed))).collect();
        for client in crowd {
            let outcome = client.join().map_err(|_| anyhow!("a client panicked"))??;
            assert_eq!(outcome, Outcome::Complete);
        }
        Ok(())
    })?;
    wait_until(LONG, "all have ended", || node.flows().is_ok_and(|flows| flows.is_empty()))?;
    node.all_in_kernel()
}

/// What a network does, and what its senders may therefore count.
pub(super) struct Bad {
    /// These counters stay at zero at both ends.
    pub(super) never: &'static [&'static str],
    /// So that SACK has to repair something at both ends.
    pub(super) loses: bool,
}

/// Up, then down, on two connections at once, within a time that one stall after another would exceed.
pub(super) fn transfers_both_ways(s1: &S1, bytes: u64, bad: Bad) -> Result<Node> {
    let (tell, told) = std::sync::mpsc::channel::<Fingerprint>();
    let _backend = Scripted::start(&s1.lab.backends[0], move |mut stream| {
        stream.write_all(b"x")?;
        let got = fingerprint((&stream).take(bytes)).map_err(std::io::Error::other)?;
        let _ = tell.send(got);
        send_random(&mut stream, 4, bytes)
    })?;
    let node = s1.node_with(s1.config_without_checks())?;
    let mut sent = Vec::new();
    send_random(&mut sent, 9, bytes)?;
    let expected = fingerprint(sent.as_slice())?;

    let hello = client_hello(Some("fiscalismia.com"))?;
    let connect = || -> Result<TcpStream> {
        let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
        client.set_read_timeout(Some(LONG))?;
        client.write_all(&hello)?;
        // As TLS clients do, it waits for the server's answer.
        client.read_exact(&mut [0])?;
        Ok(client)
    };
    let converse = |mut client: TcpStream| -> Result<()> {
        client.write_all(&sent)?;
        assert_eq!(check_random(&mut client, 4, bytes)?, Outcome::Complete);
        assert_eq!(ending(&mut client, LONG)?, Ending::Closed(Vec::new()));
        Ok(())
    };
    let started = Instant::now();
    // Both are there before either moves anything: what one learns of the path must not decide who carries the other.
    let pair = [connect()?, connect()?];
    std::thread::scope(|scope| -> Result<()> {
        let pair = pair.map(|client| scope.spawn(|| converse(client)));
        pair.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    let took = started.elapsed();
    ensure!(took < LONG, "{bytes} bytes each way took {took:?}");
    for _ in 0..2 {
        assert_eq!(told.recv_timeout(LONG)?, expected);
    }
    let [client, backend] = [&s1.lab.clients[0], &s1.lab.backends[0]];
    for Host { ns, address } in [client, backend] {
        for name in bad.never {
            assert_eq!(tcp_counter(ns, "TcpExt", name)?, 0, "{name} at {address}");
        }
        assert_eq!(tcp_counter(ns, "Tcp", "InCsumErrors")?, 0, "at {address}");
        if bad.loses {
            assert!(tcp_counter(ns, "TcpExt", "TCPSackRecovery")? > 0, "SACK repaired nothing at {address}");
        }
    }
    node.all_in_kernel()?;
    Ok(node)
}

/// Loses every so many of a hundred TCP packets on their way into the client and into the backend.
fn lose(s1: &S1, of_a_hundred: u32) -> Result<()> {
    let rules = format!(
        "table inet lossy {{\n chain input {{\n type filter hook input priority filter;\n \
         meta l4proto tcp numgen random mod 100 < {of_a_hundred} drop\n }}\n}}\n"
    );
    [&s1.lab.clients[0], &s1.lab.backends[0]].into_iter().try_for_each(|host| host.ns.nft(&rules))
}

/// Enough for several lost retransmits in a row.
const LONG: Duration = Duration::from_secs(40);

/// What a sender counts when SACK blocks lie about its stream.
pub(super) const STRICT: [&str; 2] = ["TCPSACKReneging", "TCPSACKDiscard"];
