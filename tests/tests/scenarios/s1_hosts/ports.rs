//! Source ports that the host may give to others.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::{LabOptions, S1_BACKENDS};
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::talk::Talk;
use ingress_tests::wire::client_hello;
use serde_json::Value;

#[test]
fn port_that_another_program_holds_is_passed_over_and_shown() -> Result<()> {
    require!();
    let s1 = lab()?;
    let host = &s1.lab.backends[0];
    let backend = host.ns.listen(host.socket(443))?;
    // More in a row than anybody would try again and again.
    let held: Vec<TcpListener> = (24_000..24_020)
        .map(|port| s1.lab.proxy.ns.listen(SocketAddr::new("0.0.0.0".parse()?, port)).context("a port"))
        .collect::<Result<_>>()?;
    let mut config = s1.config_of_bytes();
    config["kernel"]["port_range"] = "24000-24063".into();
    let node = s1.node_with(config)?;
    for _ in 0..3 {
        let hello = client_hello(Some("fiscalismia.com"))?;
        let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
        client.write_all(&hello)?;
        let talk = Talk::accept(client, &backend, &hello)?;
        ensure!(talk.backend.peer_addr()?.port() >= 24_020, "{:?}", talk.backend.peer_addr());
        talk.finish()?;
    }
    node.all_in_kernel()?;
    assert_eq!(node.status()?["kernel"]["ports"]["held_by_others"], held.len());
    let shown = node.verb(&["status"])?;
    ensure!(shown.contains("20 of them in use by other programs"), "{shown}");
    Ok(())
}

#[test]
fn range_that_the_host_may_give_away_is_shown_with_the_command_that_reserves_it() -> Result<()> {
    require!();
    let s1 = lab()?;
    let proxy = &s1.lab.proxy.ns;
    proxy.sysctl("ipv4/ip_local_reserved_ports", "22000,50000-50003")?;
    let mut config = s1.config_of_bytes();
    config["kernel"]["port_range"] = "40000-49999".into();
    let node = s1.node_with(config)?;
    let missing = || -> Result<Vec<String>> {
        let status = node.status()?;
        let lines = status["kernel"]["missing"].as_array().context("what is missing")?;
        Ok(lines.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    };
    let lines = missing()?;
    let [line] = &lines[..] else { anyhow::bail!("one thing is missing: {lines:?}") };
    // As an operator takes it from there.
    let (_, command) = line.split_once("run `sysctl -w ").context("a command")?;
    let (setting, _) = command.split_once('`').context("its end")?;
    let (key, value) = setting.split_once('=').context("a setting")?;
    assert_eq!(key, "net.ipv4.ip_local_reserved_ports");
    proxy.sysctl("ipv4/ip_local_reserved_ports", value)?;
    ensure!(missing()?.is_empty(), "{:?}", missing()?);
    let reserved = proxy.run("sysctl", &["-n", key])?;
    assert_eq!(reserved.trim(), "22000,40000-50003", "the kernel joins them");
    Ok(())
}

fn lab() -> Result<S1> {
    S1::without_backends(&LabOptions { backends: vec![S1_BACKENDS[0]], ..LabOptions::default() })
}
