//! The run: rounds of turns. In a turn one peer serves every load; each round begins with another peer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::case::{Case, Measurement};
use super::memory::PerConnection;
use super::peer::Peer;
use super::program::{check_interrupt, interrupted};
use super::stage::Stage;
use super::{L4Args, machine, progress};

/// Every peer, in the order of the report.
pub(super) const PEERS: [Peer; 6] =
    [Peer::Ingress, Peer::Direct, Peer::Haproxy, Peer::HaproxySplice, Peer::Nginx, Peer::Envoy];

/// Enough for 100,000 idle connections through any proxy.
const DESCRIPTORS: u64 = 1_000_000;
/// Of a process's descriptors, those that are no connections.
const SPARE_DESCRIPTORS: usize = 1_000;
/// Descriptors that a proxy may need for one connection: two sockets, and a pipe where it splices.
const PER_PROXIED: usize = 4;
const SETTLE: Duration = Duration::from_millis(1_500);

/// How long and how often.
pub(super) struct Pace {
    rounds: usize,
    pub(super) warmup: Duration,
    pub(super) window: Duration,
    idle_connections: usize,
    /// No turn begins that would probably end later than this.
    limit: Duration,
}

/// All that a run found out.
pub(super) struct Results {
    /// One figure per round.
    pub(super) samples: BTreeMap<(Case, Peer), Vec<f64>>,
    pub(super) memory: BTreeMap<Peer, PerConnection>,
    pub(super) threads: usize,
    pub(super) versions: BTreeMap<Peer, String>,
    /// Each once: peers that are missing, connections that failed, log lines that were lost.
    pub(super) notes: Vec<String>,
}

impl Results {
    pub(super) fn note(&mut self, note: String) {
        progress(format_args!("{note}"));
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

pub(super) fn run(args: &L4Args) -> Result<Results> {
    let cases = if args.case.is_empty() { Case::ALL.to_vec() } else { args.case.clone() };
    let mut bench = Bench::new(args)?;
    bench.measurements = Measurement::ALL.into_iter().filter(|m| cases.iter().any(|case| m.gives(*case))).collect();
    let mut peers = bench.available(&args.peer, &PEERS)?;
    let done = bench.rounds(&mut peers, cases.contains(&Case::MemoryIdle));
    bench.results.samples.retain(|(case, _), _| cases.contains(case));
    match done {
        // What is there is worth a look, and all is tidied up.
        Err(error) if interrupted() && !bench.results.samples.is_empty() => {
            bench.results.note(format!("incomplete: {error:#}"));
        }
        other => other?,
    }
    Ok(bench.results)
}

/// Raises the limit of open files, which all programs inherit, and returns how many connections fit a process.
fn raise_descriptor_limit() -> Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // The hard limit itself moves only with CAP_SYS_RESOURCE, which root in a container may lack.
    let raised = setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, hard.max(DESCRIPTORS));
    let limit = if raised.is_ok() { DESCRIPTORS } else { hard };
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard.max(limit)).context("raising the limit of open files")?;
    Ok(usize::try_from(limit)?.saturating_sub(SPARE_DESCRIPTORS).max(SPARE_DESCRIPTORS))
}

impl Pace {
    fn of(args: &L4Args) -> Self {
        let (rounds, warmup, window, idle_connections, limit) = if args.quick {
            (2, Duration::from_millis(200), Duration::from_millis(600), 10_000, Duration::from_secs(170))
        } else {
            (5, Duration::from_millis(300), Duration::from_secs(2), 100_000, Duration::from_secs(880))
        };
        Self {
            rounds: args.rounds.unwrap_or(rounds).max(1),
            warmup,
            window,
            idle_connections: args.idle_connections.unwrap_or(idle_connections).max(100),
            limit,
        }
    }
}

pub(super) struct Bench {
    pub(super) pace: Pace,
    measurements: Vec<Measurement>,
    pub(super) results: Results,
    pub(super) dir: tempfile::TempDir,
    /// Client processes so far; each has source addresses of its own.
    pub(super) clients: u32,
    pub(super) turns: u32,
    /// Connections that one process may have open.
    pub(super) sockets_per_process: usize,
}

impl Bench {
    /// Without anything to measure yet.
    pub(super) fn new(args: &L4Args) -> Result<Self> {
        Ok(Self {
            sockets_per_process: raise_descriptor_limit()?,
            pace: Pace::of(args),
            measurements: Vec::new(),
            results: Results {
                samples: BTreeMap::new(),
                memory: BTreeMap::new(),
                threads: args.threads.max(1),
                versions: BTreeMap::new(),
                notes: Vec::new(),
            },
            dir: tempfile::Builder::new().prefix("ingress-bench-").tempdir()?,
            clients: 0,
            turns: 0,
        })
    }

