//! Routing that is more than one table: clients whose way back only a rule knows. Where spliced packets would find another next hop
//! than the host's own, there stands a host that takes packets and passes none on.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::{Host, LabOptions, S1_BACKENDS};
use ingress_tests::netns::Namespace;
use ingress_tests::node::Node;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::client_hello;
use serde_json::json;
use socket2::{Domain, Socket, Type};

#[test]
fn public_address_with_a_default_route_of_its_own_is_served_in_the_kernel() -> Result<()> {
    require!();
    for ipv6 in [false, true] {
        let stage = Stage::set(ipv6)?;
        stage.default_route_by_the_private_nic()?;
        stage.rule("from PUBLIC table 100")?;
        stage.way_back("table 100")?;
        for device in [false, true] {
            let node = stage.node(device)?;
            stage.call()?.finish()?;
            node.all_in_kernel().with_context(|| format!("IPv6 {ipv6}, device {device}"))?;
        }
    }
    Ok(())
}

#[test]
fn device_of_a_listener_chooses_the_way_back_as_it_does_for_sockets() -> Result<()> {
    require!();
    for ipv6 in [false, true] {
        let stage = Stage::set(ipv6)?;
        stage.default_route_by_the_private_nic()?;
        stage.rule("oif pub0 table 100")?;
        stage.way_back("table 100")?;
        let node = stage.node(true)?;
        stage.call()?.finish()?;
        node.all_in_kernel().with_context(|| format!("IPv6 {ipv6}"))?;
    }
    Ok(())
}

#[test]
fn rule_for_what_the_host_itself_sends_holds_for_spliced_packets() -> Result<()> {
    require!();
    let stage = Stage::set(false)?;
    stage.default_route_by_the_private_nic()?;
    stage.rule("iif lo from PUBLIC table 100")?;
    // Would be the way of packets that the host forwards. These are not.
    stage.rule("iif priv0 table 101")?;
    stage.way_back("table 100")?;
    stage.proxy().ip_batch("route add unreachable default table 101\n")?;
    let node = stage.node(false)?;
    stage.call()?.finish()?;
    node.all_in_kernel()
}

#[test]
fn one_of_two_gateways_on_a_device_is_chosen_by_source() -> Result<()> {
    require!();
    for ipv6 in [false, true] {
        let stage = Stage::set(ipv6)?;
        stage.default_route_by_the_wrong_gateway()?;
        stage.rule("from PUBLIC table 100")?;
        stage.way_back("table 100")?;
        let node = stage.node(true)?;
        stage.call()?.finish()?;
        node.all_in_kernel().with_context(|| format!("IPv6 {ipv6}"))?;
    }
    Ok(())
}

#[test]
fn rule_for_a_port_leads_sockets_another_way_so_the_connection_is_relayed() -> Result<()> {
    require!();
    for ipv6 in [false, true] {
        let stage = Stage::set(ipv6)?;
        stage.default_route_by_the_wrong_gateway()?;
        stage.rule("ipproto tcp sport 443 table 100")?;
        stage.way_back("table 100")?;
        let node = stage.node(false)?;
        stage.call()?.finish()?;
        relayed(&node, "route", 1).with_context(|| format!("IPv6 {ipv6}"))?;
    }
    Ok(())
}

#[test]
fn mark_that_the_firewall_gives_answers_relays_until_an_unmarked_packet_finds_the_same_way() -> Result<()> {
    require!("nft");
    let own = "chain out { type route hook output priority mangle; tcp sport 443 meta mark set 7; }";
    let restored = "chain in { type filter hook prerouting priority mangle; iifname pub0 ct mark set 7; }
                    chain out { type route hook output priority mangle; ct mark 7 meta mark set ct mark; }";
    for (ipv6, chains) in [(false, own), (false, restored), (true, own)] {
        let stage = Stage::set(ipv6)?;
        stage.default_route_by_the_private_nic()?;
        stage.proxy().nft(&format!("table inet marks {{\n{chains}\n}}"))?;
        stage.rule("fwmark 7 table 100")?;
        stage.way_back("table 100")?;
        let node = stage.node(false)?;
        stage.call()?.finish()?;
        relayed(&node, "route", 1).with_context(|| format!("IPv6 {ipv6}: {chains}"))?;
        if ipv6 {
            // A lookup there takes a device for no more than a wish.
            continue;
        }
        // Where the main table knows that way too, if only as its second choice, a spliced packet finds it by its device.
        stage.way_back("metric 4000")?;
        wait_until(PATIENCE, "the daemon knows of the route", || {
            let before = handed_off(&node).unwrap_or(0);
            stage.call().and_then(Talk::finish).is_ok() && handed_off(&node).is_ok_and(|now| now == before + 1)
        })
        .with_context(|| chains.to_owned())?;
    }
    Ok(())
}

