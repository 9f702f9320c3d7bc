//! Upgrade and downgrade between builds whose connection tables differ: the connections that run in the kernel are converted, and
//! the programs swapped under the links.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::LabOptions;
use ingress_tests::node::{self, Node};
use ingress_tests::payload::Random;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::skip::skip;
use ingress_tests::wait::{PATIENCE, wait_for};
use ingress_tests::wire::{Ending, client_hello, ending, proxy_v2, read_exactly};
use serde_json::Value;

const NO_PROBE: &str = "no build of another layout here (cargo xtask test builds it)";

#[test]
fn downloads_go_on_through_upgrade_and_downgrade() -> Result<()> {
    require!("nginx", "curl");
    let Some(other) = node::layout_probe()? else { return skip(NO_PROBE) };
    let own = node::binary()?;
    let s1 = S1::start()?;
    let mut node = s1.node()?;
    let sent = s1.backends[0].publish("big", 256 << 20)?;

    // The window of a held one is closed; a slow reader's is always full.
    let held = s1.curl("fiscalismia.com").download("/files/big")?;
    held.wait_for_bytes(1 << 20, PATIENCE)?;
    held.hold();
    let slow = s1.curl("fiscalismia.com").limit_rate(8 << 20).download("/files/big")?;
    // More than the window of a held one ever was.
    slow.wait_for_bytes(12 << 20, PATIENCE)?;
    node.all_in_kernel()?;
    for (step, binary) in [&other, &own, &other, &own].into_iter().enumerate() {
        let fast = s1.curl("fiscalismia.com").limit_rate(100 << 20).download("/files/big")?;
        fast.wait_for_bytes(1 << 20, PATIENCE)?;
        let before = slow.received();
        node.kill9()?;
        node.use_binary(binary);
        node.launch()?;
        slow.wait_for_bytes(before + (2 << 20), PATIENCE)?;
        assert_eq!(fast.finish(Duration::from_secs(60))?, sent, "step {step}");
        // Only what a packet proves moves the counters and keeps a connection from its idle timeout.
        let proven = |f: &Value| f["bytes_to_client"].as_u64() > Some(before + (2 << 20)) && f["state"] == "spliced";
        node.wait_for_flow(&format!("step {step}: what came after the swap is proven"), proven)?;
        alone(&node)?;
    }
    assert_eq!(held.finish(Duration::from_secs(60))?, sent);
    assert_eq!(slow.finish(Duration::from_secs(60))?, sent);
    let broken = |line: &Value| line["message"] == "connection ended" && line["end_reason"] != "closed";
    ensure!(!node.log().lines().iter().any(broken), "{}", node.log().tail());
    s1.curl("fiscalismia.com").get("/whoami")?;
    node.all_in_kernel()
}

#[test]
fn a_connection_is_logged_whole_by_the_last_of_four_builds() -> Result<()> {
    require!();
    let Some(other) = node::layout_probe()? else { return skip(NO_PROBE) };
    let mut stage = Stage::new()?;
    let before = stage.node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;
    let own = node::binary()?;
    for (n, binary) in [&other, &own, &other].into_iter().enumerate() {
        if n % 2 == 0 {
            stage.node.kill9()?;
        } else {
            ensure!(stage.node.terminate()?.success());
        }
        stage.exchange(1_000)?;
        stage.node.use_binary(binary);
        stage.node.launch()?;
        assert_eq!(stage.node.status()?["kernel"]["adopted"], 1);
        stage.exchange(1_000)?;
        let after = stage.node.wait_for_flow("it is spliced still", |f| f["state"] == "spliced")?;
        for key in ["id", "client", "backend_address", "sni", "route", "pool", "listener", "source"] {
            assert_eq!(after[key], before[key], "{key}");
        }
        alone(&stage.node)?;
    }
    stage.end()
}

#[test]
fn a_start_that_is_killed_at_any_instant_leaves_the_next_one_all_it_needs() -> Result<()> {
    require!();
    let Some(other) = node::layout_probe()? else { return skip(NO_PROBE) };
    let mut stage = Stage::new()?;
    stage.node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;
    let own = node::binary()?;
    let mut random = Random::new(seed());
    stage.node.kill9()?;
    for _ in 0..rounds() {
        stage.node.use_binary(if random.next_u64().is_multiple_of(2) { &other } else { &own });
        stage.node.spawn()?;
        // All of a start's work on the tables lies within this.
        std::thread::sleep(Duration::from_micros(random.next_u64() % 250_000));
        stage.node.kill9()?;
    }
    stage.node.use_binary(&own);
    stage.node.launch()?;
    alone(&stage.node)?;
    assert_eq!(stage.node.status()?["kernel"]["adopted"], 1);
    stage.exchange(100_000)?;
    stage.end()
}

