//! Whole files: what is accepted becomes what, and what is refused is told how.

mod admin;
mod admission;
mod etcd;
mod hooks;
mod peers;
mod reference;
mod registration;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::route::{ProviderName, RouteName, SniPattern};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

const SMALLEST: &str = "
listeners:
  https: {bind: ':443'}
routes:
  - {sni: app.example.com, pool: app}
pools:
  app: {backends: [10.0.0.3:8443]}
";

fn problems(text: &str) -> Vec<String> {
    match parse(text, Path::new("f.yaml")) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

/// The smallest file with a line of it exchanged.
fn with(from: &str, to: &str) -> String {
    assert!(SMALLEST.contains(from), "{from:?} is not in the smallest file");
    SMALLEST.replace(from, to)
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("test address")
}

#[test]
fn the_smallest_file_gets_all_the_defaults() {
    let config = parse(SMALLEST, Path::new("f.yaml")).expect("the smallest file is right");
    let https = &config.listeners[&ListenerName::new("https")];
    assert_eq!(
        *https,
        ListenerConfig {
            bind: vec![address("[::]:443"), address("0.0.0.0:443")],
            device: None,
            protocol: ListenerProtocol::Tls { default: DefaultRoute::Reject },
            accept_proxy_from: vec![],
            hello_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(3600),
            max_connections: 100_000,
            max_connections_per_source: 10_000,
        }
    );
    let app = &config.pools[&PoolName::new("app")];
    assert_eq!(
        **app,
        PoolConfig {
            backends: vec![BackendConfig {
                name: "10.0.0.3:8443".into(),
                address: BackendAddress::Socket(address("10.0.0.3:8443")),
                weight: 1,
            }],
            fallback: vec![],
            balance: Balance::RoundRobin,
            proxy_protocol: ProxyProtocol::None,
            connect_timeout: Duration::from_secs(3),
            connect_retries: 2,
            handoff: HandoffPolicy::Always,
            health: None,
            on_down: OnDown::Keep,
            slow_start: Duration::ZERO,
            loop_guard: false,
        }
    );
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.admin, AdminConfig::default());
    assert_eq!(config.kernel, KernelConfig::default());
    assert_eq!(config.log, LogConfig { connections: ConnectionLog::End });
    assert_eq!(config.state_dir, Path::new("/var/lib/ingress"));
}

#[test]
fn each_handoff_policy_has_its_words() {
    for (words, policy) in [
        ("always", HandoffPolicy::Always),
        ("never", HandoffPolicy::Never),
        ("{rtt_below: 50ms}", HandoffPolicy::RttBelow(Duration::from_millis(50))),
        ("when_idle", HandoffPolicy::WhenIdle(Duration::from_secs(1))),
        ("{when_idle: 5s}", HandoffPolicy::WhenIdle(Duration::from_secs(5))),
    ] {
        let text = with("8443]", &format!("8443], handoff: {words}"));
        let config = parse(&text, Path::new("f.yaml")).expect("a valid file");
        assert_eq!(config.pools[&PoolName::new("app")].handoff, policy, "{words}");
    }
}

