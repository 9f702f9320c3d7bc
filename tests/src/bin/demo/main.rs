//! The demo: `examples/sni-passthrough` at work in network namespaces, told so that a person sees it at a glance.

#![expect(clippy::print_stdout, reason = "a demo speaks to a person")]

mod screen;

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ingress_tests::bulk::{BulkServer, measure};
use ingress_tests::client::Download;
use ingress_tests::lab::{Lab, LabOptions};
use ingress_tests::node::Node;
use ingress_tests::s1::S1;
use ingress_tests::skip::missing;
use ingress_tests::wait::PATIENCE;
use ingress_tests::wire::client_hello;
use nix::sys::signal::{SigHandler, Signal, signal};
use screen::{Screen, Tone};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let done = if std::env::var_os(INNER).is_some() { demo(&Screen::new()) } else { run_and_tidy_up() };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("\nThe demo stopped: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo as a child: when Ctrl-C ends it, this process is still there to remove what it left.
fn run_and_tidy_up() -> Result<()> {
    // SAFETY: no handler runs; the signal is ignored.
    unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) }?;
    let files = tempfile::Builder::new().prefix("ing-demo-").tempdir()?;
    let mut child = Command::new(std::env::current_exe()?);
    child.env(INNER, "1").env("TMPDIR", files.path());
    // SAFETY: one system call that is safe between fork and exec; an ignored signal would stay ignored.
    unsafe { child.pre_exec(|| Ok(signal(Signal::SIGINT, SigHandler::SigDfl).map(drop)?)) };
    let status = child.status().context("starting the demo")?;
    ingress_tests::netns::remove_leftovers();
    match (status.success(), status.signal()) {
        (true, _) => Ok(()),
        (false, Some(signal)) => anyhow::bail!("ended by signal {signal}; everything is tidied up"),
        // It said why.
        (false, None) => {
            drop(files);
            std::process::exit(1)
        }
    }
}

fn demo(screen: &Screen) -> Result<()> {
    if let Some(reason) = missing(&["nginx", "curl"]) {
        anyhow::bail!("{reason}");
    }
    screen.heading("ingress: SNI passthrough, spliced in the kernel");
    screen.note("Everything below happens in network namespaces on this machine, with examples/sni-passthrough.");
    screen.line("");
    screen.line("                                       ┌ app         172.24.0.3  nginx");
    screen.line("  clients ──── pub0 [ ingress ] priv0 ─┼ backend     172.24.0.4  nginx");
    screen.line("  192.0.2.101                    priv1 ┼ demo        172.20.0.2  nginx");
    screen.line("  192.0.2.102                          └ monitoring  172.24.0.2  nginx");

    let s1 = S1::example(&LabOptions { clients: 2, ..LabOptions::default() })?;
    let mut node = s1.example_node()?;
    names(screen, &s1, &node)?;
    connections(screen, &s1, &node)?;
    kill(screen, &s1, &mut node)?;
    drop((node, s1));
    throughput(screen)?;
    screen.line("\n  Done; the namespaces are gone. Next: README.md, and docs/ for operators.\n");
    Ok(())
}

/// Which SNI went where, and what the backend saw.
fn names(screen: &Screen, s1: &S1, node: &Node) -> Result<()> {
    screen.heading("1  Which name went where, and whom the backend saw");
    let widths = [26, 14, 15, 21, 14];
    heads(screen, &["SNI", "client", "backend", "client, as it saw it", "HTTP"], &widths);
    for (n, (_, _, names)) in s1.table.iter().enumerate() {
        for name in *names {
            let client = n % s1.lab.clients.len();
            let seen = s1.curl_from(client, name).http2().get_json("/")?;
            let address = s1.lab.clients[client].address.to_string();
            let told = if seen["client"] == address { Tone::Good } else { Tone::Bad };
            let cells = [*name, &address, word(&seen, "backend"), word(&seen, "client"), word(&seen, "protocol")];
            let tones = [Tone::Name, Tone::Plain, Tone::Plain, told, Tone::Quiet];
            row(screen, &tones, &cells, &widths);
        }
    }
    let refused = s1.curl("unknown.example.com").get("/").expect_err("no route claims it");
    let why = refused.to_string();
    ensure!(
        why.contains("unrecognized name"),
        "an unknown name was refused otherwise than by unrecognized_name: {why}"
    );
    row(
        screen,
        &[Tone::Name, Tone::Plain, Tone::Bad],
        &["unknown.example.com", &s1.lab.clients[0].address.to_string(), "refused: TLS alert unrecognized_name"],
        &widths,
    );
    node.all_in_kernel()
}

/// Which connections run in the kernel now.
fn connections(screen: &Screen, s1: &S1, node: &Node) -> Result<()> {
    screen.heading("2  Which connections run in the kernel");
    screen.note("Two downloads under way, as `ingress flows` lists them:");
    let downloads =
        [start_download(s1, 0, "app.example.com", 64 << 20)?, start_download(s1, 2, "demo.example.com", 64 << 20)?];
    let widths = [20, 22, 18, 8, 9, 12];
    heads(screen, &["SNI", "client", "backend", "mode", "state", "to client"], &widths);
    for flow in node.flows()? {
        let mode = if flow["mode"] == "kernel" { Tone::Good } else { Tone::Bad };
        let bytes = format!("{:.1} MB", flow["bytes_to_client"].as_f64().unwrap_or(0.0) / 1e6);
        let words = ["sni", "client", "backend_address", "mode", "state"].map(|key| word(&flow, key));
        let cells = [&words[..], &[bytes.as_str()]].concat();
        row(screen, &[Tone::Name, Tone::Plain, Tone::Plain, mode, Tone::Quiet, Tone::Plain], &cells, &widths);
    }
    for download in downloads {
        download.finish(Duration::from_secs(60))?;
    }
    let status = node.status()?;
    let handed_off = &status["connections"]["handed_off_total"];
    let relayed = &status["connections"]["relayed_total"];
    screen.note(&format!(
        "So far {handed_off} connections were handed off to the kernel, {relayed} were relayed by the daemon."
    ));
    Ok(())
}