    /// Idle connections that a peer can be asked to hold.
    pub(super) fn idle_connections(&self, peer: Peer) -> usize {
        match peer {
            // Once handed off, a connection holds no descriptor.
            Peer::Direct | Peer::Ingress => self.pace.idle_connections,
            Peer::Haproxy | Peer::HaproxySplice | Peer::Nginx | Peer::Envoy => {
                self.pace.idle_connections.min(self.sockets_per_process / PER_PROXIED)
            }
        }
    }

    /// Those of `peers` that are wanted and installed, ours among them.
    pub(super) fn available(&mut self, wanted: &[Peer], peers: &[Peer]) -> Result<Vec<Peer>> {
        let mut available = Vec::new();
        for &peer in peers {
            if !wanted.is_empty() && peer != Peer::Ingress && !wanted.contains(&peer) {
                continue;
            }
            match peer.version() {
                Ok(version) => {
                    self.results.versions.insert(peer, version);
                    available.push(peer);
                }
                Err(error) => self.results.note(format!("without {}: {error:#}", peer.name())),
            }
        }
        ensure!(!available.is_empty(), "no peer can run: {}", self.results.notes.join("; "));
        Ok(available)
    }

    fn rounds(&mut self, peers: &mut Vec<Peer>, memory: bool) -> Result<()> {
        let started = Instant::now();
        let mut longest = Duration::ZERO;
        // Memory is counted, not timed: once is enough, and first, so that a run cut short has it.
        let rounds = if self.measurements.is_empty() { 0 } else { self.pace.rounds };
        for round in usize::from(!memory)..=rounds {
            for index in 0..peers.len() {
                // Another peer begins each round: what the machine does over time hits all alike.
                let Some(&peer) = peers.get((index + round) % peers.len().max(1)) else { continue };
                if started.elapsed() + longest > self.pace.limit {
                    self.results.note(format!("stopped in round {round} of {rounds}: out of time"));
                    return Ok(());
                }
                let began = Instant::now();
                let what = if round == 0 { "memory".into() } else { format!("round {round}/{rounds}") };
                let done = if round == 0 { self.memory_turn(peer) } else { self.turn(peer) };
                longest = longest.max(began.elapsed());
                match done {
                    Ok(line) => progress(format_args!("{what} {}: {line}", peer.name())),
                    Err(error) => {
                        check_interrupt()?;
                        self.results.note(format!("{what} without {}: {error:#}", peer.name()));
                    }
                }
            }
            if round == 0 {
                // Says nothing about the turns to come.
                longest = Duration::ZERO;
                continue;
            }
            // A peer that gave nothing at all will not begin to.
            let samples = &self.results.samples;
            peers.retain(|peer| samples.keys().any(|(_, sampled)| sampled == peer));
        }
        Ok(())
    }

    /// One peer, every load.
    fn turn(&mut self, peer: Peer) -> Result<String> {
        let mut stage = Stage::set(self, peer, None)?;
        let mut line = Vec::new();
        for measurement in self.measurements.clone() {
            machine::settle(SETTLE)?;
            let measured = match stage.measure(self, measurement) {
                Ok(measured) => measured,
                Err(error) => {
                    check_interrupt()?;
                    self.results.note(format!("{} {measurement:?}: {error:#}", peer.name()));
                    stage.running.check()?;
                    continue;
                }
            };
            if measured.failed > 0 {
                self.results.note(format!("{} {measurement:?}: connections failed", peer.name()));
            }
            for (case, value) in measurement.figures(&measured) {
                self.results.samples.entry((case, peer)).or_default().push(value);
                line.push(format!("{} {value:.4}", case.name()));
            }
        }
        stage.strike(self)?;
        Ok(line.join(", "))
    }

    fn memory_turn(&mut self, peer: Peer) -> Result<String> {
        let each = match peer {
            // A router keeps nothing per connection.
            Peer::Direct => PerConnection::default(),
            Peer::Haproxy | Peer::HaproxySplice | Peer::Nginx | Peer::Envoy | Peer::Ingress => {
                let mut stage = Stage::set_for_idle(self, peer)?;
                let each = stage.idle(self)?;
                // The connections still stand, so there are no log lines to count.
                drop(stage);
                each
            }
        };
        self.results.memory.insert(peer, each);
        self.results.samples.insert((Case::MemoryIdle, peer), vec![each.total()]);
        let PerConnection { connections, kernel, daemon } = each;
        Ok(format!("{kernel:.0} B kernel and {daemon:.0} B daemon for each of {connections} connections"))
    }
}
