//! `ingress status`: the daemon's health on one screen. What needs a person stands first.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use super::client::Client;
use super::pools::primary_line;
use super::text::{Column, Table, age, bytes, count, percent, plural};
use super::{Global, Outcome, ddns, etcd, hooks, peer, print_json};
use crate::admin::routing::{ProviderStatus, UnservedItem};
use crate::admin::status::{ConnectionSummary, ListenerStatus, PoolSummary, Status};
use crate::dataplane::view::{AdmissionStatus, KernelStatus, PortStatus};

pub(super) fn show(daemon: &Client, global: &Global, out: &mut impl Write) -> Outcome {
    let status: Status = daemon.get("/v1/status")?;
    if global.json() {
        return print_json(out, &status);
    }
    Ok(write(out, &status)?)
}

pub(super) fn write(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let Status { version, pid, uptime, node, ready, drained, config, providers, kernel, .. } = status;
    let Status { peers, etcd, dns_records, hooks, listeners, pools, connections, http, haproxy_socket, .. } = status;
    let ready = match (ready, drained) {
        (_, true) => "DRAINING, takes no new connections",
        (true, false) => "ready",
        (false, false) => "not ready",
    };
    writeln!(out, "ingress {version} on {node}: {ready}, up {}, pid {pid}", age(*uptime))?;
    let source = if config.source == "file" { "" } else { "  (last good, from the state directory)" };
    writeln!(out, "config   generation {}, {}{source}", config.generation, config.path)?;
    writeln!(out, "         loaded {} ago", age(config.age()))?;
    if let Some(error) = &config.last_error {
        writeln!(out, "         THE FILE AS IT IS NOW IS NOT IN USE:")?;
        for line in error.lines() {
            writeln!(out, "           {line}")?;
        }
    }
    write_providers(out, providers)?;
    if let Some(peers) = peers {
        peer::write(out, peers)?;
    }
    ddns::write(out, dns_records)?;
    if let Some(etcd) = etcd {
        etcd::write(out, etcd)?;
    }
    hooks::write(out, hooks)?;
    write_kernel(out, kernel)?;
    write_connections(out, connections)?;
    write_listeners(out, listeners)?;
    write_pools(out, pools)?;
    if let Some(socket) = haproxy_socket {
        match &socket.error {
            None => writeln!(out, "\nHAProxy's commands at {}", socket.path)?,
            Some(error) => writeln!(out, "\nHAProxy's commands: not there, tried again: {error}")?,
        }
    }
    if !http.is_empty() {
        writeln!(out, "\nadmin http")?;
        for address in http {
            match &address.error {
                None => writeln!(out, "  http://{}/dashboard", address.bind)?,
                Some(error) => writeln!(out, "  {}: not bound, tried again: {error}", address.bind)?,
            }
        }
    }
    Ok(())
}

fn write_providers(out: &mut impl Write, providers: &[ProviderStatus]) -> io::Result<()> {
    for provider in providers {
        let ProviderStatus { name, kind, place, state, served, needs_http, unsupported, conflicts, .. } = provider;
        write!(out, "provider {name}, {kind} {place}: {state}, {} served", count(*served as u64))?;
        let others = [(needs_http, "need HTTP"), (unsupported, "unsupported"), (conflicts, "in conflict")];
        for (n, what) in others.iter().filter(|(n, _)| **n > 0) {
            write!(out, ", {} {what}", count(**n as u64))?;
        }
        writeln!(out)?;
        if let Some(at) = provider.last_success {
            writeln!(out, "         answered {} ago", age(since(at)))?;
        }
        if let Some(at) = provider.from_disk {
            writeln!(out, "         serves what was kept on disk {} ago", age(since(at)))?;
        }
        if let Some(error) = &provider.last_error {
            let failing = provider.failing_since.map(|at| format!(" for {}", age(since(at)))).unwrap_or_default();
            writeln!(out, "         FAILING{failing}:")?;
            for line in error.lines() {
                writeln!(out, "           {line}")?;
            }
        }
        for UnservedItem { item, why, .. } in &provider.unserved {
            writeln!(out, "         not served: {item}: {why}")?;
        }
        let more = (unsupported + conflicts).saturating_sub(provider.unserved.len());
        if more > 0 {
            writeln!(out, "         not served: {more} more; see ingress routes")?;
        }
    }
    Ok(())
}

/// From Unix seconds until now.
pub(super) fn since(at: f64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    (now - at).max(0.0)
}

fn write_kernel(out: &mut impl Write, kernel: &KernelStatus) -> io::Result<()> {
    let KernelStatus { mode, missing, interfaces, connections, max_connections, adopted, ports, .. } = kernel;
    write!(out, "kernel   {mode}")?;
    if *max_connections > 0 {
        write!(out, ", {} of {} slots in use", count(*connections), count(*max_connections))?;
    }
    if *adopted > 0 {
        write!(out, ", {} adopted at start", count(*adopted))?;
    }
    writeln!(out)?;
    for line in missing {
        writeln!(out, "         missing: {line}")?;
    }
    for interface in interfaces {
        let why = interface.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        writeln!(out, "         {}: {}{why}", interface.name, interface.attached)?;
        if let Some(admission) = &interface.admission {
            write_admission(out, admission)?;
        }
    }
    if let Some(PortStatus { range, most_taken, per_second_if_backend_closes, held_by_others }) = ports {
        writeln!(
            out,
            "         ports {}-{}: at most {most_taken} taken towards one backend; one that closes first gets up to \
             {per_second_if_backend_closes} connections a second",
            range.0, range.1
        )?;
        if *held_by_others > 0 {
            writeln!(out, "         {held_by_others} of them in use by other programs, and left to those")?;
        }
    }
    Ok(())
}

