//! The stats page with made-up data: `cargo run --example stats_page [ADDRESS] [trouble]`, then open what it prints.
//!
//! Each request moves the made-up world on by one second, so that the page looks alive at any polling speed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use axum::middleware::map_response;
use axum::routing::get;
use axum::{Json, Router};
use ingress::admin::stats_page::{StatsData, add_headers, assets};
use ingress::admin::status::{ConfigStatus, ConnectionSummary, ListenerStatus, PoolSummary, Status};
use ingress::balance::{BackendView, CheckView, PoolView};
use ingress::dataplane::{InterfaceStatus, KernelStatus};
use ingress::metrics::{ListenerCounts, Transferred};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8404".into());
    let trouble = std::env::args().nth(2).is_some_and(|word| word == "trouble");
    let second = Arc::new(AtomicU64::new(3_600));
    let data = move || {
        let now = second.fetch_add(1, Ordering::Relaxed);
        async move { Json(stats(now as f64, trouble)) }
    };
    let listener = tokio::net::TcpListener::bind(&address).await.with_context(|| format!("binding {address}"))?;
    eprintln!("http://{}/stats", listener.local_addr()?);
    let router = Router::new().route("/stats.json", get(data)).merge(assets()).layer(map_response(add_headers));
    axum::serve(listener, router).await.context("serving the page")
}

fn stats(now: f64, trouble: bool) -> StatsData {
    let pools = pools(now, trouble);
    StatsData {
        time: 1_790_000_000.0 + now,
        status: status(now, trouble, &pools),
        pools,
        memory_bytes: Some(23_400_000 + (wave(now, 17.0) * 900_000.0) as u64),
        cpu_seconds: Some(now * 0.031 + wave(now, 9.0) * 0.01),
    }
}

fn status(now: f64, trouble: bool, pools: &[PoolView]) -> Status {
    let kernel = kernel(now, trouble);
    let listeners = listeners(now, trouble);
    let of = |reasons: &[(&str, f64)]| words(reasons, now);
    let open = 8_420 + (wave(now, 40.0) * 900.0) as u64;
    let handed_off = if trouble { 0 } else { (now * 212.0) as u64 };
    let connections = ConnectionSummary {
        open_kernel: if trouble { 0 } else { open },
        open_relay: if trouble { open } else { 131 + (wave(now, 11.0) * 20.0) as u64 },
        opening: (3.0 + wave(now, 5.0) * 3.0) as u64,
        accepted_total: (now * 221.0 + wave(now, 13.0) * 60.0) as u64,
        handed_off_total: handed_off,
        handed_off_later_total: 0,
        relayed_total: (now * 4.0) as u64,
        refused_total: (now * 1.9) as u64,
        share_handed_off: Some(if trouble { 0.0 } else { 0.9815 }),
        share_handed_off_of_eligible: (!trouble).then_some(0.9994),
        relay_reasons: match trouble {
            true => of(&[("kernel_off", 214.0)]),
            false => of(&[("family", 3.6), ("local", 0.31), ("unacked", 0.06), ("server_first", 0.03)]),
        },
        refused_causes: of(&[("unknown_sni", 1.2), ("not_tls", 0.4), ("hello_timeout", 0.2), ("source_limit", 0.1)]),
        end_reasons: of(&[("closed", 190.0), ("client_reset", 18.0), ("idle_timeout", 2.5), ("backend_reset", 0.4)]),
    };
    let refused = "/etc/ingress/ingress.yaml:14:5: pools.web.backend: unknown key; did you mean `backends`?";
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: 4711,
        uptime: 792_000.0 + now,
        node: "proxy-1".into(),
        ready: true,
        drained: false,
        config: ConfigStatus {
            path: "/etc/ingress/ingress.yaml".into(),
            generation: 7,
            loaded_at: 1_790_000_000.0 - 5_400.0,
            source: "file".into(),
            last_error: trouble.then(|| refused.into()),
        },
        providers: vec![],
        peers: None,
        dns_records: Vec::new(),
        kernel,
        listeners,
        pools: pools.iter().map(summary).collect(),
        connections,
        http: vec![],
        haproxy_socket: None,
    }
}

fn listeners(now: f64, trouble: bool) -> Vec<ListenerStatus> {
    let listener = |name: &str, port, part: f64| ListenerStatus {
        name: name.into(),
        bind: vec![SocketAddr::from(([203, 0, 113, 10], port))],
        state: "listening".into(),
        error: None,
        since: 792_000.0 + now,
        counts: ListenerCounts {
            accepted_total: (now * 221.0 * part) as u64,
            handed_off_total: (now * 212.0 * part) as u64,
            handed_off_later_total: 0,
            open_kernel: (8_400.0 * part) as u64,
            open_relay: (130.0 * part) as u64,
            opening: 3,
            relayed: words(&[("family", 3.6 * part)], now),
            refused: words(&[("unknown_sni", 1.9 * part)], now),
            ended: BTreeMap::new(),
            bytes: Transferred { to_backend: carried(now, 4e6 * part), to_client: carried(now, 118e6 * part) },
        },
    };
    let mut listeners = vec![listener("public", 443, 0.94), listener("redis", 6379, 0.06)];
    if trouble {
        listeners[1].state = "degraded".into();
        listeners[1].error = Some("203.0.113.10:6379: address in use; tried again every 5 s".into());
        listeners[1].counts = ListenerCounts::default();
    }
    listeners
}

