//! The day of the move: a configuration of HAProxy serves its names, is imported, and serves the same ones from here.

use anyhow::Result;
use ingress_tests::backend::Backend;
use ingress_tests::lab::LabOptions;
use ingress_tests::node::Node;
use ingress_tests::process::Process;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::skip::find_program;
use ingress_tests::wait::{PATIENCE, wait_until};

#[test]
fn what_haproxy_served_is_served_from_its_imported_configuration() -> Result<()> {
    require!("haproxy", "nginx", "curl");
    let s1 = S1::start_on(&LabOptions::default())?;
    let dir = tempfile::Builder::new().prefix("ing-import-").tempdir()?;
    let theirs = dir.path().join("haproxy.cfg");
    std::fs::write(&theirs, haproxy_cfg(&s1))?;

    let Some(haproxy) = find_program("haproxy") else { anyhow::bail!("haproxy is not installed") };
    let mut command = s1.lab.proxy.ns.command(haproxy);
    let process = Process::spawn_logged("haproxy", command.arg("-db").arg("-f").arg(&theirs), &dir.path().join("log"))?;
    let accepts = || s1.lab.clients[0].ns.connect(s1.public()).is_ok();
    wait_until(PATIENCE, "HAProxy accepts", accepts)?;
    let before = served(&s1)?;
    drop(process);

    let mut node = Node::prepare(&s1.lab.proxy.ns)?;
    let theirs = theirs.display().to_string();
    let imported = node.verb(&["import", "haproxy", &theirs])?;
    node.write_shipped_config(&format!("{imported}admin:\n"))?;
    node.launch()?;
    assert_eq!(served(&s1)?, before);
    assert!(before.iter().all(|(_, backend)| !backend.is_empty()), "{before:?}");
    node.all_in_kernel()
}

/// Each name with the backend that answers.
fn served(s1: &S1) -> Result<Vec<(&'static str, String)>> {
    let mut all = Vec::new();
    for name in s1.table.iter().flat_map(|(_, _, names)| *names) {
        let seen: serde_json::Value = serde_json::from_slice(&s1.curl(name).get("/whoami")?.body)?;
        all.push((*name, seen["backend"].as_str().unwrap_or_default().to_owned()));
    }
    Ok(all)
}

/// A named list, anonymous ones, and a default.
fn haproxy_cfg(s1: &S1) -> String {
    let mut text = format!(
        "\
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend tls
    bind {}
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    acl web req.ssl_sni -i fiscalismia.com
    use_backend web if web
    use_backend demo if {{ req.ssl_sni -i demo.fiscalismia.com backend.demo.fiscalismia.com }}

    use_backend monitoring if {{ req.ssl_sni -i monitoring.fiscalismia.com }} {{ req.ssl_hello_type 1 }}
    default_backend api
",
        s1.public()
    );
    let hosts = |backend: &Backend| backend.host.socket(443);
    for backend in &s1.backends {
        text.push_str(&format!("backend {0}\n    server s {1} check send-proxy-v2\n", backend.name, hosts(backend)));
    }
    text
}
