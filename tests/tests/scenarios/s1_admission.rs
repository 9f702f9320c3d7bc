//! Who may come in: private ports, denied networks, and how fast one source may connect; by XDP and by tc.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::{Host, LabOptions};
use ingress_tests::node::Node;
use ingress_tests::payload::write_file;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

/// A service of the host that is none of the world's business.
const PRIVATE_PORT: u16 = 9876;
/// What `xdp:` says, and how the status calls what comes of it on veth.
const RUNGS: [(&str, &str); 4] = [("auto", "native"), ("native", "native"), ("generic", "generic"), ("off", "tc")];

fn guarded(s1: &S1, xdp: &str) -> Value {
    let mut config = s1.config();
    config["interfaces"] = json!({
        "pub0": { "side": "public", "xdp": xdp },
        "priv0": { "side": "private" },
        "priv1": { "side": "private" },
    });
    config["admission"] = json!({ "private_ports": [PRIVATE_PORT] });
    config
}

/// Long enough for a SYN and its answer, too short for the SYN to be sent again.
const ANSWER: Duration = Duration::from_millis(900);

fn connect(host: &Host, to: SocketAddr) -> std::io::Result<TcpStream> {
    host.ns.exec(|| TcpStream::connect_timeout(&to, ANSWER))
}

fn is_dropped(host: &Host, to: SocketAddr) -> bool {
    connect(host, to).is_err_and(|error| error.kind() == ErrorKind::TimedOut)
}

/// What the status says of the public device.
fn public_device(node: &Node) -> Result<Value> {
    let status = node.status()?;
    let interfaces = status["kernel"]["interfaces"].as_array().context("interfaces")?;
    interfaces.iter().find(|i| i["name"] == "pub0").cloned().with_context(|| format!("no pub0: {status}"))
}

fn dropped(node: &Node, verdict: &str) -> Result<u64> {
    let device = public_device(node)?;
    let counts = device["admission"]["dropped"].as_array().with_context(|| format!("{device}"))?;
    let count = counts.iter().find(|count| count[0] == verdict).with_context(|| format!("no {verdict}: {device}"))?;
    count[1].as_u64().context("a number")
}

#[test]
fn private_port_is_out_of_reach_from_the_public_side_on_every_rung() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let (client, backend, proxy) = (&s1.lab.clients[0], &s1.lab.backends[0], &s1.lab.proxy);
    let _service = proxy.ns.listen(([0, 0, 0, 0], PRIVATE_PORT).into())?;
    let private: SocketAddr = (s1.lab.private_address(backend), PRIVATE_PORT).into();
    // The private address answers on the public device too (weak host model).
    client.ns.ip_batch(&format!("route add {}/32 via {}\n", private.ip(), proxy.address))?;
    ensure!(connect(client, s1.lab.public(PRIVATE_PORT)).is_ok(), "without rules the service is open");

    let mut node = s1.node_with(guarded(&s1, "auto"))?;
    for (xdp, mode) in RUNGS {
        node.terminate()?;
        node.write_config(guarded(&s1, xdp))?;
        node.launch()?;
        assert_eq!(public_device(&node)?["admission"]["mode"], mode, "xdp: {xdp}");
        for address in [s1.lab.public(PRIVATE_PORT), private] {
            assert!(is_dropped(client, address), "xdp: {xdp}, to {address}");
        }
        assert!(connect(backend, private).is_ok(), "xdp: {xdp}, from the private side");
        s1.curl("fiscalismia.com").get("/whoami")?;

        node.kill9()?;
        assert!(is_dropped(client, s1.lab.public(PRIVATE_PORT)), "xdp: {xdp}, after the daemon was killed");
        node.launch()?;
        assert_eq!(public_device(&node)?["admission"]["mode"], mode, "xdp: {xdp}, adopted");
        assert!(is_dropped(client, s1.lab.public(PRIVATE_PORT)), "xdp: {xdp}, adopted");
        assert!(dropped(&node, "drop_private_port")? >= 4, "{}", public_device(&node)?);
        let labels = ["interface=\"pub0\"", &format!("mode=\"{mode}\"")];
        assert_eq!(node.metric("ingress_admission_active", &labels)?, 1.0);
    }
    node.terminate()?;
    node.verb(&["detach"])?;
    assert!(connect(client, s1.lab.public(PRIVATE_PORT)).is_ok(), "detach left something behind");
    Ok(())
}