fn pools(now: f64, trouble: bool) -> Vec<PoolView> {
    let pool = |name: &str, backends: Vec<BackendView>, fallback: Vec<BackendView>| PoolView {
        name: name.into(),
        balance: "round_robin".into(),
        proxy_protocol: "v2".into(),
        health: Some("tls every 10 s, fall 3, rise 2".into()),
        on_down: "cut".into(),
        handoff: "always".into(),
        backends,
        fallback,
        primary: None,
    };
    let mut web = vec![backend("web-1", 3, 0.35, now), backend("web-2", 4, 0.34, now), backend("web-3", 5, 0.15, now)];
    web[2].effective_weight = 0.4;
    web[2].since = 12.0;
    let mut spare = backend("spare", 9, 0.0, now);
    spare.in_flight = 0;
    if trouble {
        web[1].state = "down".into();
        web[1].effective_weight = 0.0;
        web[1].since = 94.0;
        let error = Some("connect to 10.0.1.4:443: timed out after 2 s".into());
        web[1].last_check = Some(CheckView { ok: false, error, latency_ms: None, age: 3.0 });
    }
    let mut redis = pool("redis", vec![backend("redis-1", 21, 0.06, now)], vec![]);
    redis.proxy_protocol = "none".into();
    redis.balance = "source_hash".into();
    redis.health = None;
    redis.backends[0].state = "unchecked".into();
    redis.backends[0].last_check = None;
    vec![pool("api", vec![backend("api-1", 11, 0.1, now)], vec![]), redis, pool("web", web, vec![spare])]
}

fn backend(name: &str, host: u8, part: f64, now: f64) -> BackendView {
    let address = SocketAddr::from(([10, 0, 1, host], 443));
    BackendView {
        name: name.into(),
        address: address.to_string(),
        addresses: vec![address],
        weight: 1,
        effective_weight: 1.0,
        state: "up".into(),
        since: 700_000.0 + now,
        last_check: Some(CheckView { ok: true, error: None, latency_ms: Some(1.2 + wave(now, 7.0)), age: now % 10.0 }),
        admin: None,
        in_flight: (8_500.0 * part + wave(now, 6.0) * 40.0) as u64,
        connections_total: (now * 216.0 * part) as u64,
        connect_failures: if host == 3 { 2 } else { 0 },
        bytes_to_backend: carried(now, 4e6 * part),
        bytes_to_client: carried(now, 118e6 * part),
        checks_failed_total: 0,
        history: Vec::new(),
    }
}

fn kernel(now: f64, trouble: bool) -> KernelStatus {
    if trouble {
        let missing = "CAP_BPF: the daemon may not load programs; add it to the unit's or container's capabilities";
        return KernelStatus { mode: "userspace".into(), missing: vec![missing.into()], ..KernelStatus::default() };
    }
    let interface = |name: &str, ifindex, attached: &str, why: Option<&str>| InterfaceStatus {
        name: name.into(),
        ifindex,
        attached: attached.into(),
        why: why.map(str::to_owned),
        admission: None,
    };
    let packets = |per_second: f64| (now * per_second + wave(now, 8.0) * per_second) as u64;
    KernelStatus {
        ports: None,
        mode: "kernel".into(),
        missing: vec![],
        interfaces: vec![
            interface("eth0", 2, "tcx", None),
            interface("eth1", 3, "tcx", None),
            interface("wg0", 4, "none", Some("no Ethernet header: connections by this device are relayed")),
        ],
        pin_dir: "/sys/fs/bpf/ingress/v1".into(),
        connections: 8_420 + (wave(now, 40.0) * 900.0) as u64,
        max_connections: 131_072,
        adopted: 7_904,
        verdicts: vec![
            ("spliced".into(), packets(96_000.0)),
            ("miss".into(), packets(2_400.0)),
            ("to_socket".into(), packets(210.0)),
            ("dropped_fragment".into(), 3),
        ],
    }
}

fn summary(pool: &PoolView) -> PoolSummary {
    PoolSummary {
        drained: 0,
        name: pool.name.clone(),
        up: pool.backends.iter().filter(|b| b.state != "down").count(),
        backends: pool.backends.len(),
        fallback_up: pool.fallback.len(),
        fallback: pool.fallback.len(),
        primary: None,
        in_flight: pool.backends.iter().map(|b| b.in_flight).sum(),
    }
}

fn words(per_second: &[(&str, f64)], now: f64) -> BTreeMap<String, u64> {
    per_second.iter().map(|(word, rate)| ((*word).to_owned(), (rate * now) as u64)).collect()
}

/// Bytes so far of a rate that swings around `mean`; grows always.
fn carried(now: f64, mean: f64) -> u64 {
    let swing = 6.0 * wave(now, 71.0) + 0.5 * wave(now, 17.0) + 0.08 * wave(now, 4.1);
    (mean * (now * 1.6 + swing)) as u64
}

/// -1 to 1.
fn wave(now: f64, period: f64) -> f64 {
    (now * std::f64::consts::TAU / period).sin()
}
