//! Every reason for a relay, brought about for real: the connection works all the same, and status and log name the reason.

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ingress_tests::distance::Distance;
use ingress_tests::lab::{Host, LabOptions};
use ingress_tests::netns::Namespace;
use ingress_tests::node::Node;
use ingress_tests::payload::Random;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::talk::{Carried, Talk, accept};
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{client_hello, wait_until_acknowledged, wait_until_sacked};
use serde_json::{Value, json};

/// One test for each reason, and the list of reasons that have one.
macro_rules! scenarios {
    ($($reason:ident: $name:ident,)+) => {
        const COVERED: &[&str] = &[$(stringify!($reason)),+];
        $(
            #[test]
            fn $name() -> Result<()> {
                require!("nft", "prlimit");
                $reason(stringify!($reason))
            }
        )+
    };
}

scenarios! {
    kernel_off: kernel_path_that_is_switched_off_leaves_the_connection_to_the_relay,
    policy: pool_that_forbids_the_handoff_is_obeyed,
    rtt: client_that_is_further_away_than_the_pool_allows_is_relayed,
    family: client_and_backend_that_speak_different_ip_versions_are_relayed,
    local: client_or_backend_on_the_proxy_itself_is_relayed,
    device: device_without_the_programs_on_either_side_is_relayed,
    unseen: nat_between_wire_and_socket_on_either_side_is_relayed,
    options: backend_without_sack_is_relayed,
    mtu: backend_that_takes_smaller_segments_than_the_client_sends_is_relayed,
    half_closed: client_that_has_said_its_last_word_still_gets_the_answer,
    out_of_order: segment_that_is_missing_when_the_backend_is_reached_arrives_later,
    server_first: greeting_that_came_before_the_handoff_reaches_the_client,
    window: burst_above_the_window_of_the_backend_arrives_whole,
    full: connection_for_which_the_kernel_has_no_slot_is_relayed,
    ports: connection_for_which_no_port_is_left_is_relayed,
    error: daemon_that_is_out_of_descriptors_relays_with_those_it_has,
    route: mark_by_which_sockets_find_another_gateway_is_noticed,
    when_idle: connection_of_a_pool_that_waits_for_quiet_is_relayed_until_then,
}

#[test]
fn every_reason_has_a_scenario() -> Result<()> {
    let read = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let source = read("ingress/src/l4/outcome.rs")?;
    let (_, source) = source.split_once("RelayReason {").context("the enum in its source")?;
    let (source, _) = source.split_once("\n    }").context("its end")?;
    let known: Vec<_> = source.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert_eq!(COVERED, known, "scenarios here, and words of RelayReason");

    let docs = read("docs/metrics.md")?;
    let (_, docs) = docs.split_once("### Reasons for a relay").context("the table of reasons")?;
    let (docs, _) = docs.split_once("\n#").context("what follows the table")?;
    let told: Vec<_> = docs.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(COVERED, told, "scenarios here, and words of docs/metrics.md");
    Ok(())
}

fn kernel_off(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let mut config = s1.config_of_bytes();
    config["kernel"]["enabled"] = false.into();
    let node = s1.node_with(config)?;
    let talk = call(&s1.lab.clients[0].ns, s1.public(), &backend)?;
    relayed(&node, reason, &[talk.finish()?])
}

fn policy(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let mut config = s1.config_of_bytes();
    config["pools"]["web"]["handoff"] = "never".into();
    let node = s1.node_with(config)?;
    let talk = call(&s1.lab.clients[0].ns, s1.public(), &backend)?;
    relayed(&node, reason, &[talk.finish()?])
}

fn when_idle(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let mut config = s1.config_of_bytes();
    config["pools"]["web"]["handoff"] = json!({ "when_idle": "1h" });
    let node = s1.node_with(config)?;
    let talk = call(&s1.lab.clients[0].ns, s1.public(), &backend)?;
    relayed(&node, reason, &[talk.finish()?])
}

