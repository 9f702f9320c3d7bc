//! A receiver of webhooks: another program, in another language, that checks what it gets and answers as it is told.

use anyhow::{Context as _, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::certs::Leaf;
use crate::lab::Host;
use crate::process::Process;
use crate::skip::find_program;
use crate::wait::{PATIENCE, wait_for, wait_until};

/// Runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Receiver {
    host: Host,
    leaf: Leaf,
    secret: String,
    dir: TempDir,
    process: Option<Process>,
}

const PORT: u16 = 8443;

impl Receiver {
    /// On a host of the lab, with a certificate for its address; answers 200.
    pub fn start(host: &Host, leaf: Leaf, secret: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ing-receiver-").tempdir()?;
        let mut receiver = Self { host: host.clone(), leaf, secret: secret.to_owned(), dir, process: None };
        receiver.answer("200")?;
        receiver.restart()?;
        Ok(receiver)
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.host.socket(PORT))
    }

    /// From now on: a status, with the seconds of a Retry-After behind it, or `hang`.
    pub fn answer(&self, words: &str) -> Result<()> {
        let new = self.dir.path().join("answer.new");
        std::fs::write(&new, words)?;
        Ok(std::fs::rename(new, self.dir.path().join("answer"))?)
    }

    /// All that came to this path, in order.
    pub fn requests(&self, path: &str) -> Vec<Value> {
        let log = std::fs::read_to_string(self.dir.path().join("requests")).unwrap_or_default();
        // A line that is being written is not there yet.
        let requests = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        requests.filter(|request| request["path"] == path).collect()
    }

    /// The first request to this path that meets the condition.
    pub fn wait_for(&self, path: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Result<Value> {
        let found = wait_for(PATIENCE, what, || self.requests(path).into_iter().find(&condition));
        found.with_context(|| format!("came to {path}: {:#?}", self.requests(path)))
    }

    /// Dies; its port answers with resets.
    pub fn stop(&mut self) {
        self.process = None;
    }

    pub fn restart(&mut self) -> Result<()> {
        let path = |file: &str| self.dir.path().join(file);
        let script = path("receiver.py");
        std::fs::write(&script, include_str!("receiver.py"))?;
        let address = self.host.socket(PORT);
        let mut command = self.host.ns.command(find_program("python3").context("python3 is not installed")?);
        command.arg(script).arg(self.dir.path()).arg(address.ip().to_string()).arg(PORT.to_string());
        command.args([&self.leaf.certificate, &self.leaf.key]).arg(&self.secret);
        self.process = Some(Process::spawn_logged("receiver", &mut command, &path("output"))?);
        wait_until(PATIENCE, "the receiver listens", || self.host.ns.connect(address).is_ok())
            .with_context(|| std::fs::read_to_string(path("output")).unwrap_or_default())
    }
}