#[test]
fn every_key_arrives() {
    let text = "
listeners:
  https:
    bind: [203.0.113.10:443, '[2001:db8::1]:443']
    device: eth0
    default: {pool: app}
    accept_proxy_from: [10.0.0.0/8]
    hello_timeout: 2s
    idle_timeout: 10m
    max_connections: 10
    max_connections_per_source: 5
  redis: {bind: 10.0.0.1:6379, protocol: tcp, pool: redis}
routes:
  - {sni: [app.example.com, '*.App.example.com'], pool: app, name: apps, listeners: [https]}
pools:
  app:
    backends:
      - 10.0.0.3:8443
      - {address: 'app.internal:8443', weight: 2, name: app-2}
    fallback: ['[2001:db8::9]:8443']
    balance: source_hash
    proxy_protocol: {version: v2, tlvs: [authority, crc32c]}
    connect_timeout: 500ms
    connect_retries: 0
    handoff: never
    on_down: cut
    slow_start: 30s
    health:
      type: https
      interval: 2s
      timeout: 500ms
      rise: 1
      fall: 5
      port: 9000
      path: /healthz
      host: app.example.com
      expect: [200, 300-399]
      server_name: app.example.com
  redis: {backends: [10.0.0.7:6379], proxy_protocol: v1, health: {type: tcp}}
limits: {max_connections: 1000, drain_timeout: 5s}
admin:
  socket: /run/x.sock
  http: {bind: '127.0.0.1:8405', basic_auth: {username_env: A_USER, password_env: A_PASSWORD}}
kernel:
  {enabled: false, interfaces: [eth0, eth1], port_range: 30000-30999, max_connections: 500, pin_dir: /sys/fs/bpf/x,
   keepalive: {after: 1m, probes: 5}}
interfaces: {eth0: {side: public, xdp: native}, eth1: {side: private}}
admission:
  private_ports: [9876, 6379]
  deny: [198.51.100.0/24, '2001:db8:bad::/48']
  new_connections_per_source: {rate: 50, burst: 200}
log: {connections: both}
state_dir: /var/lib/x
";
    let config = parse(text, Path::new("f.yaml")).expect("this file is right");
    let https = &config.listeners[&ListenerName::new("https")];
    assert_eq!(https.bind, [address("203.0.113.10:443"), address("[2001:db8::1]:443")]);
    assert_eq!(https.device.as_deref(), Some("eth0"));
    assert_eq!(https.protocol, ListenerProtocol::Tls { default: DefaultRoute::Pool(PoolName::new("app")) });
    assert_eq!(https.accept_proxy_from, ["10.0.0.0/8".parse().expect("network")]);
    assert_eq!((https.hello_timeout, https.idle_timeout), (Duration::from_secs(2), Duration::from_secs(600)));
    assert_eq!((https.max_connections, https.max_connections_per_source), (10, 5));
    let interface = |side, xdp| InterfaceConfig { side, xdp };
    assert_eq!(config.interfaces["eth0"], interface(Side::Public, XdpChoice::Native));
    assert_eq!(config.interfaces["eth1"], interface(Side::Private, XdpChoice::Auto));
    assert_eq!(config.admission.private_ports, [6379, 9876].into());
    assert!(config.admission.deny.contains([198, 51, 100, 7].into()) && config.admission.deny.len() == 2);
    assert_eq!(config.admission.new_connections_per_source, Some(ConnectionRate { rate: 50, burst: 200 }));
    let redis = &config.listeners[&ListenerName::new("redis")];
    assert_eq!(redis.protocol, ListenerProtocol::Tcp { pool: PoolName::new("redis") });
    let pattern = |text| SniPattern::parse(text).expect("test pattern");
    assert_eq!(
        config.routes,
        [Arc::new(RouteSpec {
            name: RouteName::new("apps"),
            sni: vec![pattern("app.example.com"), pattern("*.app.example.com")],
            pool: PoolName::new("app"),
            listeners: vec![ListenerName::new("https")],
            priority: 0,
            on_remove: OnRemove::L4,
        })]
    );
    let app = &config.pools[&PoolName::new("app")];
    assert_eq!(
        app.backends[1],
        BackendConfig {
            name: "app-2".into(),
            address: BackendAddress::Dns { host: "app.internal".into(), port: 8443 },
            weight: 2,
        }
    );
    assert_eq!(app.fallback[0].name, "[2001:db8::9]:8443");
    assert_eq!(app.balance, Balance::SourceHash);
    let tlvs = ProxyTlvs { authority: true, alpn: false, unique_id: false, crc32c: true };
    assert_eq!(app.proxy_protocol, ProxyProtocol::V2(tlvs));
    assert_eq!((app.connect_timeout, app.connect_retries), (Duration::from_millis(500), 0));
    assert_eq!((app.handoff, app.on_down), (HandoffPolicy::Never, OnDown::Cut));
    assert_eq!(app.slow_start, Duration::from_secs(30));
    assert_eq!(
        app.health,
        Some(HealthConfig {
            probe: ProbeConfig::Https {
                http: HttpProbe {
                    path: "/healthz".into(),
                    host: Some("app.example.com".into()),
                    expect: vec![(200, 200), (300, 399)],
                },
                server_name: Some("app.example.com".into()),
            },
            port: Some(9000),
            interval: Duration::from_secs(2),
            timeout: Duration::from_millis(500),
            rise: 1,
            fall: 5,
        })
    );
    assert_eq!(config.pools[&PoolName::new("redis")].proxy_protocol, ProxyProtocol::V1);
    assert_eq!(config.limits, Limits { max_connections: 1000, drain_timeout: Duration::from_secs(5) });
    let auth = BasicAuthEnv { username_env: "A_USER".into(), password_env: "A_PASSWORD".into() };
    let http = AdminHttpConfig { bind: vec![address("127.0.0.1:8405")], basic_auth: Some(auth) };
    assert_eq!(config.admin, AdminConfig { socket: "/run/x.sock".into(), haproxy_socket: None, http: Some(http) });
    assert_eq!(
        config.kernel,
        KernelConfig {
            enabled: false,
            interfaces: vec!["eth0".into(), "eth1".into()],
            port_range: (30_000, 30_999),
            max_connections: Some(500),
            keepalive: Some(KeepaliveConfig {
                after: Duration::from_secs(60),
                interval: Duration::from_secs(10),
                probes: 5,
            }),
            pin_dir: "/sys/fs/bpf/x".into(),
        }
    );
    assert_eq!(config.log.connections, ConnectionLog::Both);
    assert_eq!(config.state_dir, Path::new("/var/lib/x"));
}

