//! Firewalls that drop whatever belongs to no connection that they know, by every tool that Debian has: the splice works beside
//! them, and leaves nothing in their memory.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use ingress_tests::lab::{LabOptions, S1_BACKENDS};
use ingress_tests::netns::Namespace;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::scripted::{Outcome, Scripted, answer, exchange};
use ingress_tests::skip::skip_on_this_kernel;
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Ending, client_hello, ending};
use serde_json::json;

#[test]
fn connections_pass_an_iptables_firewall_and_leave_nothing_in_conntrack() -> Result<()> {
    require!("iptables-nft");
    beside(&Firewall::Iptables("iptables-nft"))
}

#[test]
fn connections_pass_a_legacy_iptables_firewall_and_leave_nothing_in_conntrack() -> Result<()> {
    require!("iptables-legacy");
    beside(&Firewall::Iptables("iptables-legacy"))
}

#[test]
fn connections_pass_an_nftables_firewall_and_leave_nothing_in_conntrack() -> Result<()> {
    require!("nft");
    beside(&Firewall::Nftables)
}

#[test]
fn connection_whose_first_flight_is_refused_is_forgotten_too() -> Result<()> {
    require!("nft");
    let options = LabOptions { backends: vec![S1_BACKENDS[0]], conntrack: true, ..LabOptions::default() };
    let s1 = S1::without_backends(&options)?;
    let host = &s1.lab.backends[0];
    let _backend = host.ns.listen(host.socket(443))?;
    host.ns.nft(
        "table ip refusing {
            chain in { type filter hook input priority filter; tcp dport 443 tcp flags & psh == psh reject with tcp reset; }
        }",
    )?;
    let node = s1.node_with(s1.config_without_checks())?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&client_hello(Some("fiscalismia.com"))?)?;
    assert_eq!(ending(&mut client, PATIENCE)?, Ending::Reset);
    let end = node.wait_for_log("its end", |line| line["message"] == "connection ended")?;
    assert_eq!((&end["mode"], &end["end_reason"]), (&json!("kernel"), &json!("backend_reset")), "{end}");
    // Nobody says another word, by which conntrack would see that it is over.
    wait_until(PATIENCE, "conntrack forgets it", || entries(&s1.lab.proxy.ns, "ESTABLISHED").is_empty())
        .with_context(|| entries(&s1.lab.proxy.ns, "tcp").join("\n"))
}

#[test]
fn bridged_ends_pass_a_firewall_that_looks_before_we_do() -> Result<()> {
    require!("nft");
    let s1 = S1::without_backends(&LabOptions { backends: vec![S1_BACKENDS[0]], ..LabOptions::default() })?;
    let (proxy, host) = (&s1.lab.proxy.ns, &s1.lab.backends[0]);
    if proxy.sysctl("bridge/bridge-nf-call-iptables", "1").is_err() {
        return skip_on_this_kernel("this kernel has no br_netfilter");
    }
    for (nic, address) in [("pub0", s1.public().ip()), ("priv0", s1.lab.private_address(host))] {
        proxy.ip_batch(&format!(
            "link add br-{nic} type bridge\n\
             addr del {address}/24 dev {nic}\n\
             link set {nic} master br-{nic}\n\
             addr add {address}/24 dev br-{nic}\n\
             link set br-{nic} up\n"
        ))?;
    }
    // As rule sets against floods have it. Frames of a bridge pass here before tc sees them.
    proxy.nft(
        "table inet guard {
            chain early {
                type filter hook prerouting priority mangle; policy accept;
                ct state invalid drop
                tcp flags & (fin | syn | rst | ack) != syn ct state new drop
            }
        }",
    )?;
    proxy.sysctl("netfilter/nf_conntrack_tcp_loose", "0")?;
    let backend = host.ns.listen(host.socket(443))?;
    let mut config = s1.config_without_checks();
    config["listeners"]["tls"] = json!({ "bind": [s1.public().to_string()] });
    config["pools"]["web"]["proxy_protocol"] = "none".into();
    let mut node = s1.node_with(config)?;
    let hello = client_hello(Some("fiscalismia.com"))?;
    let call = || -> Result<Talk> {
        let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
        client.write_all(&hello)?;
        Talk::accept(client, &backend, &hello)
    };
    let mut long = call()?;
    for _ in 0..3 {
        long.exchange()?;
        call()?.finish()?;
    }
    node.all_in_kernel()?;
    // Whoever takes over has to know which entries are to go.
    node.kill9()?;
    long.exchange()?;
    node.launch()?;
    long.finish()?;
    // A bridge speaks IGMP too.
    wait_until(PATIENCE, "conntrack forgets all of them", || entries(proxy, "tcp").is_empty())
        .with_context(|| entries(proxy, "tcp").join("\n"))
}

