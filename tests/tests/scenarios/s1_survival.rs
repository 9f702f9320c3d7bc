//! The daemon dies; established connections do not notice. The next daemon adopts them.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ingress_tests::lab::LabOptions;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::talk::accept;
use ingress_tests::wait::{PATIENCE, amount_here};
use ingress_tests::wire::{Ending, client_hello, ending, proxy_v2, read_exactly};

#[test]
fn download_completes_although_the_daemon_is_killed_in_its_middle() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let mut node = s1.node()?;
    let sent = s1.backends[0].publish("big", amount_here(96 << 20))?;

    // One stands still at the moment of the kill, the other runs.
    let held = s1.curl("fiscalismia.com").download("/files/big")?;
    held.wait_for_bytes(amount_here(1 << 20), PATIENCE)?;
    held.hold();
    let running = s1.curl("fiscalismia.com").limit_rate(amount_here(24 << 20)).download("/files/big")?;
    running.wait_for_bytes(amount_here(1 << 20), PATIENCE)?;
    node.all_in_kernel()?;

    node.kill9()?;
    let at_the_kill = running.received();
    assert!(at_the_kill < sent.bytes, "the download was over before the kill");
    running.wait_for_bytes(at_the_kill + amount_here(8 << 20), PATIENCE)?;
    assert_eq!(held.finish(Duration::from_secs(60))?, sent);
    assert_eq!(running.finish(Duration::from_secs(60))?, sent);
    assert!(s1.curl("fiscalismia.com").get("/whoami").is_err(), "nobody accepts new connections now");
    Ok(())
}

#[test]
fn restarted_daemon_adopts_the_connections_of_its_predecessor() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let host = &s1.lab.backends[0];
    let listener = host.ns.listen(host.socket(443))?;
    let mut node = s1.node_with(s1.config_without_checks())?;

    let hello = client_hello(Some("fiscalismia.com"))?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&hello)?;
    let (mut backend, _) = listener.accept()?;
    read_exactly(&mut backend, proxy_v2(client.local_addr()?, s1.public()).len() + hello.len())?;
    let before = node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;

    node.kill9()?;
    client.write_all(b"without")?;
    assert_eq!(read_exactly(&mut backend, 7)?, b"without");
    node.launch()?;
    let status = node.status()?;
    assert_eq!(status["kernel"]["adopted"], 1, "{}", status["kernel"]);
    let after = node.wait_for_flow("it is spliced still", |f| f["state"] == "spliced")?;
    for key in ["id", "client", "backend_address", "sni", "route", "pool", "listener", "source"] {
        assert_eq!(after[key], before[key], "{key}");
    }

    // A new connection does not collide with the adopted one.
    let mut second = s1.lab.clients[0].ns.connect(s1.public())?;
    second.write_all(&hello)?;
    let mut second_backend = accept(&listener).context("on the adopted connection's port?")?;
    let from = second_backend.peer_addr()?;
    assert_ne!(from.to_string(), after["source"], "the adopted connection's port was given away");
    read_exactly(&mut second_backend, proxy_v2(second.local_addr()?, s1.public()).len() + hello.len())?;

    backend.write_all(b"goodbye")?;
    drop(backend);
    assert_eq!(ending(&mut client, PATIENCE)?, Ending::Closed(b"goodbye".to_vec()));
    drop(client);
    let end = node.wait_for_log("the adopted connection's end", |l| {
        l["message"] == "connection ended" && l["id"] == before["id"]
    })?;
    assert_eq!(end["bytes_to_backend"], hello.len() as u64 + 7, "{end}");
    assert_eq!(end["bytes_to_client"], 7, "{end}");
    assert_eq!((&end["sni"], &end["mode"]), (&"fiscalismia.com".into(), &"kernel".into()), "{end}");
    node.all_in_kernel()
}

#[test]
fn orderly_restart_leaves_established_connections_alone() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let mut node = s1.node()?;
    let sent = s1.backends[0].publish("big", 64 << 20)?;
    let download = s1.curl("fiscalismia.com").download("/files/big")?;
    download.wait_for_bytes(1 << 20, PATIENCE)?;
    download.hold();
    node.all_in_kernel()?;

    let status = node.terminate()?;
    assert!(status.success(), "the daemon ended with {status}");
    node.launch()?;
    assert_eq!(node.status()?["kernel"]["adopted"], 1);
    assert_eq!(download.finish(Duration::from_secs(60))?, sent);
    s1.curl("fiscalismia.com").get("/whoami")?;
    node.all_in_kernel()
}

#[test]
fn detach_leaves_nothing_behind() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let mut node = s1.node()?;
    s1.curl("fiscalismia.com").get("/whoami")?;
    assert!(node.pin_dir().exists());
    node.terminate()?;
    node.verb(&["detach"])?;
    assert!(!node.pin_dir().exists(), "{} is still there", node.pin_dir().display());
    // The host forwards no packet for a proxy that is gone, and takes new ones as if nothing had been.
    node.launch()?;
    assert_eq!(node.status()?["kernel"]["adopted"], 0);
    s1.curl("fiscalismia.com").get("/whoami")?;
    node.all_in_kernel()
}