#[test]
fn private_port_is_guarded_without_a_gap_while_the_rung_changes() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let _service = s1.lab.proxy.ns.listen(([0, 0, 0, 0], PRIVATE_PORT).into())?;
    let node = s1.node_with(guarded(&s1, "auto"))?;
    let (client, address) = (&s1.lab.clients[0], s1.lab.public(PRIVATE_PORT));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let knocking = scope.spawn(|| {
            client.ns.exec(|| {
                let mut tries = 0;
                while !stop.load(Ordering::Relaxed) {
                    let knock = TcpStream::connect_timeout(&address, Duration::from_millis(2));
                    assert!(knock.is_err(), "somebody answered");
                    tries += 1;
                }
                tries
            })
        });
        let changing =
            ["off", "generic", "native", "generic", "off", "native"].repeat(3).into_iter().try_for_each(|xdp| {
                let mut config = guarded(&s1, xdp);
                config["admission"]["deny"] = json!(["198.51.100.0/24"]);
                node.reload(config)?;
                let (_, mode) = RUNGS.into_iter().find(|(choice, _)| *choice == xdp).context("a rung")?;
                wait_until(PATIENCE, "the rung has changed", || {
                    public_device(&node).is_ok_and(|device| device["admission"]["mode"] == mode)
                })
            });
        stop.store(true, Ordering::Relaxed);
        let tries: u32 = knocking.join().map_err(|_| anyhow::anyhow!("a private port answered"))?;
        changing?;
        ensure!(tries > 50, "only {tries} tries");
        Ok(())
    })
}

#[test]
fn private_port_is_guarded_over_ipv6_and_udp_too() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let (client, proxy) = (&s1.lab.clients[0], &s1.lab.proxy);
    proxy.ns.ip_batch("addr add 2001:db8::1/64 dev pub0 nodad\n")?;
    client.ns.ip_batch("addr add 2001:db8::101/64 dev eth0 nodad\n")?;
    let service: SocketAddr = "[::]:9876".parse()?;
    let _tcp = proxy.ns.listen(service)?;
    let udp = proxy.ns.exec(|| UdpSocket::bind(service))?;
    udp.set_nonblocking(true)?;
    let v6: SocketAddr = "[2001:db8::1]:9876".parse()?;
    ensure!(connect(client, v6).is_ok(), "without rules the service is open");

    let node = s1.node_with(guarded(&s1, "native"))?;
    assert!(is_dropped(client, v6));
    let before = dropped(&node, "drop_private_port")?;
    client.ns.exec(|| UdpSocket::bind("[::]:0")?.send_to(b"hello", v6))?;
    wait_until(PATIENCE, "the datagram is dropped", || {
        dropped(&node, "drop_private_port").is_ok_and(|dropped| dropped > before)
    })?;
    assert!(udp.recv(&mut [0; 16]).is_err(), "the datagram arrived");
    Ok(())
}

#[test]
fn without_programs_the_daemon_says_that_private_ports_are_open() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let mut config = guarded(&s1, "auto");
    config["kernel"]["enabled"] = false.into();
    let node = s1.node_with(config)?;
    let missing = node.status()?["kernel"]["missing"].to_string();
    assert!(missing.contains("PRIVATE PORTS ARE OPEN") && missing.contains("pub0"), "{missing}");
    assert_eq!(node.metric("ingress_admission_active", &["interface=\"pub0\"", "mode=\"none\""])?, 0.0);
    assert!(node.verb(&["status"])?.contains("BY NOBODY"));
    node.wait_for_log("the log says so too", |l| l["level"] == "ERROR" && l.to_string().contains("PRIVATE PORTS"))?;
    Ok(())
}

