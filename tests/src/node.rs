//! The daemon under test: one `ingress` in the proxy's namespace, with pins, socket and state of its own.

mod log;

use std::io::{BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

pub use self::log::Log;
use crate::bpffs;
use crate::fd_store::FdStore;
use crate::netns::Namespace;
use crate::process::Process;
use crate::wait::{PATIENCE, wait_for};
use crate::yaml::to_yaml;

/// A running (or killed) daemon. Dropping it stops the daemon and removes everything that it pinned.
#[derive(Debug)]
pub struct Node {
    ns: Namespace,
    dir: TempDir,
    pin_dir: PathBuf,
    binary: PathBuf,
    /// What starts the daemon in its place, and its words.
    starter: Vec<String>,
    fd_store: Option<FdStore>,
    process: Option<Process>,
    log: Arc<Log>,
}

impl Node {
    /// Starts the daemon and waits until it can take connections.
    ///
    /// The lab fills in where state, socket and pins are.
    pub fn start(ns: &Namespace, config: Value) -> Result<Self> {
        let mut node = Self::prepare(ns)?;
        node.write_config(config)?;
        node.launch()?;
        Ok(node)
    }

    /// Directories, but no configuration and no process yet.
    pub fn prepare(ns: &Namespace) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        bpffs::ensure_mounted()?;
        let unique = format!("ing-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Ok(Self {
            ns: ns.clone(),
            dir: tempfile::Builder::new().prefix("ing-node-").tempdir()?,
            pin_dir: Path::new(bpffs::PATH).join(unique),
            binary: binary()?,
            starter: Vec::new(),
            fd_store: None,
            process: None,
            log: Arc::default(),
        })
    }

    /// Starts the daemon on the configuration that is there, and waits until it can take connections; also the restart
    /// after [`Node::kill9`].
    pub fn launch(&mut self) -> Result<()> {
        self.spawn()?;
        let ready = wait_for(PATIENCE, "`ingress status` says that the daemon is ready", || {
            let ended = self.process.as_mut().and_then(Process::exit_status);
            match ended {
                Some(status) => Some(Err(anyhow::anyhow!("the daemon ended at start with {status}"))),
                None => self.status().ok().filter(|status| status["ready"] == true).map(Ok),
            }
        });
        ready.and_then(|answer| answer).map(drop).with_context(|| self.log.tail())
    }

    /// Starts the daemon and waits for nothing.
    pub fn spawn(&mut self) -> Result<()> {
        let mut command = match self.starter.split_first() {
            None => self.ns.command(&self.binary),
            Some((starter, words)) => {
                let mut command = self.ns.command(starter);
                command.args(words).arg(&self.binary);
                command
            }
        };
        if let Some(store) = &self.fd_store {
            store.hand_over(&mut command)?;
        }
        command.arg("run").arg("--config").arg(self.config_path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("INGRESS_STATS_USER", STATS_LOGIN.0).env("INGRESS_STATS_PASSWORD", STATS_LOGIN.1);
        let mut process = Process::spawn("ingress", &mut command)?;
        let stdout = process.child().stdout.take().context("the daemon has a stdout")?;
        let stderr = process.child().stderr.take().context("the daemon has a stderr")?;
        let (log, too) = (self.log.clone(), self.log.clone());
        std::thread::spawn(move || log.follow(BufReader::new(stderr)));
        std::thread::spawn(move || too.follow(BufReader::new(stdout)));
        self.process = Some(process);
        Ok(())
    }

    /// The next start runs another build.
    pub fn use_binary(&mut self, binary: &Path) {
        self.binary = binary.to_owned();
    }

    /// From the next start on, a stand-in for systemd keeps what the daemon wants kept.
    pub fn keep_sockets(&mut self) -> Result<()> {
        self.fd_store = Some(FdStore::open(self.dir.path())?);
        self.starter = FdStore::STARTER.map(str::to_owned).to_vec();
        Ok(())
    }

    pub fn kept_sockets(&self) -> Result<Vec<String>> {
        self.fd_store.as_ref().context("nobody keeps sockets here")?.names()
    }

    /// The next start is made by this program, whose words end where the daemon's begin.
    pub fn start_by(&mut self, starter: &[&str]) {
        self.starter = starter.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Kills the daemon so that it cannot tidy up.
    pub fn kill9(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL).map(drop)
    }

    /// Asks the daemon to stop, as systemd does, and waits for its end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut process = self.process.take().context("the daemon is not running")?;
        process.signal(signal)?;
        process.wait(PATIENCE)
    }

    /// Stops all threads of the daemon until the answer is dropped; its sockets live on in the kernel.
    pub fn pause(&self) -> Result<Paused<'_>> {
        let process = self.process.as_ref().context("the daemon is not running")?;
        process.signal(Signal::SIGSTOP)?;
        let paused = Paused { process };
        let tasks = format!("/proc/{}/task", process.pid());
        let stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task?.path().join("stat"))?;
            // The state stands behind the name, which is in brackets: proc_pid_stat(5).
            Ok::<_, std::io::Error>(stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
        };
        wait_for(PATIENCE, "every thread of the daemon is stopped", || {
            std::fs::read_dir(&tasks).ok()?.all(|task| stopped(task).unwrap_or(false)).then_some(())
        })?;
        Ok(paused)
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|p| p.exit_status().is_none())
    }

    /// Writes a new configuration and asks the daemon to take it; an error holds what it says about it.
    pub fn reload(&self, config: Value) -> Result<()> {
        self.write_config(config)?;
        self.reload_file()
    }

    /// `ingress reload` with whatever stands in the file.
    pub fn reload_file(&self) -> Result<()> {
        self.verb(&["reload"]).map(drop)
    }

    pub fn status(&self) -> Result<Value> {
        self.json(&["status"])
    }

    /// All live connections.
    pub fn flows(&self) -> Result<Vec<Value>> {
        let answer = self.json(&["flows", "--limit", "0"])?;
        let flows = answer["flows"].as_array().with_context(|| format!("`ingress flows` did not list: {answer}"))?;
        Ok(flows.clone())
    }

    /// How many packets have had this verdict.
    pub fn verdict(&self, name: &str) -> Result<u64> {
        let status = self.status()?;
        let verdicts = status["kernel"]["verdicts"].as_array().context("status lists verdicts")?;
        let found = verdicts.iter().find(|pair| pair[0] == name).with_context(|| format!("no verdict {name}"))?;
        found[1].as_u64().context("a verdict is a number")
    }

    /// Fails unless every connection that reached a backend so far, and there were some, was handed off to the kernel.
    pub fn all_in_kernel(&self) -> Result<()> {
        let status = self.status()?;
        let connections = &status["connections"];
        let handed_off = connections["handed_off_total"].as_u64().unwrap_or(0);
        ensure!(
            handed_off > 0 && connections["relayed_total"] == 0,
            "not every connection went to the kernel: {connections}; kernel path: {}",
            status["kernel"]
        );
        Ok(())
    }

    /// Waits until exactly one live connection meets the condition, and returns it.
    pub fn wait_for_flow(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Vec::new();
        let found = wait_for(PATIENCE, what, || {
            last = self.flows().ok()?;
            let mut meeting = last.iter().filter(|f| condition(f));
            meeting.next().filter(|_| meeting.next().is_none()).cloned()
        });
        found.with_context(|| format!("live connections: {}", Value::from(last)))
    }

    /// `ingress <words> --output json`, parsed.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let output = self.verb(&[words, &["--output", "json"]].concat())?;
        serde_json::from_str(&output).with_context(|| format!("ingress {words:?} wrote {output:?}"))
    }

    /// `ingress <words>` about this node; its stdout, or an error with its stderr.
    pub fn verb(&self, words: &[&str]) -> Result<String> {
        let output = self.output(words)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ingress {words:?} ended with {}: {}", output.status, stderr.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// As [`Node::verb`], for those who look at the exit code.
    pub fn output(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.ns.command(binary()?);
        command.args(words).arg("--config").arg(self.config_path());
        // The file may be broken on purpose, and does then not say where the socket is.
        command.arg("--socket").arg(self.socket()).stdin(Stdio::null());
        command.output().with_context(|| format!("running ingress {words:?}"))
    }

    /// `/metrics` as a scraper on the host itself gets it.
    pub fn metrics(&self) -> Result<String> {
        let url = format!("http://127.0.0.1:{ADMIN_PORT}/metrics");
        self.ns.run("curl", &["--silent", "--show-error", "--fail", "--max-time", "10", &url])
    }

    /// The sum of a metric's samples whose labels contain all of `labels`, each written `name="value"`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        sum_samples(&self.metrics()?, name, labels)
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Waits for a log line, past or future, that meets the condition.
    pub fn wait_for_log(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Result<Value> {
        self.log.wait_for(what, condition)
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("ingress.yaml")
    }

    /// How many connections to its admin socket the daemon holds: unix sockets with that path, one of which listens.
    pub fn operators(&self) -> Result<usize> {
        let pid = self.pid().context("the daemon is not running")?;
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/unix"))?;
        let path = self.socket().display().to_string();
        Ok(table.lines().filter(|line| line.ends_with(&path)).count().saturating_sub(1))
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    /// The one that speaks as HAProxy's, if the configuration asks for it.
    pub fn haproxy_socket(&self) -> PathBuf {
        self.dir.path().join("haproxy.sock")
    }

    /// What it answers to a line.
    pub fn haproxy_says(&self, line: &str) -> Result<String> {
        haproxy_says(&self.haproxy_socket(), line)
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Where its maps and links are: the directory of its layout.
    pub fn pins(&self) -> Result<PathBuf> {
        let directory = &self.pin_dir;
        let entries = std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
        let mut layouts = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        layouts.next().with_context(|| format!("{} holds no layout", directory.display()))
    }

    /// Fills in this node's own paths and replaces the configuration file in one step.
    pub fn write_config(&self, mut config: Value) -> Result<()> {
        config["state_dir"] = path_value(&self.state_dir());
        config["admin"]["socket"] = path_value(&self.socket());
        config["admin"]["http"]["bind"] = Value::from(vec![format!("127.0.0.1:{ADMIN_PORT}")]);
        if let Some(socket) = config["admin"].get_mut("haproxy_socket") {
            socket["path"] = path_value(&self.haproxy_socket());
        }
        config["kernel"]["pin_dir"] = path_value(&self.pin_dir);
        self.write_config_text(&to_yaml(&config))
    }

    /// A shipped YAML file, with this node's own paths where it leaves the defaults.
    pub fn write_shipped_config(&self, yaml: &str) -> Result<()> {
        let admin = format!("\nadmin:\n  socket: {}\n", self.socket().display());
        ensure!(yaml.contains("\nadmin:\n"), "the shipped file has no `admin` to put the socket under");
        let paths =
            format!("\nstate_dir: {}\nkernel: {{pin_dir: {}}}\n", self.state_dir().display(), self.pin_dir.display());
        self.write_config_text(&(yaml.replacen("\nadmin:\n", &admin, 1) + &paths))
    }

    /// Replaces the configuration file by any text at all.
    pub fn write_config_text(&self, text: &str) -> Result<()> {
        let new = self.dir.path().join("ingress.yaml.new");
        std::fs::write(&new, text)?;
        std::fs::rename(&new, self.config_path()).context("replacing the configuration")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log.tail());
        }
        self.process = None;
        // A file that cannot be read would mean the default pins, which are the host's own.
        let config =
            format!("listeners: {{any: {{bind: \"127.0.0.1:9\"}}}}\nkernel: {{pin_dir: {}}}\n", self.pin_dir.display());
        if self.write_config_text(&config).is_ok() {
            let _ = self.output(&["detach"]);
        }
        let _ = std::fs::remove_dir_all(&self.pin_dir);
    }
}

/// What a socket of HAProxy's, or one like it, answers to a line.
pub fn haproxy_says(socket: &Path, line: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(line.as_bytes())?;
    stream.write_all(b"\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("{line:?} was answered with {answer:?} so far"))?;
    Ok(answer)
}

/// A daemon that stands still. Dropping it lets the daemon go on.
#[derive(Debug)]
pub struct Paused<'a> {
    process: &'a Process,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        // It can only fail where nothing is left to go on.
        let _ = self.process.signal(Signal::SIGCONT);
    }
}

