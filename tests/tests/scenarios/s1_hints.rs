//! What the kernel tells the daemon are hints, which a full ring loses and a dead daemon never reads. What they would have said is found
//! all the same, by the same daemon or by the next.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Result, bail};
use ingress_tests::lab::LabOptions;
use ingress_tests::netns::Namespace;
use ingress_tests::node::Node;
use ingress_tests::require;
use ingress_tests::ring::FullRing;
use ingress_tests::s1::S1;
use ingress_tests::talk::{Talk, accept};
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Ending, client_hello, ending};
use serde_json::json;

#[test]
fn end_of_which_no_event_told_is_found_and_logged() -> Result<()> {
    require!();
    let stage = Stage::set()?;
    let mut talk = Talk::accept(stage.call()?, &stage.backend, &stage.hello)?;
    talk.exchange()?;
    stage.node.wait_for_flow("it is spliced", |flow| flow["state"] == "spliced")?;
    let paused = stage.node.pause()?;
    let ring = stage.fill_ring()?;
    let carried = talk.finish()?;
    // The backend says the last word but one.
    let host = &stage.s1.lab.backends[0];
    wait_until(PATIENCE, "its last acknowledgement has passed", || {
        sockets(&host.ns, 1, host.socket(443)).is_ok_and(|connected| connected == 0)
    })?;
    drop(ring);
    drop(paused);
    let end = stage.node.wait_for_log("its end", |line| line["message"] == "connection ended")?;
    assert_eq!((&end["end_reason"], &end["bytes_to_client"]), (&json!("closed"), &json!(carried.to_client)), "{end}");
    wait_until(PATIENCE, "its port is free", || {
        stage.node.status().is_ok_and(|status| status["kernel"]["ports"]["most_taken"] == 0)
    })
}

#[test]
fn acknowledgement_of_which_no_event_told_closes_our_socket_all_the_same() -> Result<()> {
    require!("nft");
    let stage = Stage::set()?;
    let muted = stage.mute_backend()?;
    let client = stage.call()?;
    let mut talk = Talk::of(client, accept(&stage.backend)?);
    talk.arrives(&stage.hello)?;
    stage.node.wait_for_flow("it waits for the acknowledgement", |flow| flow["state"] == "armed")?;
    let paused = stage.node.pause()?;
    let ring = stage.fill_ring()?;
    drop(muted);
    // No word of the backend gets through before the acknowledgement.
    talk.backend_says(b"a word")?;
    drop(ring);
    let ours = || sockets(&stage.s1.lab.proxy.ns, 2, stage.s1.lab.backends[0].socket(443));
    assert_eq!(ours()?, 1);
    drop(paused);
    wait_until(PATIENCE, "our socket is closed", || ours().is_ok_and(|n| n == 0))?;
    talk.finish()?;
    stage.node.all_in_kernel()
}

#[test]
fn connection_whose_first_flight_died_with_its_daemon_is_reset_by_the_next() -> Result<()> {
    require!("nft");
    let mut stage = Stage::set()?;
    let muted = stage.mute_backend()?;
    let mut client = stage.call()?;
    let _server = accept(&stage.backend)?;
    stage.node.wait_for_flow("it waits for the acknowledgement", |flow| flow["state"] == "armed")?;
    stage.node.kill9()?;
    drop(muted);
    stage.node.launch()?;
    assert_eq!(ending(&mut client, PATIENCE)?, Ending::Reset);
    let end = stage.node.wait_for_log("its end", |line| line["message"] == "connection ended")?;
    assert_eq!((&end["end_reason"], &end["mode"]), (&json!("daemon_stopped"), &json!("kernel")), "{end}");
    assert_eq!(stage.node.status()?["kernel"]["adopted"], 0);
    Ok(())
}

struct Stage {
    node: Node,
    backend: TcpListener,
    hello: Vec<u8>,
    s1: S1,
}

/// The backend takes SYNs and data, and acknowledges nothing but SYNs, as long as this lives.
struct Muted(Namespace);

impl Drop for Muted {
    fn drop(&mut self) {
        // It fails only where the namespace is gone, and the rule with it.
        let _ = self.0.nft("delete table ip muted");
    }
}

impl Stage {
    fn set() -> Result<Self> {
        let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
        let node = s1.node_with(s1.config_of_bytes())?;
        Ok(Self { node, backend, hello: client_hello(Some("fiscalismia.com"))?, s1 })
    }

    fn call(&self) -> Result<TcpStream> {
        let mut client = self.s1.lab.clients[0].ns.connect(self.s1.public())?;
        client.write_all(&self.hello)?;
        Ok(client)
    }

    fn fill_ring(&self) -> Result<FullRing> {
        FullRing::of(&self.node.pins()?.join("ingress_events"))
    }

    fn mute_backend(&self) -> Result<Muted> {
        let ns = &self.s1.lab.backends[0].ns;
        let out = "type filter hook output priority filter; tcp sport 443 tcp flags & syn == 0 drop;";
        ns.nft(&format!("table ip muted {{ chain out {{ {out} }}; }}"))?;
        Ok(Muted(ns.clone()))
    }
}

/// How many connected sockets have `address` in this column of /proc/net/tcp: 1 is their own, 2 their peer's.
fn sockets(ns: &Namespace, column: usize, address: SocketAddr) -> Result<usize> {
    let SocketAddr::V4(address) = address else { bail!("the lab speaks IPv4") };
    // As it is written there: the address as the machine has it in memory.
    let wanted = format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port());
    let table = ns.exec(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))?;
    let is_it = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(column) == Some(&wanted.as_str()) && words.get(3) != Some(&LISTENS)
    };
    Ok(table.lines().filter(is_it).count())
}

const LISTENS: &str = "0A";
