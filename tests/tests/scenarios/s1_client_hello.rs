//! The first bytes, as clients really send them: whole, in pieces, too late, or none at all.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::Result;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Drip, Ending, client_hello, ending, http_get, tls, tls_config};
use serde_json::Value;

#[test]
fn hello_sent_byte_by_byte_is_routed_like_any_other() -> Result<()> {
    require!("nginx");
    let s1 = S1::start()?;
    let node = s1.node()?;
    for step in [1, 7, 100] {
        let stream = Drip::new(s1.lab.clients[0].ns.connect(s1.public())?, step)?;
        let mut stream = tls(tls_config(&s1.ca())?, "demo.fiscalismia.com", stream)?;
        let seen: Value = serde_json::from_slice(&http_get(&mut stream, "demo.fiscalismia.com", "/whoami")?)?;
        assert_eq!((&seen["backend"], &seen["sni"]), (&"demo".into(), &"demo.fiscalismia.com".into()));
    }
    node.all_in_kernel()
}

#[test]
fn hello_split_over_records_is_routed_like_any_other() -> Result<()> {
    require!("nginx");
    let s1 = S1::start()?;
    let _node = s1.node()?;
    let mut stream = s1.lab.clients[0].ns.connect(s1.public())?;
    stream.write_all(&in_small_records(&client_hello(Some("fiscalismia.com"))?, 50))?;
    let mut record = [0; 6];
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut record)?;
    // Only the backend answers with a handshake record that holds a ServerHello.
    assert_eq!((record[0], record[5]), (22, 2), "{record:02x?}");
    Ok(())
}

#[test]
fn what_is_not_tls_is_closed_and_counted() -> Result<()> {
    require!("nginx");
    let s1 = S1::start()?;
    let node = s1.node()?;
    let mut stream = s1.lab.clients[0].ns.connect(s1.public())?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: fiscalismia.com\r\n\r\n")?;
    let end = ending(&mut stream, PATIENCE)?;
    assert!(matches!(end, Ending::Closed(ref bytes) if bytes.is_empty()) || end == Ending::Reset, "{end:?}");
    assert_eq!(node.metric("ingress_connections_refused_total", &["cause=\"not_tls\""])?, 1.0);
    Ok(())
}

#[test]
fn half_a_hello_ends_at_the_time_limit() -> Result<()> {
    require!("nginx");
    let s1 = S1::start()?;
    let mut config = s1.config();
    config["listeners"]["tls"]["hello_timeout"] = "500ms".into();
    let node = s1.node_with(config)?;

    let hello = client_hello(Some("fiscalismia.com"))?;
    let mut silent = s1.lab.clients[0].ns.connect(s1.public())?;
    let mut half = s1.lab.clients[0].ns.connect(s1.public())?;
    half.write_all(&hello[..hello.len() / 2])?;
    for stream in [&mut silent, &mut half] {
        assert_ne!(ending(stream, PATIENCE)?, Ending::Open);
    }
    assert_eq!(node.metric("ingress_connections_refused_total", &["cause=\"hello_timeout\""])?, 2.0);

    let mut gone = s1.lab.clients[0].ns.connect(s1.public())?;
    gone.write_all(&hello[..10])?;
    drop(gone);
    wait_until(Duration::from_secs(5), "the client that left is counted", || {
        node.metric("ingress_connections_refused_total", &["cause=\"hello_eof\""]).is_ok_and(|n| n == 1.0)
    })
}

/// The same handshake message in records of at most `size` bytes: RFC 8446 section 5.1 allows any fragmentation.
fn in_small_records(hello: &[u8], size: usize) -> Vec<u8> {
    let (head, message) = hello.split_at(5);
    let record = |part: &[u8]| [&head[..3], &(part.len() as u16).to_be_bytes()[..], part].concat();
    message.chunks(size).flat_map(record).collect()
}
