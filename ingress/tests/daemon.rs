//! The daemon as a process: how it starts, stops and what it ends with. Userspace mode, so that it needs no privileges.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);

struct Daemon {
    directory: TempDir,
    process: Child,
}

impl Daemon {
    fn start(drain_timeout: &str, backend: SocketAddr) -> Self {
        let directory = TempDir::new().expect("directory");
        let path = directory.path().display();
        let text = format!(
            "listeners: {{ tcp: {{ bind: '127.0.0.1:0', protocol: tcp, pool: app }} }}\n\
             pools: {{ app: {{ backends: ['{backend}'] }} }}\n\
             limits: {{ drain_timeout: {drain_timeout} }}\n\
             admin: {{ socket: {path}/admin.sock }}\n\
             kernel: {{ enabled: false }}\n\
             state_dir: {path}/state\n"
        );
        fs::write(directory.path().join("ingress.yaml"), text).expect("write");
        let process = run(&directory);
        Self { directory, process }
    }

    fn log(&self) -> String {
        log(&self.directory)
    }

    fn wait_for_log(&mut self, words: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| line.contains(words)) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "no {words:?} in:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn connect(&mut self) -> TcpStream {
        let line = self.wait_for_log("\"listening\"");
        self.wait_for_log("\"ready\"");
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        TcpStream::connect(line["address"].as_str().expect("an address")).expect("connect")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).expect("a running daemon");
    }

    fn exit_code(&mut self) -> i32 {
        exit_code(&mut self.process).unwrap_or_else(|| panic!("still running:\n{}", self.log()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(directory: &TempDir) -> Child {
    let log = File::create(log_path(directory)).expect("log");
    let config = directory.path().join("ingress.yaml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingress"));
    command.arg("--config").arg(config).arg("run").env_remove("INGRESS_LOG").stderr(log).spawn().expect("the daemon")
}

fn log_path(directory: &TempDir) -> PathBuf {
    directory.path().join("log")
}

fn log(directory: &TempDir) -> String {
    fs::read_to_string(log_path(directory)).unwrap_or_default()
}

fn exit_code(process: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if let Some(status) = process.try_wait().expect("a child") {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

fn backend() -> (TcpListener, SocketAddr) {
    let backend = TcpListener::bind("127.0.0.1:0").expect("backend");
    let address = backend.local_addr().expect("bound");
    (backend, address)
}

#[test]
fn an_idle_daemon_stops_at_once_with_zero() {
    let (_backend, address) = backend();
    let mut daemon = Daemon::start("1h", address);
    daemon.wait_for_log("\"ready\"");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.exit_code(), 0);
}

#[test]
fn a_stopping_daemon_lets_relays_finish_and_logs_them() {
    let (backend, address) = backend();
    let mut daemon = Daemon::start("1h", address);
    let mut client = daemon.connect();
    let (mut server, _) = backend.accept().expect("connection");
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_log("no new connections");
    client.write_all(b"still").expect("write");
    server.read_exact(&mut [0; 5]).expect("read");
    drop((client, server));
    assert_eq!(daemon.exit_code(), 0);
    let line = daemon.wait_for_log("connection ended");
    assert!(line.contains("\"bytes_to_backend\":5"), "{line}");
}

#[test]
fn a_second_signal_or_the_drain_timeout_cuts_what_is_left() {
    for (drain_timeout, signals) in [("1h", 2), ("50ms", 1)] {
        let (backend, address) = backend();
        let mut daemon = Daemon::start(drain_timeout, address);
        let mut client = daemon.connect();
        let _server = backend.accept().expect("connection");
        for _ in 0..signals {
            daemon.signal(Signal::SIGINT);
            daemon.wait_for_log("no new connections");
        }
        assert_eq!(daemon.exit_code(), 0);
        assert_eq!(client.read(&mut [0]).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
        assert!(daemon.log().contains("daemon_stopped"), "{}", daemon.log());
    }
}

#[test]
fn a_configuration_that_cannot_be_used_ends_with_two_and_names_every_problem() {
    let directory = TempDir::new().expect("directory");
    let state = directory.path().join("state");
    let text = format!("nonsense: 1\nmore: 2\nstate_dir: {}\n", state.display());
    fs::write(directory.path().join("ingress.yaml"), text).expect("write");
    assert_eq!(exit_code(&mut run(&directory)), Some(2));
    let log = log(&directory);
    assert!(log.contains("ingress.yaml:1:1") && log.contains("ingress.yaml:2:1"), "{log}");
}

#[test]
fn a_second_daemon_does_not_take_over_the_first_ones_socket() {
    let (_backend, address) = backend();
    let mut first = Daemon::start("1s", address);
    first.wait_for_log("\"ready\"");
    let mut second = run(&first.directory);
    assert_eq!(exit_code(&mut second), Some(1));
    first.signal(Signal::SIGTERM);
    assert_eq!(first.exit_code(), 0);
}