fn rtt(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let distance = Distance { delay: Duration::from_millis(40), ..Distance::default() };
    let _line = s1.lab.move_away(&s1.lab.clients[0], distance)?;
    let policy = |limit| {
        let mut config = s1.config_of_bytes();
        config["pools"]["web"]["handoff"] = json!({ "rtt_below": limit });
        config
    };
    let node = s1.node_with(policy("60ms"))?;
    let talk = call(&s1.lab.clients[0].ns, s1.public(), &backend)?;
    relayed(&node, reason, &[talk.finish()?])?;
    drop(node);
    // The same client, where it is near enough.
    let node = s1.node_with(policy("5s"))?;
    call(&s1.lab.clients[0].ns, s1.public(), &backend)?.finish()?;
    node.all_in_kernel()
}

fn family(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let (client, proxy) = (&s1.lab.clients[0].ns, &s1.lab.proxy.ns);
    proxy.ip_batch("addr add 2001:db8::1/64 dev pub0 nodad\naddr add fe80::1/64 dev pub0 nodad\naddr add 2001:db8:1::1/64 dev priv0 nodad\n")?;
    client.ip_batch("addr add 2001:db8::101/64 dev eth0 nodad\naddr add fe80::101/64 dev eth0 nodad\n")?;
    s1.lab.backends[0].ns.ip_batch("addr add 2001:db8:1::3/64 dev eth0 nodad\n")?;
    let public: SocketAddr = "[2001:db8::1]:443".parse()?;
    // SAFETY: the name is a C string.
    let scope = client.exec(|| unsafe { libc::if_nametoindex(c"eth0".as_ptr()) });
    let link_local = SocketAddrV6::new("fe80::1".parse()?, 443, 0, scope).into();
    let backend6 = s1.lab.backends[0].ns.listen("[2001:db8:1::3]:443".parse()?)?;
    let mut config = s1.config_of_bytes();
    config["listeners"]["tls"]["bind"] = json!([s1.public().to_string(), "[::]:443"]);
    add_pool(&mut config, "six", backend6.local_addr()?);
    let node = s1.node_with(config)?;

    let from_six = call(client, public, &backend)?.finish()?;
    let to_six = call_pool("six", client, s1.public(), &backend6)?.finish()?;
    let from_link_local = call_pool("six", client, link_local, &backend6)?.finish()?;
    relayed(&node, reason, &[from_six, to_six, from_link_local])
}

fn local(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let proxy = &s1.lab.proxy.ns;
    let on_loopback = proxy.listen("127.0.0.1:8443".parse()?)?;
    let on_loopback6 = proxy.listen("[::1]:8443".parse()?)?;
    proxy.ip_batch("addr add 2001:db8::1/64 dev pub0 nodad\n")?;
    s1.lab.clients[0].ns.ip_batch("addr add 2001:db8::101/64 dev eth0 nodad\n")?;
    let public6: SocketAddr = "[2001:db8::1]:443".parse()?;
    let on_own_address = proxy.listen((s1.lab.private_address(&s1.lab.backends[0]), 8444).into())?;
    let mut config = s1.config_of_bytes();
    // Without `device`: the proxy reaches itself by `lo`.
    config["listeners"]["tls"] = json!({ "bind": [s1.public().to_string(), public6.to_string()] });
    add_pool(&mut config, "six", on_loopback6.local_addr()?);
    add_pool(&mut config, "loopback", on_loopback.local_addr()?);
    add_pool(&mut config, "own", on_own_address.local_addr()?);
    let node = s1.node_with(config)?;

    let client = &s1.lab.clients[0].ns;
    let from_here = call(proxy, s1.public(), &backend)?.finish()?;
    let to_loopback = call_pool("loopback", client, s1.public(), &on_loopback)?.finish()?;
    let to_here = call_pool("own", client, s1.public(), &on_own_address)?.finish()?;
    let to_six = call_pool("six", client, public6, &on_loopback6)?.finish()?;
    relayed(&node, reason, &[from_here, to_loopback, to_here, to_six])
}

