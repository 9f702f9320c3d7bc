//! curl and openssl as clients inside a namespace.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::netns::Namespace;
use crate::payload::{Fingerprint, Fingerprinter};
use crate::process::Process;
use crate::wait::{here, wait_for};

/// One kind of request: where from, where to, under which name, with which HTTP version.
#[derive(Clone, Debug)]
pub struct Curl {
    ns: Namespace,
    server: SocketAddr,
    name: String,
    args: Vec<String>,
}

/// A finished request.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u64,
    /// `1.1` or `2`.
    pub http_version: String,
    /// The port that the client called from.
    pub local_port: u16,
    pub body: Vec<u8>,
}

impl Curl {
    /// Requests from `ns` for `https://<name>`, resolved to `server`, verified against `ca`.
    pub fn new(ns: &Namespace, server: SocketAddr, name: &str, ca: PathBuf) -> Self {
        let port = server.port();
        let ip = match server {
            SocketAddr::V4(four) => four.ip().to_string(),
            SocketAddr::V6(six) => format!("[{}]", six.ip()),
        };
        let limit = here(Duration::from_secs(60)).as_secs().to_string();
        let args = ["--silent", "--show-error", "--max-time", &limit, "--noproxy", "*", "--cacert"];
        let mut args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        args.extend([ca.display().to_string(), "--resolve".into(), format!("{name}:{port}:{ip}")]);
        args.extend(["--write-out".into(), "%{stderr}%{json}".into()]);
        Self { ns: ns.clone(), server, name: name.into(), args }
    }

    pub fn http1(self) -> Self {
        self.arg("--http1.1")
    }

    pub fn http2(self) -> Self {
        self.arg("--http2")
    }

    /// Any further option of curl's.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Bytes per second, so that a transfer lasts.
    pub fn limit_rate(self, bytes: u64) -> Self {
        self.arg("--limit-rate").arg(&bytes.to_string())
    }

    /// The answer to a GET. An error holds curl's own words.
    pub fn get(&self, path: &str) -> Result<Response> {
        let output = self.command(path).output().context("starting curl")?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!("curl {} {path}: {}", self.name, words.lines().next().unwrap_or("no word"));
        }
        let facts: Value = serde_json::from_str(words.trim()).with_context(|| format!("curl wrote {words:?}"))?;
        Ok(Response {
            status: facts["http_code"].as_u64().context("curl reports http_code")?,
            http_version: facts["http_version"].as_str().context("curl reports http_version")?.into(),
            local_port: u16::try_from(facts["local_port"].as_u64().context("curl reports local_port")?)?,
            body: output.stdout,
        })
    }

    /// GET of a JSON document, which must be answered with 200.
    pub fn get_json(&self, path: &str) -> Result<Value> {
        let response = self.get(path)?;
        ensure!(response.status == 200, "{path} was answered with {}", response.status);
        serde_json::from_slice(&response.body)
            .with_context(|| format!("{path} is not JSON: {:?}", String::from_utf8_lossy(&response.body)))
    }

    /// PUTs a file.
    pub fn upload(&self, file: &std::path::Path, path: &str) -> Result<Response> {
        self.clone().arg("--upload-file").arg(&file.display().to_string()).get(path)
    }

    /// Starts a GET whose body is hashed as it arrives.
    pub fn download(&self, path: &str) -> Result<Download> {
        let mut command = self.command(path);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn("curl", &mut command)?;
        let body = process.child().stdout.take().context("curl has a stdout")?;
        let words = process.child().stderr.take().context("curl has a stderr")?;
        let gate = Arc::new(Gate::default());
        let reader = {
            let gate = gate.clone();
            std::thread::spawn(move || gate.read(body))
        };
        let words = std::thread::spawn(move || std::io::read_to_string(words).unwrap_or_default());
        Ok(Download { process, gate, reader, words })
    }

    fn command(&self, path: &str) -> Command {
        let mut command = self.ns.command("curl");
        command.args(&self.args).arg(format!("https://{}:{}{path}", self.name, self.server.port()));
        command
    }
}

/// A download under way.
#[derive(Debug)]
pub struct Download {
    process: Process,
    gate: Arc<Gate>,
    reader: JoinHandle<Result<Fingerprint>>,
    words: JoinHandle<String>,
}

impl Download {
    /// Bytes of the body that have arrived.
    pub fn received(&self) -> u64 {
        self.gate.state().received
    }

    /// Waits until at least `bytes` of the body have arrived.
    pub fn wait_for_bytes(&self, bytes: u64, deadline: Duration) -> Result<()> {
        wait_for(deadline, &format!("{bytes} bytes of a download"), || (self.received() >= bytes).then_some(()))
    }

    /// Stops reading the body; the window closes and the transfer stands still.
    pub fn hold(&self) {
        self.gate.state().held = true;
    }

    pub fn resume(&self) {
        self.gate.state().held = false;
        self.gate.changed.notify_all();
    }

    /// Waits for the end of a download that succeeds.
    pub fn finish(mut self, deadline: Duration) -> Result<Fingerprint> {
        self.resume();
        let status = self.process.wait(deadline)?;
        let words = self.words.join().unwrap_or_default();
        ensure!(status.success(), "curl ended with {status}: {}", words.lines().next().unwrap_or("no word"));
        self.reader.join().map_err(|_| anyhow::anyhow!("the reader of a download panicked"))?
    }
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    received: u64,
    held: bool,
}

impl Gate {
    fn state(&self) -> std::sync::MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, mut body: impl std::io::Read) -> Result<Fingerprint> {
        let mut hasher = Fingerprinter::default();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let n = body.read(&mut chunk).context("reading from curl")?;
            if n == 0 {
                return Ok(hasher.finish());
            }
            hasher.update(&chunk[..n]);
            let mut state = self.state();
            state.received += n as u64;
            let _open = self.changed.wait_while(state, |s| s.held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// `openssl s_client` with `args`: everything it says, handshake done or not. It is not sent a byte.
pub fn s_client(ns: &Namespace, server: SocketAddr, args: &[&str]) -> Result<String> {
    let mut command = ns.command("openssl");
    command.args(["s_client", "-connect", &server.to_string()]).args(args).stdin(Stdio::null());
    let output = command.output().context("starting openssl")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}
