//! Each node keeps its own DNS records, at providers that have bad days.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::Result;
use ingress_tests::dns_api::{DnsApi, Flavour, Mood, TOKEN, ZONE};
use ingress_tests::lab::LabOptions;
use ingress_tests::node::Node;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

const NAME: &str = "node1.example.com";
/// The proxy's own address in the lab.
const OURS: &str = "192.0.2.1";

struct Lab {
    s1: S1,
    dir: TempDir,
}

impl Lab {
    fn start() -> Result<Self> {
        let s1 = S1::without_backends(&LabOptions::default())?;
        let lab = Self { s1, dir: tempfile::Builder::new().prefix("ing-ddns-").tempdir()? };
        std::fs::write(lab.token(), format!("{TOKEN}\n"))?;
        lab.token_mode(0o640)?;
        Ok(lab)
    }

    fn token(&self) -> PathBuf {
        self.dir.path().join("token")
    }

    fn token_mode(&self, mode: u32) -> Result<()> {
        Ok(std::fs::set_permissions(self.token(), std::fs::Permissions::from_mode(mode))?)
    }

    fn api(&self, flavour: Flavour) -> Result<DnsApi> {
        DnsApi::start(&self.s1.lab.backends[0], 8053, flavour)
    }

    fn config(&self, zone: Value, verify: &str) -> Value {
        let mut config = self.s1.config_without_checks();
        config["ddns"] = json!({
            "interval": "50ms", "verify": verify, "ipv4": { "interface": "pub0" }, "allow_private": true,
            "zones": { ZONE: zone },
        });
        // Nobody connects here, and a start with kernel programs takes a second until they are verified.
        config["kernel"]["enabled"] = false.into();
        config
    }
}

fn record(node: &Node, name: &str) -> Option<Value> {
    let records = node.json(&["ddns"]).ok()?;
    records.as_array()?.iter().find(|record| record["name"] == name).cloned()
}

fn wait_for_error(node: &Node, words: &str) -> Result<()> {
    let error = || Some(record(node, NAME)?["error"].as_str()?.to_owned());
    wait_until(PATIENCE, words, || error().is_some_and(|error| error.contains(words)))
}

fn wait_for(api: &DnsApi, name: &str, address: &str) -> Result<()> {
    let what = format!("{name} says {address}");
    wait_until(PATIENCE, &what, || api.content(name, "A") == [address])
}

/// The node's own record and a wildcard, from nothing, through a change of its address, past a record of somebody else.
fn a_provider_gets_the_nodes_address(flavour: Flavour) -> Result<()> {
    require!("ip", "curl");
    let lab = Lab::start()?;
    let api = lab.api(flavour)?;
    api.put("*.example.com", "A", "192.0.2.77");
    api.put(NAME, "AAAA", "2001:db8::77");
    api.put("other.example.com", "A", "192.0.2.78");
    let others = |api: &DnsApi| {
        let is_other = |name: &str, kind: &str| name == "other.example.com" || kind == "AAAA";
        api.entries().into_iter().filter(|e| is_other(&e.name, &e.kind)).collect::<Vec<_>>()
    };
    let before = others(&api);
    let config = lab.config(api.zone(&[NAME, "*.example.com"], &lab.token()), "1h");

    let mut node = Node::prepare(&lab.s1.lab.proxy.ns)?;
    node.write_config(config)?;
    let dry = node.output(&["ddns", "--dry-run"])?;
    let said = String::from_utf8_lossy(&dry.stdout).into_owned();
    let expected = format!("+ {NAME} A {OURS}, TTL 300 s\n~ *.example.com A 192.0.2.77  =>  {OURS}\n");
    assert_eq!(said, expected, "{}", String::from_utf8_lossy(&dry.stderr));
    assert_eq!(api.content(NAME, "A"), [""; 0], "a dry run changes nothing");

    node.launch()?;
    wait_for(&api, NAME, OURS)?;
    wait_for(&api, "*.example.com", OURS)?;
    wait_until(PATIENCE, "both are current", || {
        node.metric("ingress_dns_record_current", &[]).is_ok_and(|n| n == 2.0)
    })?;
    let wildcard = api.entries().into_iter().find(|entry| entry.name == "*.example.com").expect("it is there");
    assert_eq!((wildcard.ttl, wildcard.comment.as_str()), (86_000, "by hand"), "what somebody set stays");
    assert!(flavour != Flavour::Cloudflare || wildcard.proxied, "so does this");

    // Nothing changes, nothing is sent.
    let asked = api.calls().len();
    let looks = || node.metrics().map(|_| ());
    for _ in 0..20 {
        looks()?;
    }
    assert_eq!(api.calls().len(), asked);

    lab.s1.lab.proxy.ns.ip_batch("addr del 192.0.2.1/24 dev pub0\naddr add 192.0.2.9/24 dev pub0\n")?;
    wait_for(&api, NAME, "192.0.2.9")?;
    wait_for(&api, "*.example.com", "192.0.2.9")?;
    assert_eq!(others(&api), before, "nobody else's record was touched");
    assert_eq!(api.faults(), [""; 0], "each request is one that the documentation knows");
    let status = node.verb(&["status"])?;
    assert!(status.contains(&format!("dns      {NAME} A 192.0.2.9")), "{status}");
    assert!(!node.log().tail().contains(TOKEN) && !status.contains(TOKEN));
    Ok(())
}

