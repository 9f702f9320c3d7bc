//! S1 over IPv6, from the client to the backend: in the kernel as over IPv4.

use std::io::Write as _;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::Result;
use ingress_tests::client::s_client;
use ingress_tests::lab::LabOptions;
use ingress_tests::netns::Namespace;
use ingress_tests::node::Node;
use ingress_tests::payload::write_file;
use ingress_tests::require;
use ingress_tests::s1::{S1, TABLE};
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Ending, client_hello, ending};

#[test]
fn each_name_reaches_its_backend_over_ipv6_which_sees_the_client() -> Result<()> {
    require!("nginx", "curl", "openssl");
    let s1 = S1::start_on(&options())?;
    let node = s1.node()?;
    let client = &s1.lab.clients[0];
    for (pool, host, names) in TABLE {
        for name in names {
            let seen = s1.curl(name).get_json("/whoami")?;
            assert_eq!((&seen["backend"], &seen["sni"]), (&pool.into(), &(*name).into()), "{seen}");
            assert_eq!(seen["client"], client.address.to_string(), "in the PROXY header: {seen}");
            let proxy = s1.lab.private_address(&s1.lab.backends[host]);
            assert_eq!(seen["peer"], proxy.to_string(), "on the wire: {seen}");
        }
    }
    let said = s_client(&client.ns, s1.public(), &["-servername", TABLE[0].2[0]])?;
    assert!(said.contains("CN"), "openssl s_client said: {said}");
    node.all_in_kernel()
}

#[test]
fn large_files_pass_unchanged_over_ipv6() -> Result<()> {
    require!("nginx", "curl");
    transfer_both_ways(&options())
}

#[test]
fn large_files_pass_unchanged_over_ipv6_without_offloads() -> Result<()> {
    require!("nginx", "curl", "ethtool");
    transfer_both_ways(&LabOptions { offloads: false, ..options() })
}

#[test]
fn large_files_pass_unchanged_over_ipv6_into_a_network_with_a_small_mtu() -> Result<()> {
    require!("nginx", "curl");
    transfer_both_ways(&LabOptions { private_mtu: 1420, ..options() })
}

#[test]
fn ended_connections_over_ipv6_leave_nothing_in_conntrack() -> Result<()> {
    require!("nginx", "curl", "nft");
    let s1 = S1::start_on(&LabOptions { conntrack: true, ..options() })?;
    let node = s1.node_with(s1.config_without_checks())?;
    for _ in 0..20 {
        s1.curl(NAME).get("/whoami")?;
    }
    node.all_in_kernel()?;
    let entries = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?.trim().parse().ok();
    wait_until(PATIENCE, "conntrack forgets handed-off connections", || {
        s1.lab.proxy.ns.exec(entries).is_some_and(|n: u32| n <= 4)
    })
}

#[test]
fn connections_over_ipv6_survive_the_daemon_and_are_adopted() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start_on(&options())?;
    let mut node = s1.node_with(s1.config_without_checks())?;
    let sent = s1.backends[0].publish("big", 96 << 20)?;
    let held = s1.curl(NAME).download("/files/big")?;
    held.wait_for_bytes(1 << 20, PATIENCE)?;
    held.hold();
    let running = s1.curl(NAME).limit_rate(24 << 20).download("/files/big")?;
    running.wait_for_bytes(1 << 20, PATIENCE)?;
    node.all_in_kernel()?;

    node.kill9()?;
    let at_the_kill = running.received();
    assert!(at_the_kill < sent.bytes, "the download was over before the kill");
    running.wait_for_bytes(at_the_kill + (8 << 20), PATIENCE)?;
    node.launch()?;
    assert_eq!(node.status()?["kernel"]["adopted"], 2);
    assert_eq!(held.finish(Duration::from_secs(60))?, sent);
    assert_eq!(running.finish(Duration::from_secs(60))?, sent);
    let client = s1.lab.clients[0].address.to_string();
    let end = node.wait_for_log("an adopted connection's end", |l| l["message"] == "connection ended")?;
    assert!(end["client"].as_str().is_some_and(|seen| seen.contains(&client)), "{end}");
    Ok(())
}

#[test]
fn killed_connection_over_ipv6_is_reset_at_both_ends_at_once() -> Result<()> {
    require!();
    let (s1, listener, node) = stage()?;
    for kind in ["quiet", "talking"] {
        let mut talk = call(&s1.lab.clients[0].ns, &s1, &listener)?;
        if kind == "talking" {
            talk.exchange()?;
        }
        node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;
        assert_eq!(node.json(&["flows", "kill", "--sni", NAME])?["killed"], 1);
        assert_eq!(ending(&mut talk.client, PATIENCE)?, Ending::Reset, "{kind}");
        assert_eq!(ending(&mut talk.backend, PATIENCE)?, Ending::Reset, "{kind}");
    }
    node.all_in_kernel()
}

#[test]
fn connection_over_ipv6_is_counted_to_the_byte() -> Result<()> {
    require!();
    let (s1, listener, node) = stage()?;
    let carried = call(&s1.lab.clients[0].ns, &s1, &listener)?.finish()?;
    let end = node.wait_for_log("its end", |l| l["message"] == "connection ended")?;
    assert_eq!((&end["mode"], &end["end_reason"]), (&"kernel".into(), &"closed".into()), "{end}");
    assert_eq!(end["bytes_to_backend"], carried.to_backend, "{end}");
    assert_eq!(end["bytes_to_client"], carried.to_client, "{end}");
    node.all_in_kernel()
}

fn transfer_both_ways(options: &LabOptions) -> Result<()> {
    let s1 = S1::start_on(options)?;
    let node = s1.node()?;
    let web = &s1.backends[0];
    let sent = web.publish("down", 64 << 20)?;
    for curl in [s1.curl(NAME).http1(), s1.curl(NAME).http2()] {
        assert_eq!(curl.download("/files/down")?.finish(Duration::from_secs(60))?, sent);
    }
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("up");
    let sent = write_file(&file, 32 << 20, 5)?;
    assert_eq!(s1.curl(NAME).http1().upload(&file, "/upload/up")?.status, 201);
    assert_eq!(web.uploaded("up")?, sent);
    node.all_in_kernel()
}

/// A backend that the scenario plays itself, and which gets the client's bytes and nothing else.
fn stage() -> Result<(S1, TcpListener, Node)> {
    let s1 = S1::without_backends(&options())?;
    let host = &s1.lab.backends[0];
    let listener = host.ns.listen(host.socket(443))?;
    let node = s1.node_with(s1.config_of_bytes())?;
    Ok((s1, listener, node))
}

fn call(from: &Namespace, s1: &S1, backend: &TcpListener) -> Result<Talk> {
    let hello = client_hello(Some(NAME))?;
    let mut client = from.connect(s1.public())?;
    client.write_all(&hello)?;
    Talk::accept(client, backend, &hello)
}

fn options() -> LabOptions {
    LabOptions { ipv6: true, ..LabOptions::default() }
}

const NAME: &str = "fiscalismia.com";
