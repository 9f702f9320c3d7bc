use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::process::ProcessUse;
use super::scrape::{ListenerGauge, ProviderGauge};
use super::*;
use crate::balance::{BackendView, CheckView, PoolView};
use crate::dataplane::{AdmissionStatus, InterfaceStatus, KernelStatus};
use crate::l4::outcome::{ConnectionEnd, ConnectionInfo, EndReason, Mode, Refusal, RelayReason};
use crate::route::PoolName;

const DOC: &str = include_str!("../../../docs/metrics.md");

fn end(mode: Mode, to_backend: u64, to_client: u64) -> ConnectionEnd {
    let address = SocketAddr::from(([192, 0, 2, 1], 443));
    ConnectionEnd {
        info: ConnectionInfo {
            id: 1,
            listener: ListenerName::new("public"),
            client: address,
            local: address,
            started: SystemTime::now(),
            sni: None,
            alpn: None,
            route: None,
            pool: PoolName::new("app"),
            backend: "app-1".into(),
            backend_address: address,
        },
        mode,
        reason: EndReason::Closed,
        bytes_to_backend: to_backend,
        bytes_to_client: to_client,
        duration: Duration::from_secs(2),
    }
}

fn backend(name: &str) -> BackendView {
    BackendView {
        name: name.into(),
        address: "192.0.2.7:443".into(),
        addresses: vec![SocketAddr::from(([192, 0, 2, 7], 443))],
        weight: 1,
        effective_weight: 1.0,
        state: "up".into(),
        since: 1.0,
        last_check: Some(CheckView { ok: true, error: None, latency_ms: Some(1.5), age: 1.0 }),
        admin: None,
        in_flight: 2,
        connections_total: 3,
        connect_failures: 0,
        bytes_to_backend: 10,
        bytes_to_client: 20,
        checks_failed_total: 0,
        history: Vec::new(),
    }
}

/// A scrape in which every family has at least one sample.
fn full_scrape() -> Scrape {
    let admission = AdmissionStatus {
        side: "public".into(),
        mode: "native".into(),
        why: None,
        dropped: vec![("drop_denied".into(), 4)],
    };
    let interface = InterfaceStatus {
        name: "eth0".into(),
        ifindex: 2,
        attached: "tcx".into(),
        why: None,
        admission: Some(admission),
    };
    let kernel = KernelStatus {
        mode: "kernel".into(),
        verdicts: vec![("spliced".into(), 9)],
        interfaces: vec![interface],
        ..KernelStatus::default()
    };
    let pool = PoolView {
        name: "app".into(),
        balance: "round_robin".into(),
        proxy_protocol: "v2".into(),
        health: None,
        on_down: "cut".into(),
        handoff: "always".into(),
        backends: vec![backend("app-1"), backend("app-2")],
        fallback: vec![backend("app-2")],
        primary: Some(crate::balance::PrimaryView {
            backend: Some("app-1".into()),
            since: 1.0,
            changes_total: 2,
            rivals: vec!["app-2".into()],
            sentinels: Some(crate::balance::SentinelsView { asked: 3, answered: 3, agreed: 2 }),
            problem: None,
        }),
    };
    let listener = ListenerGauge { name: "public".into(), up: true, connections_limit: 1000 };
    let items = [("served", 3), ("needs_http", 2), ("unsupported", 1), ("conflict", 0)];
    let provider =
        ProviderGauge { name: "nodes".into(), failing: true, last_success: Some(1.5), changes: 4, failures: 2, items };
    Scrape {
        pools: vec![pool],
        kernel,
        listeners: vec![listener],
        providers: vec![provider],
        peers: vec![scrape::PeerGauge {
            name: "proxy-2".into(),
            connected: true,
            waiting: 1,
            refused: 0,
            clock_skew: Some(-0.001),
        }],
        dns_records: vec![crate::ddns::view::DnsRecordView {
            zone: "example.com".into(),
            provider: "hetzner".into(),
            name: "node1.example.com".into(),
            kind: "A".into(),
            wanted: Some("192.0.2.7".into()),
            published: Some("192.0.2.7".into()),
            error: None,
            confirmed: Some(1.0),
            changes_total: 1,
            failures_total: 0,
        }],
        etcd: Some(scrape::EtcdGauge {
            connected: true,
            revision: 7,
            waiting: 0,
            resyncs: 1,
            claims_lost: 0,
            nodes: 3,
        }),
        hooks: vec![crate::admin::fixture::hook()],
        process: ProcessUse::read(),
        started: 1.0,
    }
}

fn full_text() -> String {
    let metrics = Metrics::new();
    let listener = metrics.listener(&ListenerName::new("public"));
    let provider = ProviderName::new("self");
    metrics.registration_request(&provider, "register", 200);
    metrics.registrations_expired(&provider, 1);
    metrics.registration_stranger(&provider);
    listener.accepted();
    listener.handed_off();
    listener.ended(&end(Mode::Kernel, 5, 7));
    metrics.encode(full_scrape()).expect("a String takes all text")
}

