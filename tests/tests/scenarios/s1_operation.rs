//! What an operator sees and does: status, flows, kill, metrics, the config check.

use anyhow::{Context as _, Result};
use ingress_tests::node::ingress;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::{PATIENCE, wait_until};
use serde_json::Value;

#[test]
fn status_shows_the_kernel_path_on_every_device_that_carries_traffic() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let node = s1.node()?;
    let status = node.status()?;
    assert_eq!(status["kernel"]["mode"], "kernel", "{}", status["kernel"]);
    let interfaces = status["kernel"]["interfaces"].as_array().context("interfaces")?;
    for device in ["pub0", "priv0", "priv1"] {
        let found =
            interfaces.iter().find(|i| i["name"] == device).with_context(|| format!("no {device}: {status}"))?;
        assert!(found["attached"] == "tcx" || found["attached"] == "clsact", "{found}");
    }
    Ok(())
}

#[test]
fn killed_flow_ends_and_the_others_go_on() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let node = s1.node()?;
    for host in [0, 2] {
        s1.backends[host].publish("big", 64 << 20)?;
    }
    let doomed = s1.curl("fiscalismia.com").download("/files/big")?;
    let spared = s1.curl("demo.fiscalismia.com").download("/files/big")?;
    for download in [&doomed, &spared] {
        download.wait_for_bytes(1 << 20, PATIENCE)?;
        download.hold();
    }
    let killed = node.json(&["flows", "kill", "--sni", "fiscalismia.com"])?;
    assert_eq!(killed["killed"], 1);
    let error = doomed.finish(PATIENCE).expect_err("the transfer was cut");
    assert!(error.to_string().contains("curl ended"), "{error}");
    assert_eq!(spared.finish(PATIENCE)?.bytes, 64 << 20);
    let end = node.wait_for_log("the killed connection's end", |l| {
        l["message"] == "connection ended" && l["sni"] == "fiscalismia.com"
    })?;
    assert_eq!(end["end_reason"], "killed", "{end}");
    Ok(())
}

#[test]
fn log_and_metrics_count_the_bytes_that_the_client_counts() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let node = s1.node()?;
    let sent = s1.backends[0].publish("file", 3_000_000)?;
    let got = s1.curl("fiscalismia.com").download("/files/file")?.finish(PATIENCE)?;
    assert_eq!(got, sent);
    let start = node.wait_for_log("its start", |l| l["message"] == "connection started")?;
    let end = node.wait_for_log("its end", |l| l["message"] == "connection ended")?;
    assert_eq!(start["id"], end["id"]);
    assert_eq!((&end["pool"], &end["alpn"]), (&"web".into(), &"h2,http/1.1".into()), "{end}");
    // TLS and HTTP/2 wrap the body; retransmits and PROXY header must not be in it.
    let bytes = end["bytes_to_client"].as_u64().context("bytes_to_client")?;
    assert!((3_000_000..3_060_000).contains(&bytes), "{end}");
    wait_until(PATIENCE, "the counter has the same bytes", || {
        let labels = ["pool=\"web\"", "direction=\"to_client\""];
        node.metric("ingress_bytes_total", &labels).is_ok_and(|n| n == bytes as f64)
    })?;
    assert_eq!(node.metric("ingress_connections_total", &[])?, 1.0);
    assert_eq!(node.metric("ingress_handoffs_total", &[])?, 1.0);
    Ok(())
}

#[test]
fn check_names_every_problem_with_its_place_and_exits_2() -> Result<()> {
    require!();
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("ingress.yaml");
    std::fs::write(
        &file,
        "listeners:\n  tls:\n    bind: 192.0.2.1:443\n    devize: pub0\n\
         routes:\n  - sni: a..b\n    pool: webb\n  - sni: b.example.com\n    pool: web\n\
         pools:\n  webb:\n    backends: [\"172.24.0.3:443\"]\n",
    )?;
    let path = file.to_str().context("a plain name")?;
    let output = ingress(&["check", "--config", path])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for place in ["ingress.yaml:4:5", "ingress.yaml:6:10", "ingress.yaml:9:11"] {
        assert!(said.contains(place), "{place} is not in: {said}");
    }
    assert!(said.contains("device") && said.contains("webb"), "no suggestions in: {said}");
    Ok(())
}

#[test]
fn check_accepts_what_the_daemon_runs_on() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&ingress_tests::lab::LabOptions::default())?;
    let node = ingress_tests::node::Node::prepare(&s1.lab.proxy.ns)?;
    node.write_config(s1.config())?;
    node.verb(&["check"])?;
    let schema: Value = serde_json::from_slice(&ingress(&["check", "--schema"])?.stdout)?;
    assert!(schema["properties"]["listeners"].is_object(), "{schema}");
    Ok(())
}
