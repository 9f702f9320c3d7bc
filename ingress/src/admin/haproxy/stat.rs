//! `show stat`: one row for each listener, backend and pool. What we do not know is left empty, never made up.

use std::collections::BTreeMap;

use super::proxies::{Proxies, Server};
use super::table::{Kind, Row};
use crate::admin::ListenerStatus;
use crate::balance::Pool;
use crate::config::Balance;
use crate::l4::outcome::Refusal;
use crate::route::ListenerName;

/// All rows, in HAProxy's order: listeners, then each pool behind its backends.
pub(super) fn rows(proxies: &Proxies) -> Vec<Row> {
    let mut rows: Vec<_> = proxies.listeners().map(|(iid, listener)| frontend(proxies, iid, listener)).collect();
    for (iid, pool) in proxies.pools() {
        let servers = proxies.servers(pool);
        rows.extend(servers.iter().map(|each| server(iid, each)));
        rows.push(backend(iid, pool, &servers));
    }
    rows
}

fn frontend(proxies: &Proxies, iid: u32, listener: &ListenerStatus) -> Row {
    let counts = &listener.counts;
    let mut row = Row::new(Kind::Frontend, iid, 0, &listener.name, "FRONTEND");
    let config = proxies.snapshot.config.listeners.get(&ListenerName::new(listener.name.as_str()));
    if let Some(config) = config {
        row.number("slim", config.max_connections);
    }
    row.number("scur", counts.open_kernel + counts.open_relay + counts.opening);
    row.number("stot", counts.accepted_total);
    row.number("conn_tot", counts.accepted_total);
    row.number("bin", counts.bytes.to_backend);
    row.number("bout", counts.bytes.to_client);
    row.text("status", if listener.is_up() { "OPEN" } else { "STOP" });
    for (column, kind) in [("dcon", Refused::AtTheDoor), ("dreq", Refused::ByRule), ("ereq", Refused::Broken)] {
        row.number(column, refused(&counts.refused, kind));
    }
    row
}

/// Where HAProxy would count it.
#[derive(Clone, Copy, PartialEq)]
enum Refused {
    AtTheDoor,
    ByRule,
    Broken,
    /// Of the backend, or of nobody.
    Elsewhere,
}

fn refused(counts: &BTreeMap<String, u64>, kind: Refused) -> u64 {
    let counted = Refusal::ALL.iter().filter(|refusal| kind_of(**refusal) == kind);
    counted.filter_map(|refusal| counts.get(refusal.as_str())).sum()
}

const fn kind_of(refusal: Refusal) -> Refused {
    use Refusal as R;
    match refusal {
        R::ListenerLimit | R::SourceLimit | R::GlobalLimit | R::Denied => Refused::AtTheDoor,
        R::UnknownSni | R::NoRoutesYet | R::NoSni => Refused::ByRule,
        R::NotTls | R::HelloTimeout | R::HelloTooLarge | R::HelloEof | R::BadProxyHeader => Refused::Broken,
        R::UntrustedProxyHeader | R::ClientReset => Refused::Broken,
        R::NoBackend | R::ConnectFailed | R::Draining => Refused::Elsewhere,
    }
}

fn server(iid: u32, server: &Server<'_>) -> Row {
    let view = &server.view;
    let mut row = Row::new(Kind::Server, iid, server.sid, server.pool.name.as_str(), &view.name);
    traffic(&mut row, view.in_flight, view.connections_total, view.bytes_to_backend, view.bytes_to_client);
    row.number("econ", view.connect_failures);
    row.text("status", server.status());
    row.number("weight", server.weight());
    row.number("uweight", server.user_weight());
    row.number("act", u32::from(!server.is_fallback));
    row.number("bck", u32::from(server.is_fallback));
    row.number("lastchg", view.since as u64);
    if let Some(percent) = server.throttle() {
        row.number("throttle", percent);
    }
    let (ip, _, port) = server.address();
    row.text("addr", if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") });
    row.never("lastsess");
    let (Some(health), Some(verdict)) = (&server.pool.config.health, server.verdict()) else { return row };
    row.number("chkfail", view.checks_failed_total);
    row.text("check_status", verdict.word);
    row.text("check_desc", verdict.description);
    row.number("check_rise", health.rise);
    row.number("check_fall", health.fall);
    row.number("check_health", check_health(server));
    if let Some(check) = &view.last_check {
        row.number("check_duration", check.latency_ms.unwrap_or_default() as u64);
        row.text("last_chk", check.error.clone().unwrap_or_default());
    }
    row
}

/// 0: down; `rise + fall - 1`: up, without a failed check since. We count failures apart and never stand between.
pub(super) fn check_health(server: &Server<'_>) -> u32 {
    let health = server.pool.config.health.as_ref().filter(|_| server.is_running());
    health.map_or(0, |health| health.rise + health.fall - 1)
}

fn backend(iid: u32, pool: &Pool, servers: &[Server<'_>]) -> Row {
    let mut row = Row::new(Kind::Backend, iid, 0, pool.name.as_str(), "BACKEND");
    let sum = |of: fn(&Server<'_>) -> u64| servers.iter().map(of).sum::<u64>();
    let [open, total] = [sum(|s| s.view.in_flight), sum(|s| s.view.connections_total)];
    traffic(&mut row, open, total, sum(|s| s.view.bytes_to_backend), sum(|s| s.view.bytes_to_client));
    row.number("econ", sum(|s| s.view.connect_failures));
    let usable = |is_fallback| servers.iter().filter(move |s| s.is_usable() && s.is_fallback == is_fallback);
    let (act, bck) = (usable(false).count(), usable(true).count());
    // The fallback's weights count only while it serves.
    let weights = |serving: bool| usable(serving).map(Server::weight).sum::<u32>();
    row.text("status", if act + bck > 0 { "UP" } else { "DOWN" });
    row.number("weight", weights(act == 0));
    row.number("uweight", usable(act == 0).map(Server::user_weight).sum::<u32>());
    row.number("act", act as u64);
    row.number("bck", bck as u64);
    row.text(
        "algo",
        match pool.config.balance {
            Balance::RoundRobin => "roundrobin",
            Balance::LeastConnections => "leastconn",
            Balance::SourceHash => "source",
        },
    );
    row.never("lastsess");
    row
}

/// Nothing is ever queued here, and nothing is retried on the same server.
fn traffic(row: &mut Row, open: u64, total: u64, to_backend: u64, to_client: u64) {
    let counts = [("qcur", 0), ("qmax", 0), ("scur", open), ("stot", total), ("lbtot", total), ("connect", total)];
    let bytes = [("bin", to_backend), ("bout", to_client)];
    counts.into_iter().chain(bytes).for_each(|(column, value)| row.number(column, value));
}
