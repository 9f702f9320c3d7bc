//! Deployment S1 on its host: two kinds of NIC, a firewall that lets out nothing but replies, ports that are taken.

use anyhow::Result;
use ingress_tests::lab::LabOptions;
use ingress_tests::require;
use ingress_tests::s1::{S1, TABLE};
use ingress_tests::wait::{PATIENCE, wait_until};
use serde_json::json;

#[test]
fn works_with_all_public_egress_denied_except_replies() -> Result<()> {
    require!("nginx", "curl", "nft");
    // The lab's rules for connection tracking drop every packet that opens a connection towards pub0.
    let s1 = S1::start_on(&LabOptions { conntrack: true, ..LabOptions::default() })?;
    let node = s1.node()?;
    for (pool, _, names) in TABLE {
        assert_eq!(s1.curl(names[0]).get_json("/whoami")?["backend"], pool);
    }
    node.all_in_kernel()
}

#[test]
fn host_need_not_forward_and_backends_see_only_the_proxy() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let forwarding = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default();
    let node = s1.node()?;
    s1.curl("fiscalismia.com").get("/whoami")?;
    assert_eq!(s1.lab.proxy.ns.exec(forwarding).trim(), "0", "the daemon switched forwarding on");
    node.all_in_kernel()
}

#[test]
fn listener_answers_on_the_public_device_only() -> Result<()> {
    require!("nginx");
    let s1 = S1::start()?;
    let _node = s1.node()?;
    let public = s1.public();
    assert!(s1.lab.clients[0].ns.connect(public).is_ok());
    // A backend that knows a way to the public address must not get in by the private side.
    let backend = &s1.lab.backends[0];
    backend.ns.ip_batch(&format!("route add 192.0.2.0/24 via {}\n", s1.lab.private_address(backend)))?;
    assert!(backend.ns.connect(public).is_err());
    Ok(())
}

#[test]
fn port_that_is_taken_degrades_one_listener_until_it_is_free() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let taken = s1.lab.proxy.ns.listen(s1.lab.public(8443))?;
    let mut config = s1.config();
    config["listeners"]["second"] = json!({ "bind": [s1.lab.public(8443).to_string()] });
    let node = s1.node_with(config)?;
    let state = || {
        let status = node.status().ok()?;
        let second = status["listeners"].as_array()?.iter().find(|l| l["name"] == "second")?;
        Some((second["state"].as_str()?.to_owned(), second["error"].is_string()))
    };
    assert_eq!(state(), Some(("degraded".into(), true)));
    s1.curl("fiscalismia.com").get("/whoami")?;
    drop(taken);
    wait_until(PATIENCE, "the second listener binds", || state().is_some_and(|(state, _)| state == "listening"))
}

#[test]
fn connection_to_a_port_without_listener_is_refused_as_ever() -> Result<()> {
    require!("nginx");
    let s1 = S1::start()?;
    let _node = s1.node()?;
    let error = s1.lab.clients[0].ns.connect(s1.lab.public(444)).expect_err("nobody listens there");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    Ok(())
}
