//! The registry file, as git, rsync and Syncthing bring it: whole, in halves, renamed, emptied. What is on this node goes
//! first, and nothing goes round in circles.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use ingress_tests::lab::{Host, LabOptions};
use ingress_tests::node::Node;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Ending, ending};
use serde_json::{Value, json};
use tempfile::TempDir;

struct S4 {
    lab: S1,
    dir: TempDir,
}

impl S4 {
    fn start() -> Result<Self> {
        let lab = S1::without_backends(&LabOptions::default())?;
        Ok(Self { lab, dir: tempfile::Builder::new().prefix("ing-s4-").tempdir()? })
    }

    fn registry(&self) -> PathBuf {
        self.dir.path().join("registry.yaml")
    }

    fn config(&self) -> Value {
        let mut config = self.lab.config();
        config["routes"] = json!([]);
        config["pools"] = json!({});
        config["providers"] = json!({ "nodes": {
            "registry": { "path": self.registry().display().to_string() },
            "health": { "type": "tcp", "interval": "100ms", "timeout": "100ms", "rise": 2, "fall": 2 },
            "on_down": "cut",
        } });
        config
    }

    /// In one step, as Syncthing and git do.
    fn write(&self, text: &str) -> Result<()> {
        let new = self.dir.path().join("~syncthing~registry.yaml.tmp");
        std::fs::write(&new, text)?;
        std::fs::rename(&new, self.registry()).context("replacing the registry")
    }

    fn backend(&self, n: usize) -> &Host {
        &self.lab.lab.backends[n]
    }

    /// A connection to a port of the proxy that one of these takes.
    fn talk(&self, port: u16, backend: &TcpListener) -> Result<Talk> {
        let mut client = self.lab.lab.clients[0].ns.connect(self.lab.lab.public(port))?;
        client.write_all(b"hello")?;
        let mut talk = Talk::of(client, accept_speaking(backend)?);
        talk.arrives(b"hello")?;
        Ok(talk)
    }
}

fn service(name: &str, port: u16, backends: &[SocketAddr]) -> String {
    let list: Vec<_> = backends.iter().map(|at| format!("{{host: {}, port: {}}}", at.ip(), at.port())).collect();
    format!("  {name}:\n    port: {port}\n    backends: [{}]\n", list.join(", "))
}

fn registry(services: &[String]) -> String {
    format!(
        "version: 1\nhttp:\n  www.example.com: {{backends: [{{host: 10.0.0.1, port: 80}}]}}\ntcp:\n{}",
        services.concat()
    )
}

fn provider(node: &Node) -> Result<Value> {
    let status = node.status()?;
    status["providers"].get(0).cloned().with_context(|| format!("no provider in {status}"))
}

fn refusal(node: &Node, words: &str) -> Result<()> {
    wait_until(PATIENCE, &format!("the registry is refused: {words}"), || {
        provider(node).is_ok_and(|p| p["last_error"].as_str().is_some_and(|e| e.contains(words)))
    })
}

fn is_listening(node: &Node, listener: &str) -> bool {
    let Ok(status) = node.status() else { return false };
    let listeners = status["listeners"].as_array().cloned().unwrap_or_default();
    listeners.iter().any(|l| l["name"] == listener && l["state"] == "listening")
}

