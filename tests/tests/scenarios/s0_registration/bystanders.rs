//! Connections that have nothing to do with what is registered beside them.

use std::io::Write as _;
use std::net::TcpListener;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::Host;
use ingress_tests::require;
use ingress_tests::talk::accept;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{client_hello, read_exactly};
use serde_json::json;

use super::{S0, simple};

const IDLE: usize = 10_000;
const CALLS: usize = 1_000;

#[test]
fn ten_thousand_idle_connections_notice_nothing_of_a_thousand_calls() -> Result<()> {
    require!("curl");
    let s0 = S0::start()?;
    let listener = waiting_room(&s0.lab.lab.backends[0])?;
    let mut config = s0.config();
    config["listeners"]["tls"]["max_connections_per_source"] = json!(IDLE);
    let node = s0.lab.node_with(config)?;
    s0.open()?;
    // Half of them on a host that is registered over and over, half on one that stays.
    let platform = s0.platform();
    let hosts = ["moves.example.com", "stays.example.com"];
    for host in hosts {
        assert_eq!(platform.post("/register", &simple(host, "172.24.0.3:443"))?.status, 200);
    }
    let hellos = [client_hello(Some(hosts[0]))?, client_hello(Some(hosts[1]))?];
    let mut clients = Vec::with_capacity(IDLE);
    for n in 0..IDLE {
        let mut client = s0.lab.lab.clients[n % 2].ns.connect(s0.lab.public())?;
        client.write_all(&hellos[n % 2])?;
        clients.push(client);
    }
    let carried = || -> Result<f64> {
        let kinds = ["ingress_handoffs_total", "ingress_relays_total"];
        kinds.iter().map(|kind| Ok(node.metric(kind, &[]).unwrap_or_default())).sum()
    };
    wait_until(PATIENCE, "all have reached the backend", || carried().is_ok_and(|n| n == IDLE as f64))?;

    let (mut calls, start) = (platform.connect()?, Instant::now());
    for n in 0..CALLS {
        let (path, host) = match n % 4 {
            0 => ("/deregister", hosts[0].to_owned()),
            1 => ("/register", hosts[0].to_owned()),
            2 => ("/register", format!("h{n}.example.com")),
            _ => ("/deregister", format!("h{}.example.com", n - 1)),
        };
        let body = if path == "/register" { simple(&host, "172.24.0.3:443") } else { json!({ "host": host }) };
        let answer = calls.post(path, &body)?;
        ensure!(answer.status == 200 && answer.body["result"] != "absent", "call {n}: {answer:?}");
    }
    eprintln!("{CALLS} calls beside {IDLE} connections took {:?}", start.elapsed());

    assert_eq!(node.metric("ingress_connections_ended_total", &[]).unwrap_or_default(), 0.0);
    for (n, client) in clients.iter_mut().enumerate() {
        client.write_all(&u32::try_from(n)?.to_be_bytes()).with_context(|| format!("connection {n}"))?;
    }
    for _ in 0..IDLE {
        let mut backend = accept(&listener)?;
        let opening = read_exactly(&mut backend, hellos[0].len())?;
        let number = read_exactly(&mut backend, 4)?;
        let n = u32::from_be_bytes(number.as_slice().try_into()?) as usize;
        ensure!(opening == hellos[n % 2], "connection {n} came out under another's name");
        backend.write_all(b"x")?;
        ensure!(read_exactly(&mut clients[n], 1)? == b"x", "connection {n}");
    }
    Ok(())
}

/// A server that leaves its connections where the kernel has put them, so that they cost no descriptor.
fn waiting_room(host: &Host) -> Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let room = i32::try_from(IDLE + 1000)?;
    host.ns.sysctl("core/somaxconn", &room.to_string())?;
    let listening = host.ns.exec(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.bind(&host.socket(443).into())?;
        socket.listen(room)?;
        Ok::<TcpListener, std::io::Error>(socket.into())
    });
    listening.context("listening")
}