/// Structure, words, references and conflicts, in one go.
#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let text = "\
listeners:
  https:
    bind: 203.0.113.10
    idle_timout: 1h
  web:
    bind: [':443', 127.0.0.1:443]
    protocol: tsl
    default: {pol: app}
routes:
  - sni: app.example.com
    pool: ap
  - sni: [www.example.com, App.example.com]
    pool: app
  - {sni: '*.*.example.com', pool: app}
  - {pool: app, listeners: [htps]}
pools:
  app:
    balance: rr
    backends:
      - 10.0.0.3:8443
      - {address: '10.0.0.3:8443', weight: 300}
      - 10.0.0.3:8443
    health: {type: tcp, interval: 2, path: /x}
  app:
    backends: []
  old:
    backends: []
    health: {type: http, interval: 1s, timeout: 5s, port: 70000}
limits: {max_connections: many}
kernel:
  port_range: 32767-20000
  pin_dir: run
  interfaces:
log: {connections: all}
";
    let expected = "\
3:11: error: listeners.https.bind: 203.0.113.10 has no port; write 203.0.113.10:443
4:5: error: listeners.https.idle_timout: unknown key \"idle_timout\"; did you mean \"idle_timeout\"?
6:20: error: listeners.web.bind[1]: 127.0.0.1:443 is already bound by listener web in line 6
7:15: error: listeners.web.protocol: unknown value \"tsl\"; did you mean \"tls\"?
8:15: error: listeners.web.default.pol: unknown key \"pol\"; did you mean \"pool\"?
11:11: error: routes[0].pool: there is no pool \"ap\"; did you mean \"app\"?
12:28: error: routes[1].sni[1]: app.example.com is already routed in line 10
14:11: error: routes[2].sni: \"*.*.example.com\": a star stands for the whole first label only, as in *.example.com
15:5: error: routes[3]: the key `sni` is missing
18:14: error: pools.app.balance: unknown value \"rr\"; did you mean \"round_robin\"?
21:9: error: pools.app.backends[1]: a backend \"10.0.0.3:8443\" is already in this pool (line 20); give it another `name`
21:44: error: pools.app.backends[1].weight: expected a whole number from 0 to 256, found 300
22:9: error: pools.app.backends[2]: a backend \"10.0.0.3:8443\" is already in this pool (line 20); give it another `name`
23:35: error: pools.app.health.interval: 2 has no unit; write 2s for seconds, or 2ms
23:38: error: pools.app.health.path: this key needs `type: http` or `type: https`
24:3: error: pools.app: this key stands twice; the first is in line 17
27:15: error: pools.old.backends: the list is empty; a pool needs a backend
28:49: error: pools.old.health.timeout: the timeout (5s) is longer than the interval (1s): checks would overlap
28:59: error: pools.old.health.port: expected a whole number from 1 to 65535, found 70000
29:27: error: limits.max_connections: expected a whole number from 1 to 100000000, found \"many\"
31:15: error: kernel.port_range: 32767-20000: the first port must be smaller than the last
32:12: error: kernel.pin_dir: \"run\" is not an absolute path; it must begin with /
33:3: error: kernel.interfaces: this key has no value; write a list, or remove the key
34:20: error: log.connections: unknown value \"all\"; expected end, both or none";
    assert_eq!(problems(text).join("\n"), expected);
}

