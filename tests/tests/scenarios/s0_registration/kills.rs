//! What was acknowledged, while the daemon is killed at any moment.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use ingress_tests::node::Node;
use ingress_tests::payload::Random;
use ingress_tests::require;
use ingress_tests::wait::{PATIENCE, wait_until};
use serde_json::json;

use super::{S0, simple};

/// What callers were told, by host.
#[derive(Debug, Default)]
struct Told {
    registered: Vec<String>,
    removed: Vec<String>,
}

const KILLS: usize = 12;
const CALLERS: usize = 3;

#[test]
fn nothing_that_was_acknowledged_is_lost_when_the_daemon_is_killed_again_and_again() -> Result<()> {
    require!("curl");
    let s0 = S0::start()?;
    let mut config = s0.config();
    // This is about the journal, and each start with kernel programs takes a second until they are verified.
    config["kernel"]["enabled"] = false.into();
    let mut node = s0.lab.node_with(config)?;
    s0.open()?;
    let (told, stop) = (Mutex::new(Told::default()), AtomicBool::new(false));
    std::thread::scope(|scope| -> Result<()> {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (s0, told, stop) = (&s0, &told, &stop);
                scope.spawn(move || call_until_told_to_stop(s0, caller, told, stop))
            })
            .collect();
        let killed = kill_again_and_again(&s0, &mut node, &told);
        stop.store(true, Ordering::Release);
        for caller in callers {
            caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))?;
        }
        killed
    })?;
    node.kill9()?;
    node.launch()?;
    s0.open()?;
    let listed = s0.platform().get("/routes")?.body["routes"].clone();
    let listed: BTreeMap<_, _> =
        listed.as_array().context("a list")?.iter().map(|r| (r["host"].as_str().unwrap_or_default(), r)).collect();
    let told = told.into_inner().map_err(|_| anyhow::anyhow!("a caller panicked"))?;
    assert!(told.registered.len() > KILLS * 4 && told.removed.len() > KILLS, "{} calls", told.registered.len());
    for host in &told.registered {
        let kept = listed.get(host.as_str()).with_context(|| format!("{host} was acknowledged and is lost"))?;
        assert_eq!(kept["served"], 1, "{kept}");
    }
    for host in &told.removed {
        assert!(!listed.contains_key(host.as_str()), "{host} was removed and is there again");
    }
    Ok(())
}

/// Registers host after host, and removes every third of them again.
fn call_until_told_to_stop(s0: &S0, caller: usize, told: &Mutex<Told>, stop: &AtomicBool) {
    let mut connection = None;
    for n in 0.. {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let host = format!("h{n}.c{caller}.example.com");
        let Some(open) = connection.as_mut() else {
            connection = s0.platform().connect().ok();
            continue;
        };
        let registered = open.post("/register", &simple(&host, "172.24.0.3:443"));
        let removed = n % 3 == 0 && registered.is_ok();
        let gone = removed.then(|| open.post("/deregister", &json!({ "host": host })));
        if registered.is_err() || gone.as_ref().is_some_and(Result::is_err) {
            connection = None;
        }
        let Ok(mut told) = told.lock() else { return };
        match (registered, gone) {
            (Ok(answer), None) if answer.status == 200 => told.registered.push(host),
            (Ok(_), Some(Ok(answer))) if answer.status == 200 => told.removed.push(host),
            // Nobody was told what became of it.
            _ => {}
        }
    }
}

/// Each kill comes a few acknowledged calls after the restart, anywhere within one.
fn kill_again_and_again(s0: &S0, node: &mut Node, told: &Mutex<Told>) -> Result<()> {
    let mut random = Random::new(76);
    let count = || told.lock().map_or(0, |told| told.registered.len() + told.removed.len());
    for _ in 0..KILLS {
        let wanted = count() + 5 + (random.next_u64() % 30) as usize;
        wait_until(PATIENCE, "callers are answered again", || count() >= wanted)?;
        node.kill9()?;
        node.launch()?;
        s0.open()?;
    }
    Ok(())
}
