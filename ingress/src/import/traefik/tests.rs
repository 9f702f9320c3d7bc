use std::collections::BTreeMap;
use std::path::Path;

use super::{entry_points, import};
use crate::config::{parse, read_yaml};
use crate::import::Draft;
use crate::providers::traefik::Document;

const DYNAMIC: &str = "
http:
  routers:
    web: {rule: Host(`www.example.com`), service: web}
  services:
    web: {loadBalancer: {servers: [{url: 'http://10.0.0.9:80'}]}}
tcp:
  routers:
    app: {entryPoints: [websecure], rule: HostSNI(`app.example.com`), service: app, tls: {passthrough: true}}
    again: {entryPoints: [websecure], rule: HostSNI(`app.example.com`), service: app, tls: {passthrough: true}, priority: 1}
    redis: {entryPoints: [redis], rule: HostSNI(`*`), service: redis}
  services:
    app: {loadBalancer: {servers: [{address: '10.0.0.1:443'}]}}
    redis: {loadBalancer: {servers: [{address: '10.0.0.2:6379'}]}}
    unused: {loadBalancer: {servers: [{address: '10.0.0.3:443'}]}}
";

fn draft(text: &str, entry_points: &[(&str, &str)]) -> Draft {
    let mut document = Document::default();
    document.add(read_yaml(text, Path::new("dynamic.yml")).expect("YAML")).expect("a dynamic configuration");
    let named = entry_points.iter().map(|(name, address)| ((*name).to_owned(), (*address).to_owned()));
    import(&document, &named.collect())
}

#[test]
fn routers_become_routes_and_ports_where_the_entry_points_are() {
    let draft = draft(DYNAMIC, &[("websecure", ":443"), ("redis", "127.0.0.1:6379")]);
    let text = draft.to_string();
    parse(&text, Path::new("ingress.yaml")).unwrap_or_else(|problems| panic!("{problems:#}\n{text}"));
    for line in [
        "  websecure:\n    bind: \":443\"\n",
        "    bind: \"127.0.0.1:6379\"\n    protocol: tcp\n    pool: redis\n",
        "sni: app.example.com, pool: app",
        "#   http router web: needs HTTP",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert_eq!(text.matches("sni: ").count(), 1, "{text}");
    assert!(text.contains("app.example.com is the router ") && !text.contains("unused"), "{text}");
}

#[test]
fn without_entry_points_names_are_served_on_443_and_ports_are_named() {
    let text = draft(DYNAMIC, &[]).to_string();
    parse(&text, Path::new("ingress.yaml")).unwrap_or_else(|problems| panic!("{problems:#}\n{text}"));
    assert!(text.contains("  tls:\n    bind: \":443\"\n") && text.contains("--static"), "{text}");
    assert!(text.contains("#   tcp router redis: "), "{text}");
}

#[test]
fn the_static_configuration_says_where_entry_points_are() {
    let text = "
entryPoints:
  websecure: {address: ':443', proxyProtocol: {trustedIPs: [10.0.0.0/8]}, http: {}}
providers: {}
";
    let mut left_out = Vec::new();
    let value = read_yaml(text, Path::new("traefik.yml")).expect("YAML");
    let found = entry_points(value, &mut left_out).expect("a static configuration");
    assert_eq!(found, BTreeMap::from([("websecure".to_owned(), ":443".to_owned())]));
    assert!(left_out.len() == 1 && left_out[0].why.contains("accept_proxy_from"), "{left_out:?}");
}
