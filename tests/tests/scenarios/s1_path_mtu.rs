//! Paths that are narrower in their middle than at their ends: the ends have to learn it, through the proxy.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use ingress_tests::lab::{Host, LabOptions};
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, amount_here, wait_until};
use ingress_tests::wire::client_hello;
use serde_json::Value;

use super::s1_loss::{Bad, STRICT, transfers_both_ways};

#[test]
fn narrow_path_to_the_client_is_learned_by_client_and_backend() -> Result<()> {
    learned(true, |s1| &s1.lab.clients[0])
}

#[test]
fn narrow_path_to_the_backend_is_learned_by_client_and_backend() -> Result<()> {
    learned(true, |s1| &s1.lab.backends[0])
}

#[test]
fn narrow_path_is_learned_without_offloads_too() -> Result<()> {
    require!("ethtool");
    learned(false, |s1| &s1.lab.clients[0])
}

/// A path that nobody is told of hangs with its first large segment.
fn learned(offloads: bool, far: fn(&S1) -> &Host) -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions { offloads, ..LabOptions::default() })?;
    let _router = s1.lab.put_behind_router(far(&s1), NARROW)?;
    let node = transfers_both_ways(&s1, 4 << 20, Bad { never: &STRICT, loses: false })?;
    // Of the sender beyond the proxy; the one behind the router hears of it without our help.
    assert!(node.verdict("too_big_returned")? > 0, "nobody was told");
    Ok(())
}

#[test]
fn client_on_a_narrow_path_does_not_keep_the_others_out_of_the_kernel() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions { clients: 2, ..LabOptions::default() })?;
    let _router = s1.lab.put_behind_router(&s1.lab.clients[0], NARROW)?;
    let host = &s1.lab.backends[0];
    let backend = host.ns.listen(host.socket(443))?;
    let node = s1.node_with(s1.config_of_bytes())?;
    let hello = client_hello(Some("fiscalismia.com"))?;
    let call = |client: usize| -> Result<()> {
        let mut stream = s1.lab.clients[client].ns.connect(s1.public())?;
        stream.write_all(&hello)?;
        Talk::accept(stream, &backend, &hello)?.finish().map(drop)
    };
    let handed_off = || node.status().ok()?["connections"]["handed_off_total"].as_u64();

    call(0)?;
    ensure!(handed_off() == Some(1), "{}", node.status()?);
    // The backend has learned it, of the proxy's address: it announces less from now on, to everybody.
    let proxy = s1.lab.private_address(host).to_string();
    let believes = host.ns.run("ip", &["route", "get", &proxy])?;
    ensure!(believes.contains(&format!("mtu {NARROW}")), "the backend believes: {believes}");
    wait_until(PATIENCE, "another client's connection goes to the kernel", || {
        call(1).is_ok() && handed_off() == Some(2)
    })?;
    for _ in 0..5 {
        call(1)?;
    }
    let relayed = node.status()?["connections"]["relay_reasons"].clone();
    ensure!(handed_off() == Some(7), "{}", node.status()?);
    ensure!(
        relayed["mtu"].as_u64().is_some_and(|n| (1..5).contains(&n)),
        "only who came before it was known: {relayed}"
    );
    Ok(())
}

/// The bottleneck's MTU.
const NARROW: u32 = 1_300;

#[test]
fn mtu_that_is_lowered_in_the_middle_of_transfers_is_learned_by_their_senders() -> Result<()> {
    require!("nginx", "curl");
    lowered(&LabOptions::default())
}

#[test]
fn lowered_mtu_is_learned_over_ipv6_and_without_offloads_too() -> Result<()> {
    require!("nginx", "curl", "ethtool");
    lowered(&LabOptions { ipv6: true, offloads: false, ..LabOptions::default() })
}

/// The devices towards a downloading client and towards the backend of an uploading one take less from some byte on.
fn lowered(options: &LabOptions) -> Result<()> {
    let s1 = S1::start_on(options)?;
    let node = s1.node()?;
    let bytes = amount_here(24 << 20);
    let sent = s1.backends[0].publish("big", bytes)?;
    // Each to a backend of its own: hosts remember what they have learned about the proxy.
    let [near, far] = ["fiscalismia.com", "backend.fiscalismia.com"].map(|name| s1.curl(name).limit_rate(bytes / 3));
    let set = |device, mtu| s1.lab.proxy.ns.ip_batch(&format!("link set {device} mtu {mtu}\n"));

    let download = near.download("/files/big")?;
    download.wait_for_bytes(bytes / 12, PATIENCE)?;
    set("pub0", LOWERED)?;
    assert_eq!(download.finish(LONG)?, sent);
    let told = node.verdict("drop_narrow")?;
    ensure!(told > 0, "nothing was too big for the client's device");

    // What such a device gets may not be larger either.
    set("pub0", 1_500)?;
    let file = s1.backends[0].published("big");
    std::thread::scope(|scope| -> Result<()> {
        let upload = scope.spawn(|| far.upload(&file, "/upload/big"));
        let under_way = |flow: &Value| flow["bytes_to_backend"].as_u64() > Some(bytes / 12);
        node.wait_for_flow("an upload is under way", under_way)?;
        set("priv0", LOWERED)?;
        let answer = upload.join().map_err(|_| anyhow!("curl panicked"))??;
        ensure!(answer.status == 201, "curl says {}", answer.status);
        Ok(())
    })?;
    assert_eq!(s1.backends[1].uploaded("big")?, sent);
    ensure!(node.verdict("drop_narrow")? > told, "nothing was too big for the backend's device");
    node.all_in_kernel()
}

/// Below what the handshakes agreed on, and what IPv6 takes.
const LOWERED: u32 = 1_400;
const LONG: Duration = Duration::from_secs(60);