#[test]
fn mark_that_leads_nowhere_else_does_not_keep_a_connection_from_the_kernel() -> Result<()> {
    require!("nft");
    let stage = Stage::set(false)?;
    stage.way_back("metric 10")?;
    // For a queueing discipline, say.
    stage
        .proxy()
        .nft("table inet marks { chain out { type route hook output priority mangle; meta mark set 7; }; }")?;
    stage.rule("fwmark 8 table 100")?;
    let node = stage.node(false)?;
    stage.call()?.finish()?;
    node.all_in_kernel()
}

#[test]
fn mark_that_moves_our_syn_to_another_device_is_noticed() -> Result<()> {
    require!("nft");
    let stage = Stage::set(false)?;
    let proxy = stage.proxy();
    stage.way_back("metric 10")?;
    // The backend is on two networks and has an address that both lead to; only the second way is open.
    let line = stage.second_way()?;
    proxy.ip_batch(&format!("route add {FAR_BACKEND} via {SINK}\nroute add {FAR_BACKEND} {line} table 200\n"))?;
    proxy.nft(&format!(
        "table ip marks {{ chain out {{ type route hook output priority mangle; ip daddr {FAR_BACKEND} meta mark set 9; }}; }}"
    ))?;
    stage.rule("fwmark 9 table 200")?;
    let node = stage.node_towards(FAR_BACKEND.parse()?)?;
    stage.call()?.finish()?;
    relayed(&node, "route", 1)
}

#[test]
fn flows_follow_the_routes_to_both_ends() -> Result<()> {
    require!();
    let stage = Stage::set(false)?;
    let (proxy, backend, client) = (stage.proxy(), &stage.s1.lab.backends[0].ns, &stage.s1.lab.clients[0].ns);
    stage.way_back("metric 10")?;
    let line = stage.second_way()?;
    proxy.ip_batch(&format!("route add {FAR_BACKEND} via {} src 172.24.0.1\n", S1_BACKENDS[0]))?;
    let node = stage.node_towards(FAR_BACKEND.parse()?)?;
    let mut talk = stage.call()?;
    talk.exchange()?;
    // The backend moves behind its other cable.
    proxy.ip_batch(&format!("route replace {FAR_BACKEND} {line} src 172.24.0.1\n"))?;
    backend.ip_batch("link set eth0 down\nroute add default via 10.99.0.1\n")?;
    talk.exchange().context("after the route to the backend moved")?;
    stage.call()?.finish()?;
    // The client too.
    cable((proxy, "pub9", "10.98.0.1/30"), (client, "eth9", "10.98.0.2/30"))?;
    proxy.ip_batch("route replace default via 10.98.0.2 dev pub9 metric 10\n")?;
    client.ip_batch("link set eth0 down\nroute add 192.0.2.1 via 10.98.0.1\n")?;
    talk.exchange().context("after the route to the client moved")?;
    let flow = node.flows()?.first().cloned().context("it is in the kernel")?;
    assert_eq!(flow["state"], "spliced", "{flow}");
    talk.finish()?;
    node.all_in_kernel()
}

#[test]
fn flow_follows_a_rule_that_comes_later_and_one_that_goes() -> Result<()> {
    require!();
    let stage = Stage::set(false)?;
    let (proxy, client) = (stage.proxy(), &stage.s1.lab.clients[0].ns);
    stage.way_back("metric 10")?;
    cable((proxy, "pub9", "10.98.0.1/30"), (client, "eth9", "10.98.0.2/30"))?;
    client.ip_batch("route add 192.0.2.1 via 10.98.0.1\n")?;
    proxy.ip_batch("route add default via 10.98.0.2 dev pub9 table 100\n")?;
    let node = stage.node(false)?;
    let mut talk = stage.call()?;
    talk.exchange()?;
    let by_the_other = || received(client, "eth9");
    for verb in ["add", "del"] {
        stage.ip(&["rule", verb], &format!("from {} table 100", stage.s1.lab.proxy.address))?;
        wait_until(PATIENCE, &format!("the flow has heard of the rule: {verb}"), || {
            let before = by_the_other().unwrap_or(0);
            talk.exchange().is_ok() && by_the_other().is_ok_and(|now| (now - before > 100_000) == (verb == "add"))
        })?;
    }
    talk.finish()?;
    node.all_in_kernel()
}