fn write_admission(out: &mut impl Write, admission: &AdmissionStatus) -> io::Result<()> {
    let AdmissionStatus { side, mode, why, dropped } = admission;
    let by = match mode.as_str() {
        "native" | "generic" => format!("by {mode} XDP"),
        AdmissionStatus::OPEN => "BY NOBODY".to_owned(),
        mode => format!("by {mode}"),
    };
    let side = if side.is_empty() { String::new() } else { format!("{side}, ") };
    let why = why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    write!(out, "           {side}admission {by}{why}")?;
    for (i, (verdict, packets)) in dropped.iter().filter(|(_, packets)| *packets > 0).enumerate() {
        write!(out, "{}{verdict} {}", if i == 0 { ": " } else { ", " }, count(*packets))?;
    }
    writeln!(out)
}

fn write_connections(out: &mut impl Write, c: &ConnectionSummary) -> io::Result<()> {
    writeln!(out, "\nconnections")?;
    let open = c.open_kernel + c.open_relay;
    write!(out, "  open now   {}: {} kernel, {} relay", count(open), count(c.open_kernel), count(c.open_relay))?;
    if c.opening > 0 {
        write!(out, "; {} opening", count(c.opening))?;
    }
    writeln!(out)?;
    write!(out, "  handed off {}", count(c.handed_off_total))?;
    match (c.share_handed_off_of_eligible, c.share_handed_off) {
        (Some(eligible), Some(all)) => writeln!(out, ": {} of eligible, {} of all", percent(eligible), percent(all))?,
        (None, Some(all)) => writeln!(out, ": none was eligible, {} of all", percent(all))?,
        (_, None) => writeln!(out)?,
    }
    write_words(out, "relayed   ", c.relayed_total, &c.relay_reasons)?;
    write_words(out, "refused   ", c.refused_total, &c.refused_causes)?;
    write_words(out, "ended     ", c.end_reasons.values().sum(), &c.end_reasons)
}

fn write_words(out: &mut impl Write, title: &str, total: u64, words: &BTreeMap<String, u64>) -> io::Result<()> {
    write!(out, "  {title} {}", count(total))?;
    let mut words: Vec<_> = words.iter().collect();
    words.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    for (i, (word, n)) in words.iter().enumerate() {
        write!(out, "{}{word} {}", if i == 0 { ": " } else { ", " }, count(**n))?;
    }
    writeln!(out)
}

fn write_listeners(out: &mut impl Write, listeners: &[ListenerStatus]) -> io::Result<()> {
    use Column::{Left, Right};
    writeln!(out, "\nlisteners")?;
    let columns = [
        Left("NAME"),
        Left("BIND"),
        Left("STATE"),
        Right("OPEN"),
        Right("ACCEPTED"),
        Right("KERNEL"),
        Right("RELAYED"),
        Right("REFUSED"),
        Right("TO BACKEND"),
        Right("TO CLIENT"),
    ];
    let mut table = Table::new(columns);
    for l in listeners {
        table.row([
            l.name.clone(),
            some_of(&l.bind),
            l.state.clone(),
            count(l.counts.open_kernel + l.counts.open_relay),
            count(l.counts.accepted_total),
            count(l.counts.handed_off_total),
            count(l.counts.relayed.values().sum()),
            count(l.counts.refused.values().sum()),
            bytes(l.counts.bytes.to_backend),
            bytes(l.counts.bytes.to_client),
        ]);
    }
    table.write(out, 2)?;
    for l in listeners {
        if let Some(error) = &l.error {
            writeln!(out, "  {} is {} for {}: {error}", l.name, l.state, age(l.since))?;
        }
    }
    Ok(())
}

/// A column as wide as a screen hides what stands beside it.
fn some_of(bind: &[SocketAddr]) -> String {
    let shown: Vec<String> = bind.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = bind.len().saturating_sub(SHOWN);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    shown.join(" ") + &more
}

/// Addresses of one listener; a dual-stack one on two networks has four.
const SHOWN: usize = 4;

fn write_pools(out: &mut impl Write, pools: &[PoolSummary]) -> io::Result<()> {
    writeln!(out, "\npools")?;
    let mut table =
        Table::new([Column::Left("NAME"), Column::Left("UP"), Column::Left("FALLBACK"), Column::Right("OPEN")]);
    for pool in pools {
        let fallback = match pool.fallback {
            0 => "-".to_owned(),
            all => format!("{} of {all}", pool.fallback_up),
        };
        let drained = if pool.drained == 0 { String::new() } else { format!(", {} drained", pool.drained) };
        let up = format!("{} of {}{drained}", pool.up, plural(pool.backends as u64, "backend"));
        table.row([pool.name.clone(), up, fallback, count(pool.in_flight)]);
    }
    table.write(out, 2)?;
    for pool in pools {
        if let Some(primary) = &pool.primary {
            writeln!(out, "  {}: {}", pool.name, primary_line(primary))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_many_addresses_leaves_room_for_its_numbers() {
        let bind: Vec<SocketAddr> = (443..943).map(|port| ([192, 0, 2, 1], port).into()).collect();
        assert_eq!(some_of(&bind[..1]), "192.0.2.1:443");
        let all = "192.0.2.1:443 192.0.2.1:444 192.0.2.1:445 192.0.2.1:446";
        assert_eq!(some_of(&bind[..4]), all);
        assert_eq!(some_of(&bind), format!("{all} and 496 more"));
    }
}