#[test]
fn cloudflare_gets_the_nodes_address() -> Result<()> {
    a_provider_gets_the_nodes_address(Flavour::Cloudflare)
}

#[test]
fn hetzner_gets_the_nodes_address() -> Result<()> {
    a_provider_gets_the_nodes_address(Flavour::Hetzner)
}

#[test]
fn http_net_gets_the_nodes_address() -> Result<()> {
    a_provider_gets_the_nodes_address(Flavour::HttpNet)
}

#[test]
fn bad_days_of_a_provider_are_named_and_waited_out() -> Result<()> {
    require!("curl");
    let lab = Lab::start()?;
    let api = lab.api(Flavour::Cloudflare)?;
    api.mood(Mood::Status("502 Bad Gateway", ""));
    let node = lab.s1.node_with(lab.config(api.zone(&[NAME], &lab.token()), "100ms"))?;
    wait_for_error(&node, "the API has a problem of its own (HTTP 502)")?;
    api.mood(Mood::Half);
    wait_for_error(&node, "error")?;
    assert_eq!(api.content(NAME, "A"), [""; 0], "nothing is made on half an answer");
    api.mood(Mood::Good);
    wait_for(&api, NAME, OURS)?;
    wait_until(PATIENCE, "it is current", || node.metric("ingress_dns_record_current", &[]).is_ok_and(|n| n == 1.0))?;

    // It is asked again only after the time that it asks for.
    api.mood(Mood::Status("429 Too Many Requests", "Retry-After: 3600\r\n"));
    wait_for_error(&node, "too many requests")?;
    let asked = api.calls().len();
    api.mood(Mood::Good);
    lab.s1.lab.proxy.ns.ip_batch("addr del 192.0.2.1/24 dev pub0\naddr add 192.0.2.9/24 dev pub0\n")?;
    wait_until(PATIENCE, "the new address is seen", || {
        record(&node, NAME).is_some_and(|record| record["wanted"] == "192.0.2.9")
    })?;
    assert_eq!((api.calls().len(), api.content(NAME, "A")), (asked, vec![OURS.to_owned()]));
    Ok(())
}

#[test]
fn a_record_that_somebody_else_changed_and_a_token_that_everybody_can_read_are_left_alone() -> Result<()> {
    require!("curl");
    let lab = Lab::start()?;
    let api = lab.api(Flavour::HttpNet)?;
    lab.token_mode(0o644)?;
    let config = lab.config(api.zone(&[NAME], &lab.token()), "100ms");
    let mut node = lab.s1.node_with(config)?;
    wait_for_error(&node, "can be read by everybody on this host (mode 0644); run: chmod o-rwx")?;
    assert_eq!(api.calls(), [""; 0]);
    lab.token_mode(0o600)?;
    wait_for(&api, NAME, OURS)?;

    // An operator points the name elsewhere. That this node wrote it is known after a restart, too.
    node.terminate()?;
    api.change(NAME, "192.0.2.200");
    node.launch()?;
    wait_for_error(&node, "somebody else changed it")?;
    let dry = node.output(&["ddns", "--dry-run"])?;
    assert_eq!(dry.status.code(), Some(1), "it needs a person");
    assert_eq!(api.content(NAME, "A"), ["192.0.2.200"]);
    Ok(())
}

#[test]
fn a_program_keeps_the_records_of_other_providers() -> Result<()> {
    require!("curl");
    let lab = Lab::start()?;
    let (program, written) = (lab.dir.path().join("hook"), lab.dir.path().join("written"));
    let script = format!(
        "#!/bin/sh\necho \"$INGRESS_DDNS_ZONE $INGRESS_DDNS_NAME $INGRESS_DDNS_TYPE $INGRESS_DDNS_ADDRESS $INGRESS_DDNS_TTL\" >> {}\n",
        written.display()
    );
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700))?;
    let mut node =
        lab.s1.node_with(lab.config(json!({ "provider": "exec", "command": program, "names": [NAME] }), "50ms"))?;
    wait_until(PATIENCE, "it is current", || node.metric("ingress_dns_record_current", &[]).is_ok_and(|n| n == 1.0))?;
    node.terminate()?;
    node.launch()?;
    wait_until(PATIENCE, "it is current again", || {
        node.metric("ingress_dns_record_current", &[]).is_ok_and(|n| n == 1.0)
    })?;
    assert_eq!(std::fs::read_to_string(written)?, format!("{ZONE} {NAME} A {OURS} 300\n"), "once for one address");
    Ok(())
}