#[test]
fn a_registry_that_is_broken_half_written_or_emptied_takes_nothing_away() -> Result<()> {
    require!();
    let s4 = S4::start()?;
    let backend = s4.backend(0).ns.listen(s4.backend(0).socket(7001))?;
    let first = service("first", 6001, &[s4.backend(0).socket(7001)]);
    let good = registry(std::slice::from_ref(&first));
    s4.write(&good)?;
    let node = s4.lab.node_with(s4.config())?;
    let mut held = s4.talk(6001, &backend)?;
    node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;

    // In place, as an editor or rsync --inplace would.
    let cases = [
        (String::new(), "empty"),
        ("version: 1\n".to_owned(), "lists nothing"),
        (good[..good.len() - 3].to_owned(), "not whole yet"),
        (good.replace("backends: [{host: 172", "backend: [{host: 172"), "did you mean \"backends\"?"),
        (good.replace("version: 1", "version: 2"), "version 2 is not understood"),
        ("\u{0}\u{1}\u{2}\n".repeat(1000), "registry.yaml"),
    ];
    for (text, words) in cases {
        std::fs::write(s4.registry(), &text)?;
        refusal(&node, words)?;
        held.exchange().with_context(|| words.to_owned())?;
        s4.talk(6001, &backend).with_context(|| words.to_owned())?.finish()?;
        s4.write(&good)?;
        wait_until(PATIENCE, "the good one is back", || provider(&node).is_ok_and(|p| p["last_error"].is_null()))?;
    }
    std::fs::remove_file(s4.registry())?;
    refusal(&node, "No such file")?;
    s4.talk(6001, &backend)?.finish()?;

    // Growing and shrinking, in one step.
    let second = service("second", 6002, &[s4.backend(0).socket(7001)]);
    s4.write(&registry(&[first, second]))?;
    wait_until(PATIENCE, "the second port is open", || is_listening(&node, "second@nodes"))?;
    s4.talk(6002, &backend)?.finish()?;
    s4.write("version: 1\nempty: true\n")?;
    wait_until(PATIENCE, "that nothing is listed is believed", || !is_listening(&node, "first@nodes"))?;
    held.finish().context("a connection outlives its port")?;
    Ok(())
}

#[test]
fn a_node_starts_with_the_last_good_registry_where_the_file_is_broken() -> Result<()> {
    require!();
    let s4 = S4::start()?;
    let backend = s4.backend(0).ns.listen(s4.backend(0).socket(7001))?;
    s4.write(&registry(&[service("first", 6001, &[s4.backend(0).socket(7001)])]))?;
    let mut node = s4.lab.node_with(s4.config())?;
    s4.talk(6001, &backend)?.finish()?;
    node.kill9()?;
    s4.write("version: 1\nhttp:\n")?;
    node.launch()?;
    assert_eq!(provider(&node)?["state"], "last-good");
    s4.talk(6001, &backend)?.finish()?;
    Ok(())
}

#[test]
fn included_files_come_and_go_and_copies_on_their_way_are_not_read() -> Result<()> {
    require!();
    let s4 = S4::start()?;
    let backend = s4.backend(0).ns.listen(s4.backend(0).socket(7001))?;
    let at = [s4.backend(0).socket(7001)];
    s4.write(&format!("include: ['d/*']\n{}", registry(&[service("first", 6001, &at)])))?;
    let included = s4.dir.path().join("d");
    std::fs::create_dir(&included)?;
    let node = s4.lab.node_with(s4.config())?;

    let text = format!("version: 1\ntcp:\n{}", service("second", 6002, &at));
    let passing = included.join(".syncthing.second.yaml.tmp");
    std::fs::write(&passing, &text[..30])?;
    std::fs::write(included.join("second.sync-conflict-20260101-000000-ABCDEFG.yaml"), &text)?;
    std::fs::write(&passing, &text)?;
    std::fs::rename(&passing, included.join("second.yaml"))?;
    wait_until(PATIENCE, "the included port is open", || is_listening(&node, "second@nodes"))?;
    s4.talk(6002, &backend)?.finish()?;
    std::fs::remove_file(included.join("second.yaml"))?;
    wait_until(PATIENCE, "it is closed again", || !is_listening(&node, "second@nodes"))?;
    s4.talk(6001, &backend)?.finish()?;
    assert_eq!(provider(&node)?["failures_total"], 0, "nothing on its way was read");
    Ok(())
}

