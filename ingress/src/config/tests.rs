//! Whole files: what is accepted becomes what.

mod admin;
mod admission;
mod etcd;
mod hooks;
mod mistakes;
mod peers;
mod provider;
mod reference;
mod registration;
mod text;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::route::{OnRemove, RouteName, SniPattern};

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
