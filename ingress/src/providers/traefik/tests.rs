//! Whole documents, as control planes write them.

use serde_json::json;

use super::*;
use crate::config::{PoolConfig, ProxyProtocol};
use crate::route::{ListenerName, OnRemove, PoolName, ProviderName};

fn settings() -> Settings {
    let entry_points = [
        ("websecure".to_owned(), EntryPoint::Listener(ListenerName::new("tls"))),
        ("redis".to_owned(), EntryPoint::Open(vec!["0.0.0.0:6379".parse().expect("address")])),
    ];
    Settings { entry_points: entry_points.into(), health: None, on_down: OnDown::Keep }
}

fn read(document: Value) -> Contribution {
    read_with(document, &settings())
}

fn read_with(document: Value, settings: &Settings) -> Contribution {
    let mut whole = Document::default();
    whole.add(document).expect("a dynamic configuration");
    whole.compile(settings, Contribution::new(&ProviderName::new("p"), OnRemove::L4))
}

fn told(contribution: &Contribution) -> Vec<String> {
    contribution.unserved_items().iter().map(ToString::to_string).collect()
}

fn balancer(addresses: &[&str]) -> Value {
    let servers: Vec<_> = addresses.iter().map(|address| json!({ "address": address })).collect();
    json!({ "loadBalancer": { "servers": servers } })
}

/// One TCP router with passthrough to `service`, beside these services.
fn passthrough(service: &str, services: Value) -> Value {
    let router = json!({ "rule": "HostSNI(`a.com`)", "service": service, "tls": { "passthrough": true } });
    json!({ "tcp": { "routers": { "r": router }, "services": services } })
}

fn pool(contribution: &Contribution) -> &PoolConfig {
    let routes = contribution.routes();
    let route = routes.first().unwrap_or_else(|| panic!("a route; instead {:?}", told(contribution)));
    &contribution.pools()[&route.pool]
}

fn weights(contribution: &Contribution) -> Vec<(String, u32)> {
    pool(contribution).backends.iter().map(|b| (b.name.clone(), b.weight)).collect()
}

