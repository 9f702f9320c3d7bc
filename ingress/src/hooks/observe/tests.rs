use std::time::UNIX_EPOCH;

use super::*;
use crate::balance::fixture;
use crate::config::{HookConfig, parse};
use crate::control::state::ConfigSource;
use crate::route::{OnRemove, PoolName, RouteSpec};

const FILE: &str = "
listeners: {tls: {bind: ':443'}}
hooks: {chat: {command: {argv: [/bin/true]}}}
providers: {nodes: {registry: {path: /nonexistent}, stale_after: 30s}}
";

fn snapshot(routes: &[String]) -> Snapshot {
    let mut config = parse(FILE, "f.yaml".as_ref()).expect("good");
    let route = |name: &String| RouteSpec {
        name: RouteName::new(name.as_str()),
        sni: Vec::new(),
        pool: PoolName::new("app"),
        listeners: Vec::new(),
        priority: 0,
        on_remove: OnRemove::L4,
    };
    config.routes = routes.iter().map(|name| Arc::new(route(name))).collect();
    let Snapshot { generation, published, routes, pools, awaited, .. } =
        Arc::into_inner(fixture::snapshot([])).expect("the only one");
    Snapshot { generation, published, config: Arc::new(config), routes, pools, awaited }
}

fn config(error: Option<&str>, text: &str) -> ConfigState {
    ConfigState {
        path: "/etc/ingress/ingress.yaml".into(),
        source: ConfigSource::File,
        loaded_at: UNIX_EPOCH,
        last_error: error.map(str::to_owned),
        text: text.into(),
    }
}

fn provider(failing_since: Option<u64>) -> ProviderState {
    ProviderState {
        name: ProviderName::new("nodes"),
        kind: "registry",
        place: "/nonexistent".into(),
        priority: 0,
        contribution: None,
        from_disk: None,
        last_success: None,
        last_error: failing_since.map(|_| "no such file".to_owned()),
        failing_since: failing_since.map(at),
        changes: 0,
        failures: 0,
        refused: Arc::from([]),
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn names(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("r{n}")).collect()
}

/// Kinds, with how many items each.
fn kinds(found: &Found) -> Vec<(EventKind, usize)> {
    found.iter().map(|(kind, items)| (*kind, items.len())).collect()
}

#[test]
fn routes_that_a_start_brings_are_not_new_and_later_ones_are_one_event() {
    let mut observer = Observer::default();
    let mut look = |snapshot: &Snapshot| kinds(&observer.look(snapshot, &config(None, ""), &[], at(0)));
    let mut starting = snapshot(&[]);
    starting.awaited = vec![ProviderName::new("nodes")];
    assert_eq!(look(&starting), []);
    assert_eq!(look(&snapshot(&names(0..100))), []);
    assert_eq!(look(&snapshot(&names(50..10_100))), [(EventKind::RouteRemoved, 50), (EventKind::RouteAdded, 10_000)]);
    assert_eq!(look(&snapshot(&names(50..10_100))), []);
}

#[test]
fn a_file_is_told_when_it_is_refused_and_when_it_is_good_again_and_once() {
    let mut observer = Observer::default();
    let empty = snapshot(&[]);
    let mut look = |state: &ConfigState| kinds(&observer.look(&empty, state, &[], at(0)));
    assert_eq!(look(&config(None, "a")), [], "a start is told as such");
    assert_eq!(look(&config(Some("1:1: bad"), "a")), [(EventKind::ConfigRefused, 1)]);
    assert_eq!(look(&config(Some("1:1: bad"), "a")), []);
    assert_eq!(look(&config(Some("2:1: bad"), "a")), [(EventKind::ConfigRefused, 1)], "bad in another way");
    assert_eq!(look(&config(None, "a")), [(EventKind::ConfigAccepted, 1)]);
    assert_eq!(look(&config(None, "b")), [(EventKind::ConfigAccepted, 1)]);
    assert_eq!(look(&config(None, "b")), []);
    let at_start = Observer::default().look(&empty, &config(Some("bad"), ""), &[], at(0));
    assert_eq!(kinds(&at_start), [(EventKind::ConfigRefused, 1)], "it serves the last good one");
}

#[test]
fn a_provider_is_stale_after_its_time_and_recovers_once() {
    let mut observer = Observer::default();
    let empty = snapshot(&[]);
    let file = config(None, "");
    let mut look = |failing_since, now| kinds(&observer.look(&empty, &file, &[provider(failing_since)], at(now)));
    assert_eq!(look(Some(100), 129), []);
    assert_eq!(look(Some(100), 130), [(EventKind::ProviderStale, 1)]);
    assert_eq!(look(Some(100), 500), []);
    assert_eq!(look(None, 501), [(EventKind::ProviderRecovered, 1)]);
    assert_eq!(look(Some(510), 511), []);
    assert_eq!(look(None, 512), [], "one failure is no outage");
    let next = observer.next(&empty.config, &[provider(Some(600))], at(610));
    assert_eq!(next, Some(Duration::from_secs(20)), "a source that is silent is looked at all the same");
    assert_eq!(observer.next(&empty.config, &[provider(None)], at(610)), None);
}

#[test]
fn without_a_hook_that_wants_routes_nobody_compares_them() {
    let mut observer = Observer::default();
    let silent = |routes: &[String]| {
        let mut snapshot = snapshot(routes);
        let mut config = Config::clone(&snapshot.config);
        let only = |hook: &mut HookConfig| hook.filter.kinds = vec![EventKind::BackendDown];
        config.hooks.values_mut().for_each(only);
        snapshot.config = Arc::new(config);
        snapshot
    };
    let file = config(None, "");
    for names in [names(0..1), names(0..2)] {
        assert_eq!(observer.look(&silent(&names), &file, &[], at(0)), []);
    }
    // What it missed meanwhile is not told later.
    assert_eq!(kinds(&observer.look(&snapshot(&names(0..3)), &file, &[], at(0))), [(EventKind::RouteAdded, 1)]);
}
