//! Routes with several next hops: a connection goes by one of them, from its handshake to its end, whatever a lookup of a single packet
//! would say.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::Host;
use ingress_tests::require;
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, wait_until};

use super::stage::{Stage, cable, received};

#[test]
fn connection_stays_with_the_one_of_two_gateways_that_its_handshake_took() -> Result<()> {
    require!();
    for (ipv6, by_ports) in [(false, false), (false, true), (true, false)] {
        let stage = Stage::set(ipv6)?;
        let [first, second] = &stage.s1.lab.clients[..] else { unreachable!("two gateways") };
        leads_to(&stage, second, first)?;
        if by_ports {
            stage.proxy().sysctl("ipv4/fib_multipath_hash_policy", "1")?;
        }
        let hop = |host: &Host| format!("nexthop via {} dev pub0", host.address);
        stage.route(&format!("default {} {}", hop(first), hop(second)))?;
        let node = stage.node(false)?;
        let mut seen = [0, 0];
        for client in stage.far_clients(48)? {
            let mut talk = stage.call_from(client)?;
            let before = received(&second.ns, "eth0")?;
            talk.exchange()?;
            // More than half of what was exchanged, and not the little that is said beside it.
            let by_second = received(&second.ns, "eth0")? > before + 150_000;
            let expected = chosen(&stage, &talk)? == second.address;
            ensure!(by_second == expected, "IPv6 {ipv6}, ports {by_ports}, {client}: the second is right: {expected}");
            talk.finish()?;
            seen[usize::from(by_second)] += 1;
            if seen.iter().all(|seen| *seen >= 3) {
                break;
            }
        }
        ensure!(seen.iter().all(|seen| *seen >= 3), "the hash prefers a gateway: {seen:?}");
        node.all_in_kernel().with_context(|| format!("IPv6 {ipv6}, ports {by_ports}"))?;
    }
    Ok(())
}

#[test]
fn flows_go_on_when_their_route_gets_another_next_hop_and_loses_it() -> Result<()> {
    require!();
    for ipv6 in [false, true] {
        let stage = Stage::set(ipv6)?;
        if !ipv6 {
            // Else the kernel would tell of IPv6 routes that go down, and of those of IPv4 it says nothing.
            stage.proxy().sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        }
        // Neither has the public address: newer kernels would prefer that one.
        let gateway = &stage.s1.lab.clients[0];
        for (near, far, ends) in [("pub8", "eth8", addresses(ipv6, 8)), ("pub9", "eth9", addresses(ipv6, 9))] {
            cable((stage.proxy(), near, &ends[0]), (&gateway.ns, far, &ends[1]))?;
        }
        let hop = |n| format!("via {} dev pub{n}", addresses(ipv6, n)[1].split('/').next().unwrap_or_default());
        stage.route(&format!("default {} metric 10", hop(8)))?;
        let node = stage.node(false)?;
        let mut talks: Vec<Talk> =
            stage.far_clients(12)?.into_iter().map(|client| stage.call_from(client)).collect::<Result<_>>()?;
        exchange(&mut talks).context("by the only next hop")?;

        let both = format!("default metric 10 nexthop {} nexthop {}", hop(8), hop(9));
        stage.ip(&["route", "replace"], &both)?;
        wait_until(PATIENCE, "some go by the other", || {
            let before = received(&gateway.ns, "eth9").unwrap_or(u64::MAX);
            exchange(&mut talks).is_ok()
                && received(&gateway.ns, "eth9").is_ok_and(|now| now > before.saturating_add(200_000))
        })
        .with_context(|| format!("IPv6 {ipv6}"))?;

        stage.proxy().ip_batch("link set pub9 down\n")?;
        exchange(&mut talks).with_context(|| format!("IPv6 {ipv6}, after the other went down"))?;
        for talk in talks {
            talk.close()?;
        }
        node.all_in_kernel()?;
    }
    Ok(())
}

/// Of the two ends of the cable with this number, with their networks.
fn addresses(ipv6: bool, cable: u8) -> [String; 2] {
    ["1", "2"].map(|end| match ipv6 {
        true => format!("2001:db8:9{cable}::{end}/64"),
        false => format!("10.9{cable}.0.{end}/30"),
    })
}

fn exchange(talks: &mut [Talk]) -> Result<()> {
    talks.iter_mut().enumerate().try_for_each(|(n, talk)| talk.exchange().with_context(|| format!("connection {n}")))
}

/// Makes a gateway that forwards to another one, and does not tell anybody of the shorter way.
fn leads_to(stage: &Stage, gateway: &Host, next: &Host) -> Result<()> {
    let family = if stage.ipv6 {
        gateway.ns.sysctl("ipv6/conf/all/forwarding", "1")?;
        stage.proxy().sysctl("ipv6/conf/pub0/accept_redirects", "0")?;
        "-6"
    } else {
        for (key, value) in [("ip_forward", "1"), ("conf/all/send_redirects", "0"), ("conf/eth0/send_redirects", "0")] {
            gateway.ns.sysctl(&format!("ipv4/{key}"), value)?;
        }
        "-4"
    };
    gateway.ns.run("ip", &[family, "route", "add", "default", "via", &next.address.to_string()]).map(drop)
}

/// The next hop of our own stack's packets on this connection, as the kernel tells.
fn chosen(stage: &Stage, talk: &Talk) -> Result<IpAddr> {
    let (us, client) = (talk.client.peer_addr()?, talk.client.local_addr()?);
    let words =
        format!("route get {} from {} ipproto tcp sport {} dport {}", client.ip(), us.ip(), us.port(), client.port());
    let said = stage.proxy().run("ip", &words.split(' ').collect::<Vec<_>>())?;
    let gateway = said.split(' ').skip_while(|word| *word != "via").nth(1);
    gateway.and_then(|gateway| gateway.parse().ok()).with_context(|| format!("a next hop in {said:?}"))
}
