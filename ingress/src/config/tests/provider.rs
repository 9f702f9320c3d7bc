//! The section `providers`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::{SMALLEST, address, problems};
use crate::config::{EntryPoint, OnDown, ProviderSource, RegistryConfig, parse};
use crate::route::{ListenerName, OnRemove, ProviderName};

fn with_providers(text: &str) -> String {
    format!("{SMALLEST}providers:\n{text}\n")
}

#[test]
fn providers_are_read_with_what_holds_where_nothing_is_said() {
    let text = "  nodes: {registry: {path: /r.yaml}}
  platform:
    priority: 7
    last_good: off
    on_remove: {drain: 30s}
    on_down: cut
    health: {type: tcp}
    http_poll:
      url: https://control.example.com/v1?x=secret
      interval: 10s
      entry_points: {websecure: https, redis: {bind: ':6379'}}
";
    let config = parse(&with_providers(text), Path::new("f.yaml")).expect("good");
    let nodes = &config.providers[&ProviderName::new("nodes")];
    let all = vec!["::".parse().expect("v6"), "0.0.0.0".parse().expect("v4")];
    assert_eq!(
        nodes.source,
        ProviderSource::Registry(RegistryConfig { path: "/r.yaml".into(), bind: all, checks: BTreeMap::new() })
    );
    assert_eq!(
        (nodes.priority, nodes.last_good, nodes.on_remove),
        (0, Some(Duration::from_secs(86_400)), OnRemove::L4)
    );
    let platform = &config.providers[&ProviderName::new("platform")];
    assert_eq!((platform.priority, platform.last_good, platform.on_down), (7, None, OnDown::Cut));
    assert_eq!(platform.on_remove, OnRemove::Drain(Some(Duration::from_secs(30))));
    assert_eq!(platform.source.place(), "https://control.example.com/v1", "a query may hold a secret");
    let ProviderSource::HttpPoll(poll) = &platform.source else { panic!("{platform:?}") };
    assert_eq!((poll.interval, poll.timeout), (Duration::from_secs(10), Duration::from_secs(5)));
    assert_eq!(poll.entry_points["websecure"], EntryPoint::Listener(ListenerName::new("https")));
    let both = vec![address("[::]:6379"), address("0.0.0.0:6379")];
    assert_eq!(poll.entry_points["redis"], EntryPoint::Open(both));
}

#[test]
fn providers_that_cannot_be_are_told_why() {
    for (text, expected) in [
        ("  p: {priority: 1}", "this provider has no source; write one of registry, file, http_poll"),
        ("  p: {registry: {path: /r}, file: {path: /f}}", "a provider has one source"),
        ("  file: {registry: {path: /r}}", "this name stands for the configuration file itself"),
        ("  p: {http_poll: {url: 'ftp://a'}}", "does not begin with http:// or https://"),
        ("  p: {http_poll: {url: 'http://user:secret@a/'}}", "the URL holds a user and password"),
        ("  p: {http_poll: {url: 'http://a', interval: 0s}}", "must be longer than 0s"),
        ("  p: {http_poll: {url: 'http://a', ca_file: /ca.pem}}", "no meaning without https://"),
        ("  p: {file: {path: /f, entry_points: {web: htps}}}", "there is no listener \"htps\""),
        ("  p: {registry: {path: r.yaml}}", "is not an absolute path"),
        ("  p: {registry: {path: /r}, last_good: {max_age: 24}}", "24 has no unit"),
        ("  p: {registry: {path: /r}, on_remove: keep}", "keep"),
    ] {
        let problems = problems(&with_providers(text));
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{text}: {problems:#?}");
        assert!(!problems.concat().contains("secret"), "{problems:#?}");
    }
}