/// What conntrack has with this word in it; or why that cannot be read.
fn entries(ns: &Namespace, word: &str) -> Vec<String> {
    match ns.run("cat", &["/proc/net/nf_conntrack"]) {
        Ok(all) => all.lines().filter(|entry| entry.contains(word)).map(str::to_owned).collect(),
        Err(error) => vec![format!("{error:#}")],
    }
}

enum Firewall {
    Iptables(&'static str),
    Nftables,
}

impl Firewall {
    /// Nothing but replies, what comes to `ports` by pub0, and what goes to backends by priv0.
    fn load(&self, ns: &Namespace, ports: &[String]) -> Result<()> {
        match self {
            Self::Nftables => ns.nft(&format!(
                "table inet filter {{
                    chain input {{
                        type filter hook input priority filter; policy drop;
                        ct state invalid drop
                        ct state established,related accept
                        iifname lo accept
                        iifname pub0 tcp dport {{ {} }} ct state new accept
                    }}
                    chain forward {{ type filter hook forward priority filter; policy drop; }}
                    chain output {{
                        type filter hook output priority filter; policy drop;
                        ct state invalid drop
                        ct state established,related accept
                        oifname lo accept
                        oifname priv0 tcp dport 443 ct state new accept
                    }}
                }}",
                ports.join(", ")
            )),
            Self::Iptables(program) => {
                let known =
                    ["-m conntrack --ctstate INVALID -j DROP", "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"];
                let mut rules: Vec<String> = Vec::new();
                for chain in ["INPUT", "FORWARD", "OUTPUT"] {
                    rules.push(format!("-P {chain} DROP"));
                    rules.extend(known.map(|rule| format!("-A {chain} {rule}")));
                }
                rules.extend(["-A INPUT -i lo -j ACCEPT", "-A OUTPUT -o lo -j ACCEPT"].map(str::to_owned));
                let new = "-m conntrack --ctstate NEW -j ACCEPT";
                rules.extend(ports.iter().map(|port| format!("-A INPUT -i pub0 -p tcp --dport {port} {new}")));
                rules.push(format!("-A OUTPUT -o priv0 -p tcp --dport 443 {new}"));
                rules.iter().try_for_each(|rule| {
                    let words: Vec<&str> = ["-w"].into_iter().chain(rule.split(' ')).collect();
                    ns.run(program, &words).map(drop)
                })
            }
        }
    }
}

fn beside(firewall: &Firewall) -> Result<()> {
    let connections = std::env::var("INGRESS_CONNECTIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    let s1 = S1::without_backends(&LabOptions { backends: vec![S1_BACKENDS[0]], ..LabOptions::default() })?;
    let proxy = &s1.lab.proxy.ns;
    let _backend = Scripted::start(&s1.lab.backends[0], answer)?;
    // A client's closed connections hold its ports for a minute, towards each of our ports.
    let ports: Vec<u16> = (443..=443 + u16::try_from(connections / 20_000)?).collect();
    firewall.load(proxy, &ports.iter().map(u16::to_string).collect::<Vec<_>>())?;
    let mut config = s1.config_without_checks();
    let public: Vec<SocketAddr> = ports.iter().map(|port| s1.lab.public(*port)).collect();
    config["listeners"]["tls"]["bind"] = public.iter().map(SocketAddr::to_string).collect();
    let node = s1.node_with(config)?;
    let hello = client_hello(Some("fiscalismia.com"))?;
    let left = AtomicU32::new(connections);
    let run = || -> Result<()> {
        let take = || left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1)).ok();
        while let Some(n) = take() {
            let outcome = exchange(public[n as usize % public.len()], &hello, n.into(), 3_000, PATIENCE)?;
            ensure!(outcome == Outcome::Complete, "connection {n}: {outcome:?}");
        }
        Ok(())
    };
    let most = AtomicU32::new(0);
    std::thread::scope(|scope| -> Result<()> {
        let crowd: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| s1.lab.clients[0].ns.exec(run))).collect();
        while !crowd.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            most.fetch_max(tracked(proxy)?, Ordering::AcqRel);
            std::thread::park_timeout(Duration::from_millis(50));
        }
        crowd.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    node.all_in_kernel()?;
    let most = most.into_inner();
    wait_until(PATIENCE, "conntrack forgets all of them", || tracked(proxy).is_ok_and(|n| n == 0))
        .with_context(|| proxy.run("cat", &["/proc/net/nf_conntrack"]).unwrap_or_default())?;
    eprintln!("INGRESS_CONNECTIONS={connections}: at most {most} entries in conntrack, none after");
    ensure!(most > 0, "this firewall does not track");
    ensure!(most < 1_000 + connections / 4, "{most} entries at a time for {connections} connections");
    Ok(())
}

fn tracked(ns: &Namespace) -> Result<u32> {
    let count = ns.exec(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"));
    Ok(count.context("this host tracks connections")?.trim().parse()?)
}

const CLIENTS: usize = 6;
