use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::config::{Config, ProviderSource};
use crate::providers::registration::book::Secret;
use crate::providers::registration::book::tests::simple;
use crate::providers::registry::local::LocalAddresses;
use crate::route::{OnRemove, ProviderName};

const CONFIG: &str = "
listeners: {tls: {bind: ':443'}}
providers:
  platform:
    registration:
      bind: 10.0.0.2:9876
      sources: 10.0.0.0/16
      upstreams: 10.0.0.0/16
      tokens: {servers: {env: INGRESS_TEST}}
      templates:
        full:
          routes:
            - {path: /auth/*, port: 3000}
            - {path: /api/*, port: 18789}
            - {path: /ws, port: 18789}
            - {port: 8888}
          forward_auth: {port: 3000, path: /auth/check}
          headers: {X-Gateway-Token: gateway}
        both:
          passthrough: 8443
          proxy_protocol: v2
          routes: [{port: 8080}]
";

fn config() -> (Config, Settings) {
    let config = crate::config::parse(CONFIG, Path::new("ingress.yaml")).expect("a configuration");
    let provider = &config.providers[&ProviderName::new("platform")];
    let ProviderSource::Registration(api) = &provider.source else { panic!("not a registration") };
    let settings = Settings::new(provider, api.clone());
    (config, settings)
}

fn empty() -> Contribution {
    Contribution::new(&ProviderName::new("platform"), OnRemove::L4)
}

fn judge(shape: &Shape) -> Result<(), (u16, String)> {
    let (config, settings) = config();
    let upstreams = Upstreams::new(&settings.api.upstreams, &config, LocalAddresses::default());
    settings.judge(shape, &upstreams).map_err(|p| (p.status().as_u16(), p.field().unwrap_or_default().to_owned()))
}

fn full(template: &str, secrets: &[&str]) -> Shape {
    let secrets: BTreeMap<_, _> = secrets.iter().map(|name| ((*name).to_owned(), Secret("x".into()))).collect();
    Shape::Template { template: template.into(), address: "10.0.1.5".parse().expect("ip"), secrets }
}

#[test]
fn the_full_shape_is_kept_whole_and_its_parts_go_again() {
    let (_, settings) = config();
    let registration =
        Registration { shape: full("full", &["gateway"]), ..simple("s1.example.com", "one", "10.0.0.1:1") };
    let mut contribution = empty();
    let parts = settings.add(&registration, &mut contribution);
    assert_eq!(parts, Parts { routes: 0, needs_http: 4 });
    assert_eq!(settings.parts(&registration.shape), parts);
    let mut routes: Vec<_> = contribution.http_routes().collect();
    routes.sort_by_key(|route| std::cmp::Reverse(route.priority));
    let shown: Vec<_> = routes
        .iter()
        .map(|route| {
            let pool = &contribution.http_pools()[&route.pool];
            format!("{} -> {}", route.rule, pool.backends[0].name)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "Host(`s1.example.com`) && PathPrefix(`/auth/`) -> 10.0.1.5:3000",
            "Host(`s1.example.com`) && PathPrefix(`/api/`) -> 10.0.1.5:18789",
            "Host(`s1.example.com`) && Path(`/ws`) -> 10.0.1.5:18789",
            "Host(`s1.example.com`) -> 10.0.1.5:8888",
        ]
    );
    let expected = ["forward_auth http://10.0.1.5:3000/auth/check", "set_header x-gateway-token from secret gateway"];
    assert_eq!(routes[0].middlewares, expected);
    settings.remove(&registration, &mut contribution);
    assert_eq!(contribution, empty());
}

#[test]
fn what_l4_can_serve_becomes_a_route() {
    let (_, settings) = config();
    let mut contribution = empty();
    let both = Registration { shape: full("both", &[]), ..simple("s1.example.com", "one", "10.0.0.1:1") };
    assert_eq!(settings.add(&both, &mut contribution), Parts { routes: 1, needs_http: 1 });
    assert_eq!(settings.add(&simple("s2.example.com", "one", "10.0.0.1:1"), &mut contribution).routes, 1);
    let names: Vec<_> = contribution.routes().iter().map(|route| route.name.to_string()).collect();
    assert_eq!(names, ["s1.example.com@platform", "s2.example.com@platform"]);
    let pool = &contribution.pools()[&contribution.routes()[0].pool];
    assert_eq!(
        (pool.backends[0].name.as_str(), pool.proxy_protocol),
        ("10.0.1.5:8443", ProxyProtocol::V2(ProxyTlvs::default()))
    );
    settings.remove(&both, &mut contribution);
    settings.remove(&simple("s2.example.com", "one", "10.0.0.1:1"), &mut contribution);
    assert_eq!(contribution, empty());
}

#[test]
fn what_the_configuration_does_not_allow_is_named_by_its_field() {
    let shape = |backend: &str| simple("a.example.com", "one", backend).shape;
    assert_eq!(judge(&shape("10.0.1.5:1")), Ok(()));
    assert_eq!(judge(&shape("169.254.169.254:80")), Err((422, "backends[0]".into())));
    assert_eq!(judge(&full("full", &["gateway"])), Ok(()));
    assert_eq!(judge(&full("none", &[])), Err((422, "template".into())));
    assert_eq!(judge(&full("full", &[])), Err((422, "secrets.gateway".into())));
    assert_eq!(judge(&full("full", &["gateway", "more"])), Err((422, "secrets.more".into())));
    let outside =
        Shape::Template { template: "both".into(), address: "10.9.0.1".parse().expect("ip"), secrets: BTreeMap::new() };
    assert_eq!(judge(&outside), Err((422, "address".into())));
}

#[test]
fn what_is_not_allowed_any_more_is_kept_and_not_served() {
    let (config, settings) = config();
    let upstreams = Upstreams::new(&settings.api.upstreams, &config, LocalAddresses::default());
    let kept = [simple("a.example.com", "one", "10.0.1.5:1"), simple("b.example.com", "one", "192.168.0.1:1")];
    let contribution = settings.all(kept.iter(), &upstreams, empty());
    assert_eq!(contribution.routes().len(), 1);
    assert_eq!(contribution.unserved_items().len(), 1);
}

#[test]
fn long_hosts_have_names_of_their_own() {
    let long = |last: &str| SniPattern::parse(&format!("{0}.{0}.{0}.{last}", "a".repeat(60))).expect("a host");
    assert_ne!(route_name(&long("b"), &empty()), route_name(&long("c"), &empty()));
}