/// The daemon's binary: `INGRESS_BIN`, else the one that lies beside the program that asks.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("INGRESS_BIN") {
        return Ok(path.into());
    }
    near("ingress")?.context("no `ingress` near this program: run `cargo build -p ingress` first")
}

/// The daemon with another layout of its tables: `INGRESS_LAYOUT_PROBE_BIN`, else the one that `cargo xtask test` builds.
pub fn layout_probe() -> Result<Option<PathBuf>> {
    match std::env::var_os("INGRESS_LAYOUT_PROBE_BIN") {
        Some(path) => Ok(Some(path.into())),
        None => near("ingress-layout-probe"),
    }
}

fn near(name: &str) -> Result<Option<PathBuf>> {
    let own = std::env::current_exe().context("finding the running program")?;
    Ok(own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file()))
}

/// `ingress` with these words, on the host, without a node.
pub fn ingress(words: &[&str]) -> Result<Output> {
    Command::new(binary()?).args(words).output().with_context(|| format!("running ingress {words:?}"))
}

fn sum_samples(exposition: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let mut sum = None;
    for line in exposition.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let (own, value) = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once("} ").with_context(|| format!("odd sample: {line}"))?,
            None => ("", rest.strip_prefix(' ').unwrap_or("")),
        };
        if value.is_empty() || !labels.iter().all(|l| own.contains(l)) {
            continue;
        }
        let value: f64 =
            value.split(' ').next().unwrap_or("").parse().with_context(|| format!("odd sample: {line}"))?;
        *sum.get_or_insert(0.0) += value;
    }
    sum.with_context(|| format!("no sample of {name} with {labels:?}"))
}