#[test]
fn values_that_do_not_go_together_are_told() {
    for (from, to, expected) in [
        (
            "https: {bind: ':443'}",
            "https: {bind: ':443', protocol: tcp}",
            "3:35: error: listeners.https.protocol: a `tcp` listener needs a pool; add `pool: ...`",
        ),
        (
            "https: {bind: ':443'}",
            "https: {bind: ':443', pool: app}",
            "3:25: error: listeners.https.pool: a `tls` listener finds its pool by SNI; write `default: {pool: ...}` for \
             the rest",
        ),
        (
            "https: {bind: ':443'}",
            "https: {bind: ':443'}\n  redis: {bind: ':6379', protocol: tcp, pool: app, default: reject}",
            "4:52: error: listeners.redis.default: a `tcp` listener has no SNI and so no default; write `pool: ...`",
        ),
        (
            "pool: app}",
            "pool: app, listeners: [http]}",
            "5:51: error: routes[0].listeners[0]: there is no listener \"http\"; did you mean \"https\"?",
        ),
        (
            "pool: app}",
            "pool: app}\n  - {sni: [x.example.com, x.example.com], pool: app}",
            "6:27: error: routes[1].sni[1]: x.example.com is already routed in line 6",
        ),
        (
            "pool: app}",
            "pool: app, name: a}\n  - {sni: x.example.com, pool: app, name: a}",
            "6:43: error: routes[1].name: the route in line 5 is called a too; give this one another `name`",
        ),
        (
            "backends: [10.0.0.3:8443]",
            "backends: [10.0.0.3:8443], proxy_protocol: {version: v1, tlvs: [alpn]}",
            "7:73: error: pools.app.proxy_protocol.tlvs[0]: a v1 header cannot carry TLVs; write `version: v2`",
        ),
        (
            "backends: [10.0.0.3:8443]",
            "backends: [10.0.0.3:8443], connect_timeout: 0s",
            "7:53: error: pools.app.connect_timeout: must be longer than 0s",
        ),
        (
            "backends: [10.0.0.3:8443]",
            "backends: []",
            "7:19: error: pools.app.backends: the list is empty; a pool needs a backend",
        ),
        (
            "backends: [10.0.0.3:8443]",
            "backends: [10.0.0.3:8443], health: {interval: 5s}",
            "7:44: error: pools.app.health: the key `type` is missing",
        ),
        (
            "backends: [10.0.0.3:8443]",
            "backends: [10.0.0.3:8443], handoff: {rtt_below: 1s, when_idle: 1s}",
            "7:45: error: pools.app.handoff: needs either `rtt_below` or `when_idle`",
        ),
        ("sni: app.example.com, ", "sni: [], ", "5:11: error: routes[0].sni: the list is empty; name a host"),
    ] {
        assert_eq!(problems(&with(from, to)), [expected]);
    }
}

