//! How connections end and begin again: half-closed, closed by both, standing still, on a port used a moment ago.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use ingress_tests::counters::tcp_counter;
use ingress_tests::lab::LabOptions;
use ingress_tests::netns::Namespace;
use ingress_tests::node::Node;
use ingress_tests::payload::{Fingerprint, fingerprint};
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::scripted::{Outcome, Scripted, answer, ask, check_random, send_random};
use ingress_tests::wait::{PATIENCE, wait_for, wait_until};
use ingress_tests::wire::{Ending, client_hello, ending};
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};

#[test]
fn half_closed_connection_still_carries_the_other_direction() -> Result<()> {
    require!();
    let (tell, told) = std::sync::mpsc::channel::<Fingerprint>();
    // Reads to the client's FIN, and only then speaks.
    let (s1, node, _backend) = start(move |mut stream| {
        let got = fingerprint(&stream).map_err(std::io::Error::other)?;
        let _ = tell.send(got);
        send_random(&mut stream, 8, 20 << 20)
    })?;
    let mut client = greeted(&s1)?;
    let mut sent = Vec::new();
    send_random(&mut sent, 7, 5 << 20)?;
    client.write_all(&sent)?;
    let flow = node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;
    client.shutdown(Shutdown::Write)?;
    assert_eq!(told.recv_timeout(PATIENCE)?, fingerprint(sent.as_slice())?);
    assert_eq!(check_random(&mut client, 8, 20 << 20)?, Outcome::Complete);
    assert_eq!(ending(&mut client, PATIENCE)?, Ending::Closed(Vec::new()));
    let end = node.wait_for_log("its end", |l| l["message"] == "connection ended" && l["id"] == flow["id"])?;
    assert_eq!((&end["end_reason"], &end["bytes_to_client"]), (&"closed".into(), &(20 << 20).into()), "{end}");
    node.all_in_kernel()
}

#[test]
fn both_ends_may_close_at_once() -> Result<()> {
    require!();
    let both = Arc::new(Barrier::new(2));
    let at_backend = both.clone();
    let (s1, node, _backend) = start(move |mut stream| {
        stream.write_all(b"x")?;
        at_backend.wait();
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    })?;
    for _ in 0..50 {
        let mut client = greeted(&s1)?;
        client.read_exact(&mut [0])?;
        both.wait();
        client.shutdown(Shutdown::Write)?;
        assert_eq!(ending(&mut client, PATIENCE)?, Ending::Closed(Vec::new()));
    }
    let reasons = wait_for(PATIENCE, "all have ended", || {
        let ended = node.log().lines().into_iter().filter(|l| l["message"] == "connection ended");
        let reasons: Vec<_> = ended.map(|l| l["end_reason"].clone()).collect();
        (reasons.len() == 50).then_some(reasons)
    })?;
    assert!(reasons.iter().all(|reason| reason == "closed"), "{reasons:?}");
    node.all_in_kernel()
}

#[test]
fn closed_window_of_the_client_opens_again() -> Result<()> {
    require!();
    let (s1, node, _backend) = start(answer)?;
    let mut client = greeted(&s1)?;
    ask(&mut client, 3, 48 << 20)?;
    wait_until_probed(&s1.lab.clients[0].ns, &s1.lab.backends[0].ns)?;
    let flow = node.wait_for_flow("it stands still", |f| f["state"] == "spliced")?;
    assert!(flow["bytes_to_client"].as_u64().is_some_and(|n| n < 48 << 20), "{flow}");
    assert_eq!(check_random(&mut client, 3, 48 << 20)?, Outcome::Complete);
    node.all_in_kernel()
}

