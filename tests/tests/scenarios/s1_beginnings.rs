//! How connections begin when somebody is in a hurry: what races with the handoff arrives whole, whoever then carries it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ingress_tests::counters::tcp_counter;
use ingress_tests::lab::LabOptions;
use ingress_tests::node::Node;
use ingress_tests::payload::{Fingerprint, Random, fingerprint};
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::scripted::{Outcome, Scripted, answer, ask, check_random, exchange, read_proxy_header, send_random};
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Ending, client_hello, ending};
use nix::sys::socket::{MsgFlags, recv, send};
use serde_json::json;
use socket2::SockRef;

#[test]
fn openssl_that_has_nothing_to_say_shakes_hands_and_leaves() -> Result<()> {
    require!("nginx", "openssl");
    let s1 = S1::start()?;
    let node = s1.node()?;
    let (to, ca) = (s1.public().to_string(), s1.ca().display().to_string());
    for _ in 0..10 {
        // Its standard input is at its end.
        let words = ["s_client", "-connect", &to, "-servername", NAME, "-CAfile", &ca, "-verify_return_error"];
        let said = s1.lab.clients[0].ns.run("openssl", &words)?;
        ensure!(said.contains("Verify return code: 0 (ok)"), "{said}");
    }
    node.all_in_kernel()
}

#[test]
fn clients_whose_last_word_follows_the_hello_at_once_get_the_whole_answer() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    // Reads to the client's FIN, and only then speaks.
    let _backend = Scripted::start(&s1.lab.backends[0], |mut stream| {
        stream.read_to_end(&mut Vec::new())?;
        send_random(&mut stream, 11, 100_000)
    })?;
    let node = s1.node_with(s1.config_without_checks())?;
    let hello = client_hello(Some(NAME))?;
    for n in 0..MANY {
        let mut client = connect(&s1)?;
        client.write_all(&hello)?;
        // The FIN falls before the handoff, into it, or after it.
        pause(n);
        client.shutdown(Shutdown::Write)?;
        assert_eq!(check_random(&mut client, 11, 100_000)?, Outcome::Complete, "connection {n}");
        assert_eq!(ending(&mut client, PATIENCE)?, Ending::Closed(Vec::new()), "connection {n}");
    }
    carried(&node, &["half_closed"])
}

#[test]
fn bytes_that_follow_the_hello_at_once_arrive_whole() -> Result<()> {
    require!();
    let (s1, node, told, _backend) = listening_backend()?;
    let hello = client_hello(Some(NAME))?;
    let mut random = Random::new(12);
    for n in 0..MANY {
        // Together less than a fresh socket of the backend takes before its owner reads.
        let early: Vec<Vec<u8>> = (0..1 + n % 7).map(|_| bytes(&mut random, 4_000)).collect();
        let mut client = connect(&s1)?;
        client.write_all(&hello)?;
        for part in &early {
            client.write_all(part)?;
            pause(n / 7);
        }
        pause(n);
        client.shutdown(Shutdown::Write)?;
        let sent = [hello.clone(), early.concat()].concat();
        assert_eq!(told.recv_timeout(PATIENCE)?, fingerprint(sent.as_slice())?, "connection {n}");
        assert_eq!(ending(&mut client, PATIENCE)?, Ending::Closed(Vec::new()), "connection {n}");
    }
    carried(&node, &["half_closed"])
}

#[test]
fn client_that_sends_megabytes_without_waiting_loses_none() -> Result<()> {
    require!();
    let (s1, node, told, _backend) = listening_backend()?;
    let mut sent = client_hello(Some(NAME))?;
    send_random(&mut sent, 13, 8 << 20)?;
    let expected = fingerprint(sent.as_slice())?;
    for n in 0..10 {
        let mut client = connect(&s1)?;
        client.write_all(&sent)?;
        client.shutdown(Shutdown::Write)?;
        assert_eq!(told.recv_timeout(PATIENCE)?, expected, "connection {n}");
        assert_eq!(ending(&mut client, PATIENCE)?, Ending::Closed(Vec::new()), "connection {n}");
    }
    // What has come when the backend is there may be more than its window, and its FIN with it.
    carried(&node, &["half_closed", "window"])
}

