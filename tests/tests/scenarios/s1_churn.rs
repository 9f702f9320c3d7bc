//! Connections that come and go by the thousand, with and without kill -9 at random instants: each one completes or is reset, none
//! hangs, nothing is left behind.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use ingress_tests::lab::LabOptions;
use ingress_tests::node::Node;
use ingress_tests::payload::Random;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::scripted::{self, Scripted, answer, exchange};
use ingress_tests::skip::find_program;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{client_hello, proxy_v2};
use serde_json::Value;

/// A connection that has neither an answer nor an end for this long hangs.
const HANG: Duration = Duration::from_secs(10);
const KILLS: u32 = 20;
const CLIENTS: u64 = 6;

#[derive(Debug, Default)]
struct Tally {
    completed: AtomicU32,
    reset: AtomicU32,
    refused: AtomicU32,
    /// Their own addresses, to find them in the log.
    hung: Mutex<Vec<SocketAddr>>,
    wrong: AtomicU32,
}

enum Outcome {
    Completed,
    Reset,
    Refused,
    Hung(SocketAddr),
    /// Ended in order, or answered, with other bytes than were sent.
    Wrong,
}

#[test]
fn no_connection_hangs_when_the_daemon_is_killed_again_and_again() -> Result<()> {
    require!("bpftool");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let host = &s1.lab.backends[0];
    let hello = client_hello(Some("fiscalismia.com"))?;
    let opening = proxy_v2(s1.public(), s1.public()).len() + hello.len();
    let listener = host.ns.listen(host.socket(443))?;
    let mut node = s1.node_with(s1.config_without_checks())?;
    let tally = Tally::default();
    let (no_more_clients, no_more_echoes) = (AtomicBool::new(false), AtomicBool::new(false));

    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| echo(scope, &listener, opening, &no_more_echoes));
        let clients = (0..CLIENTS).map(|seed| {
            let (s1, hello, tally, stop) = (&s1, &hello, &tally, &no_more_clients);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                while !stop.load(Ordering::Acquire) {
                    tally.count(one_connection(s1, hello, &mut random));
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        let churned = churn(&mut node, &tally);
        no_more_clients.store(true, Ordering::Release);
        let joined = clients.into_iter().all(|client| client.join().is_ok());
        no_more_echoes.store(true, Ordering::Release);
        // Wakes the accepting thread.
        let _ = host.ns.connect(host.socket(443));
        assert!(joined, "a client panicked");
        churned
    })?;

    let count = |n: &AtomicU32| n.load(Ordering::Acquire);
    let hung = tally.hung.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let of_hung = |l: &Value| hung.iter().any(|client| l["client"] == client.to_string());
    let story: Vec<Value> = node.log().lines().into_iter().filter(of_hung).collect();
    assert!(hung.is_empty(), "{tally:?}\nthey hang at {:?}, log: {story:#?}", node.flows());
    assert_eq!(count(&tally.wrong), 0, "{tally:?}");
    assert!(count(&tally.completed) > 5 * KILLS, "{tally:?}");
    nothing_is_left(&node)
}

#[test]
fn five_thousand_connections_leave_nothing_behind() -> Result<()> {
    require!("bpftool", "nft");
    let s1 = S1::without_backends(&LabOptions { conntrack: true, ..LabOptions::default() })?;
    let _backend = Scripted::start(&s1.lab.backends[0], answer)?;
    let node = s1.node_with(s1.config_without_checks())?;
    let hello = client_hello(Some("fiscalismia.com"))?;
    let left = AtomicU32::new(5_000);
    let take = || left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1)).ok();
    let run = || -> Result<()> {
        while let Some(n) = take() {
            let outcome = exchange(s1.public(), &hello, n.into(), 3_000, HANG)?;
            ensure!(outcome == scripted::Outcome::Complete, "connection {n}: {outcome:?}");
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let crowd: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| s1.lab.clients[0].ns.exec(run))).collect();
        crowd.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    node.all_in_kernel()?;
    assert_eq!(node.status()?["connections"]["handed_off_total"], 5_000);
    nothing_is_left(&node)?;
    let entries = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?.trim().parse().ok();
    wait_until(PATIENCE, "conntrack forgets handed-off connections", || {
        s1.lab.proxy.ns.exec(entries).is_some_and(|n: u32| n <= 4)
    })
}