/// What `kill -9` of the daemon does to a running download.
fn kill(screen: &Screen, s1: &S1, node: &mut Node) -> Result<()> {
    screen.heading("3  kill -9 of the daemon in the middle of a download");
    const SIZE: u64 = 192 << 20;
    let sent = s1.backends[0].publish("film", SIZE)?;
    let download = s1.curl("app.example.com").limit_rate(48 << 20).download("/files/film")?;
    let started = Instant::now();
    let progress = |share: f64| -> Result<()> {
        download.wait_for_bytes((SIZE as f64 * share) as u64, PATIENCE)?;
        let now = started.elapsed().as_secs_f64();
        let bar = screen.bar(Tone::Name, download.received() as f64 / SIZE as f64, 40);
        screen.line(&format!("  {now:4.1} s  {bar}  {:3} MB", download.received() / 1_000_000));
        Ok(())
    };
    for share in [0.1, 0.2, 0.3] {
        progress(share)?;
    }
    let pid = node.pid().context("the daemon runs")?;
    node.kill9()?;
    screen.line(&format!("          {}", screen.paint(Tone::Bad, &format!("kill -9 {pid}: the daemon is gone"))));
    for share in [0.4, 0.5, 0.6] {
        progress(share)?;
    }
    node.launch()?;
    let adopted = &node.status()?["kernel"]["adopted"];
    let words = format!("a new daemon starts and adopts what runs in the kernel: {adopted} connection");
    screen.line(&format!("          {}", screen.paint(Tone::Good, &words)));
    for share in [0.8, 1.0] {
        progress(share)?;
    }
    ensure!(download.finish(PATIENCE)? == sent, "the download differs from the file");
    screen.line(&format!(
        "  {} {} MB, sha256 equal to the backend's file",
        screen.paint(Tone::Good, "whole:"),
        SIZE / 1_000_000
    ));
    Ok(())
}

/// Throughput of one stream beside plain routing.
fn throughput(screen: &Screen) -> Result<()> {
    screen.heading("4  Throughput of one TCP stream, beside plain IP routing");
    let lab = Lab::build(&LabOptions { routed: true, ..LabOptions::default() })?;
    let host = &lab.backends[0];
    let server = BulkServer::start(host, 443)?;
    let node = Node::start(&lab.proxy.ns, bulk_config(&lab))?;
    let client = &lab.clients[0].ns;

    let paths = [
        ("plain routing, no proxy", server.address, "direct.example.com"),
        ("ingress, in the kernel", lab.public(443), "kernel.example.com"),
        ("ingress, relayed in userspace", lab.public(443), "relay.example.com"),
    ];
    let mut rounds = [[0.0; ROUNDS]; 3];
    for round in 0..ROUNDS {
        for (rates, (_, to, name)) in rounds.iter_mut().zip(paths) {
            rates[round] = measure(client, to, &client_hello(Some(name))?, Duration::from_millis(700))?;
        }
    }
    let medians = rounds.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    });
    let fastest = medians.iter().copied().fold(1.0, f64::max);
    for ((name, ..), rate) in paths.iter().zip(medians) {
        let tone = if *name == paths[1].0 { Tone::Good } else { Tone::Name };
        let bar = screen.bar(tone, rate / fastest, 30);
        let share = format!("{:3.0} % of plain routing", rate / medians[0] * 100.0);
        screen.line(&format!("  {name:<30} {bar} {:5.1} Gbit/s  {}", rate / 1e9, screen.paint(Tone::Quiet, &share)));
    }
    screen.note(&format!("Medians of {ROUNDS} paired rounds. Virtual links: only the ratios mean something."));
    drop(node);
    server.stop(host);
    Ok(())
}

/// One backend behind two names: handed off, and not.
fn bulk_config(lab: &Lab) -> Value {
    let backends = [lab.backends[0].socket(443).to_string()];
    json!({
        "listeners": { "tls": { "bind": lab.public(443).to_string() } },
        "routes": [{ "sni": "kernel.example.com", "pool": "kernel" }, { "sni": "relay.example.com", "pool": "relay" }],
        "pools": {
            "kernel": { "backends": backends },
            "relay": { "backends": backends, "handoff": "never" },
        },
        "admin": { "http": {} },
        "kernel": {},
    })
}

/// A download that stands still after its first megabytes.
fn start_download(s1: &S1, backend: usize, name: &str, bytes: u64) -> Result<Download> {
    s1.backends[backend].publish("film", bytes)?;
    let download = s1.curl(name).download("/files/film")?;
    download.wait_for_bytes(4 << 20, PATIENCE)?;
    download.hold();
    Ok(download)
}

fn heads(screen: &Screen, names: &[&str], widths: &[usize]) {
    row(screen, &vec![Tone::Quiet; names.len()], names, widths);
}

fn row(screen: &Screen, tones: &[Tone], cells: &[&str], widths: &[usize]) {
    let cells: Vec<_> =
        tones.iter().zip(cells).zip(widths).map(|((tone, text), width)| (*tone, *text, *width)).collect();
    screen.row(&cells);
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("?")
}

/// Set for the child that runs the demo.
const INNER: &str = "INGRESS_DEMO_INNER";
/// Odd, so that the median is one of them.
const ROUNDS: usize = 3;