#[test]
fn denied_client_loses_its_connections_and_gets_no_new_ones() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start_on(&LabOptions { clients: 2, ..LabOptions::default() })?;
    for (xdp, _) in [RUNGS[1], RUNGS[3]] {
        let node = s1.node_with(guarded(&s1, xdp))?;
        let sent = s1.backends[0].publish("big", 64 << 20)?;
        let [doomed, spared] = [0, 1].map(|client| s1.curl_from(client, "fiscalismia.com").download("/files/big"));
        let (doomed, spared) = (doomed?, spared?);
        for download in [&doomed, &spared] {
            download.wait_for_bytes(1 << 20, PATIENCE)?;
            download.hold();
        }
        node.all_in_kernel()?;

        let mut config = guarded(&s1, xdp);
        config["admission"]["deny"] = json!([format!("{}/32", s1.lab.clients[0].address), "198.51.100.0/24"]);
        node.reload(config)?;
        let end = node.wait_for_log("the denied connection's end", |l| {
            l["message"] == "connection ended" && l["end_reason"] == "denied"
        })?;
        assert_eq!(end["mode"], "kernel", "{end}");
        assert!(doomed.finish(PATIENCE).is_err(), "the denied client got it all");
        assert_eq!(spared.finish(PATIENCE)?, sent);
        assert!(is_dropped(&s1.lab.clients[0], s1.public()), "xdp: {xdp}");
        assert!(dropped(&node, "drop_denied")? > 0, "xdp: {xdp}");
        s1.curl_from(1, "fiscalismia.com").get("/whoami")?;
        let elsewhere = connect(&s1.lab.clients[0], s1.lab.public(22)).expect_err("nobody listens there");
        assert_eq!(elsewhere.kind(), ErrorKind::ConnectionRefused, "only our listeners are denied");

        node.reload(guarded(&s1, xdp))?;
        wait_until(PATIENCE, "the client is let in again", || s1.curl("fiscalismia.com").get("/whoami").is_ok())?;
    }
    Ok(())
}

#[test]
fn one_source_that_connects_too_fast_does_not_keep_others_out() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start_on(&LabOptions { clients: 2, ..LabOptions::default() })?;
    for (xdp, _) in [RUNGS[1], RUNGS[3]] {
        let mut config = guarded(&s1, xdp);
        config["admission"]["new_connections_per_source"] = json!({ "rate": 1, "burst": 5 });
        let node = s1.node_with(config)?;
        let connections: Vec<_> = flood(&s1.lab.clients[0], s1.public(), 60)?;
        wait_until(PATIENCE, "the rest of the flood is dropped", || {
            dropped(&node, "drop_source_rate").is_ok_and(|dropped| dropped >= 50)
        })?;
        s1.curl_from(1, "fiscalismia.com").get("/whoami")?;
        let accepted = node.metric("ingress_connections_total", &[])?;
        assert!((6.0..=16.0).contains(&accepted), "{accepted} connections of 60 and one");
        drop(connections);
    }
    Ok(())
}

/// Sockets whose SYNs are on their way, all at once.
fn flood(host: &Host, to: SocketAddr, count: usize) -> Result<Vec<socket2::Socket>> {
    host.ns.exec(|| {
        let socket = |_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            match socket.connect(&to.into()) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error.into()),
                Ok(()) | Err(_) => Ok(socket),
            }
        };
        (0..count).map(socket).collect()
    })
}

#[test]
fn transfers_are_whole_beneath_xdp() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    for (xdp, mode) in [RUNGS[1], RUNGS[2]] {
        let node = s1.node_with(guarded(&s1, xdp))?;
        assert_eq!(public_device(&node)?["admission"]["mode"], mode);
        let sent = s1.backends[0].publish("big", 32 << 20)?;
        assert_eq!(s1.curl("fiscalismia.com").download("/files/big")?.finish(Duration::from_secs(60))?, sent);
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("up");
        let sent = write_file(&file, 32 << 20, 5)?;
        assert_eq!(s1.curl("fiscalismia.com").http1().upload(&file, &format!("/upload/{mode}"))?.status, 201);
        assert_eq!(s1.backends[0].uploaded(mode)?, sent);
        node.all_in_kernel()?;
    }
    Ok(())
}