/// No connection, no port, no flow entry.
fn nothing_is_left(node: &Node) -> Result<()> {
    let mut seen = Value::Null;
    let gone = wait_until(PATIENCE, "the last connection and the last port are gone", || {
        seen = node.status().map_or(Value::Null, |status| status["kernel"].clone());
        seen["connections"] == 0 && seen["ports"]["most_taken"] == 0
    });
    gone.with_context(|| format!("{seen}; {:?}", node.flows()))?;
    wait_until(PATIENCE, "the last flow entry is gone", || flow_entries(node).is_ok_and(|n| n == 0))
        .with_context(|| format!("{:?}", flow_entries(node)))
}

/// As bpftool counts them in the pinned map.
fn flow_entries(node: &Node) -> Result<usize> {
    let map = find(node.pin_dir(), "ingress_flows").context("the flow table is pinned")?;
    let output = Command::new(find_program("bpftool").context("bpftool")?)
        .args(["--json", "map", "dump", "pinned"])
        .arg(&map)
        .output()?;
    let entries: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("bpftool said {:?}", String::from_utf8_lossy(&output.stdout)))?;
    Ok(entries.as_array().context("bpftool dumps an array")?.len())
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { find(&path, name) } else { (entry.file_name() == name).then_some(path) }
    })
}

/// Kills and restarts the daemon; between, connections must complete again.
fn churn(node: &mut Node, tally: &Tally) -> Result<()> {
    let mut random = Random::new(4242);
    for _ in 0..KILLS {
        // The instant of the kill is counted in connections, so that it falls anywhere in a connection's life.
        let until = tally.completed.load(Ordering::Acquire) + 5 + (random.next_u64() % 40) as u32;
        wait_until(PATIENCE, "connections complete", || tally.completed.load(Ordering::Acquire) >= until)?;
        node.kill9()?;
        node.launch()?;
    }
    Ok(())
}

fn one_connection(s1: &S1, hello: &[u8], random: &mut Random) -> Outcome {
    let Ok(mut stream) = s1.lab.clients[0].ns.connect(s1.public()) else { return Outcome::Refused };
    let mut exchange = |stream: &mut TcpStream| -> std::io::Result<bool> {
        stream.set_read_timeout(Some(HANG))?;
        stream.set_write_timeout(Some(HANG))?;
        stream.write_all(hello)?;
        for _ in 0..1 + random.next_u64() % 4 {
            let mut sent = vec![0; 1 + (random.next_u64() % 30_000) as usize];
            random.fill(&mut sent);
            stream.write_all(&sent)?;
            let mut echoed = vec![0; sent.len()];
            stream.read_exact(&mut echoed)?;
            if echoed != sent {
                return Ok(false);
            }
        }
        Ok(true)
    };
    match exchange(&mut stream) {
        Ok(true) => Outcome::Completed,
        Ok(false) => Outcome::Wrong,
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
            stream.local_addr().map_or(Outcome::Wrong, Outcome::Hung)
        }
        // The daemon's own sockets close with it: FIN where nothing was unread, RST else.
        Err(_) => Outcome::Reset,
    }
}

/// Sends back what follows the first `opening` bytes of each connection.
fn echo<'scope, 'env>(
    scope: &'scope std::thread::Scope<'scope, 'env>,
    listener: &TcpListener,
    opening: usize,
    stop: &AtomicBool,
) {
    for mut stream in listener.incoming().map_while(Result::ok) {
        if stop.load(Ordering::Acquire) {
            return;
        }
        scope.spawn(move || -> std::io::Result<()> {
            // Longer than a client's patience: a backend's end must not be what ends a client's wait.
            stream.set_read_timeout(Some(HANG * 2))?;
            stream.read_exact(&mut vec![0; opening])?;
            let mut buffer = vec![0; 16 * 1024];
            loop {
                let n = stream.read(&mut buffer)?;
                if n == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..n])?;
            }
        });
    }
}

impl Tally {
    fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Completed => &self.completed,
            Outcome::Reset => &self.reset,
            Outcome::Refused => &self.refused,
            Outcome::Hung(client) => {
                self.hung.lock().unwrap_or_else(PoisonError::into_inner).push(client);
                return;
            }
            Outcome::Wrong => &self.wrong,
        };
        counter.fetch_add(1, Ordering::AcqRel);
    }
}