fn device(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    for only in ["pub0", "priv0"] {
        let mut config = s1.config_of_bytes();
        config["kernel"]["interfaces"] = json!([only]);
        let node = s1.node_with(config)?;
        let talk = call(&s1.lab.clients[0].ns, s1.public(), &backend)?;
        relayed(&node, reason, &[talk.finish()?]).with_context(|| format!("programs on {only} alone"))?;
    }
    Ok(())
}

fn unseen(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let node = s1.node_with(s1.config_of_bytes())?;
    let (client, proxy) = (&s1.lab.clients[0].ns, &s1.lab.proxy.ns);
    let nat = "type nat hook";
    proxy.nft(&format!(
        "table ip nat {{ chain in {{ {nat} prerouting priority dstnat; tcp dport 8443 redirect to :443; }}; }}"
    ))?;
    let redirected = call(client, s1.lab.public(8443), &backend)?.finish()?;
    let source = s1.lab.private_address(&s1.lab.backends[0]);
    proxy.nft(&format!(
        "table ip nat {{ chain out {{ {nat} postrouting priority srcnat; oifname priv0 tcp dport 443 snat to \
         {source}:50000-50999; }}; }}"
    ))?;
    let masqueraded = call(client, s1.public(), &backend)?.finish()?;
    relayed(&node, reason, &[redirected, masqueraded])
}

fn options(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    s1.lab.backends[0].ns.sysctl("ipv4/tcp_sack", "0")?;
    let node = s1.node_with(s1.config_of_bytes())?;
    let talk = call(&s1.lab.clients[0].ns, s1.public(), &backend)?;
    relayed(&node, reason, &[talk.finish()?])
}

fn mtu(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let Host { ns, address } = &s1.lab.backends[0];
    ns.ip_batch(&format!("route replace 172.24.0.0/24 dev eth0 src {address} advmss 1000\n"))?;
    let node = s1.node_with(s1.config_of_bytes())?;
    let talk = call(&s1.lab.clients[0].ns, s1.public(), &backend)?;
    relayed(&node, reason, &[talk.finish()?])
}

fn half_closed(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let node = s1.node_with(s1.config_of_bytes())?;
    let hello = client_hello(Some(WEB))?;
    let paused = node.pause()?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&hello)?;
    client.shutdown(Shutdown::Write)?;
    wait_until_acknowledged(&client)?;
    drop(paused);
    let mut talk = Talk::accept(client, &backend, &hello)?;
    talk.backend_says(b"the answer")?;
    relayed(&node, reason, &[talk.close()?])
}

fn out_of_order(reason: &str) -> Result<()> {
    missing_segment(reason, 0)
}

#[test]
fn segment_that_is_missing_behind_unread_bytes_is_not_overlooked() -> Result<()> {
    require!("nft");
    // More than one read of the opening takes.
    missing_segment("out_of_order", 9_000)
}

/// The client's hello and `early` bytes are there, the next segment is lost, the one after it is there.
fn missing_segment(reason: &str, early: usize) -> Result<()> {
    const LOST: usize = 997;
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let node = s1.node_with(s1.config_of_bytes())?;
    let (early, lost, last) = (random(early), random(LOST), random(400));
    let hello = client_hello(Some(WEB))?;
    let proxy = &s1.lab.proxy.ns;
    // By its length, so that it is lost again each time that it is sent again.
    let length = LOST + 40;
    proxy.nft(&format!("table ip hole {{ chain in {{ {RAW} tcp dport 443 ip length {length} drop; }}; }}"))?;

    let paused = node.pause()?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.set_nodelay(true)?;
    client.write_all(&[hello.as_slice(), &early].concat())?;
    wait_until_acknowledged(&client)?;
    client.write_all(&lost)?;
    client.write_all(&last)?;
    wait_until_sacked(&client)?;
    drop(paused);
    let mut talk = Talk::accept(client, &backend, &hello)?;
    talk.arrives(&early)?;
    proxy.nft("delete table ip hole")?;
    talk.arrives(&[lost, last].concat())?;
    relayed(&node, reason, &[talk.finish()?])
}