fn path_value(path: &Path) -> Value {
    Value::from(path.display().to_string())
}

/// User and password of the dashboard, which the daemon reads from `INGRESS_STATS_USER` and `INGRESS_STATS_PASSWORD`.
pub const STATS_LOGIN: (&str, &str) = ("operator", "correct horse");
/// Where the node serves `/metrics` and the dashboard, on loopback.
pub const ADMIN_PORT: u16 = 8404;

#[cfg(test)]
mod tests {
    use super::*;

    const EXPOSITION: &str = "\
# HELP ingress_connections_total Connections.
ingress_connections_total{listener=\"tls\",pool=\"a\"} 3
ingress_connections_total{listener=\"tls\",pool=\"b\"} 4
ingress_connections_total_other 9
ingress_up 1
";

    #[test]
    fn samples_are_summed_over_the_labels_that_are_left_open() -> Result<()> {
        assert_eq!(sum_samples(EXPOSITION, "ingress_connections_total", &[])?, 7.0);
        assert_eq!(sum_samples(EXPOSITION, "ingress_connections_total", &["pool=\"b\""])?, 4.0);
        assert_eq!(sum_samples(EXPOSITION, "ingress_up", &[])?, 1.0);
        assert!(sum_samples(EXPOSITION, "ingress_connections_total", &["pool=\"c\""]).is_err());
        Ok(())
    }
}