#[test]
fn closed_window_of_the_backend_opens_again() -> Result<()> {
    require!();
    let (tell, told) = std::sync::mpsc::channel::<Fingerprint>();
    let reading = Arc::new(Barrier::new(2));
    let at_backend = reading.clone();
    let (s1, node, _backend) = start(move |mut stream| {
        stream.write_all(b"x")?;
        at_backend.wait();
        let _ = tell.send(fingerprint(&stream).map_err(std::io::Error::other)?);
        Ok(())
    })?;
    let mut client = greeted(&s1)?;
    client.read_exact(&mut [0])?;
    let mut sent = Vec::new();
    send_random(&mut sent, 10, 48 << 20)?;
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| client.write_all(&sent).and_then(|()| client.shutdown(Shutdown::Write)));
        let stood = wait_until_probed(&s1.lab.backends[0].ns, &s1.lab.clients[0].ns);
        reading.wait();
        writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        stood
    })?;
    assert_eq!(told.recv_timeout(PATIENCE)?, fingerprint(sent.as_slice())?);
    node.all_in_kernel()
}

#[test]
fn port_may_be_used_again_at_once() -> Result<()> {
    require!();
    // The backend closes first after each answer, so that no TIME-WAIT binds the client's port.
    let (s1, node, _backend) = start(|mut stream| {
        let mut question = [0; 16];
        stream.read_exact(&mut question)?;
        send_random(&mut stream, 5, 30_000)?;
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    })?;
    let started = Instant::now();
    for n in 0..300 {
        let mut client = connect_from(&s1, 45_000)?;
        client.write_all(&client_hello(Some("fiscalismia.com"))?)?;
        ask(&mut client, 5, 0)?;
        assert_eq!(check_random(&mut client, 5, 30_000)?, Outcome::Complete, "connection {n}");
        if n % 2 == 0 {
            assert_eq!(ending(&mut client, PATIENCE)?, Ending::Closed(Vec::new()), "connection {n}");
        } else {
            SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        }
    }
    // A SYN that is lost to an old flow costs a second.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?} for 300 connections", started.elapsed());
    assert_eq!(node.status()?["connections"]["handed_off_total"], 300);
    node.all_in_kernel()
}

/// Who closes first holds TIME-WAIT: a new SYN from the same port would meet it at the backend.
#[test]
fn port_rests_where_the_backend_closed_first_and_nowhere_else() -> Result<()> {
    require!();
    let (s1, node, _backend) = start(|mut stream| {
        let mut word = [0];
        stream.read_exact(&mut word)?;
        stream.write_all(b"x")?;
        if word == *b"b" {
            stream.shutdown(Shutdown::Write)?;
        }
        stream.read_to_end(&mut Vec::new()).map(drop)
    })?;
    let taken = || Some((node.flows().ok()?.len(), node.status().ok()?["kernel"]["ports"]["most_taken"].as_u64()?));
    for (first, taken_after) in [(b"c", 0), (b"b", 1), (b"c", 1), (b"b", 2)] {
        let mut client = greeted(&s1)?;
        client.write_all(first)?;
        client.read_exact(&mut [0])?;
        if first == b"c" {
            client.shutdown(Shutdown::Write)?;
        }
        assert_eq!(ending(&mut client, PATIENCE)?, Ending::Closed(Vec::new()));
        drop(client);
        wait_until(PATIENCE, "its port is free, or rests", || taken() == Some((0, taken_after)))?;
    }
    node.all_in_kernel()
}

#[test]
fn ports_of_killed_connections_may_be_used_again_at_once() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let _backend = Scripted::start(&s1.lab.backends[0], answer)?;
    let mut config = s1.config_without_checks();
    config["kernel"]["port_range"] = json!("20000-20003");
    let node = s1.node_with(config)?;
    for round in 0..3 {
        let started = Instant::now();
        for n in 0..4 {
            let mut client = connect_from(&s1, 46_000 + n)?;
            client.write_all(&client_hello(Some("fiscalismia.com"))?)?;
            ask(&mut client, 6, 1_000)?;
            assert_eq!(check_random(&mut client, 6, 1_000)?, Outcome::Complete, "round {round}, connection {n}");
            assert_eq!(node.json(&["flows", "kill", "--sni", "fiscalismia.com"])?["killed"], 1);
            assert_eq!(ending(&mut client, PATIENCE)?, Ending::Reset);
        }
        assert!(started.elapsed() < Duration::from_secs(3), "round {round} took {:?}", started.elapsed());
    }
    node.all_in_kernel()
}