#[test]
fn connections_of_a_layout_that_cannot_be_read_stay_with_their_programs() -> Result<()> {
    require!("bpftool");
    let mut stage = Stage::new()?;
    stage.node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;
    stage.node.kill9()?;
    // As if a build had left it whose connections nobody below layout 9 may touch.
    let pins = stage.node.pin_dir().to_owned();
    let layout = pins.join("v2/ingress_layout");
    let mut words = map_value(&layout)?;
    words[..8].copy_from_slice(&[9, 0, 0, 0, 9, 0, 0, 0]);
    let value: Vec<String> = words.iter().map(u8::to_string).collect();
    let output = std::process::Command::new("bpftool")
        .args(["map", "update", "pinned"])
        .arg(&layout)
        .args(["key", "0", "0", "0", "0", "value"])
        .args(&value)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(pins.join("v2"), pins.join("v9"))?;

    stage.node.launch()?;
    let status = stage.node.status()?;
    let missing = status["kernel"]["missing"].to_string();
    ensure!(missing.contains("v9 go on unattended") && missing.contains("layout 9 or newer"), "{missing}");
    assert_eq!(status["kernel"]["adopted"], 0);
    stage.exchange(100_000)
}

/// One connection through the kernel, of which every byte is counted.
struct Stage {
    node: Node,
    client: TcpStream,
    backend: TcpStream,
    to_backend: u64,
    to_client: u64,
    s1: S1,
}

impl Stage {
    fn new() -> Result<Self> {
        let s1 = S1::without_backends(&LabOptions::default())?;
        let host = &s1.lab.backends[0];
        let listener = host.ns.listen(host.socket(443))?;
        let node = s1.node_with(s1.config_without_checks())?;
        let hello = client_hello(Some("fiscalismia.com"))?;
        let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
        client.write_all(&hello)?;
        let (mut backend, _) = listener.accept()?;
        read_exactly(&mut backend, proxy_v2(client.local_addr()?, s1.public()).len() + hello.len())?;
        Ok(Self { node, client, backend, to_backend: hello.len() as u64, to_client: 0, s1 })
    }

    /// `bytes` each way.
    fn exchange(&mut self, bytes: usize) -> Result<()> {
        let mut sent = vec![0; bytes];
        Random::new(self.to_backend).fill(&mut sent);
        self.client.write_all(&sent)?;
        ensure!(read_exactly(&mut self.backend, bytes)? == sent, "other bytes at the backend");
        self.backend.write_all(&sent)?;
        ensure!(read_exactly(&mut self.client, bytes)? == sent, "other bytes at the client");
        self.to_backend += bytes as u64;
        self.to_client += bytes as u64;
        Ok(())
    }

    /// Closes in order; the log has every byte, and nothing is left.
    fn end(self) -> Result<()> {
        let Self { node, mut client, backend, to_backend, to_client, s1: _s1 } = self;
        drop(backend);
        assert_eq!(ending(&mut client, PATIENCE)?, Ending::Closed(Vec::new()));
        drop(client);
        let end = node.wait_for_log("the connection's end", |l| l["message"] == "connection ended")?;
        assert_eq!(
            (&end["bytes_to_backend"], &end["bytes_to_client"]),
            (&to_backend.into(), &to_client.into()),
            "{end}"
        );
        assert_eq!((&end["sni"], &end["end_reason"]), (&"fiscalismia.com".into(), &"closed".into()), "{end}");
        wait_for(PATIENCE, "nothing is left", || {
            let kernel = node.status().ok()?["kernel"].clone();
            (kernel["connections"] == 0 && kernel["ports"]["most_taken"].as_u64() <= Some(1)).then_some(())
        })
    }
}

/// Only one build's pins are there.
fn alone(node: &Node) -> Result<()> {
    let dirs: Vec<PathBuf> = std::fs::read_dir(node.pin_dir())?.map(|dir| Ok(dir?.path())).collect::<Result<_>>()?;
    ensure!(dirs.len() == 1, "{dirs:?}");
    Ok(())
}

fn map_value(map: &Path) -> Result<Vec<u8>> {
    let output = std::process::Command::new("bpftool").args(["--json", "map", "dump", "pinned"]).arg(map).output()?;
    let dump: Value = serde_json::from_slice(&output.stdout)?;
    let bytes = dump[0]["value"].as_array().context("a value of bytes")?;
    let byte = |byte: &Value| u8::from_str_radix(byte.as_str()?.strip_prefix("0x")?, 16).ok();
    bytes.iter().map(|word| byte(word).context("a byte")).collect()
}

/// `INGRESS_SEED`, printed so that a failure can be repeated.
fn seed() -> u64 {
    let seed = std::env::var("INGRESS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_121);
    eprintln!("INGRESS_SEED={seed}");
    seed
}

/// `INGRESS_KILLS`.
fn rounds() -> u32 {
    std::env::var("INGRESS_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(12)
}
