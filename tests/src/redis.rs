//! Real Redis servers and Sentinels, each in a namespace of its own.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::certs::Leaf;
use crate::lab::Host;
use crate::netns::Namespace;
use crate::process::Process;
use crate::wait::{PATIENCE, wait_until};

/// A server or Sentinel. Dropping it stops it.
#[derive(Debug)]
pub struct Redis {
    pub address: SocketAddr,
    host: Host,
    dir: TempDir,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Redis {
    /// A server on its own; `options` are its further configuration, a line each.
    pub fn start(host: &Host, port: u16, options: &[&str]) -> Result<Self> {
        Self::prepare(host, port, &format!("port {port}\n"), options)?.up()
    }

    /// One that speaks TLS only, and asks clients for a certificate.
    pub fn start_tls(host: &Host, port: u16, leaf: &Leaf, ca: &Path, options: &[&str]) -> Result<Self> {
        let files = format!(
            "port 0\ntls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-replication yes\n",
            leaf.certificate.display(),
            leaf.key.display(),
            ca.display()
        );
        Self::prepare(host, port, &files, options)?.up_tls()
    }

    /// A Sentinel that watches `primary` under the name `main`; two of them decide.
    pub fn sentinel(host: &Host, port: u16, primary: SocketAddr) -> Result<Self> {
        let config = format!(
            "port {port}\nsentinel monitor main {} {} 2\nsentinel down-after-milliseconds main 1000\n\
             sentinel failover-timeout main 5000\n",
            primary.ip(),
            primary.port()
        );
        let mut sentinel = Self::prepare(host, port, &config, &[])?;
        sentinel.arguments.push("--sentinel".to_owned());
        sentinel.up()
    }

    fn prepare(host: &Host, port: u16, config: &str, options: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ing-redis-").tempdir()?;
        let address = host.socket(port);
        let config = format!(
            "{config}bind {}\nprotected-mode no\ndir {}\nlogfile {}\ndaemonize no\n{}\n",
            address.ip(),
            dir.path().display(),
            dir.path().join("log").display(),
            options.join("\n")
        );
        let file = dir.path().join("redis.conf");
        std::fs::write(&file, config)?;
        let arguments = vec![file.display().to_string()];
        Ok(Self { address, host: host.clone(), dir, arguments, process: None })
    }

    fn up(mut self) -> Result<Self> {
        self.restart()?;
        Ok(self)
    }

    fn up_tls(mut self) -> Result<Self> {
        self.spawn()?;
        wait_until(PATIENCE, "Redis takes connections", || self.host.ns.connect(self.address).is_ok())?;
        Ok(self)
    }

    fn spawn(&mut self) -> Result<()> {
        let mut command = self.host.ns.command("redis-server");
        command.args(&self.arguments);
        self.process = Some(Process::spawn_logged("redis-server", &mut command, &self.dir.path().join("out"))?);
        Ok(())
    }

    /// Starts it, also after [`Redis::kill`], with the configuration that it had at first.
    pub fn restart(&mut self) -> Result<()> {
        self.spawn()?;
        let what = format!("Redis at {} answers: {}", self.address, self.dir.path().join("log").display());
        wait_until(PATIENCE, &what, || {
            self.cli(&["PING"]).is_ok_and(|pong| pong.contains("PONG") || pong.contains("NOAUTH"))
        })
    }

    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("it runs")?;
        process.signal(Signal::SIGKILL)?;
        process.wait(PATIENCE).map(drop)
    }

    /// `SIGSTOP` hangs it, `SIGCONT` lets it go on.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("it runs")?.signal(signal)
    }

    /// What `redis-cli` on its own host says.
    pub fn cli(&self, words: &[&str]) -> Result<String> {
        cli(&self.host.ns, self.address, words)
    }

    pub fn ok(&self, words: &[&str]) -> Result<()> {
        let answer = self.cli(words)?;
        ensure!(answer.trim() == "OK", "{words:?} was answered by {answer:?}");
        Ok(())
    }

    pub fn replicate(&self, primary: &Self) -> Result<()> {
        self.ok(&["REPLICAOF", &primary.address.ip().to_string(), &primary.address.port().to_string()])
    }

    pub fn promote(&self) -> Result<()> {
        self.ok(&["REPLICAOF", "NO", "ONE"])
    }

    /// Waits until this replica has all that its primary has.
    pub fn wait_for_link(&self) -> Result<()> {
        wait_until(PATIENCE, "the replica is in step", || {
            self.cli(&["INFO", "replication"]).is_ok_and(|info| info.contains("master_link_status:up"))
        })
    }

    pub fn role(&self) -> Result<String> {
        let role = self.cli(&["ROLE"])?;
        Ok(role.lines().next().unwrap_or_default().to_owned())
    }

    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
}

/// `redis-cli` in a namespace.
pub fn cli(ns: &Namespace, at: SocketAddr, words: &[&str]) -> Result<String> {
    let (host, port) = (at.ip().to_string(), at.port().to_string());
    ns.run("timeout", &[&["10", "redis-cli", "-h", &host, "-p", &port], words].concat())
}

/// A client's session: commands on one line, answers of one line.
pub fn say(session: &mut TcpStream, line: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    session.set_read_timeout(Some(PATIENCE))?;
    session.write_all(format!("{line}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") {
        let mut byte = [0];
        session.read_exact(&mut byte)?;
        answer.extend_from_slice(&byte);
    }
    Ok(String::from_utf8_lossy(&answer).trim().to_owned())
}
