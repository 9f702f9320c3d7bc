//! Connections that come and go by the thousand, with and without kill -9 at random instants: each one completes or is reset, none
//! hangs, nothing is left behind.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
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
const CLIENTS: u64 = 6;
/// Connections that stand from before the first kill until after the last.
const STEADY: u64 = 3;
/// Of the table, so that it can be looked through.
const SLOTS: usize = 8192;
/// KiB by which memory may grow, whatever the number of connections.
const GROWTH: u64 = 8 * 1024;

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
    require!("bpftool", "nft");
    let (kills, seed) = (number("INGRESS_KILLS", 25), number("INGRESS_SEED", 4242).into());
    eprintln!("INGRESS_KILLS={kills} INGRESS_SEED={seed}");
    let s1 = S1::without_backends(&LabOptions { conntrack: true, ..LabOptions::default() })?;
    let host = &s1.lab.backends[0];
    let hello = client_hello(Some("fiscalismia.com"))?;
    let opening = proxy_v2(s1.public(), s1.public()).len() + hello.len();
    let listener = host.ns.listen(host.socket(443))?;
    let mut node = s1.node_with(config(&s1))?;
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
        let steady = (0..STEADY).map(|seed| {
            let (s1, hello, stop) = (&s1, &hello, &no_more_clients);
            scope.spawn(move || steady_connection(s1, hello, seed, stop))
        });
        let steady: Vec<_> = steady.collect();
        let standing = wait_until(PATIENCE, "the steady ones stand", || {
            node.flows().is_ok_and(|flows| flows.iter().filter(|f| f["state"] == "spliced").count() as u64 == STEADY)
        });
        let clients: Vec<_> = clients.collect();
        let churned = standing.and_then(|()| churn(&mut node, &tally, kills, seed));
        no_more_clients.store(true, Ordering::Release);
        let joined = clients.into_iter().all(|client| client.join().is_ok());
        for one in steady {
            let exchanged = one.join().map_err(|_| anyhow!("a steady client panicked"))?.context("a steady client")?;
            ensure!(exchanged > u64::from(kills), "a steady client only made {exchanged} exchanges");
        }
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
    assert!(count(&tally.completed) > 5 * kills, "{tally:?}");
    eprintln!("{tally:?}");
    nothing_is_left(&node)?;
    conntrack_forgets(&s1)
}

#[test]
fn thousands_of_connections_leave_nothing_behind() -> Result<()> {
    require!("bpftool", "nft");
    let connections = number("INGRESS_CONNECTIONS", 5_000);
    let s1 = S1::without_backends(&LabOptions { conntrack: true, ..LabOptions::default() })?;
    let _backend = Scripted::start(&s1.lab.backends[0], answer)?;
    // A client's closed connections hold its ports for a minute, towards each of our ports.
    let ports: Vec<u16> = (443..=443 + u16::try_from(connections / 20_000)?).collect();
    let mut config = config(&s1);
    if connections > 100_000 {
        // As many as a lasting crowd leaves behind in the seconds until the ends of its connections are certain.
        config["kernel"]["max_connections"] = (SLOTS * 8).into();
        config["kernel"]["port_range"] = "10000-60999".into();
    }
    config["listeners"]["tls"]["bind"] = ports.iter().map(|port| s1.lab.public(*port).to_string()).collect();
    let allowed = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    s1.lab.proxy.ns.nft(&format!("insert rule inet filter input iifname \"pub0\" tcp dport {{ {allowed} }} accept"))?;
    let node = s1.node_with(config)?;
    let hello = client_hello(Some("fiscalismia.com"))?;
    let some = |count: u32| -> Result<()> {
        let left = AtomicU32::new(count);
        let take = || left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1)).ok();
        let run = || -> Result<()> {
            while let Some(n) = take() {
                let port = ports[n as usize % ports.len()];
                let outcome = exchange(s1.lab.public(port), &hello, n.into(), 3_000, HANG)?;
                ensure!(outcome == scripted::Outcome::Complete, "connection {n}: {outcome:?}");
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let crowd: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| s1.lab.clients[0].ns.exec(run))).collect();
            crowd.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a client panicked"))?)
        })
    };
    // The first fifth fills what is kept for use again: pools of memory, tables that grow on demand.
    let mut resident = Vec::new();
    for _ in 0..5 {
        some(connections / 5)?;
        resident.push(memory(&node)?);
        eprintln!("INGRESS_CONNECTIONS={connections}: {resident:?} KiB resident after each fifth of them");
    }
    node.all_in_kernel()?;
    assert_eq!(node.status()?["connections"]["handed_off_total"], connections / 5 * 5);
    nothing_is_left(&node)?;
    conntrack_forgets(&s1)?;
    let (before, after) = (resident[0], resident[4]);
    ensure!(after < before + GROWTH, "{before} KiB grew to {after} KiB");
    Ok(())
}

