//! Who gets what, whatever the order in which they spoke.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::{BackendConfig, PoolConfig};
use crate::control::compile;
use crate::route::{OnRemove, PoolName, SniPattern};

/// `high` goes before `low` and `lower`.
fn file() -> Config {
    let provider = |priority: u32| format!("{{ registry: {{ path: /r.yaml }}, priority: {priority} }}");
    let text = format!(
        "listeners: {{ tls: {{ bind: '127.0.0.1:443' }}, redis: {{ bind: ':6379', protocol: tcp, pool: app }} }}\n\
         routes: [{{ sni: app.example.com, pool: app }}]\n\
         pools: {{ app: {{ backends: ['192.0.2.1:443'] }} }}\n\
         providers: {{ low: {}, high: {}, lower: {} }}\n",
        provider(0),
        provider(10),
        provider(0)
    );
    crate::config::parse(&text, Path::new("test.yaml")).expect("a good file")
}

fn pool(port: u16) -> PoolConfig {
    let backend = BackendConfig::parse(&format!("192.0.2.2:{port}"), 1).expect("test address");
    PoolConfig::new(vec![backend], Vec::new())
}

fn pattern(text: &str) -> SniPattern {
    SniPattern::parse(text).expect("test pattern")
}

fn says(provider: &str, hosts: &[&str], ports: &[u16]) -> Contribution {
    let mut contribution = Contribution::new(&ProviderName::new(provider), OnRemove::L4);
    for host in hosts {
        let pool = contribution.pool(host, pool(443));
        contribution.route(host, vec![pattern(host)], &pool, Vec::new(), 0);
    }
    for port in ports {
        let pool = contribution.pool(&format!("p{port}"), pool(*port));
        contribution.listen(&format!("p{port}"), vec![SocketAddr::from(([0, 0, 0, 0], *port))], &pool);
    }
    contribution
}

fn said(list: impl IntoIterator<Item = Contribution>) -> BTreeMap<ProviderName, Arc<Contribution>> {
    list.into_iter().map(|c| (c.provider().clone(), Arc::new(c))).collect()
}

/// What each provider does not get, and the pool that each host goes to.
fn outcome(merged: Merged) -> (Vec<String>, BTreeMap<String, PoolName>) {
    let Merged { config, mut refused } = merged;
    let hosts: Vec<_> = config.routes.iter().flat_map(|route| route.sni.clone()).collect();
    let snapshot = compile(config, None);
    refused.names(snapshot.routes.conflicts());
    let told = refused.0.values().flatten().map(ToString::to_string).collect();
    let target = |host: SniPattern| {
        let SniPattern::Exact(sni) = &host else { return None };
        let target = snapshot.routes.by_sni(&ListenerName::new("tls"), sni)?;
        Some((host.to_string(), target.pool.clone()))
    };
    (told, hosts.into_iter().filter_map(target).collect())
}

#[test]
fn the_file_goes_before_providers_and_they_by_priority_and_name() {
    let everybody = ["app.example.com", "a.example.com"];
    let all = said([says("low", &everybody, &[]), says("high", &everybody, &[]), says("lower", &everybody, &[])]);
    let (told, hosts) = outcome(merge(&file(), &all));
    assert_eq!(hosts["app.example.com"].as_str(), "app");
    assert_eq!(hosts["a.example.com"].as_str(), "a.example.com@high");
    assert_eq!(
        told,
        [
            "route app.example.com@high: app.example.com belongs to route app.example.com",
            "route a.example.com@low: a.example.com belongs to route a.example.com@high",
            "route app.example.com@low: app.example.com belongs to route app.example.com",
            "route a.example.com@lower: a.example.com belongs to route a.example.com@high",
            "route app.example.com@lower: app.example.com belongs to route app.example.com",
        ]
    );
    let without = said([says("low", &everybody, &[]), says("lower", &everybody, &[])]);
    assert_eq!(outcome(merge(&file(), &without)).1["a.example.com"].as_str(), "a.example.com@low");
}

