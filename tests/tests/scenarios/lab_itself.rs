//! The lab proves itself first: what a later scenario shows is then about the daemon.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ingress_tests::backend::Backend;
use ingress_tests::bulk::{BulkServer, measure};
use ingress_tests::client::Curl;
use ingress_tests::lab::{Lab, LabOptions};
use ingress_tests::netns::Namespace;
use ingress_tests::payload::write_file;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wire::{http_get, proxy_v2, tls, tls_config};
use serde_json::Value;

#[test]
fn namespaces_are_gone_after_drop_and_after_a_panic() -> Result<()> {
    require!();
    let lab = Lab::s1()?;
    let names: Vec<String> = lab.backends.iter().chain([&lab.proxy]).map(|h| h.ns.name().to_owned()).collect();
    assert!(names.iter().all(|name| Namespace::exists(name)));
    drop(lab);
    assert!(!names.iter().any(|name| Namespace::exists(name)));

    let (tell, told) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let ns = Namespace::new("doomed").expect("a namespace");
        tell.send(ns.name().to_owned()).expect("the test listens");
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(panicked.join().is_err());
    assert!(!Namespace::exists(&told.recv()?));
    Ok(())
}

#[test]
fn backend_is_reached_from_the_proxy_and_not_from_a_client() -> Result<()> {
    require!();
    let lab = Lab::s1()?;
    for backend in &lab.backends {
        let listener = backend.ns.listen(backend.socket(443))?;
        let near = lab.proxy.ns.connect(backend.socket(443)).context("from the proxy")?;
        let (_, seen_from) = listener.accept()?;
        assert_eq!(seen_from.ip(), lab.private_address(backend));
        assert_eq!(near.peer_addr()?, backend.socket(443));
        let far = lab.clients[0].ns.connect(backend.socket(443));
        assert!(far.is_err(), "a client has no way to {}", backend.address);
    }
    Ok(())
}

#[test]
fn routed_lab_lets_a_client_through_with_its_own_address() -> Result<()> {
    require!();
    let lab = Lab::build(&LabOptions { clients: 2, routed: true, ..LabOptions::default() })?;
    let backend = &lab.backends[2];
    let listener = backend.ns.listen(backend.socket(443))?;
    let _stream = lab.clients[1].ns.connect(backend.socket(443))?;
    assert_eq!(listener.accept()?.1.ip(), lab.clients[1].address);

    let server = BulkServer::start(backend, 5000)?;
    let rate = measure(&lab.clients[0].ns, server.address, b"go", Duration::from_millis(100))?;
    assert!(rate > 1e8, "{rate} bit/s");
    server.stop(backend);
    Ok(())
}

#[test]
fn nginx_takes_the_client_address_from_a_proxy_header() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let backend = s1.backends[0].host.socket(443);
    // PROXY v1, as written by curl.
    let curl = Curl::new(&s1.lab.proxy.ns, backend, "fiscalismia.com", s1.ca()).arg("--haproxy-protocol");
    let seen = curl.clone().http2().get_json("/whoami")?;
    assert_eq!(seen["backend"], "web");
    assert_eq!(seen["client"], s1.lab.private_address(&s1.backends[0].host).to_string());
    assert_eq!((&seen["sni"], &seen["protocol"]), (&"fiscalismia.com".into(), &"HTTP/2.0".into()));
    assert_eq!(curl.http1().get("/whoami")?.http_version, "1.1");

    let seen = whoami_with_proxy_v2(&s1, backend)?;
    assert_eq!((&seen["client"], &seen["forwarded_for"]), (&"203.0.113.7".into(), &"203.0.113.7".into()));
    Ok(())
}

#[test]
fn haproxy_takes_the_client_address_from_a_proxy_header() -> Result<()> {
    require!("haproxy");
    let mut s1 = S1::without_backends(&LabOptions::default())?;
    let leaf = s1.leaf("web")?;
    s1.backends.push(Backend::haproxy("web", &s1.lab.backends[0], &leaf)?);
    let seen = whoami_with_proxy_v2(&s1, s1.backends[0].host.socket(443))?;
    assert_eq!((&seen["client"], &seen["client_port"]), (&"203.0.113.7".into(), &4711.into()));
    Ok(())
}

#[test]
fn transfers_are_hashed_at_both_ends() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let web = &s1.backends[0];
    let curl = Curl::new(&s1.lab.proxy.ns, web.host.socket(443), "fiscalismia.com", s1.ca()).arg("--haproxy-protocol");

    let sent = web.publish("big", 40 << 20)?;
    let download = curl.download("/files/big")?;
    download.hold();
    download.resume();
    download.wait_for_bytes(1 << 20, Duration::from_secs(10))?;
    assert_eq!(download.finish(Duration::from_secs(30))?, sent);

    let dir = tempfile::tempdir()?;
    let sent = write_file(&dir.path().join("big"), 5 << 20, 3)?;
    assert_eq!(curl.upload(&dir.path().join("big"), "/upload/big")?.status, 201);
    assert_eq!(web.uploaded("big")?, sent);
    Ok(())
}

#[test]
fn lab_stands_with_conntrack_small_mtu_and_without_offloads() -> Result<()> {
    require!("nft", "ethtool");
    let options = LabOptions { conntrack: true, private_mtu: 1420, offloads: false, ..LabOptions::default() };
    let lab = Lab::build(&options)?;
    let backend = &lab.backends[0];
    let _listener = backend.ns.listen(backend.socket(443))?;
    lab.proxy.ns.connect(backend.socket(443))?;
    let link = lab.proxy.ns.run("ip", &["link", "show", "priv0"])?;
    assert!(link.contains("mtu 1420"), "{link}");
    let features = lab.proxy.ns.run("ethtool", &["-k", "pub0"])?;
    assert!(features.contains("generic-segmentation-offload: off"), "{features}");
    Ok(())
}

/// What a backend says about a client at 203.0.113.7 port 4711.
fn whoami_with_proxy_v2(s1: &S1, backend: SocketAddr) -> Result<Value> {
    let mut stream = s1.lab.proxy.ns.connect(backend)?;
    stream.write_all(&proxy_v2(([203, 0, 113, 7], 4711).into(), s1.public()))?;
    let mut stream = tls(tls_config(&s1.ca())?, "fiscalismia.com", stream)?;
    let body = http_get(&mut stream, "fiscalismia.com", "/whoami")?;
    serde_json::from_slice(&body).with_context(|| format!("{:?}", String::from_utf8_lossy(&body)))
}
