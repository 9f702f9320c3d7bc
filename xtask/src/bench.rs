//! `cargo xtask bench l4`: ingress beside plain routing, HAProxy, nginx and Envoy, in one run. `cargo xtask bench xdp`: what
//! admission costs.
//!
//! docs/benchmarks.md says how to repeat a run and what its figures can and cannot say.

mod case;
mod control;
mod cpus;
mod load;
mod machine;
mod memory;
mod peer;
mod program;
mod report;
mod run;
mod stage;
mod topology;
mod wan;
mod xdp;

use std::fmt;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use ingress_tests::netns::Namespace;

use self::case::Case;
use self::load::{backend, client, log_sink};
use self::peer::Peer;
use crate::step;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// TLS passthrough by SNI, beside its peers. Needs root; takes about 8 minutes.
    L4(L4Args),
    /// Routes: reloads and memory at 1,000 to 100,000 routes, and from a registration to its first connection. Needs root; takes
    /// half a minute.
    Control(control::ControlArgs),
    /// Admission: nanoseconds per packet and verdict, and SYNs dropped beside nftables. Needs root; takes a minute.
    Xdp(xdp::XdpArgs),
    #[command(hide = true)]
    Client(client::ClientArgs),
    #[command(hide = true)]
    Backend(backend::BackendArgs),
    #[command(hide = true)]
    LogSink(log_sink::LogSinkArgs),
}

#[derive(Clone, clap::Args)]
struct L4Args {
    /// One JSON object per line, case and peer on stdout; the table goes to stderr.
    #[arg(long)]
    json: bool,
    /// Times that every peer has its turn [default: 5, with --quick 2].
    #[arg(long)]
    rounds: Option<usize>,
    /// Only these cases.
    #[arg(long, value_enum)]
    case: Vec<Case>,
    /// Only these peers, beside ingress.
    #[arg(long, value_enum)]
    peer: Vec<Peer>,
    /// Threads of each proxy.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Connections in memory_idle [default: 100000, with --quick 10000].
    #[arg(long)]
    idle_connections: Option<usize>,
    /// Short windows, for a look: under 3 minutes.
    #[arg(long)]
    quick: bool,
    /// Instead: clients that are 30 to 260 ms away, with CUBIC and BBR, and a line that loses packets [3 rounds, 8 minutes].
    #[arg(long, conflicts_with_all = ["case", "idle_connections"])]
    wan: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    match args.bench {
        Bench::L4(args) => l4(&args),
        Bench::Control(args) => control::run(&args),
        Bench::Xdp(args) => xdp::run(&args),
        Bench::Client(args) => client::run(args),
        Bench::Backend(args) => backend::run(args),
        Bench::LogSink(args) => log_sink::run(args),
    }
}

fn l4(args: &L4Args) -> Result<()> {
    if cfg!(debug_assertions) {
        return again_as_release();
    }
    ensure!(nix::unistd::geteuid().is_root(), "the bench makes network namespaces: run it as root");
    program::catch_interrupts()?;
    if args.wan {
        wan::run(args)?;
        return program::check_interrupt();
    }
    let results = run::run(args)?;
    report::print(&results, args.json)?;
    // Half a run is shown, but is no success.
    program::check_interrupt()
}

/// Load programs without optimisation would measure themselves: builds everything for release and starts over.
fn again_as_release() -> Result<()> {
    step::run("building the bench", &mut step::cargo(&["build", "--release", "--package", "xtask"]))?;
    if std::env::var_os("INGRESS_BIN").is_none()
        && let Err(error) =
            step::run("building ingress", &mut step::cargo(&["build", "--release", "--package", "ingress"]))
    {
        progress(format_args!("{error:#}; the peers are measured without ingress"));
    }
    let program = target_dir()?.join("release/xtask");
    let error = Command::new(&program).args(std::env::args_os().skip(1)).exec();
    bail!("starting {}: {error}", program.display())
}

/// Cargo's target directory, from where we run.
fn target_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding the running program")?;
    let target = own.ancestors().nth(2).context("the bench runs from a target directory")?;
    Ok(target.into())
}

/// This program again, as one of its load programs, inside a namespace.
fn load_command(namespace: &Namespace, program: &str) -> Command {
    // Not by its path: a build may replace the file while we run.
    let mut command = namespace.command("/proc/self/exe");
    command.args(["bench", program]);
    command
}

/// What happens now, on stderr.
fn progress(what: fmt::Arguments<'_>) {
    eprintln!("bench: {what}");
}
