//! Routes that change under connections in the kernel, while the daemon runs and while none does.

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::S1_BACKENDS;
use ingress_tests::require;
use ingress_tests::wait::{PATIENCE, wait_until};

use super::stage::{FAR_BACKEND, FAR_BACKEND6, FAR_CLIENT, Stage, cable, received};

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
    for ipv6 in [false, true] {
        let stage = Stage::set(ipv6)?;
        stage.way_back("metric 10")?;
        let line = stage.second_way()?;
        let backend = &stage.s1.lab.backends[0];
        let (old, own) = (backend.address, stage.s1.lab.private_address(backend));
        let far = if ipv6 { FAR_BACKEND6 } else { FAR_BACKEND };
        stage.route(&format!("{far} via {old} src {own}"))?;
        // The old device goes on to be a way to the backend, if not the best.
        stage.route(&format!("default via {old} metric 500"))?;
        let mut node = stage.node_towards(far.parse()?)?;
        let mut talk = stage.call()?;
        talk.exchange()?;
        node.wait_for_flow("it is spliced", |flow| flow["state"] == "spliced")?;
        node.kill9()?;
        stage.ip(&["route", "replace"], &format!("{far} {line} src {own}"))?;
        stage.backend_moves_to_its_second_way()?;
        node.launch()?;
        talk.exchange().with_context(|| format!("IPv6 {ipv6}"))?;
        talk.finish()?;
    }
    Ok(())
}

#[test]
fn flow_of_a_listener_with_a_device_stays_there_under_the_next_daemon_too() -> Result<()> {
    require!();
    for ipv6 in [false, true] {
        let stage = Stage::set(ipv6)?;
        stage.way_back("metric 10")?;
        let mut node = stage.node(true)?;
        let mut talk = stage.call()?;
        talk.exchange()?;
        node.kill9()?;
        // A better default route, by another device: not for who was bound to this one.
        stage.default_route_by_the_private_nic()?;
        node.launch()?;
        for _ in 0..3 {
            talk.exchange().with_context(|| format!("IPv6 {ipv6}"))?;
            stage.call()?.finish()?;
        }
        talk.finish()?;
    }
    Ok(())
}

#[test]
fn flow_takes_the_second_best_route_when_the_device_of_the_best_goes_down() -> Result<()> {
    require!();
    let stage = Stage::set(false)?;
    stage.way_back("metric 10")?;
    // The kernel tells of IPv6 routes that go down with their device, but not of those of IPv4.
    stage.proxy().sysctl("ipv6/conf/all/disable_ipv6", "1")?;
    let line = stage.second_way()?;
    stage.route(&format!("{FAR_BACKEND} {line} src 172.24.0.1 metric 10"))?;
    stage.route(&format!("{FAR_BACKEND} via {} src 172.24.0.1 metric 20", S1_BACKENDS[0]))?;
    let node = stage.node_towards(FAR_BACKEND.parse()?)?;
    let mut talk = stage.call()?;
    talk.exchange()?;
    stage.proxy().ip_batch("link set priv9 down\n")?;
    talk.exchange().context("after the device of the best route went down")?;
    talk.finish()?;
    node.all_in_kernel()
}