#[test]
fn connection_outlives_the_reaping_of_the_one_that_had_its_ports_before() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let _backend = Scripted::start(&s1.lab.backends[0], answer)?;
    let mut config = s1.config_without_checks();
    config["kernel"]["port_range"] = json!("20000-20001");
    let mut node = s1.node_with(config)?;
    let call = |port| -> Result<TcpStream> {
        let mut client = connect_from(&s1, port)?;
        client.write_all(&client_hello(Some("fiscalismia.com"))?)?;
        ask(&mut client, 7, 1_000)?;
        ensure!(check_random(&mut client, 7, 1_000)? == Outcome::Complete);
        Ok(client)
    };
    let reset = |client: TcpStream, node: &Node| -> Result<()> {
        SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        drop(client);
        wait_until(PATIENCE, "it is over", || node.status().is_ok_and(|status| status["kernel"]["connections"] == 1))
    };
    // One of the two ports towards the backend is this one's; all others have to share the other.
    let _standing = call(48_001)?;
    for restarted in [false, true] {
        reset(call(48_000)?, &node)?;
        // Its entries wait for stragglers; both sides' ports are the same again.
        let mut client = call(48_000)?;
        node.all_in_kernel()?;
        if restarted {
            node.kill9()?;
            node.launch()?;
        }
        // Longer than anybody waits for stragglers.
        let is_it = |flow: &Value| flow["client"].as_str().is_some_and(|client| client.ends_with(":48000"));
        node.wait_for_flow("it is quiet", |flow| is_it(flow) && flow["idle"].as_f64() > Some(4.0))?;
        ask(&mut client, 8, 1_000)?;
        ensure!(check_random(&mut client, 8, 1_000)? == Outcome::Complete, "restarted: {restarted}");
        reset(client, &node)?;
    }
    Ok(())
}

#[test]
fn client_that_forgot_its_connection_gets_a_new_one_on_the_same_port() -> Result<()> {
    require!();
    let (s1, node, _backend) = start(answer)?;
    for seed in 0..3 {
        let mut client = connect_from(&s1, 47_000)?;
        client.write_all(&client_hello(Some("fiscalismia.com"))?)?;
        ask(&mut client, seed, 1_000)?;
        assert_eq!(check_random(&mut client, seed, 1_000)?, Outcome::Complete);
        vanish(client)?;
    }
    node.all_in_kernel()
}

fn start(script: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Result<(S1, Node, Scripted)> {
    let s1 = S1::without_backends(&LabOptions::default())?;
    let backend = Scripted::start(&s1.lab.backends[0], script)?;
    let node = s1.node_with(s1.config_without_checks())?;
    Ok((s1, node, backend))
}

fn greeted(s1: &S1) -> Result<TcpStream> {
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(&client_hello(Some("fiscalismia.com"))?)?;
    Ok(client)
}

/// The receiver's window closes, and stays closed while the sender asks again and again, for seconds.
fn wait_until_probed(receiver: &Namespace, sender: &Namespace) -> Result<()> {
    let closed = || tcp_counter(receiver, "TcpExt", "TCPToZeroWindowAdv");
    wait_until(PATIENCE, "the window closes", || closed().is_ok_and(|n| n > 0))?;
    let probes = || tcp_counter(sender, "TcpExt", "TCPWinProbe");
    wait_until(PATIENCE, "the closed window is probed", || probes().is_ok_and(|n| n > 3))
}

/// Connects from a port of the scenario's choice, again as soon as the client's own kernel allows it.
fn connect_from(s1: &S1, port: u16) -> Result<TcpStream> {
    let client = &s1.lab.clients[0];
    let from: SocketAddr = client.socket(port);
    wait_for(PATIENCE, &format!("connecting from {from}"), || {
        let attempt = client.ns.exec(|| -> std::io::Result<TcpStream> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&s1.public().into(), PATIENCE)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket.into())
        });
        match attempt {
            // Its last ACK is on its way.
            Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => None,
            other => Some(other),
        }
    })?
    .with_context(|| format!("connecting from {from}"))
}

/// Closes without a word, as a machine does that loses power.
fn vanish(stream: TcpStream) -> Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: an int option with its own size.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    ensure!(result == 0, "TCP_REPAIR: {}", std::io::Error::last_os_error());
    Ok(())
}
