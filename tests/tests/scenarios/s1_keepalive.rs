//! `kernel.keepalive`: ends that are silent are asked whether they still live.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ingress_tests::lab::{Host, LabOptions, S1_BACKENDS};
use ingress_tests::node::Node;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::talk::{Talk, accept};
use ingress_tests::wait::{PATIENCE, here, wait_until};
use ingress_tests::wire::{Ending, client_hello, ending};
use serde_json::{Value, json};

#[test]
fn client_that_vanishes_frees_its_backend_and_one_that_lives_stays_for_long() -> Result<()> {
    vanish(false, |s1| &s1.lab.clients[0], |talk| ending(&mut talk.backend, PATIENCE))
}

#[test]
fn backend_that_vanishes_frees_its_client_over_ipv6_too() -> Result<()> {
    vanish(true, |s1| &s1.lab.backends[0], |talk| ending(&mut talk.client, PATIENCE))
}

/// One end's host loses its network without a word; the other end of its connection has to hear of it.
fn vanish(ipv6: bool, who: fn(&S1) -> &Host, other: fn(&mut Talk) -> Result<Ending>) -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions { clients: 2, ipv6, ..LabOptions::default() })?;
    let listeners = [0, 1].map(|n| s1.lab.backends[n].ns.listen(s1.lab.backends[n].socket(443)));
    let [first, second] = listeners;
    let (first, second) = (first?, second?);
    let mut config = s1.config_without_checks();
    config["kernel"]["keepalive"] = json!({ "after": "1s", "interval": "1s", "probes": 3 });
    // Answers count: who lives is not idle.
    config["listeners"]["tls"]["idle_timeout"] = "6s".into();
    for pool in ["web", "other"] {
        config["pools"][pool] = json!({ "backends": [first.local_addr()?.to_string()] });
    }
    config["pools"]["other"]["backends"] = json!([second.local_addr()?.to_string()]);
    config["routes"] = json!([
        { "sni": ["a.example.com"], "pool": "web" },
        { "sni": ["b.example.com"], "pool": "other" },
    ]);
    let node = s1.node_with(config)?;
    let begin = |n: usize, name: &str, backend| -> Result<Talk> {
        let hello = client_hello(Some(name))?;
        let mut client = s1.lab.clients[n].ns.connect(s1.public())?;
        std::io::Write::write_all(&mut client, &hello)?;
        let mut talk = Talk::of(client, accept(backend)?);
        talk.arrives(&hello)?;
        talk.backend_says(b"hello")?;
        Ok(talk)
    };
    let mut dead = begin(0, "a.example.com", &first)?;
    let mut alive = begin(1, "b.example.com", &second)?;
    wait_until(PATIENCE, "both are in the kernel", || spliced(&node).is_ok_and(|n| n == 2))?;
    node.all_in_kernel()?;

    who(&s1).ns.ip_batch("link set eth0 down\n")?;
    let since = Instant::now();
    assert_eq!(other(&mut dead)?, Ending::Reset);
    let took = since.elapsed();
    ensure!(took >= Duration::from_secs(2), "three questions were not asked within {took:?}");
    let end = node.wait_for_log("its end", |line| line["message"] == "connection ended")?;
    assert_eq!((&end["end_reason"], &end["mode"]), (&json!("keepalive"), &json!("kernel")), "{end}");

    // Twice as long as its idle timeout, and much longer than the dead one lived.
    wait_until(here(PATIENCE) * 2, "the living one grows old", || {
        node.flows().is_ok_and(|flows| flows.iter().any(|flow| flow["age"].as_f64() > Some(12.0)))
    })?;
    alive.exchange()?;
    let carried = alive.finish()?;
    let end = node.wait_for_log("its end", |line| line["end_reason"] == "closed")?;
    assert_eq!(
        (&end["bytes_to_backend"], &end["bytes_to_client"]),
        (&json!(carried.to_backend), &json!(carried.to_client)),
        "questions are nobody's bytes: {end}"
    );
    Ok(())
}

#[test]
fn firewall_that_drops_our_questions_ends_nobody() -> Result<()> {
    require!("nft");
    let s1 = S1::without_backends(&LabOptions { backends: vec![S1_BACKENDS[0]], ..LabOptions::default() })?;
    let backend = s1.lab.backends[0].ns.listen(s1.lab.backends[0].socket(443))?;
    let mut config = s1.config_of_bytes();
    config["kernel"]["keepalive"] = json!({ "after": "200ms", "interval": "100ms", "probes": 1 });
    let node = s1.node_with(config)?;
    let hello = client_hello(Some("fiscalismia.com"))?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    std::io::Write::write_all(&mut client, &hello)?;
    let mut talk = Talk::accept(client, &backend, &hello)?;
    node.wait_for_flow("it is in the kernel", |flow| flow["state"] == "spliced")?;
    s1.lab.proxy.ns.nft(
        "table ip own { chain out { type filter hook output priority filter; oifname != \"lo\" meta l4proto tcp drop; }; }",
    )?;
    node.wait_for_log("a complaint", |line| line["message"].as_str().is_some_and(|m| m.contains("firewall")))?;
    // Spliced packets do not pass there.
    wait_until(PATIENCE, "it is idle for many questions", || {
        node.flows().is_ok_and(|flows| flows.iter().any(|flow| flow["idle"].as_f64() > Some(3.0)))
    })?;
    talk.exchange()?;
    assert_eq!(spliced(&node)?, 1);
    Ok(())
}

fn spliced(node: &Node) -> Result<usize> {
    let is_spliced = |flow: &&Value| flow["state"] == "spliced";
    Ok(node.flows()?.iter().filter(is_spliced).count())
}
