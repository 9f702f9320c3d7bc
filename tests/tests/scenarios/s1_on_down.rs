//! Health checks, and what they mean for connections that are already in the kernel.

use std::io::Write as _;
use std::net::TcpStream;

use anyhow::Result;
use ingress_tests::lab::LabOptions;
use ingress_tests::node::Node;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Ending, client_hello, ending, proxy_v2, read_exactly};
use serde_json::{Value, json};

/// Checked on a port of its own, so that a backend can be down while its connections live.
const CHECKED_PORT: u16 = 9000;

#[test]
fn cut_resets_both_ends_of_a_connection_in_the_kernel() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let (node, mut client, mut backend) = connection_to_a_backend_that_goes_down(&s1, "cut")?;
    assert_eq!(ending(&mut client, PATIENCE)?, Ending::Reset);
    assert_eq!(ending(&mut backend, PATIENCE)?, Ending::Reset);
    let end = node.wait_for_log("the end of the connection", |l| l["message"] == "connection ended")?;
    assert_eq!(end["end_reason"], "backend_down", "{end}");
    wait_until(PATIENCE, "the cut connection leaves the list", || node.flows().is_ok_and(|f| f.is_empty()))
}

#[test]
fn keep_lets_the_connection_go_on() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let (_node, mut client, mut backend) = connection_to_a_backend_that_goes_down(&s1, "keep")?;
    client.write_all(b"still here")?;
    assert_eq!(read_exactly(&mut backend, 10)?, b"still here");
    backend.write_all(b"me too")?;
    assert_eq!(read_exactly(&mut client, 6)?, b"me too");
    Ok(())
}

#[test]
fn backend_that_is_down_gets_no_connection_until_it_is_back() -> Result<()> {
    require!("nginx", "curl");
    let mut s1 = S1::start()?;
    let mut config = s1.config();
    let spare = s1.lab.backends[3].socket(443).to_string();
    config["pools"]["web"]["fallback"] = json!([spare]);
    config["pools"]["web"]["health"] = quick_check(443);
    let node = s1.node_with(config)?;
    let answers = |s1: &S1| s1.curl("fiscalismia.com").arg("--insecure").get_json("/whoami");
    assert_eq!(answers(&s1)?["backend"], "web");

    s1.backend("web")?.stop();
    wait_until(PATIENCE, "the backend is down", || up(&node) == Some(0))?;
    assert_eq!(answers(&s1)?["backend"], "monitoring");

    s1.backend("web")?.restart()?;
    wait_until(PATIENCE, "the backend is up again", || up(&node) == Some(1))?;
    assert_eq!(answers(&s1)?["backend"], "web");
    node.all_in_kernel()
}

/// A spliced connection whose backend then fails its checks: node, client's end, backend's end.
fn connection_to_a_backend_that_goes_down(s1: &S1, on_down: &str) -> Result<(Node, TcpStream, TcpStream)> {
    let host = &s1.lab.backends[0];
    let listener = host.ns.listen(host.socket(443))?;
    let checked = host.ns.listen(host.socket(CHECKED_PORT))?;
    let mut config = s1.config_without_checks();
    config["pools"]["web"]["on_down"] = on_down.into();
    config["pools"]["web"]["health"] = quick_check(CHECKED_PORT);
    let node = s1.node_with(config)?;

    let hello = client_hello(Some("fiscalismia.com"))?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&hello)?;
    let (mut backend, _) = listener.accept()?;
    read_exactly(&mut backend, proxy_v2(client.local_addr()?, s1.public()).len() + hello.len())?;
    node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;

    drop(checked);
    wait_until(PATIENCE, "the backend is down", || up(&node) == Some(0))?;
    Ok((node, client, backend))
}

/// How many backends of the first pool are up.
fn up(node: &Node) -> Option<u64> {
    let status = node.status().ok()?;
    let pools = status["pools"].as_array()?;
    pools.iter().find(|p| p["name"] == "web")?["up"].as_u64()
}

fn quick_check(port: u16) -> Value {
    json!({ "type": "tcp", "port": port, "interval": "100ms", "timeout": "100ms", "rise": 2, "fall": 2 })
}
