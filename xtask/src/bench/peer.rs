//! The peers that are compared, and one interface to start each of them.
//!
//! Every peer listens on the same address, routes the same SNI to the same backends in turn, and writes one log
//! line per connection. docs/benchmarks.md gives the reason for every setting.

mod envoy;
mod haproxy;
mod ingress;
mod nginx;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;

pub(super) use self::ingress::Ingress;
use super::load::proxy_header::ProxyHeader;
use super::program::{Program, run_to_end};
use super::topology::Topology;

/// Longest time for a peer to stop by itself.
const STOP: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(super) enum Peer {
    /// The proxy's host forwards; no proxy runs.
    Direct,
    Haproxy,
    /// HAProxy with `option splice-auto`.
    HaproxySplice,
    Nginx,
    Envoy,
    /// Ours.
    Ingress,
}

/// What a peer needs to know to start.
pub(super) struct Setting<'a> {
    pub(super) topology: &'a Topology,
    /// For configuration, logs and sockets; empty at the start.
    pub(super) dir: &'a Path,
    pub(super) threads: usize,
    /// The most connections that it must hold.
    pub(super) connections: usize,
}

/// A started peer; dropping it stops it.
pub(super) struct Running {
    // First, so that it is gone before what it writes to.
    pub(super) process: Process,
    pub(super) log: Log,
}

pub(super) enum Process {
    /// The kernel forwards.
    None,
    Proxy(Program),
    Ingress(Box<Ingress>),
}

/// Where a peer's connection log goes.
pub(super) enum Log {
    None,
    File(PathBuf),
    Syslog(Program),
}

impl Peer {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::Ingress => "ingress",
        }
    }

    /// What the backend sees in front of the hello. nginx cannot send v2.
    pub(super) fn header(self) -> ProxyHeader {
        match self {
            Self::Direct => ProxyHeader::None,
            Self::Nginx => ProxyHeader::V1,
            Self::Haproxy | Self::HaproxySplice | Self::Envoy | Self::Ingress => ProxyHeader::V2,
        }
    }

    /// One line for the report; also the check that the peer is installed.
    pub(super) fn version(self) -> anyhow::Result<String> {
        match self {
            Self::Direct => first_line("uname", &["-sr"]),
            Self::Haproxy | Self::HaproxySplice => first_line("haproxy", &["-v"]),
            Self::Nginx => nginx::version(),
            Self::Envoy => envoy::version(),
            Self::Ingress => ingress::version(),
        }
    }

    pub(super) fn start(self, setting: &Setting<'_>) -> anyhow::Result<Running> {
        match self {
            Self::Direct => Ok(Running { process: Process::None, log: Log::None }),
            Self::Haproxy => haproxy::start(setting, haproxy::Splice::Off),
            Self::HaproxySplice => haproxy::start(setting, haproxy::Splice::Auto),
            Self::Nginx => nginx::start(setting),
            Self::Envoy => envoy::start(setting),
            Self::Ingress => Ingress::start(setting),
        }
        .with_context(|| format!("starting {}", self.name()))
    }
}

impl Running {
    /// The process group whose memory is the peer's.
    pub(super) fn group(&self) -> Option<i32> {
        match &self.process {
            Process::None => None,
            Process::Proxy(program) => Some(program.group()),
            Process::Ingress(ingress) => Some(ingress.program.group()),
        }
    }

    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match &mut self.process {
            Process::None => Ok(()),
            Process::Proxy(program) => program.check(),
            Process::Ingress(ingress) => ingress.program.check(),
        }
    }

    /// Ends the peer, then counts the lines of its connection log. `None`: it writes none.
    pub(super) fn stop(self) -> anyhow::Result<Option<u64>> {
        let Self { process, log } = self;
        drop(process);
        match log {
            Log::None => Ok(None),
            Log::File(path) => Ok(Some(count_lines(&path)?)),
            Log::Syslog(sink) => Ok(Some(sink.finish(STOP)?.trim().parse()?)),
        }
    }
}

fn count_lines(path: &Path) -> anyhow::Result<u64> {
    use std::io::Read;
    let mut file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut block = vec![0u8; 1 << 20];
    let mut lines = 0;
    loop {
        match file.read(&mut block)? {
            0 => return Ok(lines),
            read => lines += block[..read].iter().filter(|&&byte| byte == b'\n').count() as u64,
        }
    }
}

fn first_line(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    let output = run_to_end(command, Duration::from_secs(20))?;
    Ok(output.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned())
}

/// Writes a configuration into the peer's directory.
fn write(setting: &Setting<'_>, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = setting.dir.join(name);
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// One line per backend, made by `line` from its number and address.
fn per_backend(line: impl Fn(usize, std::net::SocketAddrV4) -> String) -> String {
    super::topology::backends().into_iter().enumerate().map(|(n, backend)| line(n + 1, backend)).collect()
}
