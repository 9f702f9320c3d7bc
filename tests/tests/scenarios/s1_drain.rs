//! `ingress drain`: nobody new, those who are there go on, and it can be taken back.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::Result;
use ingress_tests::node::{ADMIN_PORT, Node};
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::{PATIENCE, wait_until};

#[test]
fn a_drained_node_takes_nobody_new_and_waits_for_those_it_has() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let mut node = Node::prepare(&s1.lab.proxy.ns)?;
    node.keep_sockets()?;
    node.write_config(s1.config())?;
    node.launch()?;
    let sent = s1.backends[0].publish("big", 64 << 20)?;
    let download = s1.curl("fiscalismia.com").download("/files/big")?;
    download.wait_for_bytes(1 << 20, PATIENCE)?;
    download.hold();
    node.all_in_kernel()?;

    assert_eq!(node.verb(&["drain"])?.trim(), "draining: no new connections; 1 connection open");
    refuses(&s1)?;
    assert_eq!(readiness(&s1)?, "503");
    let status = node.status()?;
    assert_eq!((&status["drained"], &status["ready"]), (&true.into(), &false.into()), "{status}");
    assert_eq!(node.kept_sockets()?, [""; 0], "who connects to a kept socket waits in vain");
    // What changes in the file meanwhile opens nothing.
    let mut config = s1.config();
    config["listeners"]["second"] =
        serde_json::json!({ "bind": [s1.lab.public(6379).to_string()], "protocol": "tcp", "pool": "web" });
    node.reload(config)?;
    refuses(&s1)?;

    let waited = node.output(&["drain", "--wait", "1"])?;
    assert_eq!(waited.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&waited.stdout).starts_with("draining: 1 connection left after"), "{waited:?}");
    assert_eq!(download.finish(Duration::from_secs(60))?, sent);
    assert_eq!(node.json(&["drain", "--wait", "20"])?["open"], 0);

    node.verb(&["drain", "--cancel"])?;
    wait_until(PATIENCE, "it listens again", || s1.curl("fiscalismia.com").get("/whoami").is_ok())?;
    assert_eq!(readiness(&s1)?, "200");
    assert!(!node.kept_sockets()?.is_empty());

    // A restart ends a drain.
    node.verb(&["drain"])?;
    node.terminate()?;
    node.launch()?;
    s1.curl("fiscalismia.com").get("/whoami")?;
    node.all_in_kernel()
}

fn refuses(s1: &S1) -> Result<()> {
    let refused = || s1.lab.clients[0].ns.connect(s1.public()).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
    wait_until(PATIENCE, "new connections are refused", refused)
}

fn readiness(s1: &S1) -> Result<String> {
    let url = format!("http://127.0.0.1:{ADMIN_PORT}/readyz");
    s1.lab.proxy.ns.run("curl", &["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", &url])
}