/// Sample name -> type and label names, from OpenMetrics text.
fn families(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut found = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (family, kind) = line.split_once(' ').expect("name and type");
        let name = match kind {
            "counter" => format!("{family}_total"),
            "info" => format!("{family}_info"),
            _ => family.to_owned(),
        };
        let probe = if kind == "histogram" { format!("{family}_sum") } else { name.clone() };
        let sample = text
            .lines()
            .find(|l| l.strip_prefix(&probe).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .unwrap_or_else(|| panic!("{family} has no sample"));
        let labels = sample.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inner, _)| inner);
        let labels = labels.split("\",").filter_map(|l| l.split_once('=')).map(|(key, _)| key.to_owned()).collect();
        found.insert(name, (kind.to_owned(), labels));
    }
    found
}

/// The rows of docs/metrics.md: | `name` | type | `label`, `label` | meaning |
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let (metrics, _) = DOC.split_once("\n## Words\n").expect("the words stand last");
    let rows = metrics.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, kind, labels, meaning, _] = cells[..] else { panic!("not four columns: {row}") };
        assert!(meaning.len() > 5, "{name} says nothing of its meaning");
        let labels = labels.split(',').map(|l| l.trim().trim_matches('`').to_owned()).filter(|l| !l.is_empty());
        (name.trim_matches('`').to_owned(), (kind.to_owned(), labels.collect()))
    })
    .collect()
}

#[test]
fn exactly_the_metrics_that_exist_are_documented() {
    let (documented, real) = (documented(), families(&full_text()));
    let names: BTreeSet<_> = documented.keys().chain(real.keys()).collect();
    let wrong: Vec<String> = names
        .iter()
        .filter(|name| documented.get(**name) != real.get(**name))
        .map(|name| format!("{name}: documented {:?}, real {:?}", documented.get(*name), real.get(*name)))
        .collect();
    assert!(wrong.is_empty(), "docs/metrics.md:\n{}", wrong.join("\n"));
}

#[test]
fn exactly_the_reasons_that_exist_are_documented() {
    let words = |heading: &str| -> Vec<&str> {
        let (_, section) = DOC.split_once(heading).expect("the heading");
        let section = section.split("\n#").next().unwrap_or_default();
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
    };
    assert_eq!(words("### Causes of refusal"), Vec::from_iter(Refusal::ALL.iter().map(|r| r.as_str())));
    assert_eq!(words("### Reasons for a relay"), Vec::from_iter(RelayReason::ALL.iter().map(|r| r.as_str())));
    assert_eq!(words("### Ends"), Vec::from_iter(EndReason::ALL.iter().map(|r| r.as_str())));
}

#[test]
fn no_series_is_written_twice() {
    let text = full_text();
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').expect("series and value");
        assert!(seen.insert(series), "{series} twice");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn open_connections_follow_the_life_of_a_connection() {
    let metrics = Metrics::new();
    let listener = metrics.listener(&ListenerName::new("public"));
    let open = || {
        let c = listener.counts();
        (c.opening, c.open_kernel, c.open_relay)
    };
    (0..3).for_each(|_| listener.accepted());
    assert_eq!(open(), (3, 0, 0));
    listener.refused(Refusal::UnknownSni);
    listener.handed_off();
    listener.relayed(RelayReason::Local);
    assert_eq!(open(), (0, 1, 1));
    listener.adopted();
    assert_eq!(open(), (0, 2, 1));
    listener.ended(&end(Mode::Kernel, 0, 0));
    listener.ended(&end(Mode::Kernel, 0, 0));
    listener.ended(&end(Mode::Relay(RelayReason::Local), 0, 0));
    assert_eq!(open(), (0, 0, 0));
}

#[test]
fn bytes_reported_on_the_way_are_not_counted_again_at_the_end() {
    let metrics = Metrics::new();
    let listener = metrics.listener(&ListenerName::new("public"));
    listener.accepted();
    listener.handed_off();
    let moved = Transferred { to_backend: 40, to_client: 600 };
    listener.progress(&PoolName::new("app"), moved);
    listener.ended_after(&end(Mode::Kernel, 100, 1000), moved);
    assert_eq!(listener.counts().bytes, Transferred { to_backend: 100, to_client: 1000 });
}

#[test]
fn every_reason_has_the_counter_of_its_own_word() {
    let metrics = Metrics::new();
    let listener = metrics.listener(&ListenerName::new("public"));
    Refusal::ALL.iter().for_each(|r| listener.refused(*r));
    listener.refused(Refusal::NoSni);
    RelayReason::ALL.iter().for_each(|r| listener.relayed(*r));
    let counts = listener.counts();
    assert_eq!(counts.refused.len(), Refusal::ALL.len());
    assert_eq!((counts.refused["no_sni"], counts.refused["draining"]), (2, 1));
    assert_eq!(counts.relayed.len(), RelayReason::ALL.len());
}

#[test]
fn a_listener_keeps_its_counters_when_it_is_asked_for_again() {
    let metrics = Metrics::new();
    metrics.listener(&ListenerName::new("public")).accepted();
    assert_eq!(metrics.listener(&ListenerName::new("public")).counts().accepted_total, 1);
}

#[test]
fn a_failed_reload_keeps_the_time_of_the_last_good_one() {
    let metrics = Metrics::new();
    metrics.config_reload(true);
    let good = metrics.config.last_success.get();
    metrics.config_reload(false);
    assert!(good > 0.0);
    assert_eq!(metrics.config.last_success.get(), good);
    assert_eq!(metrics.config.last_ok.get(), 0);
}