#[test]
fn new_gateway_on_the_same_device_is_taken_by_the_next_packet() -> Result<()> {
    require!();
    let stage = Stage::set(false)?;
    let (proxy, first, second) = (stage.proxy(), &stage.s1.lab.clients[0], &stage.s1.lab.clients[1]);
    stage.way_back("metric 10")?;
    let node = stage.node(true)?;
    let mut talk = stage.call()?;
    talk.exchange()?;
    // The other gateway forwards now.
    second.ns.sysctl("ipv4/ip_forward", "1")?;
    second.ns.ip_batch(&format!("route add {FAR_CLIENT} via {}\n", first.address))?;
    let before = received(&second.ns, "eth0")?;
    proxy.ip_batch(&format!("route replace default via {} dev pub0 metric 10\n", second.address))?;
    talk.exchange()?;
    ensure!(received(&second.ns, "eth0")? > before + 100_000, "it went by the old gateway");
    talk.finish()?;
    node.all_in_kernel()
}

#[test]
fn flow_of_a_listener_with_a_device_stays_there_as_its_sockets_do() -> Result<()> {
    require!();
    let stage = Stage::set(false)?;
    stage.way_back("metric 10")?;
    let node = stage.node(true)?;
    let mut talk = stage.call()?;
    talk.exchange()?;
    // A better default route, by another device: not for who is bound to this one.
    stage.default_route_by_the_private_nic()?;
    let unbound = || stage.proxy().run("ip", &["route", "get", FAR_CLIENT]).unwrap_or_default();
    assert!(unbound().contains("priv0"), "{}", unbound());
    for _ in 0..10 {
        talk.exchange()?;
        stage.call()?.finish()?;
    }
    talk.finish()?;
    node.all_in_kernel()
}

#[test]
fn flow_of_an_earlier_daemon_follows_a_route_that_moves() -> Result<()> {
    require!();
    let stage = Stage::set(false)?;
    stage.way_back("metric 10")?;
    let line = stage.second_way()?;
    let proxy = stage.proxy();
    proxy.ip_batch(&format!("route add {FAR_BACKEND} via {} src 172.24.0.1\n", S1_BACKENDS[0]))?;
    let mut node = stage.node_towards(FAR_BACKEND.parse()?)?;
    let mut talk = stage.call()?;
    talk.exchange()?;
    node.wait_for_flow("it is spliced", |flow| flow["state"] == "spliced")?;
    node.kill9()?;
    node.launch()?;
    talk.exchange()?;
    proxy.ip_batch(&format!("route replace {FAR_BACKEND} {line} src 172.24.0.1\n"))?;
    stage.s1.lab.backends[0].ns.ip_batch("link set eth0 down\nroute add default via 10.99.0.1\n")?;
    talk.exchange().context("after the route moved")?;
    talk.finish().map(drop)
}

#[test]
fn flow_whose_route_moved_while_no_daemon_ran_goes_on_with_the_next() -> Result<()> {
    require!();
    let stage = Stage::set(false)?;
    stage.way_back("metric 10")?;
    let line = stage.second_way()?;
    let proxy = stage.proxy();
    proxy.ip_batch(&format!("route add {FAR_BACKEND} via {} src 172.24.0.1\n", S1_BACKENDS[0]))?;
    let mut node = stage.node_towards(FAR_BACKEND.parse()?)?;
    let mut talk = stage.call()?;
    talk.exchange()?;
    node.wait_for_flow("it is spliced", |flow| flow["state"] == "spliced")?;
    node.kill9()?;
    proxy.ip_batch(&format!("route replace {FAR_BACKEND} {line} src 172.24.0.1\n"))?;
    stage.s1.lab.backends[0].ns.ip_batch("link set eth0 down\nroute add default via 10.99.0.1\n")?;
    node.launch()?;
    talk.exchange()?;
    talk.finish().map(drop)
}

/// S1 with a client that lives behind a gateway: an address that no network of the proxy has.
struct Stage {
    s1: S1,
    backend: TcpListener,
    client: IpAddr,
    ipv6: bool,
}

impl Stage {
    /// The first client is the gateway, and has the client's address. The second is another gateway, that leads nowhere.
    fn set(ipv6: bool) -> Result<Self> {
        let options = LabOptions { clients: 2, backends: vec![S1_BACKENDS[0]], ipv6, ..LabOptions::default() };
        let s1 = S1::without_backends(&options)?;
        let client: IpAddr = if ipv6 { FAR_CLIENT6 } else { FAR_CLIENT }.parse()?;
        let any: IpAddr = if ipv6 { "::" } else { "0.0.0.0" }.parse()?;
        let Host { ns, .. } = &s1.lab.clients[0];
        ns.ip_batch(&format!("addr add {client} dev lo\n"))?;
        let host = &s1.lab.backends[0];
        host.ns.ip_batch(&format!("addr add {FAR_BACKEND} dev lo\n"))?;
        let backend = host.ns.listen(SocketAddr::new(any, 443))?;
        Ok(Self { s1, backend, client, ipv6 })
    }

