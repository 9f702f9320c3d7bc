//! The shared store, as a part of `ingress status`.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use super::text::{age, count, plural};
use crate::etcd::view::EtcdStatus;

pub(super) fn write(out: &mut impl Write, status: &EtcdStatus) -> io::Result<()> {
    let EtcdStatus { node, endpoints, endpoint, prefix, connected, troubles, troubled_since, .. } = status;
    let EtcdStatus { revision, waiting, claims_lost, nodes, .. } = status;
    let place = endpoint.clone().unwrap_or_else(|| endpoints.join(" "));
    let state = match connected {
        Some(seconds) => format!("connected for {}, revision {}", age(*seconds), count(revision.unsigned_abs())),
        None => "AWAY: what is registered is kept here, and written there later".to_owned(),
    };
    writeln!(out, "etcd     this node is {node}, at {place} under {prefix}: {state}")?;
    if !nodes.is_empty() {
        writeln!(out, "         nodes: {}", nodes.join(" "))?;
    }
    let since = troubled_since.map(|at| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        format!(" for {}", age((now - at).max(0.0)))
    });
    for trouble in troubles {
        writeln!(out, "         FAILING{}: {trouble}", since.as_deref().unwrap_or_default())?;
    }
    if *waiting > 0 {
        writeln!(out, "         {} not there yet", plural(*waiting as u64, "registration"))?;
    }
    if *claims_lost > 0 {
        let what = plural(*claims_lost, "registration");
        writeln!(out, "         {what} taken while it was away, and given up: another had the host there")?;
    }
    Ok(())
}
