//! Ours: the release build of `ingress`, or what `INGRESS_BIN` names.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ingress_tests::bpffs;
use ingress_tests::netns::Namespace;
use serde_json::Value;

use super::{Log, Process, Running, STOP, Setting, first_line, per_backend, write};
use crate::bench::cpus::Confined;
use crate::bench::load::SERVER_NAME;
use crate::bench::program::{Program, check_interrupt, run_to_end};
use crate::bench::topology::{BACKEND_PORTS, PROXY_ADDRESS, PROXY_INTERFACES};
use crate::bench::{progress, target_dir};

const VERB: Duration = Duration::from_secs(10);
const START: Duration = Duration::from_secs(15);
const PINS: &str = "ingress-bench-";
/// Connections that have ended keep their slots for a while; this many fit a window of `connections`.
const FEWEST_SLOTS: usize = 100_000;

/// A running daemon; dropping it stops it and removes all that it pinned.
pub(in crate::bench) struct Ingress {
    pub(in crate::bench) program: Program,
    pins: Pins,
}

/// What stays in the kernel when the daemon ends. Undone by `ingress detach`.
struct Pins {
    namespace: Namespace,
    config: PathBuf,
    dir: PathBuf,
}

pub(super) fn version() -> Result<String> {
    first_line(binary()?, &["version"])
}

fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("INGRESS_BIN") {
        Some(path) => path.into(),
        None => target_dir()?.join("release/ingress"),
    };
    ensure!(path.is_file(), "{} is not there: cargo build --release -p ingress", path.display());
    Ok(path)
}

impl Ingress {
    pub(super) fn start(setting: &Setting<'_>) -> Result<Running> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        bpffs::ensure_mounted()?;
        remove_leftovers();
        let unique = format!("{PINS}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = PathBuf::from(bpffs::PATH).join(unique);
        let config = write(setting, "ingress.yaml", &config(setting, &dir.display().to_string()))?;
        let namespace = setting.topology.proxy.clone();
        let pins = Pins { namespace, config, dir };

        let log = setting.dir.join("ingress.log");
        let mut command = pins.namespace.command(binary()?);
        command.args(["run", "--config"]).arg(&pins.config);
        // The daemon starts one worker for each CPU that it may use at its start. It is started with as many CPUs as the
        // peers get threads, and may use all of them once its workers are there, as the peers may.
        let cpus = Confined::to(setting.threads)?;
        let program = Program::server("ingress", command, &log, STOP + STOP)?;
        let mut ingress = Self { program, pins };
        ingress.wait_until_ready()?;
        cpus.release(ingress.program.group());
        Ok(Running { process: Process::Ingress(Box::new(ingress)), log: Log::File(log) })
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            check_interrupt()?;
            self.program.check()?;
            match self.status() {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error).context("waiting for `ingress status`"),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn status(&self) -> Result<Value> {
        let output = run_to_end(self.pins.verb("status", &["--output", "json"])?, VERB)?;
        serde_json::from_str(&output).context("reading `ingress status --output json`")
    }

    /// Why not every connection so far ran in the kernel; `None` if each did.
    pub(in crate::bench) fn short_of_kernel(&self) -> Result<Option<String>> {
        let status = self.status()?;
        let mode = status["kernel"]["mode"].as_str().unwrap_or("unknown");
        if mode != "kernel" {
            return Ok(Some(format!("mode {mode}, missing: {}", status["kernel"]["missing"])));
        }
        let connections = &status["connections"];
        let count = |key: &str| connections[key].as_u64().unwrap_or(0);
        let (kernel, relayed) = (count("handed_off_total"), count("relayed_total"));
        // Refusals are no matter here: a client that stops leaves connections without a hello behind.
        let why = || format!("{relayed} of {} connections relayed: {}", kernel + relayed, connections["relay_reasons"]);
        Ok((relayed > 0).then(why))
    }

    pub(in crate::bench) fn pin_dir(&self) -> &std::path::Path {
        &self.pins.dir
    }
}

impl Pins {
    fn verb(&self, verb: &str, words: &[&str]) -> Result<Command> {
        let mut command = self.namespace.command(binary()?);
        command.arg(verb).args(words).arg("--config").arg(&self.config);
        Ok(command)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if !self.dir.exists() {
            return;
        }
        if let Err(error) = self.verb("detach", &[]).and_then(|command| run_to_end(command, VERB)) {
            progress(format_args!("{error:#}"));
        }
        // The directory itself may stay behind; what it held is gone with the network in any case.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Removes pins of benches that were killed before they could.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(bpffs::PATH) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PINS).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn config(setting: &Setting<'_>, pin_dir: &str) -> String {
    let dir = setting.dir.display();
    let backends = per_backend(|_, backend| format!("      - {backend}\n"));
    let (low, high) = BACKEND_PORTS;
    let [to_clients, to_backends] = PROXY_INTERFACES;
    // Slots take their memory at the start: an eighth more than the idle connections need, as an operator would choose.
    let slots = (setting.connections + setting.connections / 8).max(FEWEST_SLOTS);
    format!(
        "\
listeners:
  tls:
    bind: \"{PROXY_ADDRESS}\"
    protocol: tls
    max_connections: 1000000
    max_connections_per_source: 1000000
routes:
  - sni: {SERVER_NAME}
    pool: app
pools:
  app:
    backends:
{backends}    proxy_protocol: v2
limits:
  max_connections: 1000000
  drain_timeout: 1s
admin:
  socket: {dir}/admin.sock
kernel:
  interfaces: [{to_clients}, {to_backends}]
  port_range: {low}-{high}
  max_connections: {slots}
  pin_dir: {pin_dir}
log:
  connections: end
state_dir: {dir}/state
"
    )
}