#[test]
fn a_backend_on_this_node_goes_first_and_its_peer_stands_in() -> Result<()> {
    require!();
    let s4 = S4::start()?;
    let proxy = &s4.lab.lab.proxy;
    let here: SocketAddr = (s4.lab.lab.private_address(s4.backend(0)), 7001).into();
    let there = s4.backend(0).socket(7001);
    let local = proxy.ns.listen(here)?;
    let peer = s4.backend(0).ns.listen(there)?;
    s4.write(&registry(&[service("redis", 6379, &[there, here])]))?;
    let node = s4.lab.node_with(s4.config())?;
    let pool = |up: u64, fallback_up: u64| {
        let Ok(status) = node.status() else { return false };
        let pools = status["pools"].as_array().cloned().unwrap_or_default();
        pools.iter().any(|p| p["name"] == "redis@nodes" && p["up"] == up && p["fallback_up"] == fallback_up)
    };
    wait_until(PATIENCE, "both are up", || pool(1, 1))?;
    let mut held = s4.talk(6379, &local)?;
    drop(local);
    wait_until(PATIENCE, "the local one is down", || pool(0, 1))?;
    assert_eq!(ending(&mut held.client, PATIENCE)?, Ending::Reset, "on_down: cut");
    s4.talk(6379, &peer)?.finish()?;
    let local = proxy.ns.listen(here)?;
    wait_until(PATIENCE, "it is back", || pool(1, 1))?;
    s4.talk(6379, &local)?.finish()?;
    Ok(())
}

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing() -> Result<()> {
    require!();
    let s4 = S4::start()?;
    let at = [s4.backend(0).socket(7001)];
    s4.write(&registry(&[service("first", 6001, &at), service("old", 6003, &at)]))?;
    let node = s4.lab.node_with(s4.config())?;
    let generation = node.status()?["config"]["generation"].clone();

    let candidate = s4.dir.path().join("candidate.yaml");
    let moved = [s4.backend(1).socket(7001)];
    std::fs::write(&candidate, registry(&[service("first", 6001, &moved), service("taken", 443, &at)]))?;
    let candidate = candidate.display().to_string();
    let words = ["diff", "--provider", "nodes", "--from", &candidate];
    let text = node.verb(&words)?;
    for line in [
        "- listener old@nodes: [::]:6003 0.0.0.0:6003",
        "~ pool first@nodes: none, then 172.24.0.3:7001  =>  none, then 172.24.0.4:7001",
        "not served: port taken@nodes: 0.0.0.0:443 belongs to listener tls",
    ] {
        assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
    }
    std::fs::write(&candidate, "version: 1\n")?;
    let refused = node.output(&words)?;
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("lists nothing"));

    assert_eq!(node.verb(&["diff"])?, "nothing would change\n");
    assert_eq!(node.status()?["config"]["generation"], generation, "nothing of this was taken");
    Ok(())
}

#[test]
fn two_nodes_that_name_each_other_do_not_pass_a_connection_round() -> Result<()> {
    require!();
    let s4 = S4::start()?;
    let other = s4.backend(0).clone();
    let here: SocketAddr = (s4.lab.lab.private_address(&other), 6379).into();
    // Nobody runs the service; each node's own port is all that stands there.
    s4.write(&registry(&[service("redis", 6379, &[here, other.socket(6379)])]))?;
    let first = s4.lab.node_with(s4.config())?;
    let mut config = s4.config();
    config["listeners"] = json!({ "tls": { "bind": [other.socket(443).to_string()] } });
    let second = Node::start(&other.ns, config)?;
    let up = |node: &Node| {
        let Ok(status) = node.status() else { return false };
        let pools = status["pools"].as_array().cloned().unwrap_or_default();
        pools.iter().any(|p| p["name"] == "redis@nodes" && p["fallback_up"] == 1)
    };
    wait_until(PATIENCE, "each believes that the other has it", || up(&first) && up(&second))?;

    let mut client = s4.lab.lab.clients[0].ns.connect(s4.lab.lab.public(6379))?;
    client.write_all(b"hello")?;
    assert!(matches!(ending(&mut client, PATIENCE)?, Ending::Reset | Ending::Closed(_)), "there is no service");
    let connected = |node: &Node| node.metric("ingress_backend_connections_total", &["pool=\"redis@nodes\""]);
    assert_eq!((connected(&first)?, connected(&second)?), (1.0, 0.0), "one hop and no further");
    let own = first.json(&["routes", "--unserved", "lead back"])?;
    assert_eq!(own.as_array().map(Vec::len), Some(1), "{own}");
    Ok(())
}

/// The next connection that says something; health checks say nothing.
fn accept_speaking(listener: &TcpListener) -> Result<std::net::TcpStream> {
    loop {
        let stream = ingress_tests::talk::accept(listener)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        if stream.peek(&mut [0])? > 0 {
            return Ok(stream);
        }
    }
}
