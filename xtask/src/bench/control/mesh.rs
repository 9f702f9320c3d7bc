//! From a registration at one node to the first connection through each of three.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ingress_tests::mesh::{BACKEND, MeshLab};
use ingress_tests::netns::Namespace;
use ingress_tests::wire::client_hello;
use serde_json::json;

use super::ROUTABLE_BAR;
use crate::bench::case::Better;
use crate::bench::load::latency::Samples;
use crate::bench::program::check_interrupt;
use crate::bench::report::Line;

const NODES: usize = 3;
/// What the backend says; no TLS alert begins so.
const ANSWER: u8 = b'!';
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn routable(registrations: u32) -> Result<Vec<Line>> {
    let lab = MeshLab::joined(NODES)?;
    let backend = lab.backend.ns.listen(BACKEND.parse()?)?;
    std::thread::spawn(move || serve(&backend));
    let mut calls = lab.caller(0).connect()?;
    let mut samples = Samples::default();
    for n in 0..registrations {
        check_interrupt()?;
        let host = format!("r{n}.example.com");
        let hello = client_hello(Some(&host))?;
        let began = Instant::now();
        let answer = calls.post("/register", &json!({ "host": host, "backend": BACKEND }))?;
        ensure!(answer.status == 200, "{host}: {answer:?}");
        for node in &lab.hosts {
            reach(&lab.client.ns, node.socket(443), &hello).with_context(|| format!("{host} by {}", node.address))?;
        }
        samples.record(began.elapsed());
    }
    let mut line = |case: &'static str, quantile| {
        let ours = samples.microseconds(quantile).map(|us| us / 1e3);
        Line {
            case: case.into(),
            ours,
            peer: ROUTABLE_BAR,
            peer_name: "bar",
            unit: "ms",
            better: Better::Lower.name(),
            ratio: ours.and_then(|ours| Better::Lower.ratio(ours, ROUTABLE_BAR)),
            rounds: 1,
        }
    };
    Ok(vec![line("routable_p50_ms", 0.5), line("routable_p99_ms", 0.99)])
}

/// Until the backend answers: a name that is not known yet gets an alert.
fn reach(client: &Namespace, node: SocketAddr, hello: &[u8]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let mut stream = client.connect(node)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(hello)?;
        let mut first = [0];
        if stream.read(&mut first)? == 1 && first == [ANSWER] {
            return Ok(());
        }
    }
    anyhow::bail!("not routable within {PATIENCE:?}")
}

/// Ends with the listener's namespace.
fn serve(backend: &TcpListener) {
    for mut stream in backend.incoming().map_while(Result::ok) {
        std::thread::spawn(move || {
            // Nobody is told of a client that is gone.
            let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(&[ANSWER]));
            let _ = stream.read(&mut [0; 1]);
        });
    }
}
