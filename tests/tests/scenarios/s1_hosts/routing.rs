//! Routing that is more than one table: clients whose way back only a rule knows. Where spliced packets would find another next hop
//! than the host's own, there stands a host that takes packets and passes none on.

use anyhow::{Context as _, Result, ensure};
use ingress_tests::node::Node;
use ingress_tests::require;
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, wait_until};
use serde_json::json;

use super::stage::{FAR_BACKEND, Stage};

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

/// Nobody has it.
const SINK: &str = "172.24.0.250";