#[test]
fn client_that_resets_right_behind_the_hello_takes_the_backends_end_with_it() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let (met, left) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let at_backend = (met.clone(), left.clone());
    // Never says a word that the client's host could answer with a reset.
    let _backend = Scripted::raw(&s1.lab.backends[0], move |mut stream| {
        at_backend.0.fetch_add(1, Ordering::AcqRel);
        let _ = stream.read_to_end(&mut Vec::new());
        at_backend.1.fetch_add(1, Ordering::AcqRel);
        Ok(())
    })?;
    let node = s1.node_with(s1.config_without_checks())?;
    let hello = client_hello(Some(NAME))?;
    for n in 0..MANY {
        let mut client = connect(&s1)?;
        client.write_all(&hello)?;
        pause(n);
        SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    }
    wait_until(PATIENCE, "no connection is left", || node.flows().is_ok_and(|flows| flows.is_empty()))?;
    wait_until(PATIENCE, "the backend has seen the end of each", || {
        left.load(Ordering::Acquire) == met.load(Ordering::Acquire)
    })
    .with_context(|| format!("{left:?} of {met:?}"))
}

#[test]
fn server_that_speaks_first_is_heard() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let _backend = Scripted::raw(&s1.lab.backends[0], |mut stream| {
        send_random(&mut stream, 14, 20_000)?;
        read_proxy_header(&stream)?;
        answer(stream)
    })?;
    let mut config = s1.config_without_checks();
    config["listeners"]["tls"] = json!({ "bind": [s1.public().to_string()], "protocol": "tcp", "pool": "web" });
    config["routes"] = json!([]);
    let node = s1.node_with(config)?;
    for seed in 0..MANY {
        let mut client = connect(&s1)?;
        assert_eq!(check_random(&mut client, 14, 20_000)?, Outcome::Complete, "greeting {seed}");
        ask(&mut client, seed, 50_000)?;
        assert_eq!(check_random(&mut client, seed, 50_000)?, Outcome::Complete, "answer {seed}");
    }
    carried(&node, &["server_first"])
}

/// A SYN that comes again may have been answered twice, with two numbers: only the socket knows which of them counts.
#[test]
fn connection_whose_first_syn_ack_was_lost_is_served_in_the_kernel() -> Result<()> {
    require!("nft");
    for cookies in ["0", "2"] {
        let s1 = S1::without_backends(&LabOptions::default())?;
        let (client, proxy) = (&s1.lab.clients[0].ns, &s1.lab.proxy.ns);
        proxy.sysctl("ipv4/tcp_syncookies", cookies)?;
        let lose_one = "tcp flags & (syn | ack) == (syn | ack) limit rate 1/day burst 1 packets drop;";
        client
            .nft(&format!("table ip lossy {{ chain in {{ type filter hook input priority filter; {lose_one} }}; }}"))?;
        let host = &s1.lab.backends[0];
        let backend = host.ns.listen(host.socket(443))?;
        let mut config = s1.config_without_checks();
        config["pools"]["web"]["proxy_protocol"] = "none".into();
        let node = s1.node_with(config)?;
        let hello = client_hello(Some(NAME))?;

        let mut stream = connect(&s1)?;
        let sent = tcp_counter(proxy, "TcpExt", "SyncookiesSent")?;
        ensure!((sent >= 2) == (cookies == "2"), "{sent} cookies with tcp_syncookies {cookies}");
        stream.write_all(&hello)?;
        Talk::accept(stream, &backend, &hello)?.finish().with_context(|| format!("tcp_syncookies {cookies}"))?;
        node.all_in_kernel()?;
    }
    Ok(())
}

