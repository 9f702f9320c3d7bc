//! Whole registries, as each node reads them.

use super::*;
use crate::config::{RedisLogin, RedisProbe, RedisRole};
use crate::route::{ListenerName, OnRemove, PoolName, ProviderName, Unserved};

const REGISTRY: &str = "
version: 1
http:
  www.example.com:
    backends: [{host: 10.8.0.1, port: 8080}, {host: 10.8.0.2, port: 8080}]
    cache: static, 10m
  '*.apps.example.com':
    backends: [{host: node-3.example.com, port: 8080}]
tcp:
  redis-main:
    port: 6379
    backends: [{host: 10.8.0.1, port: 6380}, {host: 10.8.0.2, port: 6380, weight: 3}]
  postgres:
    port: 5432
    balance: least_connections
    backends: [{host: 10.8.0.1, port: 5433}, {host: 10.8.0.2, port: 5433, standby: true}]
";

/// The node with this address.
fn on(address: &str, text: &str) -> Result<Contribution, String> {
    let ip = address.parse::<IpAddr>().expect("test address");
    let local = LocalAddresses { addresses: [ip].into(), names: ["node-3.example.com".to_owned()].into() };
    let bind = vec!["0.0.0.0".parse().expect("address")];
    let check = HealthConfig { probe: ProbeConfig::Redis(follow_primary()), ..CHECK };
    let checks = BTreeMap::from([("redis-followed".to_owned(), check)]);
    let settings = Settings { bind, checks, health: None, on_down: OnDown::Cut };
    let empty = Contribution::new(&ProviderName::new("nodes"), OnRemove::L4);
    compile(&vec![("registry.yaml".into(), text.to_owned())], &local, &settings, empty)
}

fn names(backends: &[BackendConfig]) -> Vec<&str> {
    backends.iter().map(|backend| backend.name.as_str()).collect()
}

fn pool<'a>(contribution: &'a Contribution, name: &str) -> &'a PoolConfig {
    &contribution.pools()[&PoolName::new(name)]
}

#[test]
fn a_local_backend_goes_first_and_the_others_are_its_fallback() {
    let node = on("10.8.0.2", REGISTRY).expect("a good registry");
    let redis = pool(&node, "redis-main@nodes");
    assert_eq!((names(&redis.backends), names(&redis.fallback)), (vec!["10.8.0.2:6380"], vec!["10.8.0.1:6380"]));
    assert_eq!(redis.backends[0].weight, 3);
    let health = redis.health.as_ref().expect("checks");
    assert_eq!((health.interval, health.timeout), (Duration::from_secs(2), Duration::from_millis(500)));
    assert_eq!((health.fall, health.rise, redis.on_down, redis.loop_guard), (3, 2, OnDown::Cut, true));
    let elsewhere = on("10.8.0.9", REGISTRY).expect("a good registry");
    let redis = pool(&elsewhere, "redis-main@nodes");
    assert_eq!((redis.backends.len(), redis.fallback.len()), (0, 2));
}

#[test]
fn a_service_with_standbys_is_ordered_by_that_alone() {
    let node = on("10.8.0.2", REGISTRY).expect("a good registry");
    let postgres = pool(&node, "postgres@nodes");
    assert_eq!((names(&postgres.backends), names(&postgres.fallback)), (vec!["10.8.0.1:5433"], vec!["10.8.0.2:5433"]));
    assert_eq!(postgres.balance, Balance::LeastConnections);
}

fn follow_primary() -> RedisProbe {
    RedisProbe { role: RedisRole::Primary, login: RedisLogin::default(), tls: None, sentinel: None }
}

#[test]
fn a_redis_is_followed_where_the_configuration_has_a_check_for_it_and_never_through_another_node() {
    let text = "version: 1\ntcp:\n  redis-followed:\n    port: 6379\n    backends: [{host: 10.8.0.1, port: 6380}, {host: 10.8.0.2, port: 6380}]\n";
    let node = on("10.8.0.2", text).expect("a good registry");
    let redis = pool(&node, "redis-followed@nodes");
    assert!(redis.follows_primary() && !redis.loop_guard);
    assert_eq!((names(&redis.backends), names(&redis.fallback)), (vec!["10.8.0.2:6380"], vec!["10.8.0.1:6380"]));
    let same = on("10.8.0.9", &text.replace("10.8.0.1, port: 6380", "10.8.0.1, port: 6379")).expect("a good registry");
    assert!(!same.listeners().contains_key(&ListenerName::new("redis-followed@nodes")));
    let told: Vec<_> = same.unserved_items().iter().map(Unserved::to_string).collect();
    let why = "Redis stands behind the port that is opened for it; give it another one";
    assert_eq!(told, [format!("tcp.redis-followed backend 10.8.0.1:6379: {why}")]);
}