#[test]
fn routes_of_different_listeners_may_share_a_name() {
    let text = with("https: {bind: ':443'}", "a: {bind: ':443'}\n  b: {bind: ':444'}").replace(
        "- {sni: app.example.com, pool: app}",
        "- {sni: app.example.com, pool: app, listeners: [a]}\n  - {sni: app.example.com, pool: app, listeners: [b], name: b}",
    );
    assert_eq!(problems(&text), [""; 0]);
}

#[test]
fn the_same_address_on_two_devices_is_no_conflict() {
    let two = "a: {bind: ':443', device: eth0}\n  b: {bind: ':443', device: eth1}";
    assert_eq!(problems(&with("https: {bind: ':443'}", two)), [""; 0]);
    let one = "b: {bind: ':443', device: eth0}\n  a: {bind: '127.0.0.1:443', device: eth0}";
    let expected = "4:13: error: listeners.a.bind: 127.0.0.1:443 is already bound by listener b in line 3";
    assert_eq!(problems(&with("https: {bind: ':443'}", one)), [expected]);
}

#[test]
fn anchors_and_merge_keys_save_writing() {
    let text = "
listeners: {https: {bind: ':443'}}
routes:
  - {sni: a.example.com, pool: a}
  - {sni: b.example.com, pool: b}
pools:
  a: &pool
    backends: [10.0.0.3:8443]
    health: &health {type: tcp, interval: 5s}
  b:
    <<: *pool
    backends: [10.0.0.4:8443]
    health:
      <<: *health
      fall: 7
";
    let config = parse(text, Path::new("f.yaml")).expect("this file is right");
    let b = &config.pools[&PoolName::new("b")];
    assert_eq!(b.backends[0].name, "10.0.0.4:8443");
    let health = b.health.as_ref().expect("b is checked");
    assert_eq!((health.interval, health.fall), (Duration::from_secs(5), 7));
}

#[test]
fn a_mistake_that_aliases_repeat_is_told_once() {
    let text = "
listeners: {https: {bind: ':443'}}
routes: [{sni: a.example.com, pool: a}, {sni: b.example.com, pool: b}]
pools:
  a: &pool {backends: [10.0.0.3:8443], balance: rr}
  b: *pool
  c: {<<: *pool}
";
    let expected = "5:49: error: pools.a.balance: unknown value \"rr\"; did you mean \"round_robin\"?";
    assert_eq!(problems(text), [expected]);
}

#[test]
fn files_that_are_no_configuration_are_told_so() {
    for (text, expected) in [
        ("", "1:1: error: the file is empty"),
        ("hello\n", "1:1: error: expected a mapping with the keys `listeners`, `routes` and `pools`, found \"hello\""),
        ("{}\n", "1:1: error: there is no listener; write at least one under `listeners`"),
        ("listeners:\n", "1:1: error: listeners: this key has no value; write a mapping, or remove the key"),
    ] {
        assert_eq!(problems(text).first().map(String::as_str), Some(expected), "{text:?}");
    }
}

#[test]
fn warnings_do_not_refuse_a_file() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("ingress.yaml");
    let text = with("https: {bind: ':443'}", "https: {bind: ':443', accept_proxy_from: [0.0.0.0/0]}")
        + "  unused: {backends: [{address: '10.0.0.4:1', weight: 0}]}\n\
           admin: {http: {bind: ':8404', basic_auth: {username_env: INGRESS_TEST_UNSET_A, password_env: PATH}}}";
    std::fs::write(&path, &text).expect("a file is written");
    let loaded = load(&path).expect("there are only warnings");
    assert_eq!(loaded.text, text);
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "2:1: warning: the last line has no end; is the file whole?",
            "3:45: warning: listeners.https.accept_proxy_from[0]: everybody may claim any client address; name only the \
             networks of your own proxies",
            "8:3: warning: pools.unused: no route and no listener uses pool unused",
            "8:22: warning: pools.unused.backends: every backend has weight 0: the pool takes no connection",
            "9:58: warning: admin.http.basic_auth.username_env: the environment has no INGRESS_TEST_UNSET_A: nobody can \
             log in until it is set",
        ]
    );
}