#[test]
fn urgent_bytes_stay_urgent_both_ways() -> Result<()> {
    require!();
    let (tell, told) = std::sync::mpsc::channel();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let _backend = Scripted::start(&s1.lab.backends[0], move |mut stream| {
        stream.write_all(b"x")?;
        let _ = tell.send(hear_urgent(&mut stream).map_err(|e| e.to_string()));
        say_urgent(&mut stream)
    })?;
    let node = s1.node_with(s1.config_without_checks())?;
    let mut client = connect(&s1)?;
    client.write_all(&client_hello(Some(NAME))?)?;
    client.read_exact(&mut [0])?;
    node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;
    say_urgent(&mut client)?;
    assert_eq!(told.recv_timeout(PATIENCE)?, Ok(HEARD));
    assert_eq!(hear_urgent(&mut client)?, HEARD);
    node.all_in_kernel()
}

#[test]
fn crowd_that_comes_at_once_is_served_in_the_kernel() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let _backend = Scripted::start(&s1.lab.backends[0], answer)?;
    let node = s1.node_with(s1.config_without_checks())?;
    let hello = client_hello(Some(NAME))?;
    let one = |seed| s1.lab.clients[0].ns.exec(|| exchange(s1.public(), &hello, seed, 30_000, PATIENCE));
    std::thread::scope(|scope| -> Result<()> {
        let crowd: Vec<_> = (0..MANY).map(|seed| scope.spawn(move || one(seed))).collect();
        for client in crowd {
            let outcome = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            assert_eq!(outcome, Outcome::Complete);
        }
        Ok(())
    })?;
    node.all_in_kernel()
}

/// A backend that reads all and tells what it was, PROXY header apart; then it closes.
fn listening_backend() -> Result<(S1, Node, std::sync::mpsc::Receiver<Fingerprint>, Scripted)> {
    let s1 = S1::without_backends(&LabOptions::default())?;
    let (tell, told) = std::sync::mpsc::channel();
    let backend = Scripted::raw(&s1.lab.backends[0], move |stream| {
        read_proxy_header(&stream)?;
        let _ = tell.send(fingerprint(&stream).map_err(std::io::Error::other)?);
        Ok(())
    })?;
    let node = s1.node_with(s1.config_without_checks())?;
    Ok((s1, node, told, backend))
}

fn connect(s1: &S1) -> Result<TcpStream> {
    let client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    Ok(client)
}

/// Spins for up to 3 ms, about as long as a handoff takes, so that one race falls out in many ways.
fn pause(n: u64) {
    let until = Instant::now() + Duration::from_micros(n % 100 * 30);
    while Instant::now() < until {
        std::thread::yield_now();
    }
}

fn bytes(random: &mut Random, up_to: u64) -> Vec<u8> {
    let mut bytes = vec![0; 1 + (random.next_u64() % up_to) as usize];
    random.fill(&mut bytes);
    bytes
}

/// Every connection was carried by somebody; what was relayed, only for these reasons.
fn carried(node: &Node, reasons: &[&str]) -> Result<()> {
    let status = node.status()?;
    let connections = &status["connections"];
    let relayed = connections["relay_reasons"].as_object().context("status lists reasons")?;
    ensure!(relayed.keys().all(|reason| reasons.contains(&reason.as_str())), "{connections}");
    Ok(())
}

fn say_urgent(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"abc")?;
    send(stream.as_raw_fd(), b"!", MsgFlags::MSG_OOB)?;
    stream.write_all(b"def")
}

/// The urgent byte, and the others.
fn hear_urgent(stream: &mut TcpStream) -> Result<(u8, [u8; 6])> {
    let (mut others, mut urgent) = ([0; 6], [0]);
    stream.read_exact(&mut others[..3])?;
    // Whoever reads past it has lost it (tcp(7)).
    let heard = || recv(stream.as_raw_fd(), &mut urgent, MsgFlags::MSG_OOB).is_ok_and(|n| n == 1);
    wait_until(PATIENCE, "the urgent byte", heard)?;
    stream.read_exact(&mut others[3..])?;
    Ok((urgent[0], others))
}

const HEARD: (u8, [u8; 6]) = (b'!', *b"abcdef");
const NAME: &str = "fiscalismia.com";
const MANY: u64 = 200;
