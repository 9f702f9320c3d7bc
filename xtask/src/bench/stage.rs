//! A stage: one network with one peer and its backend, ready for load, and what is measured on it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::case::Measurement;
use super::cpus::Confined;
use super::load::client::{ADDRESSES_PER_CLIENT, Measured, Mode};
use super::load_command;
use super::memory::{Memory, PerConnection, wait_for_sockets_to_settle};
use super::peer::{Peer, Process, Running, Setting};
use super::program::{Program, check_interrupt};
use super::run::{Bench, Pace};
use super::topology::{self, PROXY_ADDRESS, Topology, Way};

/// A client's window, connecting, and a machine that stutters.
const LONGEST_LOAD: Duration = Duration::from_secs(60);
const SLACK: Duration = Duration::from_secs(15);
/// For 100,000 connections and the slowest peer.
const OPENING: Duration = Duration::from_secs(90);

/// Dropped from top to bottom.
pub(super) struct Stage {
    peer: Peer,
    pub(super) running: Running,
    backends: Vec<Program>,
    topology: Topology,
    dir: std::path::PathBuf,
    /// Connections that the client knows to have completed.
    completed: u64,
}

impl Stage {
    pub(super) fn set(bench: &mut Bench, peer: Peer, way: Option<Way>) -> Result<Self> {
        Self::with_backends(bench, peer, way, 1)
    }

    /// For [`Stage::idle`]: with backends for all these connections. Several programs share the CPUs worse than one does, which costs a
    /// peer the more, the less it needs of them itself.
    pub(super) fn set_for_idle(bench: &mut Bench, peer: Peer) -> Result<Self> {
        let programs = bench.idle_connections(peer).div_ceil(bench.sockets_per_process);
        Self::with_backends(bench, peer, None, programs)
    }

    fn with_backends(bench: &mut Bench, peer: Peer, way: Option<Way>, programs: usize) -> Result<Self> {
        check_interrupt()?;
        let topology = Topology::build(way)?;
        bench.turns += 1;
        let dir = bench.dir.path().join(format!("{}-{}", bench.turns, peer.name()));
        std::fs::create_dir(&dir)?;
        let connections = bench.idle_connections(peer);
        let backends = start_backends(&topology, peer, &dir, programs)?;
        let setting = Setting { topology: &topology, dir: &dir, threads: bench.results.threads, connections };
        let running = peer.start(&setting)?;
        let mut stage = Self { peer, running, backends, topology, dir, completed: 0 };
        // One ping through the whole path, PROXY header checked: from here on a failure is a finding.
        let ready = stage
            .client(bench, Mode::Probe, &[("--window-ms", 10_000)])
            .and_then(|mut probe| probe.next_line(SLACK + SLACK).map(drop));
        stage.running.check()?;
        ready?;
        Ok(stage)
    }

    /// The load program in a mode of its own, and the line that it says at its end.
    pub(super) fn load(&mut self, bench: &mut Bench, mode: Mode, options: &[(&str, usize)]) -> Result<Measured> {
        let line = self.client(bench, mode, options)?.next_line(LONGEST_LOAD)?;
        for backend in &mut self.backends {
            backend.check()?;
        }
        serde_json::from_str(&line).context("reading the client's result")
    }

    fn client(&self, bench: &mut Bench, mode: Mode, options: &[(&str, usize)]) -> Result<Program> {
        use clap::ValueEnum as _;
        let mode = mode.to_possible_value().context("every mode has a name")?;
        let mut command = load_command(&self.topology.client, "client");
        command.arg(mode.get_name());
        command.arg("--source").arg(topology::source_block(bench.clients, ADDRESSES_PER_CLIENT).to_string());
        bench.clients += 1;
        let targets = match self.peer {
            Peer::Direct => topology::backends(),
            Peer::Haproxy | Peer::HaproxySplice | Peer::Nginx | Peer::Envoy | Peer::Ingress => vec![PROXY_ADDRESS],
        };
        for target in targets {
            command.arg("--target").arg(target.to_string());
        }
        for (option, value) in options {
            command.arg(option).arg(value.to_string());
        }
        let log = self.dir.join(format!("client-{}.stderr", bench.clients));
        Program::load("the client", command, &log)
    }

