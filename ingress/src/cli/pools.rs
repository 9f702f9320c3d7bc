//! `ingress pools`: every backend with its state, its last check, what it carries and what operators said about it; and
//! how they say it.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};

use super::client::Client;
use super::text::{Column, Table, age, bytes, count, plural};
use super::{Failure, Global, Outcome, print_json};
use crate::balance::{
    AdminChange, AdminState, AdminWeight, BackendOrder, BackendView, Ordered, PoolView, PrimaryView, SentinelsView,
};

#[derive(Debug, Args)]
pub(super) struct PoolsArgs {
    #[command(subcommand)]
    verb: Option<PoolsVerb>,
}

#[derive(Debug, Subcommand)]
enum PoolsVerb {
    /// No new connections for this backend; those that it has go on
    Drain(Target),
    /// New connections again, beginning with few of them where the pool has a slow_start
    Ready(Target),
    /// No new connections, no health checks, and those that it has are cut
    Maint(Target),
    /// Another weight: N, or N% of the configured one; 100% is the configured one again
    Weight {
        #[command(flatten)]
        target: Target,
        #[arg(value_name = "N|N%")]
        weight: AdminWeight,
    },
}

#[derive(Debug, Args)]
struct Target {
    /// As `ingress pools` calls them
    #[arg(value_name = "POOL/BACKEND")]
    backend: String,
}

pub(super) fn run(args: PoolsArgs, daemon: &Client, global: &Global, out: &mut impl Write) -> Outcome {
    let state = |state| BackendOrder { state: Some(state), weight: None };
    let (target, order) = match args.verb {
        None => return show(daemon, global, out),
        Some(PoolsVerb::Drain(target)) => (target, state(AdminState::Drain)),
        Some(PoolsVerb::Ready(target)) => (target, state(AdminState::Ready)),
        Some(PoolsVerb::Maint(target)) => (target, state(AdminState::Maint)),
        Some(PoolsVerb::Weight { target, weight }) => (target, BackendOrder { state: None, weight: Some(weight) }),
    };
    let Some((pool, backend)) = target.backend.split_once('/') else {
        return Err(Failure::Usage(format!("{}: a backend is named POOL/BACKEND", target.backend)));
    };
    let path = format!("/v1/pools/{}/backends/{}", encoded(pool), encoded(backend));
    let done: Ordered = daemon.post(&path, &order)?;
    if global.json() {
        return print_json(out, &done);
    }
    Ok(write_ordered(out, &done)?)
}

fn write_ordered(out: &mut impl Write, done: &Ordered) -> io::Result<()> {
    let Ordered { pool, backend, change, changed, in_flight, warning } = done;
    let weight = change.weight.map(|weight| format!(", weight {weight}")).unwrap_or_default();
    let open = plural(*in_flight, "connection");
    let then = match change.state {
        AdminState::Ready => "takes new connections".to_owned(),
        AdminState::Drain => format!("no new connections; {open} open"),
        AdminState::Maint => format!("no new connections; {open} cut"),
    };
    let AdminChange { state, by, .. } = change;
    let before = if *changed || by.is_empty() { String::new() } else { format!(" (for {}, by {by})", ago(change)) };
    writeln!(out, "{pool}/{backend}: {state}{weight}{before}: {then}")?;
    if let Some(warning) = warning {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(())
}

/// For a path segment: everything but unreserved characters (RFC 3986 section 2.3).
fn encoded(segment: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    segment.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

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
        let PoolView { name, balance, proxy_protocol, health, on_down, handoff, backends, fallback, primary } = pool;
        let health = health.as_deref().unwrap_or("none");
        writeln!(
            out,
            "{name}: {balance}, PROXY {proxy_protocol}, handoff {handoff}, checks {health}, on_down {on_down}"
        )?;
        if let Some(primary) = primary {
            writeln!(out, "  {}", primary_line(primary))?;
        }
        write_backends(out, backends, fallback)?;
    }
    Ok(())
}

/// `primary b0 for 3m, 2 of 3 Sentinels agree`, or that there is none and why.
pub(super) fn primary_line(primary: &PrimaryView) -> String {
    let PrimaryView { backend, since, changes_total: _, rivals: _, sentinels, problem } = primary;
    let mut line = match backend {
        Some(backend) => format!("primary {backend} for {}", age(*since)),
        None => format!("NO PRIMARY for {}", age(*since)),
    };
    if let Some(SentinelsView { asked, answered: _, agreed }) = sentinels {
        line += &format!(", {agreed} of {} agree", plural(*asked as u64, "Sentinel"));
    }
    if let Some(problem) = problem {
        line += &format!(": {problem}");
    }
    line
}

fn write_backends(out: &mut impl Write, backends: &[BackendView], fallback: &[BackendView]) -> io::Result<()> {
    use Column::{Left, Right};
    let columns = [
        Left("BACKEND"),
        Left("ADDRESS"),
        Left("STATE"),
        Right("FOR"),
        Left("ADMIN"),
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
            admin(b),
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

/// `drain by alice, 5m`; nothing where all is as configured.
fn admin(backend: &BackendView) -> String {
    match &backend.admin {
        Some(change) if change.state != AdminState::Ready || change.weight.is_some() => {
            let weight = change.weight.map(|weight| format!(" weight {weight}")).unwrap_or_default();
            format!("{}{weight} by {}, {}", change.state, change.by, ago(change))
        }
        Some(_) | None => "-".to_owned(),
    }
}

fn ago(change: &AdminChange) -> String {
    let unix = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    age((unix(SystemTime::now()) - unix(change.at)).max(0.0))
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