#[test]
fn a_port_has_one_owner_and_the_others_are_told() {
    let merged = merge(&file(), &said([says("low", &[], &[6379, 7000]), says("high", &[], &[7000])]));
    let names: Vec<_> = merged.config.listeners.keys().map(ListenerName::as_str).collect();
    assert_eq!(names, ["p7000@high", "redis", "tls"]);
    let (told, _) = outcome(merged);
    assert_eq!(
        told,
        [
            "port p6379@low: 0.0.0.0:6379 belongs to listener redis",
            "port p7000@low: 0.0.0.0:7000 belongs to listener p7000@high",
        ]
    );
}

#[test]
fn a_route_for_a_listener_that_is_not_there_is_told_so_and_the_rest_served() {
    let mut contribution = says("low", &["a.example.com"], &[]);
    let pool = contribution.pool("app", pool(1));
    contribution.route("b", vec![pattern("b.example.com")], &pool, vec![ListenerName::new("none")], 0);
    contribution.route("c", vec![pattern("c.example.com")], &pool, vec![ListenerName::new("redis")], 0);
    let (told, hosts) = outcome(merge(&file(), &said([contribution])));
    assert_eq!(
        told,
        ["route b@low: there is no listener none", "route c@low: listener redis is `tcp`: it follows no route"]
    );
    assert!(hosts.contains_key("a.example.com"));
}

#[test]
fn the_priority_of_a_route_counts_among_the_routes_of_its_provider() {
    let mut contribution = says("low", &["a.example.com"], &[]);
    let pool = contribution.pool("better", pool(1));
    contribution.route("z", vec![pattern("a.example.com")], &pool, Vec::new(), 5);
    let all = said([contribution, says("lower", &["a.example.com"], &[])]);
    assert_eq!(outcome(merge(&file(), &all)).1["a.example.com"].as_str(), "better@low");
}

#[test]
fn one_change_among_many_routes_makes_one_pool() {
    let hosts: Vec<String> = (0..2_000).map(|n| format!("h{n}.example.com")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let mut contribution = says("low", &hosts, &[]);
    let before = compile(merge(&file(), &said([contribution.clone()])).config, None);
    contribution.pool("h7.example.com", pool(8443));
    let after = compile(merge(&file(), &said([contribution])).config, Some(&before));
    let made: Vec<_> = after.pools.iter().filter(|(name, pool)| !Arc::ptr_eq(pool, &before.pools[*name])).collect();
    assert_eq!(made.len(), 1, "only the pool that changed is made again");
    assert!(Arc::ptr_eq(&after.routes, &before.routes), "no route changed, so the table is the same");
}

const PROVIDERS: [&str; 3] = ["low", "high", "lower"];
const HOSTS: [&str; 4] = ["a.example.com", "b.example.com", "app.example.com", "c.example.com"];

proptest! {
    /// Each provider speaks several times, in any interleaving; only what each said last counts.
    #[test]
    fn the_outcome_depends_on_what_was_said_last_and_not_on_the_order(
        words in prop::collection::vec((0..3_usize, prop::collection::vec(0..4_usize, 0..4), prop::collection::vec(7000..7003_u16, 0..3)), 0..12),
        seed in any::<u64>(),
    ) {
        let file = file();
        let mut heard = BTreeMap::new();
        for (provider, hosts, ports) in &words {
            let hosts: Vec<_> = hosts.iter().map(|at| HOSTS[*at]).collect();
            let contribution = says(PROVIDERS[*provider], &hosts, ports);
            heard.insert(contribution.provider().clone(), Arc::new(contribution));
        }
        let one_by_one = outcome(merge(&file, &heard));
        // The last words alone, in another order.
        let mut last: Vec<_> = heard.into_values().collect();
        let by = (seed % 3) as usize;
        let len = last.len().max(1);
        last.rotate_left(by % len);
        let at_once = outcome(merge(&file, &said(last.into_iter().map(|c| Contribution::clone(&c)))));
        prop_assert_eq!(one_by_one, at_once);
    }
}