    pub(super) fn measure(&mut self, bench: &mut Bench, measurement: Measurement) -> Result<Measured> {
        let Pace { warmup, window, .. } = bench.pace;
        let options = [
            ("--streams", measurement.streams()),
            ("--warmup-ms", warmup.as_millis() as usize),
            ("--window-ms", window.as_millis() as usize),
        ];
        let mut confined = None;
        if measurement.on_one_cpu() {
            let programs = self.running.group().into_iter().chain(self.backends.iter().map(Program::group));
            confined = Some(programs.fold(Confined::to(1), |confined, group| confined?.with(group))?);
        }
        let measured = self.load(bench, measurement.mode(), &options)?;
        drop(confined);
        if matches!(measurement, Measurement::Connections | Measurement::FirstByte) {
            self.completed += measured.count;
        }
        Ok(measured)
    }

    /// Opens the idle connections and looks at the peer's memory before and after.
    pub(super) fn idle(&mut self, bench: &mut Bench) -> Result<PerConnection> {
        let before = Memory::of(&self.running, &self.topology.proxy)?;
        let wanted = bench.idle_connections(self.peer);
        let mut clients = Vec::new();
        let mut open = 0;
        while open < wanted {
            let count = (wanted - open).min(bench.sockets_per_process);
            let mut client = self.client(bench, Mode::Idle, &[("--count", count)])?;
            client.next_line(OPENING)?;
            clients.push(client);
            open += count;
        }
        wait_for_sockets_to_settle(&self.topology.proxy, Duration::from_secs(10))?;
        self.running.check()?;
        let each = Memory::of(&self.running, &self.topology.proxy)?.since(before, wanted)?;
        self.tell_short_of_kernel(bench)?;
        Ok(each)
    }

    fn tell_short_of_kernel(&self, bench: &mut Bench) -> Result<()> {
        if let Process::Ingress(ingress) = &self.running.process
            && let Some(why) = ingress.short_of_kernel()?
        {
            bench.results.note(format!("ingress: {why}"));
        }
        Ok(())
    }

    /// Ends the peer, and checks that it wrote the log that it was told to.
    pub(super) fn strike(self, bench: &mut Bench) -> Result<()> {
        /// Share of the connections that must have a line; the last ones may still be open.
        const LOGGED: f64 = 0.99;
        self.tell_short_of_kernel(bench)?;
        let Self { peer, running, completed, .. } = self;
        if let Some(lines) = running.stop()?
            && (lines as f64) < completed as f64 * LOGGED
        {
            let share = 100.0 * lines as f64 / completed as f64;
            bench.results.note(format!("{} logged {share:.0} % of its connections", peer.name()));
        }
        Ok(())
    }
}

/// `programs` that share the addresses among them.
fn start_backends(topology: &Topology, peer: Peer, dir: &Path, programs: usize) -> Result<Vec<Program>> {
    use clap::ValueEnum as _;
    let header = peer.header().to_possible_value().context("every header has a name")?;
    let addresses = topology::backends();
    let mut backends = Vec::new();
    for share in addresses.chunks((addresses.len() / programs.max(1)).max(1)) {
        let mut command = load_command(&topology.backend, "backend");
        command.args(["--header", header.get_name()]);
        for address in share {
            command.arg("--listen").arg(address.to_string());
        }
        let log = dir.join(format!("backend-{}.stderr", backends.len()));
        let mut backend = Program::load("the backend", command, &log)?;
        backend.next_line(SLACK)?;
        backends.push(backend);
    }
    Ok(backends)
}
