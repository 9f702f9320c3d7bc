//! `ingress pools`: each pool's backends, their checks and what they carry.

use std::io::{self, Write};

use super::client::Client;
use super::text::{Column, Table, age, bytes, count};
use super::{Global, Outcome, print_json};
use crate::balance::{BackendView, PoolView};

pub(super) fn show(daemon: &Client, global: &Global, out: &mut impl Write) -> Outcome {
    let pools: Vec<PoolView> = daemon.get("/v1/pools")?;
    if global.json() {
        return print_json(out, &pools);
    }
    Ok(write(out, &pools)?)
}

pub(super) fn write(out: &mut impl Write, pools: &[PoolView]) -> io::Result<()> {
    for (i, pool) in pools.iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        let PoolView { name, balance, proxy_protocol, health, on_down, handoff, backends, fallback } = pool;
        let health = health.as_deref().unwrap_or("none");
        writeln!(
            out,
            "{name}: {balance}, PROXY {proxy_protocol}, handoff {handoff}, checks {health}, on_down {on_down}"
        )?;
        write_backends(out, backends, fallback)?;
    }
    Ok(())
}

fn write_backends(out: &mut impl Write, backends: &[BackendView], fallback: &[BackendView]) -> io::Result<()> {
    use Column::{Left, Right};
    let columns = [
        Left("BACKEND"),
        Left("ADDRESS"),
        Left("STATE"),
        Right("FOR"),
        Right("WEIGHT"),
        Right("OPEN"),
        Right("TOTAL"),
        Right("FAILED"),
        Right("TO BACKEND"),
        Right("TO CLIENT"),
        Left("LAST CHECK"),
    ];
    let mut table = Table::new(columns);
    let fallback = fallback.iter().map(|b| (b, " (fallback)"));
    for (b, role) in backends.iter().map(|b| (b, "")).chain(fallback) {
        table.row([
            format!("{}{role}", b.name),
            addresses(b),
            b.state.clone(),
            age(b.since),
            weight(b),
            count(b.in_flight),
            count(b.connections_total),
            count(b.connect_failures),
            bytes(b.bytes_to_backend),
            bytes(b.bytes_to_client),
            last_check(b),
        ]);
    }
    table.write(out, 2)
}

/// `app.internal:443 (192.0.2.7 +1)` for a name, the address alone for an address.
fn addresses(backend: &BackendView) -> String {
    let Some((first, rest)) = backend.addresses.split_first() else {
        return format!("{} (no answer yet)", backend.address);
    };
    if first.to_string() == backend.address {
        return backend.address.clone();
    }
    let more = if rest.is_empty() { String::new() } else { format!(" +{}", rest.len()) };
    format!("{} ({}{more})", backend.address, first.ip())
}

fn weight(backend: &BackendView) -> String {
    if (backend.effective_weight - f64::from(backend.weight)).abs() < 0.05 {
        return backend.weight.to_string();
    }
    format!("{:.1}/{}", backend.effective_weight, backend.weight)
}

fn last_check(backend: &BackendView) -> String {
    let Some(check) = &backend.last_check else { return "-".into() };
    match (&check.error, check.latency_ms) {
        (Some(error), _) => format!("{error}, {} ago", age(check.age)),
        (None, Some(latency)) => format!("ok in {latency:.1} ms, {} ago", age(check.age)),
        (None, None) => format!("ok, {} ago", age(check.age)),
    }
}