    fn proxy(&self) -> &Namespace {
        &self.s1.lab.proxy.ns
    }

    fn default_route_by_the_private_nic(&self) -> Result<()> {
        self.route(&format!("default via {} dev priv0", self.s1.lab.backends[0].address))
    }

    fn default_route_by_the_wrong_gateway(&self) -> Result<()> {
        self.route(&format!("default via {} dev pub0", self.s1.lab.clients[1].address))
    }

    /// The route that leads to the client, in this table or of this metric.
    fn way_back(&self, which: &str) -> Result<()> {
        self.route(&format!("default via {} dev pub0 {which}", self.s1.lab.clients[0].address))
    }

    fn route(&self, route: &str) -> Result<()> {
        self.ip(&["route", "add"], route)
    }

    fn rule(&self, rule: &str) -> Result<()> {
        self.ip(&["rule", "add"], &rule.replace("PUBLIC", &self.s1.lab.proxy.address.to_string()))
    }

    fn ip(&self, verb: &[&str], words: &str) -> Result<()> {
        let family = if self.ipv6 { "-6" } else { "-4" };
        let words: Vec<&str> = [family].iter().chain(verb).copied().chain(words.split(' ')).collect();
        self.proxy().run("ip", &words).map(drop)
    }

    /// A second cable to the backend, by which it knows the way back. Returns the way, as `ip route` takes it.
    fn second_way(&self) -> Result<&'static str> {
        let backend = &self.s1.lab.backends[0].ns;
        cable((self.proxy(), "priv9", "10.99.0.1/30"), (backend, "eth9", "10.99.0.2/30"))?;
        Ok("via 10.99.0.2 dev priv9")
    }

    fn node(&self, device: bool) -> Result<Node> {
        self.start(self.s1.lab.backends[0].socket(443), device)
    }

    fn node_towards(&self, backend: IpAddr) -> Result<Node> {
        self.start(SocketAddr::new(backend, 443), false)
    }

    /// `device`: whether the listener has one.
    fn start(&self, backend: SocketAddr, device: bool) -> Result<Node> {
        let mut config = self.s1.config_without_checks();
        config["pools"]["web"] = json!({ "backends": [backend.to_string()] });
        if !device {
            config["listeners"]["tls"] = json!({ "bind": [self.s1.public().to_string()] });
        }
        self.s1.node_with(config)
    }

    /// The client calls, from far away.
    fn call(&self) -> Result<Talk> {
        let hello = client_hello(Some("fiscalismia.com"))?;
        let Host { ns, .. } = &self.s1.lab.clients[0];
        let mut client = connect_from(ns, self.client, self.s1.public())?;
        client.write_all(&hello)?;
        Talk::accept(client, &self.backend, &hello)
    }
}

fn connect_from(ns: &Namespace, source: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    ns.exec(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(socket.into())
    })
}

/// A veth pair: namespace, device and address of each end.
fn cable(near: (&Namespace, &str, &str), far: (&Namespace, &str, &str)) -> Result<()> {
    let ((ns, device, _), (peer, peers, _)) = (near, far);
    ns.ip_batch(&format!("link add {device} type veth peer name {peers} netns {}\n", peer.name()))?;
    for (ns, device, address) in [near, far] {
        ns.ip_batch(&format!("addr add {address} dev {device}\nlink set {device} up\n"))?;
    }
    Ok(())
}

/// Bytes that have arrived on a device.
fn received(ns: &Namespace, device: &str) -> Result<u64> {
    let table = ns.exec(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
    let bytes = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {device}"))?;
    Ok(bytes.parse()?)
}

fn handed_off(node: &Node) -> Result<u64> {
    node.status()?["connections"]["handed_off_total"].as_u64().context("a number")
}

/// So many connections were relayed, for this reason, and none handed off.
fn relayed(node: &Node, reason: &str, count: u64) -> Result<()> {
    let connections = &node.status()?["connections"];
    ensure!(connections["relay_reasons"] == json!({ reason: count }), "expected {reason}: {connections}");
    ensure!(connections["handed_off_total"] == 0, "{connections}");
    Ok(())
}

/// Documentation addresses (RFC 5737, RFC 3849) that no network of the lab has.
const FAR_CLIENT: &str = "198.51.100.7";
const FAR_CLIENT6: &str = "2001:db8:77::7";
const FAR_BACKEND: &str = "10.9.9.9";
/// Nobody has it.
const SINK: &str = "172.24.0.250";
