//! Who connects while the daemon is restarted, killed or not yet there is served a moment later: systemd keeps its sockets.

use std::io::ErrorKind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use ingress_tests::lab::LabOptions;
use ingress_tests::node::Node;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::scripted::{Outcome, Scripted, answer, exchange};
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::client_hello;

const RESTARTS: u64 = 4;
const CLIENTS: u64 = 4;
const HANG: Duration = Duration::from_secs(10);

#[test]
fn nobody_notices_an_orderly_restart() -> Result<()> {
    require!();
    let tally = under_load(|node| node.terminate().map(drop))?;
    ensure!(tally.unserved == 0 && tally.refused == 0 && tally.wrong.is_empty(), "{tally:?}");
    Ok(())
}

#[test]
fn a_killed_daemon_takes_down_what_it_had_accepted_and_refuses_nobody() -> Result<()> {
    require!();
    let tally = under_load(Node::kill9)?;
    ensure!(tally.refused == 0 && tally.wrong.is_empty(), "{tally:?}");
    // Each client has one connection at a time.
    ensure!(tally.unserved <= RESTARTS * CLIENTS, "{tally:?}");
    Ok(())
}

#[derive(Debug, Default)]
struct Tally {
    served: u64,
    /// Connected, and reset or closed before the first byte of an answer.
    unserved: u64,
    refused: u64,
    wrong: Vec<String>,
}

/// Clients connect without pause while the daemon ends and is started again.
fn under_load(end: impl Fn(&mut Node) -> Result<()>) -> Result<Tally> {
    let s1 = S1::without_backends(&LabOptions::default())?;
    let _backend = Scripted::start(&s1.lab.backends[0], answer)?;
    let mut node = Node::prepare(&s1.lab.proxy.ns)?;
    node.keep_sockets()?;
    node.write_config(s1.config_without_checks())?;
    node.launch()?;
    let hello = client_hello(Some("fiscalismia.com"))?;
    let (tally, stop, served) = (Mutex::new(Tally::default()), AtomicBool::new(false), AtomicU64::new(0));
    let run = || {
        while !stop.load(Ordering::Acquire) {
            let outcome = exchange(s1.public(), &hello, 7, 3_000, HANG);
            served.fetch_add(u64::from(outcome.is_ok()), Ordering::AcqRel);
            tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner).count(outcome);
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..CLIENTS {
            scope.spawn(|| s1.lab.clients[0].ns.exec(run));
        }
        let restarted = (0..RESTARTS).try_for_each(|_| {
            let before = served.load(Ordering::Acquire);
            wait_until(PATIENCE, "clients are served", || served.load(Ordering::Acquire) >= before + 50)?;
            end(&mut node)?;
            node.launch()
        });
        stop.store(true, Ordering::Release);
        restarted
    })?;
    node.all_in_kernel()?;
    let tally = tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    ensure!(tally.served >= RESTARTS * 50, "{tally:?}");
    Ok(tally)
}

impl Tally {
    fn count(&mut self, outcome: Result<Outcome>) {
        match outcome {
            Ok(Outcome::Complete) => self.served += 1,
            Ok(Outcome::Reset | Outcome::Nothing) => self.unserved += 1,
            Err(error) => match error.root_cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
                Some(ErrorKind::ConnectionRefused) => self.refused += 1,
                // While it asked.
                Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => self.unserved += 1,
                Some(_) | None => self.wrong.push(format!("{error:#}")),
            },
        }
    }
}

#[test]
fn a_listener_that_is_removed_or_comes_is_so_in_the_store() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let mut node = Node::prepare(&s1.lab.proxy.ns)?;
    node.keep_sockets()?;
    let with_both = |both: bool| {
        let mut config = s1.config_without_checks();
        if both {
            config["listeners"]["second"] =
                serde_json::json!({ "bind": [s1.lab.public(6379).to_string()], "protocol": "tcp", "pool": "web" });
        }
        config
    };
    let distinct = |node: &Node| -> Result<Vec<String>> {
        let mut names = node.kept_sockets()?;
        names.dedup();
        Ok(names)
    };
    node.write_config(with_both(true))?;
    node.launch()?;
    assert_eq!(distinct(&node)?, ["192.0.2.1_443@pub0", "192.0.2.1_6379@"]);
    node.reload(with_both(false))?;
    wait_until(PATIENCE, "the removed one is not kept", || distinct(&node).is_ok_and(|names| names.len() == 1))?;
    let before = node.kept_sockets()?;
    // What changed while no daemon ran is found at the next start.
    node.reload(with_both(true))?;
    node.kill9()?;
    node.write_config(with_both(false))?;
    node.launch()?;
    assert_eq!(node.kept_sockets()?, before);
    let refused = s1.lab.clients[0].ns.connect(s1.lab.public(6379)).map_err(|error| error.kind());
    assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused));
    Ok(())
}

#[test]
fn the_first_client_of_a_socket_unit_starts_the_daemon_and_is_served() -> Result<()> {
    require!("systemd-socket-activate");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let _backend = Scripted::start(&s1.lab.backends[0], answer)?;
    let mut config = s1.config_without_checks();
    config["listeners"]["tls"] = serde_json::json!({ "bind": [s1.public().to_string()] });
    let mut node = Node::prepare(&s1.lab.proxy.ns)?;
    node.write_config(config)?;
    node.start_by(&["systemd-socket-activate", "--listen", &s1.public().to_string(), "--fdname=web"]);
    node.spawn()?;
    let hello = client_hello(Some("fiscalismia.com"))?;
    let client = &s1.lab.clients[0].ns;
    wait_until(PATIENCE, "systemd listens", || client.connect(s1.public()).is_ok())?;
    assert_eq!(client.exec(|| exchange(s1.public(), &hello, 1, 3_000, HANG))?, Outcome::Complete);
    wait_until(PATIENCE, "it is ready", || node.status().is_ok_and(|status| status["ready"] == true))?;
    for n in 0..20 {
        assert_eq!(client.exec(|| exchange(s1.public(), &hello, n, 3_000, HANG))?, Outcome::Complete);
    }
    Ok(())
}