fn server_first(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let mut config = s1.config_of_bytes();
    let public = s1.lab.public(6379);
    config["listeners"]["plain"] = json!({ "bind": [public.to_string()], "protocol": "tcp", "pool": "web" });
    let node = s1.node_with(config)?;
    // While the backend does not hear the SYN, the daemon is stopped; the kernel's second SYN then reaches the backend,
    // which speaks into the socket of a daemon that stands still.
    let Host { ns, .. } = &s1.lab.backends[0];
    ns.nft(&format!("table ip deaf {{ chain in {{ {RAW} tcp dport 443 drop; }}; }}"))?;
    let client = s1.lab.clients[0].ns.connect(public)?;
    let address = backend.local_addr()?;
    wait_until(PATIENCE, "the daemon's SYN is on its way", || is_connecting(&s1.lab.proxy.ns, address))?;
    let paused = node.pause()?;
    ns.nft("delete table ip deaf")?;
    let mut greeting = accept(&backend)?;
    greeting.write_all(b"220 at your service")?;
    wait_until_acknowledged(&greeting)?;
    drop(paused);
    let mut talk = Talk::of(client, greeting);
    talk.returns(b"220 at your service")?;
    relayed(&node, reason, &[talk.finish()?])
}

fn window(reason: &str) -> Result<()> {
    const BUFFER: usize = 16 * 1024;
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    socket2::SockRef::from(&backend).set_recv_buffer_size(BUFFER)?;
    let node = s1.node_with(s1.config_of_bytes())?;
    let opening = [client_hello(Some(WEB))?, random(3 * BUFFER)].concat();
    let paused = node.pause()?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&opening)?;
    wait_until_acknowledged(&client)?;
    drop(paused);
    let talk = Talk::accept(client, &backend, &opening)?;
    relayed(&node, reason, &[talk.finish()?])
}

fn full(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let mut config = s1.config_of_bytes();
    config["kernel"]["max_connections"] = 1.into();
    let node = s1.node_with(config)?;
    let in_kernel = call(&s1.lab.clients[0].ns, s1.public(), &backend)?;
    let talk = call(&s1.lab.clients[0].ns, s1.public(), &backend)?;
    relayed(&node, reason, &[talk.finish()?])?;
    in_kernel.finish()?;
    goes_to_the_kernel_again(&node, &s1, &backend, 1)
}

fn ports(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let mut config = s1.config_of_bytes();
    config["kernel"]["port_range"] = "20000-20001".into();
    let node = s1.node_with(config)?;
    let call = || call(&s1.lab.clients[0].ns, s1.public(), &backend);
    let in_kernel = [call()?, call()?];
    relayed(&node, reason, &[call()?.finish()?])?;
    in_kernel.into_iter().try_for_each(|talk| talk.finish().map(drop))?;
    goes_to_the_kernel_again(&node, &s1, &backend, 2)
}

/// Once what was taken is free.
fn goes_to_the_kernel_again(node: &Node, s1: &S1, backend: &TcpListener, before: u64) -> Result<()> {
    let handed_off = || Ok::<_, anyhow::Error>(node.status()?["connections"]["handed_off_total"].as_u64());
    let again = || -> Result<bool> {
        call(&s1.lab.clients[0].ns, s1.public(), backend)?.finish()?;
        Ok(handed_off()? > Some(before))
    };
    wait_until(PATIENCE, "a new connection goes to the kernel", || again().unwrap_or(false))
}

fn error(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let node = s1.node_with(s1.config_of_bytes())?;
    let pid = node.pid().context("the daemon runs")?.to_string();
    // The operator's question that said "ready" still holds a descriptor until the daemon has noticed its end.
    wait_until(PATIENCE, "nobody is connected to the admin socket", || node.operators().is_ok_and(|n| n == 0))?;
    let taken: Vec<u32> = std::fs::read_dir(format!("/proc/{pid}/fd"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?))
        .collect::<Result<_>>()?;
    // One descriptor for the client, one for the backend. A worker's first handoff also opens a netlink socket.
    let last = (0..).filter(|fd| !taken.contains(fd)).nth(1).context("a free descriptor")?;
    let limit = |soft: &str| s1.lab.proxy.ns.run("prlimit", &["--pid", &pid, &format!("--nofile={soft}:")]);
    limit(&(last + 1).to_string())?;
    let talk = call(&s1.lab.clients[0].ns, s1.public(), &backend)?;
    limit("1024")?;
    relayed(&node, reason, &[talk.finish()?])
}

