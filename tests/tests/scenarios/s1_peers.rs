//! Peers that others wrote: HAProxy and Redis behind the proxy, h2load and Chromium before it.

use anyhow::{Context as _, Result};
use ingress_tests::backend::Backend;
use ingress_tests::browser::FLAGS;
use ingress_tests::lab::LabOptions;
use ingress_tests::require;
use ingress_tests::s1::S1;
use serde_json::json;

#[test]
fn haproxy_accepts_the_proxy_header_and_its_tlvs() -> Result<()> {
    require!("haproxy", "curl");
    let mut s1 = S1::without_backends(&LabOptions::default())?;
    let leaf = s1.leaf("web")?;
    s1.backends.push(Backend::haproxy("web", &s1.lab.backends[0], &leaf)?);
    let mut config = s1.config();
    let tlvs = ["authority", "alpn", "unique_id", "crc32c"];
    config["pools"]["web"]["proxy_protocol"] = json!({ "version": "v2", "tlvs": tlvs });
    let node = s1.node_with(config)?;

    let mut ids = Vec::new();
    for curl in [s1.curl("fiscalismia.com").http1(), s1.curl("fiscalismia.com").http2()] {
        let response = curl.get("/")?;
        let seen: serde_json::Value = serde_json::from_slice(&response.body)?;
        assert_eq!(seen["client"], s1.lab.clients[0].address.to_string(), "{seen}");
        assert_eq!(seen["client_port"], response.local_port, "{seen}");
        assert_eq!(seen["called"], s1.lab.proxy.address.to_string(), "{seen}");
        assert_eq!(seen["authority"], "fiscalismia.com", "{seen}");
        ids.push(seen["unique_id"].as_str().context("a unique id")?.to_owned());
    }
    assert!(!ids[0].is_empty() && ids[0] != ids[1], "{ids:?}");
    node.all_in_kernel()
}

#[test]
fn redis_is_reached_through_a_tcp_listener() -> Result<()> {
    require!("redis-server", "redis-cli");
    let mut s1 = S1::without_backends(&LabOptions::default())?;
    s1.backends.push(Backend::redis("redis", &s1.lab.backends[0])?);
    let mut config = s1.config_without_checks();
    config["listeners"]["redis"] =
        json!({ "bind": [s1.lab.public(6379).to_string()], "protocol": "tcp", "pool": "redis" });
    config["pools"]["redis"] = json!({ "backends": [s1.backends[0].host.socket(6379).to_string()] });
    let node = s1.node_with(config)?;

    let address = s1.lab.proxy.address.to_string();
    let cli = |words: &[&str]| s1.lab.clients[0].ns.run("redis-cli", &[&["-h", &address], words].concat());
    assert_eq!(cli(&["PING"])?.trim(), "PONG");
    node.all_in_kernel()?;
    // What arrives before the handoff must fit the backend's window, so this one may be relayed.
    let long = "x".repeat(20_000);
    assert_eq!(cli(&["SET", "key", &long])?.trim(), "OK");
    assert_eq!(cli(&["GET", "key"])?.trim(), long);
    Ok(())
}

#[test]
fn h2load_gets_every_answer() -> Result<()> {
    require!("nginx", "h2load");
    let s1 = S1::start()?;
    let node = s1.node()?;
    let to = format!("--connect-to={}", s1.public());
    let url = "https://fiscalismia.com/whoami";
    let said = s1.lab.clients[0].ns.run("h2load", &["-n", "5000", "-c", "50", "-m", "10", &to, url])?;
    assert!(said.contains("5000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
    assert_eq!(node.status()?["connections"]["handed_off_total"], 50);
    node.all_in_kernel()
}

#[test]
fn chromium_shows_the_page() -> Result<()> {
    require!("nginx", "chromium");
    let s1 = S1::start()?;
    let node = s1.node()?;
    let profile = tempfile::tempdir()?;
    let profile = format!("--user-data-dir={}", profile.path().display());
    let resolve = format!("--host-resolver-rules=MAP * {}", s1.lab.proxy.address);
    let url = "https://fiscalismia.com/whoami";
    let arguments = [&FLAGS[..], &["--ignore-certificate-errors", &profile, &resolve, "--dump-dom", url]].concat();
    // On a busy machine Chromium now and then asks the page for its DOM before there is one, prints nothing and ends well.
    let mut page = String::new();
    for _ in 0..3 {
        page = s1.lab.clients[0].ns.run("chromium", &arguments)?;
        if !page.trim().is_empty() {
            break;
        }
    }
    let client = format!("\"client\":\"{}\"", s1.lab.clients[0].address);
    assert!(page.contains(&client) && page.contains("\"backend\":\"web\""), "{page}");
    // A post-quantum key share alone is longer than a segment.
    let end = node.wait_for_log("the end of Chromium's connection", |l| {
        l["message"] == "connection ended" && l["sni"] == "fiscalismia.com"
    })?;
    assert!(end["bytes_to_backend"].as_u64().is_some_and(|n| n > 1460), "{end}");
    node.all_in_kernel()
}