#[test]
fn files_that_cannot_be_read_are_told_so() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let missing = dir.path().join("missing.yaml");
    let message = load(&missing).expect_err("there is no file").to_string();
    assert!(message.starts_with("reading ") && message.contains("missing.yaml: No such file"), "{message}");
    let latin1 = dir.path().join("latin1.yaml");
    std::fs::write(&latin1, b"# f\xc3\xbcr\nname: \xfc\n").expect("a file is written");
    let message = load(&latin1).expect_err("this is not UTF-8").to_string();
    assert!(message.ends_with("latin1.yaml:2:7: error: this byte is not UTF-8; save the file as UTF-8"), "{message}");
    let large = dir.path().join("large.yaml");
    std::fs::write(&large, vec![b'#'; (16 << 20) + 1]).expect("a file is written");
    let message = load(&large).expect_err("this is too large").to_string();
    assert!(message.ends_with("1:1: error: the file is larger than 16 MiB"), "{message}");
}

#[test]
fn every_example_is_accepted() {
    let mut seen = 0;
    for entry in std::fs::read_dir(EXAMPLES).expect("the examples") {
        let path = entry.expect("an entry").path().join("ingress.yaml");
        if path.exists() {
            let loaded = load(&path).unwrap_or_else(|error| panic!("{error}"));
            let unexpected: Vec<_> = loaded
                .warnings
                .iter()
                .filter(|warning| !warning.message.starts_with("the environment has no"))
                .collect();
            assert!(unexpected.is_empty(), "{unexpected:?}");
            seen += 1;
        }
    }
    assert!(seen > 0, "no example was found");
}

#[test]
fn line_ends_and_byte_order_marks_of_other_systems_are_accepted() {
    let expected = parse(SMALLEST, Path::new("f.yaml")).expect("the smallest file is right");
    for text in [SMALLEST.replace('\n', "\r\n"), format!("\u{feff}{SMALLEST}")] {
        assert_eq!(parse(&text, Path::new("f.yaml")), Ok(expected.clone()));
    }
    let expected = "7:19: error: pools.app.backends: expected a list, found \"x\"";
    assert_eq!(problems(&with("[10.0.0.3:8443]", "x").replace('\n', "\r\n")), [expected]);
}

fn example() -> String {
    std::fs::read_to_string(format!("{EXAMPLES}/sni-passthrough/ingress.yaml")).expect("the example")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_text_makes_it_panic(text in "(?s).{0,200}") {
        let _ = parse(&text, Path::new("f.yaml"));
    }

    #[test]
    fn no_yaml_like_text_makes_it_panic(text in "([a-c]|[-:?,{}\\[\\]&*!|>'\"%@`#<~ \t\n]){0,80}") {
        let _ = parse(&text, Path::new("f.yaml"));
    }

    /// Bytes exchanged, lines lost, the end cut off: whatever it says, it has a place within the file.
    #[test]
    fn no_damaged_example_makes_it_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4), 1..6),
    ) {
        let mut text: Vec<char> = example().chars().collect();
        for (at, other, edit) in edits {
            let (at, other) = (at.index(text.len()), other.index(text.len()));
            match edit {
                0 => text[at] = text[other],
                1 => text.truncate(at.max(1)),
                2 => text.insert(at, text[other]),
                _ => { text.drain(at.min(other)..at.max(other).min(at.min(other) + 40)); }
            }
            if text.is_empty() {
                text.push(' ');
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(problems) = parse(&text, Path::new("f.yaml")) {
            prop_assert!(problems.has_errors());
            for problem in &problems {
                prop_assert!(problem.place.line <= text.lines().count() + 2, "{problem}");
            }
        }
    }
}

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