fn config(s1: &S1) -> Value {
    let mut config = s1.config_without_checks();
    config["kernel"]["max_connections"] = SLOTS.into();
    config
}

/// A long run asks for more than continuous integration does.
fn number(variable: &str, else_: u32) -> u32 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(else_)
}

/// KiB of the daemon that are resident.
fn memory(node: &Node) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid().context("the daemon runs")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a line VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// No entry is left that would stand for days; those of sockets that the kernel closed go within minutes.
fn conntrack_forgets(s1: &S1) -> Result<()> {
    let established = || -> Result<Vec<String>> {
        let entries = s1.lab.proxy.ns.run("cat", &["/proc/net/nf_conntrack"])?;
        let ours = |line: &&str| line.contains("ESTABLISHED") && !line.contains("src=127.0.0.1");
        Ok(entries.lines().filter(ours).map(str::to_owned).collect())
    };
    wait_until(PATIENCE, "conntrack forgets handed-off connections", || established().is_ok_and(|e| e.is_empty()))
        .with_context(|| format!("{:#?}", established()))
}

/// No connection, no port, no entry, no slot.
fn nothing_is_left(node: &Node) -> Result<()> {
    let mut seen = Value::Null;
    let gone = wait_until(PATIENCE, "the last connection and the last port are gone", || {
        seen = node.status().map_or(Value::Null, |status| status["kernel"].clone());
        seen["connections"] == 0 && seen["ports"]["most_taken"] == 0
    });
    gone.with_context(|| format!("{seen}; {:?}", node.flows()))?;
    for name in ["ingress_flows", "ingress_labels"] {
        let entries = || map(node, name).map(|entries| entries.len());
        wait_until(PATIENCE, &format!("the last entry of {name} is gone"), || entries().is_ok_and(|n| n == 0))
            .with_context(|| format!("{:?}", entries()))?;
    }
    // The first word of a slot is its state.
    let is_free = |slot: &Value| slot["value"].as_array().is_some_and(|bytes| bytes[..4].iter().all(|b| b == "0x00"));
    let taken = || Ok::<_, anyhow::Error>(map(node, "ingress_conns")?.into_iter().filter(|s| !is_free(s)).count());
    wait_until(PATIENCE, "the last slot is free", || taken().is_ok_and(|n| n == 0))
        .with_context(|| format!("{:?} slots are not free", taken()))
}

/// A pinned map as bpftool dumps it.
fn map(node: &Node, name: &str) -> Result<Vec<Value>> {
    let map = node.pins()?.join(name);
    let output = Command::new(find_program("bpftool").context("bpftool")?)
        .args(["--json", "map", "dump", "pinned"])
        .arg(&map)
        .output()?;
    let entries: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("bpftool said {:?}", String::from_utf8_lossy(&output.stdout)))?;
    Ok(entries.as_array().context("bpftool dumps an array")?.clone())
}

/// Kills and restarts the daemon; between, connections must complete again.
fn churn(node: &mut Node, tally: &Tally, kills: u32, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    for _ in 0..kills {
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

/// Exchanges bytes without end, whoever is killed. Returns how often.
fn steady_connection(s1: &S1, hello: &[u8], seed: u64, stop: &AtomicBool) -> Result<u64> {
    let mut random = Random::new(1_000 + seed);
    let mut stream = s1.lab.clients[0].ns.connect(s1.public())?;
    stream.set_read_timeout(Some(HANG))?;
    stream.write_all(hello)?;
    let mut exchanged = 0;
    while !stop.load(Ordering::Acquire) {
        let mut sent = vec![0; 1 + (random.next_u64() % 50_000) as usize];
        random.fill(&mut sent);
        stream.write_all(&sent)?;
        let mut echoed = vec![0; sent.len()];
        stream.read_exact(&mut echoed).with_context(|| format!("exchange {exchanged}"))?;
        ensure!(echoed == sent, "exchange {exchanged}: other bytes");
        exchanged += 1;
        // A pace: the others need the machine too.
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(exchanged)
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