#[test]
fn ports_are_opened_and_hosts_are_kept_for_http() {
    let node = on("10.8.0.2", REGISTRY).expect("a good registry");
    let ports: Vec<_> = node.listeners().iter().map(|(name, entry)| (name.as_str(), entry.bind[0].port())).collect();
    assert_eq!(ports, [("postgres@nodes", 5432), ("redis-main@nodes", 6379)]);
    let hosts: Vec<_> = node.http_routes().map(|route| (route.rule.to_string(), route.middlewares.clone())).collect();
    let expected = [
        ("Host(`*.apps.example.com`)".to_owned(), vec![]),
        ("Host(`www.example.com`)".to_owned(), vec!["cache: static, 10m".to_owned()]),
    ];
    assert_eq!(hosts, expected);
    let apps = &node.http_pools()[&PoolName::new("*.apps.example.com@nodes")];
    assert_eq!(names(&apps.backends), ["node-3.example.com:8080"], "a host name of this node is local");
}

#[test]
fn a_backend_that_is_the_opened_port_itself_is_left_out() {
    let text = "version: 1\ntcp:\n  redis:\n    port: 6379\n    backends: [{host: 10.8.0.1, port: 6379}, {host: 10.8.0.2, port: 6379}]\n";
    let node = on("10.8.0.2", text).expect("a good registry");
    let redis = pool(&node, "redis@nodes");
    assert_eq!((redis.backends.len(), names(&redis.fallback)), (0, vec!["10.8.0.1:6379"]));
    let told: Vec<_> = node.unserved_items().iter().map(Unserved::to_string).collect();
    assert_eq!(told, ["tcp.redis backend 10.8.0.2:6379: this node opens that very port: it would lead back here"]);
    let alone = on("10.8.0.2", &text.replace("{host: 10.8.0.1, port: 6379}, ", "")).expect("a good registry");
    assert!(!alone.listeners().contains_key(&ListenerName::new("redis@nodes")), "nothing is behind that port");
}

#[test]
fn a_registry_that_lists_nothing_says_that_it_is_meant() {
    let error = on("10.8.0.2", "version: 1\nhttp: {}\n").expect_err("it lists nothing");
    assert_eq!(error, "registry.yaml: lists nothing; write `empty: true` if that is meant");
    assert!(on("10.8.0.2", "").is_err(), "an empty file is none");
    assert!(on("10.8.0.2", "version: 1\nempty: true\n").expect("meant").is_empty());
}

#[test]
fn a_fault_anywhere_refuses_the_whole_and_names_the_place() {
    let cases = [
        ("version: 2\n", "version 2 is not understood"),
        ("version: 1\nhttps: {}\n", "registry.yaml:2:1"),
        ("version: 1\ntcp: {a: {port: 70000, backends: []}}\n", "registry.yaml:2:"),
        ("version: 1\ntcp: {a: {port: 0, backends: [{host: a.example.com, port: 1}]}}\n", "tcp.a.port: must not be 0"),
        ("version: 1\ntcp: {a: {port: 1, backends: []}}\n", "tcp.a.backends: the list is empty"),
        ("version: 1\ntcp: {a: {port: 1, backends: [{host: 300.1.1.1, port: 1}]}}\n", "tcp.a.backends[0]: "),
        ("version: 1\nhttp: {'a b': {backends: [{host: 10.0.0.1, port: 1}]}}\n", "http.a b: "),
        ("version: 1\nhttp:\n  a.example.com:\n", "has no value"),
    ];
    for (text, expected) in cases {
        let error = on("10.8.0.2", text).expect_err(text);
        assert!(error.contains(expected), "{text:?}: {error}");
    }
}

#[test]
fn a_registry_that_is_cut_off_at_any_byte_is_refused_or_still_well_formed() {
    for cut in 0..REGISTRY.len() {
        // Never a panic; that a cut at the end of a line may go through is why removals wait.
        let _ = on("10.8.0.2", &REGISTRY[..cut]);
    }
}

#[test]
fn one_name_in_two_files_names_both() {
    let file = |name: &str| {
        (PathBuf::from(name), "version: 1\ntcp: {a: {port: 1, backends: [{host: 10.0.0.1, port: 2}]}}\n".to_owned())
    };
    let settings = Settings { bind: vec![], checks: BTreeMap::new(), health: None, on_down: OnDown::Keep };
    let empty = Contribution::new(&ProviderName::new("nodes"), OnRemove::L4);
    let texts = vec![file("one.yaml"), file("two.yaml")];
    let error = compile(&texts, &LocalAddresses::default(), &settings, empty).expect_err("twice");
    assert_eq!(error, "two.yaml: tcp.a stands in one.yaml already");
}
