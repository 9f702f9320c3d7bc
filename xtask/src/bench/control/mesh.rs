//! From a registration at one node to the first connection through each of three.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use ingress_tests::mesh::{BACKEND, MeshLab};
use ingress_tests::wire::client_hello;
use serde_json::json;

use super::ROUTABLE_BAR;
use super::visit::{reach, serve};
use crate::bench::case::Better;
use crate::bench::load::latency::Samples;
use crate::bench::program::check_interrupt;
use crate::bench::report::Line;

const NODES: usize = 3;

pub(super) fn routable(registrations: u32) -> Result<Vec<Line>> {
    let lab = MeshLab::joined(NODES)?;
    serve(lab.backend.ns.listen(BACKEND.parse()?)?);
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