fn route(reason: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let proxy = &s1.lab.proxy.ns;
    proxy.nft(
        "table ip marks { chain out { type route hook output priority mangle; tcp sport 443 meta mark set 7; }; }",
    )?;
    proxy.ip_batch("route add 192.0.2.0/24 via 192.0.2.101 table 100\nrule add fwmark 7 table 100\n")?;
    let node = s1.node_with(s1.config_of_bytes())?;
    let talk = call(&s1.lab.clients[0].ns, s1.public(), &backend)?;
    relayed(&node, reason, &[talk.finish()?])
}

/// A further pool of one backend, for `<name>.example.com`.
fn add_pool(config: &mut Value, name: &str, backend: SocketAddr) {
    config["pools"][name] = json!({ "backends": [backend.to_string()] });
    if let Some(routes) = config["routes"].as_array_mut() {
        routes.push(json!({ "sni": [format!("{name}.example.com")], "pool": name }));
    }
}

/// A connection to the pool `web`.
fn call(from: &Namespace, to: SocketAddr, backend: &TcpListener) -> Result<Talk> {
    say_hello(WEB, from.connect(to)?, backend)
}

fn call_pool(pool: &str, from: &Namespace, to: SocketAddr, backend: &TcpListener) -> Result<Talk> {
    say_hello(&format!("{pool}.example.com"), from.connect(to)?, backend)
}

fn say_hello(name: &str, mut client: TcpStream, backend: &TcpListener) -> Result<Talk> {
    let hello = client_hello(Some(name))?;
    client.write_all(&hello)?;
    Talk::accept(client, backend, &hello)
}

/// These connections, which ended in order one after the other, were all that was relayed, each for this reason.
fn relayed(node: &Node, reason: &str, connections: &[Carried]) -> Result<()> {
    let status = node.status()?;
    let counted = &status["connections"];
    ensure!(counted["relay_reasons"] == json!({ reason: connections.len() }), "expected {reason}: {counted}");

    let ends = || -> Vec<Value> {
        let lines = node.log().lines().into_iter();
        lines.filter(|line| line["message"] == "connection ended" && line["mode"] == "relay").collect()
    };
    wait_until(PATIENCE, "each connection has its log line", || ends().len() >= connections.len())?;
    for (end, Carried { to_backend, to_client }) in ends().iter().zip(connections) {
        assert_eq!((&end["relay_reason"], &end["end_reason"]), (&reason.into(), &"closed".into()), "{end}");
        assert_eq!(
            (&end["bytes_to_backend"], &end["bytes_to_client"]),
            (&json!(to_backend), &json!(to_client)),
            "{end}"
        );
    }
    Ok(())
}

/// Whether a socket of this namespace waits for the answer to its SYN.
fn is_connecting(ns: &Namespace, to: SocketAddr) -> bool {
    let SocketAddr::V4(to) = to else { return false };
    let remote = format!("{:08X}:{:04X} 02", u32::from_ne_bytes(to.ip().octets()), to.port());
    ns.exec(|| std::fs::read_to_string("/proc/thread-self/net/tcp")).is_ok_and(|table| table.contains(&remote))
}

fn random(bytes: usize) -> Vec<u8> {
    let mut random = vec![0; bytes];
    Random::new(bytes as u64).fill(&mut random);
    random
}

/// The name that leads to the pool `web`.
const WEB: &str = "fiscalismia.com";
/// Before everything but the tc programs.
const RAW: &str = "type filter hook prerouting priority raw;";
