//! The command line: what an operator types. Every verb but `run`, `check`, `import` and `detach` is a question to the
//! running daemon, asked over its Unix socket.
//!
//! Exit codes: 0 fine, 1 it failed while running, 2 the configuration or the command line is wrong.

mod client;
mod ddns;
mod diff;
mod drain;
mod etcd;
mod flows;
mod hooks;
mod import;
mod local;
mod peer;
mod pools;
mod routes;
mod status;
mod text;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::json;

use crate::admin::Reloaded;
use crate::config::KernelConfig;
use client::{Client, ClientError};

/// SNI passthrough at the speed of IP forwarding
#[derive(Debug, Parser)]
#[command(name = "ingress", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Global {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/ingress/ingress.yaml")]
    config: PathBuf,
    /// For a person or for a program
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The running daemon's admin socket [default: admin.socket of the configuration]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon in the foreground
    Run,
    /// Check the configuration and say everything that is wrong with it
    Check {
        /// Print the configuration's JSON schema instead, for editors
        #[arg(long)]
        schema: bool,
    },
    /// Show how the daemon is doing: kernel path, listeners, pools, configuration
    Status,
    /// List connections, or end some
    Flows(Box<flows::FlowsArgs>),
    /// Show pools and their backends, or say which backends take connections
    Pools(pools::PoolsArgs),
    /// Show what is routed where, who said so, and what is not served and why
    Routes(routes::RoutesArgs),
    /// Show what would change, and change nothing: the file as it is now, or what a provider would say
    Diff(diff::DiffArgs),
    /// Show the DNS records that this node keeps, or what would be done about them
    Ddns(ddns::DdnsArgs),
    /// Show who is told what happens, or try one
    Hooks(hooks::HooksArgs),
    /// Join nodes to a mesh: what is registered at one is routed on all
    #[command(subcommand)]
    Peer(peer::PeerVerb),
    /// Print another proxy's configuration as one of ours, and name what could not be carried over
    Import(import::ImportArgs),
    /// Load the configuration again; a bad one changes nothing
    Reload,
    /// Take no new connections, before a reboot; what is open goes on
    Drain(drain::DrainArgs),
    /// Remove everything that is pinned or attached in the kernel; connections that run there end
    Detach,
    /// Show the version
    Version,
}

/// Why a verb did not succeed, by exit code.
#[derive(Debug)]
enum Failure {
    /// 2: the configuration is wrong. Ready to print.
    Config(String),
    /// 2: the command line is wrong.
    Usage(String),
    /// 1
    Runtime(anyhow::Error),
    /// All is said already.
    Silent(u8),
}

type Outcome = Result<(), Failure>;

/// What the command line starts and may not know: it stands above the parts that do the work. Given by `main`.
#[derive(Clone, Copy, Debug)]
pub struct Starts {
    /// The daemon; returns when it has stopped.
    pub run: fn(&Path) -> ExitCode,
    /// Removes what is attached and pinned, and says what that was.
    pub detach: fn(&KernelConfig) -> anyhow::Result<Vec<String>>,
}

/// Parses the command line, does what it says and reports; the whole of `main`.
pub fn main(starts: Starts) -> ExitCode {
    let Cli { global, verb } = Cli::parse();
    let mut out = io::BufWriter::new(io::stdout());
    let done = match verb {
        Verb::Run => return (starts.run)(&global.config),
        Verb::Check { schema: true } => local::schema(&mut out),
        Verb::Check { schema: false } => local::check(&global, &mut out),
        Verb::Detach => local::detach(starts.detach, &global, &mut out),
        Verb::Version => version(&global, &mut out),
        Verb::Status => ask(&global).and_then(|daemon| status::show(&daemon, &global, &mut out)),
        Verb::Flows(args) => flows::run(*args, &global, &mut out),
        Verb::Pools(args) => ask(&global).and_then(|daemon| pools::run(args, &daemon, &global, &mut out)),
        Verb::Routes(args) => ask(&global).and_then(|daemon| routes::show(args, &daemon, &global, &mut out)),
        Verb::Diff(args) => ask(&global).and_then(|daemon| diff::show(args, &daemon, &global, &mut out)),
        Verb::Drain(args) => ask(&global).and_then(|daemon| drain::run(args, &daemon, &global, &mut out)),
        Verb::Ddns(ddns::DdnsArgs { dry_run: true }) => ddns::dry_run(&global, &mut out),
        Verb::Ddns(ddns::DdnsArgs { dry_run: false }) => {
            ask(&global).and_then(|daemon| ddns::show(&daemon, &global, &mut out))
        }
        Verb::Hooks(args) => ask(&global).and_then(|daemon| hooks::run(args, &daemon, &global, &mut out)),
        Verb::Peer(verb) => peer::run(verb, &global, &mut out),
        Verb::Import(args) => import::run(args, &global, &mut out),
        Verb::Reload => ask(&global).and_then(|daemon| reload(&daemon, &global, &mut out)),
    };
    let flushed = out.flush().map_err(Failure::from);
    match done.and(flushed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn ask(global: &Global) -> Result<Client, Failure> {
    let socket = global.socket.clone().unwrap_or_else(|| local::admin_socket(&global.config));
    Ok(Client::new(socket)?)
}

fn reload(daemon: &Client, global: &Global, out: &mut impl Write) -> Outcome {
    let Reloaded { generation, warnings } = match daemon.post("/v1/reload", &json!({})) {
        // The daemon read the file and refused it: the file is at fault, not the daemon.
        Err(ClientError::Refused { status: 422, error }) => {
            return Err(Failure::Config(format!("{error}\nthe configuration in use stays as it was")));
        }
        answer => answer?,
    };
    if global.json() {
        return print_json(out, &Reloaded { generation, warnings });
    }
    for warning in &warnings {
        writeln!(out, "{warning}")?;
    }
    Ok(writeln!(out, "reloaded; generation {generation} is in use")?)
}

fn version(global: &Global, out: &mut impl Write) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    if global.json() {
        return print_json(out, &json!({ "version": version, "arch": std::env::consts::ARCH }));
    }
    Ok(writeln!(out, "ingress {version}")?)
}

fn print_json(out: &mut impl Write, value: &impl Serialize) -> Outcome {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

impl Global {
    fn json(&self) -> bool {
        self.output == Output::Json
    }
}

impl Failure {
    fn report(self) -> ExitCode {
        let (code, message) = match self {
            Self::Config(problems) => (2, problems.trim_end().to_owned()),
            Self::Usage(message) => (2, format!("ingress: {message}")),
            // `ingress flows | head`: the reader has seen enough.
            Self::Runtime(error) if is_broken_pipe(&error) => return ExitCode::SUCCESS,
            Self::Runtime(error) => (1, format!("ingress: {error:#}")),
            Self::Silent(code) => return ExitCode::from(code),
        };
        // Nobody is left to tell when stderr is gone as well.
        drop(writeln!(io::stderr(), "{message}"));
        ExitCode::from(code)
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Runtime(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Runtime(error.into())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Runtime(error.into())
    }
}

#[cfg(test)]
mod tests;