#[test]
fn a_passthrough_router_becomes_an_sni_route_on_its_listeners() {
    let contribution = read(json!({ "tcp": {
        "routers": { "app": {
            "rule": "HostSNI(`a.com`) || HostSNI(`*.b.com`)", "service": "app@http", "entryPoints": ["websecure"],
            "tls": { "passthrough": "true" }, "observability": {},
        } },
        "services": { "app": { "loadBalancer": {
            "servers": [{ "address": "10.0.0.1:443" }, { "address": "app.internal:8443" }],
            "proxyProtocol": { "version": 2 }, "terminationDelay": 100,
        } } },
    } }));
    assert_eq!(told(&contribution), [""; 0]);
    let route = contribution.routes()[0].clone();
    assert_eq!(route.name.as_str(), "app@p");
    assert_eq!(route.sni.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a.com", "*.b.com"]);
    assert_eq!(route.listeners, [ListenerName::new("tls")]);
    let pool = &contribution.pools()[&PoolName::new("app@p")];
    assert_eq!(
        pool.backends.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(),
        ["10.0.0.1:443", "app.internal:8443"]
    );
    assert!(matches!(pool.proxy_protocol, ProxyProtocol::V2(_)));
}

#[test]
fn a_router_for_everything_opens_the_port_of_its_entry_point() {
    let contribution = read(json!({ "tcp": {
        "routers": { "redis": { "rule": "HostSNI(`*`)", "service": "redis", "entryPoints": ["redis"] } },
        "services": { "redis": balancer(&["10.0.0.1:6379"]) },
    } }));
    let entry = &contribution.listeners()[&ListenerName::new("redis@p")];
    assert_eq!((entry.bind[0].port(), entry.pool.as_str()), (6379, "redis@p"));
}

#[test]
fn http_routers_are_kept_with_their_rule_and_pool() {
    // As the control plane of a small platform answers.
    let contribution = read(json!({ "http": {
        "routers": {
            "app": { "rule": "Host(`a.example.com`) || Host(`b.example.com`)", "service": "app",
                     "tls": { "certResolver": "le" }, "entryPoints": ["websecure"], "middlewares": ["gzip"] },
        },
        "services": { "app": { "loadBalancer": {
            "servers": [{ "url": "http://10.50.0.2:3000" }, { "url": "https://[2001:db8::1]/x" }],
            "healthCheck": { "path": "/up", "interval": "5s", "timeout": 2 },
            "sticky": { "cookie": { "name": "seat" } },
        } } },
        "middlewares": { "gzip": { "compress": {} } },
    } }));
    assert_eq!(told(&contribution), [""; 0]);
    let route = contribution.http_routes().next().expect("a route").clone();
    assert_eq!(route.rule.to_string(), "Host(`a.example.com`) || Host(`b.example.com`)");
    assert_eq!((route.middlewares.as_slice(), route.tls), (&["gzip".to_owned()][..], true));
    assert_eq!(route.sticky.as_ref().and_then(|sticky| sticky.cookie.as_deref()), Some("seat"));
    let pool = &contribution.http_pools()[&route.pool];
    assert_eq!(
        pool.backends.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(),
        ["10.50.0.2:3000", "[2001:db8::1]:443"]
    );
    assert_eq!(pool.health.as_ref().map(|health| health.interval.as_secs()), Some(5));
    assert!(contribution.pools().is_empty() && contribution.routes().is_empty());
}

#[test]
fn weighted_services_share_by_their_weights_whatever_the_number_of_servers() {
    let contribution = read(passthrough(
        "both",
        json!({
            "both": { "weighted": { "services": [{ "name": "one", "weight": 3 }, { "name": "two", "weight": 1 }] } },
            "one": balancer(&["10.0.0.1:1"]),
            "two": balancer(&["10.0.0.2:1", "10.0.0.3:1"]),
        }),
    ));
    let expected = [("10.0.0.1:1", 6), ("10.0.0.2:1", 1), ("10.0.0.3:1", 1)].map(|(name, w)| (name.to_owned(), w));
    assert_eq!(weights(&contribution), expected);
}

#[test]
fn large_weights_keep_their_proportion_and_nobody_with_a_share_loses_it() {
    let contribution = read(passthrough(
        "both",
        json!({
            "both": { "weighted": { "services": [{ "name": "one", "weight": 100000 }, { "name": "two", "weight": 1 }, { "name": "off", "weight": 0 }] } },
            "one": balancer(&["10.0.0.1:1"]),
            "two": balancer(&["10.0.0.2:1"]),
            "off": balancer(&["10.0.0.3:1"]),
        }),
    ));
    let expected = [("10.0.0.1:1", 256), ("10.0.0.2:1", 1), ("10.0.0.3:1", 0)].map(|(name, w)| (name.to_owned(), w));
    assert_eq!(weights(&contribution), expected);
}

#[test]
fn a_failover_is_the_fallback_list() {
    let contribution = read(passthrough(
        "safe",
        json!({
            "safe": { "failover": { "service": "main", "fallback": "spare" } },
            "main": balancer(&["10.0.0.1:1"]),
            "spare": balancer(&["10.0.0.2:1", "10.0.0.1:1"]),
        }),
    ));
    assert_eq!(weights(&contribution), [("10.0.0.1:1".to_owned(), 1)]);
    assert_eq!(pool(&contribution).fallback.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(), ["10.0.0.2:1"]);
}

#[test]
fn what_is_not_served_is_named_by_router_and_the_rest_is_served() {
    let good = json!({ "rule": "HostSNI(`a.com`)", "service": "s", "tls": { "passthrough": true } });
    let with = |change: Value| {
        let mut router = good.clone();
        for (key, value) in change.as_object().expect("a mapping").clone() {
            router[key] = value;
        }
        router
    };
    let contribution = read(json!({
        "tcp": {
            "routers": {
                "good": good,
                "allow": with(json!({ "middlewares": ["office-only"] })),
                "terminates": with(json!({ "tls": {} })),
                "plain": with(json!({ "tls": null })),
                "star": with(json!({ "rule": "HostSNI(`*`)" })),
                "client": with(json!({ "rule": "HostSNI(`a.com`) && ClientIP(`10.0.0.0/8`)" })),
                "syntax": with(json!({ "rule": "HostSNI(`a.com`" })),
                "no-service": with(json!({ "service": "none" })),
                "reencrypts": with(json!({ "service": "tls" })),
                "round": with(json!({ "service": "round" })),
                "mirror": with(json!({ "service": "mirror" })),
                "elsewhere": with(json!({ "entryPoints": ["other"] })),
                "no-port": { "rule": "HostSNI(`*`)", "service": "s" },
                "wrong": { "rule": ["no"] },
                "number": 7,
            },
            "services": {
                "s": balancer(&["10.0.0.1:443"]),
                "tls": { "loadBalancer": { "servers": [{ "address": "10.0.0.1:443", "tls": true }] } },
                "round": { "weighted": { "services": [{ "name": "round" }] } },
                "mirror": { "mirroring": { "service": "s" } },
            },
        },
        "http": { "routers": { "dashboard": { "rule": "Host(`t.com`)", "service": "api@internal" } } },
        "udp": { "routers": { "dns": {} } },
        "tls": { "certificates": [] },
    }));
    assert_eq!(contribution.routes().len(), 1);
    assert_eq!(
        told(&contribution),
        [
            "tcp router allow: the middleware office-only is not served on TCP",
            "tcp router client: `&&` is not served on TCP",
            "tcp router elsewhere: the entry point other is not in the provider's `entry_points`",
            "tcp router mirror: service mirror: mirroring is not served",
            "tcp router no-port: it names no entry point, so there is no port to open",
            "tcp router no-service: there is no service none",
            "tcp router number: invalid type: integer `7`, expected a router",
            "tcp router plain: a server name is only sent in TLS; add `tls.passthrough: true`",
            "tcp router reencrypts: service tls: TLS to a server is not served",
            "tcp router round: the service round is nested deeper than 8 levels",
            "tcp router star: HostSNI(`*`) with TLS is a listener's default; write `default` there",
            "tcp router syntax: rule, at character 16: expected `,`, found the end",
            "tcp router terminates: it terminates TLS; only `tls.passthrough: true` is served",
            "tcp router wrong: invalid type: sequence, expected a string",
            "http router dashboard: api@internal is part of Traefik itself",
            "udp router dns: UDP is not served",
        ]
    );
}

#[test]
fn entry_points_that_were_never_mapped_are_all_listeners() {
    let none = Settings { entry_points: BTreeMap::new(), ..settings() };
    let mut document = passthrough("s", json!({ "s": balancer(&["10.0.0.1:443"]) }));
    document["tcp"]["routers"]["r"]["entryPoints"] = json!(["anything"]);
    let contribution = read_with(document, &none);
    assert_eq!(contribution.routes()[0].listeners, []);
}

#[test]
fn of_routers_for_one_name_the_highest_priority_and_then_the_longest_rule_goes_first() {
    let router = |rule: &str, priority: i64| json!({ "rule": rule, "service": "s", "priority": priority, "tls": { "passthrough": true } });
    let contribution = read(json!({ "tcp": {
        "routers": {
            "short": router("HostSNI(`a.com`)", 0),
            "long": router("HostSNI(`a.com`) || HostSNI(`b.com`)", 0),
            "first": router("HostSNI(`a.com`)", 1000),
        },
        "services": { "s": balancer(&["10.0.0.1:443"]) },
    } }));
    let order: Vec<_> = contribution.routes().iter().map(|route| route.name.to_string()).collect();
    assert_eq!(order, ["first@p", "long@p", "short@p"]);
}

#[test]
fn what_is_no_dynamic_configuration_is_refused_as_a_whole() {
    let add = |value: Value| Document::default().add(value).map_err(|error| error.to_string());
    for (value, error) in [
        (json!({}), "it says nothing: there is neither `http` nor `tcp`"),
        (json!(null), "it says nothing: there is neither `http` nor `tcp`"),
        (json!([]), "expected a mapping with `http` or `tcp`, found a list"),
        (json!("down for maintenance"), "expected a mapping with `http` or `tcp`, found a value"),
        (
            json!({ "error": "unauthorized" }),
            "unknown section \"error\"; a dynamic configuration has `http`, `tcp`, `udp` and `tls`",
        ),
        (json!({ "http": { "routers": [] } }), "http.routers must be a mapping"),
    ] {
        assert_eq!(add(value), Err(error.to_owned()));
    }
    assert_eq!(
        add(json!({ "http": { "routers": {}, "services": null } })),
        Ok(()),
        "nothing to route is a statement too"
    );
}

#[test]
fn a_name_in_two_files_counts_once_and_is_told() {
    let mut whole = Document::default();
    let one = passthrough("s", json!({ "s": balancer(&["10.0.0.1:443"]) }));
    whole.add(one.clone()).expect("good");
    whole.add(one).expect("good");
    let contribution = whole.compile(&settings(), Contribution::new(&ProviderName::new("p"), OnRemove::L4));
    assert_eq!(
        told(&contribution),
        ["tcp router r: stands in two files; the first counts", "tcp service s: stands in two files; the first counts",]
    );
}

proptest::proptest! {
    #[test]
    fn no_document_makes_it_panic(text in "[{}\\[\\]\",:a-zA-Z0-9` ]{0,60}", rule in "\\PC{0,40}") {
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let _ = Document::default().add(value.clone());
            let services = json!({ "s": value });
            let mut document = passthrough("s", services);
            document["tcp"]["routers"]["r"]["rule"] = json!(rule);
            drop(read(document));
        }
    }
}
