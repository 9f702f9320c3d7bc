//! A new configuration while connections run: a good one is taken, a bad one is not, and no unrelated connection notices.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::LabOptions;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::{PATIENCE, wait_until};
use serde_json::json;

#[test]
fn bad_file_keeps_the_old_configuration_and_says_so() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let node = s1.node()?;
    let generation = node.status()?["config"]["generation"].clone();

    let mut bad = s1.config();
    bad["pools"]["web"]["proxy_protocoll"] = "v2".into();
    let error = node.reload(bad).expect_err("an unknown key is an error").to_string();
    assert!(error.contains("proxy_protocoll") && error.contains("ingress.yaml:"), "{error}");
    node.write_config_text("listeners: [\n")?;
    let error = node.reload_file().expect_err("this is not even YAML").to_string();
    assert!(error.contains("ingress.yaml:2:1") && error.contains("not valid YAML"), "{error}");

    let config = &node.status()?["config"];
    assert_eq!(config["generation"], generation, "{config}");
    assert!(config["last_error"].as_str().is_some_and(|e| e.contains("ingress.yaml")), "{config}");
    assert_eq!(node.metric("ingress_config_last_reload_successful", &[])?, 0.0);
    assert_eq!(s1.curl("fiscalismia.com").get_json("/whoami")?["backend"], "web");

    node.reload(s1.config())?;
    assert!(node.status()?["config"]["last_error"].is_null());
    assert_eq!(node.metric("ingress_config_last_reload_successful", &[])?, 1.0);
    Ok(())
}

#[test]
fn changed_routes_hold_for_new_connections_only() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let node = s1.node()?;
    let sent = s1.backends[0].publish("big", 64 << 20)?;
    let download = s1.curl("fiscalismia.com").download("/files/big")?;
    download.wait_for_bytes(1 << 20, PATIENCE)?;
    download.hold();

    let mut config = s1.config();
    config["routes"][0]["pool"] = "monitoring".into();
    node.reload(config)?;
    let seen = s1.curl("fiscalismia.com").arg("--insecure").get_json("/whoami")?;
    assert_eq!(seen["backend"], "monitoring");
    assert_eq!(download.finish(Duration::from_secs(60))?, sent);
    node.all_in_kernel()
}

#[test]
fn a_thousand_reloads_leave_no_memory_behind() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let mut config = s1.config_without_checks();
    config["kernel"]["enabled"] = false.into();
    let node = s1.node_with(config.clone())?;
    let reload = |times: usize| -> Result<()> {
        for n in 0..times {
            let mut config = config.clone();
            for route in 0..200 {
                let (sni, pool) = (format!("h{route}-{}.example.com", n % 2), "web");
                let route = json!({ "sni": sni, "pool": pool });
                config["routes"].as_array_mut().context("routes")?.push(route);
            }
            node.reload(config)?;
        }
        Ok(())
    };
    let resident = || resident_kib(node.pid().context("the daemon runs")?);
    reload(100)?;
    let before = resident()?;
    reload(1_000)?;
    let after = resident()?;
    ensure!(after * 100 <= before * 105, "{before} KiB before, {after} KiB after a thousand reloads");
    Ok(())
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

#[test]
fn changed_file_is_taken_without_being_asked() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let node = s1.node()?;
    let mut config = s1.config();
    config["routes"][0]["pool"] = "monitoring".into();
    node.write_config(config)?;
    wait_until(PATIENCE, "the changed file is in use", || {
        let seen = s1.curl("fiscalismia.com").arg("--insecure").get_json("/whoami");
        seen.is_ok_and(|s| s["backend"] == "monitoring")
    })
}

#[test]
fn broken_file_at_start_is_replaced_by_the_last_good_one() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let mut node = s1.node()?;
    node.terminate()?;
    let mut broken = s1.config();
    broken["listeners"] = "none".into();
    node.write_config(broken)?;
    node.launch()?;
    let config = &node.status()?["config"];
    assert_eq!(config["source"], "last-good", "{config}");
    assert!(!config["last_error"].is_null(), "{config}");
    s1.curl("fiscalismia.com").get("/whoami")?;
    Ok(())
}
