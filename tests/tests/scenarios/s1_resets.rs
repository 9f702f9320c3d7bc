//! Connections that one end resets: the other learns of it, and for nobody does it go on.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ingress_tests::handmade::{Handmade, Stack};
use ingress_tests::lab::LabOptions;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::scripted::Scripted;
use ingress_tests::talk::{Talk, accept};
use ingress_tests::wait::PATIENCE;
use ingress_tests::wire::{Ending, client_hello, ending, read_exactly};
use serde_json::Value;
use socket2::SockRef;

#[test]
fn backend_sees_the_end_of_a_reset_connection_at_once() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let (tell, told) = std::sync::mpsc::channel();
    let _backend = Scripted::start(&s1.lab.backends[0], move |mut stream| {
        stream.write_all(b"x")?;
        let _ = tell.send(stream.read(&mut [0; 16]).map_err(|e| e.kind()));
        Ok(())
    })?;
    let node = s1.node_with(s1.config_without_checks())?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&client_hello(Some(NAME))?)?;
    client.read_exact(&mut [0])?;
    SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    drop(client);
    let seen = told.recv_timeout(Duration::from_secs(5)).context("the backend noticed nothing")?;
    assert_eq!(seen, Err(std::io::ErrorKind::ConnectionReset));
    node.all_in_kernel()
}

/// A reset ends a connection for us when it is the last that its sender has said, but for the backend only when it lacks nothing
/// before it. A client who knows both could go on, counted nowhere.
#[test]
fn client_whose_reset_the_backend_does_not_believe_cannot_go_on() -> Result<()> {
    require!("nft", "ethtool");
    let s1 = S1::without_backends(&LabOptions { offloads: false, ..LabOptions::default() })?;
    let (from, host) = (&s1.lab.clients[0], &s1.lab.backends[0]);
    Handmade::mute(from)?;
    let listener = host.ns.listen(host.socket(443))?;
    let node = s1.node_with(without_header(&s1))?;
    let hello = client_hello(Some(NAME))?;

    // Without SACK: Linux believes a reset that lies right behind a block that it has, too (RFC 5961 does not know of that).
    let stack = Stack { options: vec![2, 4, 5, 0xb4], ecn: 0, window: 60_000 };
    let mut client = Handmade::connect(from, 30_000, s1.public(), &stack)?;
    client.write(&hello)?;
    let mut backend = accept(&listener)?;
    assert_eq!(read_exactly(&mut backend, hello.len())?, hello);
    backend.write_all(b"x")?;
    client.read_exactly(1)?;
    node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;

    client.lose(b"missing");
    client.write(b"there")?;
    client.reset()?;
    let end = node.wait_for_log("the end", |l| l["message"] == "connection ended")?;
    assert_eq!(end["end_reason"], "client_reset", "{end}");
    assert_eq!(ending(&mut backend, PATIENCE)?, Ending::Reset, "the backend's end");
    let went_on = client.repeat_backwards().and_then(|()| client.read_exactly(1));
    let refused = went_on.err().context("somebody answered")?.to_string();
    assert!(refused.contains("reset"), "{refused}");
    Ok(())
}

#[test]
fn reset_that_is_lost_behind_the_proxy_reaches_its_end_all_the_same() -> Result<()> {
    require!("nft");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let host = &s1.lab.backends[0];
    let listener = host.ns.listen(host.socket(443))?;
    let node = s1.node_with(without_header(&s1))?;
    let hello = client_hello(Some(NAME))?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&hello)?;
    let mut talk = Talk::accept(client, &listener, &hello)?;
    talk.exchange()?;
    node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;
    let lose_one =
        "type filter hook input priority filter; tcp flags & rst == rst limit rate 1/day burst 1 packets drop;";
    host.ns.nft(&format!("table ip lossy {{ chain input {{ {lose_one} }}; }}"))?;
    let Talk { client, mut backend, .. } = talk;
    SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    drop(client);
    assert_eq!(ending(&mut backend, PATIENCE)?, Ending::Reset);
    Ok(())
}

/// Backends get what the client says and nothing else.
fn without_header(s1: &S1) -> Value {
    s1.config_of_bytes()
}

const NAME: &str = "fiscalismia.com";
