//! Services -> pools: load balancers, weighted ones and failovers, laid flat.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Settings;
use crate::config::{BackendConfig, HealthConfig, HttpProbe, PoolConfig, ProbeConfig, ProxyProtocol, ProxyTlvs};
use crate::route::Sticky;

use self::duration::read_duration;

mod duration;

/// A service is one of these.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a service")]
struct Service {
    load_balancer: Option<LoadBalancer>,
    weighted: Option<Weighted>,
    failover: Option<Failover>,
    mirroring: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a load balancer")]
struct LoadBalancer {
    #[serde(default)]
    servers: Vec<Server>,
    proxy_protocol: Option<Proxy>,
    servers_transport: Option<String>,
    health_check: Option<HealthCheck>,
}

#[derive(Debug, Deserialize)]
struct Server {
    /// Of HTTP.
    url: Option<String>,
    /// Of TCP.
    address: Option<String>,
    weight: Option<u32>,
    #[serde(default)]
    tls: bool,
}

#[derive(Debug, Deserialize)]
struct Proxy {
    version: Option<u8>,
}

#[derive(Debug, Deserialize)]
struct HealthCheck {
    path: Option<String>,
    interval: Option<Value>,
    timeout: Option<Value>,
    port: Option<u16>,
    scheme: Option<String>,
    hostname: Option<String>,
    status: Option<u16>,
}

#[derive(Debug, Deserialize)]
struct Weighted {
    #[serde(default)]
    services: Vec<Share>,
}

#[derive(Debug, Deserialize)]
struct Share {
    name: String,
    weight: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Failover {
    service: String,
    fallback: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Http,
    Tcp,
}

/// What stands behind a service once it is laid flat.
#[derive(Debug)]
struct Flat {
    backends: Vec<(BackendConfig, u64)>,
    fallback: Vec<(BackendConfig, u64)>,
    proxy_protocol: ProxyProtocol,
    health: Option<HealthConfig>,
}

pub(super) fn tcp_pool(name: &str, services: &Map<String, Value>, settings: &Settings) -> Result<PoolConfig, String> {
    pool(name, services, Kind::Tcp, settings)
}

pub(super) fn http_pool(name: &str, services: &Map<String, Value>, settings: &Settings) -> Result<PoolConfig, String> {
    pool(name, services, Kind::Http, settings)
}

/// What the service says of clients that stay with their server.
pub(super) fn sticky(name: &str, services: &Map<String, Value>) -> Option<Sticky> {
    let service = services.get(local_name(name).ok()?)?;
    let sticky = ["loadBalancer", "weighted"].iter().find_map(|kind| service.get(kind)?.get("sticky"))?;
    let cookie = sticky.get("cookie")?.get("name").and_then(Value::as_str).map(str::to_owned);
    Some(Sticky { cookie })
}

/// Without its provider: `app@file` is `app`. Those of Traefik itself are not here.
pub(super) fn local_name(name: &str) -> Result<&str, String> {
    match name.split_once('@') {
        Some((_, "internal")) => Err(format!("{name} is part of Traefik itself")),
        Some((local, _)) => Ok(local),
        None => Ok(name),
    }
}

fn pool(name: &str, services: &Map<String, Value>, kind: Kind, settings: &Settings) -> Result<PoolConfig, String> {
    let Flat { backends, fallback, proxy_protocol, health } = Walk { services, kind }.flat(name, MAX_DEPTH)?;
    let backends = weigh(backends);
    let mut fallback = weigh(fallback);
    fallback.retain(|spare| backends.iter().all(|backend| backend.name != spare.name));
    if backends.is_empty() && fallback.is_empty() {
        return Err(format!("the service {name} has no server"));
    }
    Ok(PoolConfig {
        proxy_protocol,
        health: health.or_else(|| settings.health.clone()),
        on_down: settings.on_down,
        ..PoolConfig::new(backends, fallback)
    })
}

struct Walk<'a> {
    services: &'a Map<String, Value>,
    kind: Kind,
}

impl Walk<'_> {
    fn flat(&self, name: &str, depth: usize) -> Result<Flat, String> {
        let name = local_name(name)?;
        let Some(depth) = depth.checked_sub(1) else {
            return Err(format!("the service {name} is nested deeper than {MAX_DEPTH} levels"));
        };
        let service = self.services.get(name).ok_or_else(|| format!("there is no service {name}"))?;
        let service: Service =
            serde_json::from_value(service.clone()).map_err(|error| format!("service {name}: {error}"))?;
        let Service { load_balancer, weighted, failover, mirroring } = service;
        match (load_balancer, weighted, failover, mirroring) {
            (Some(balancer), None, None, None) => {
                self.balancer(balancer).map_err(|why| format!("service {name}: {why}"))
            }
            (None, Some(weighted), None, None) => self.weighted(name, weighted, depth),
            (None, None, Some(failover), None) => self.failover(failover, depth),
            (None, None, None, Some(_)) => Err(format!("service {name}: mirroring is not served")),
            _ => Err(format!("service {name}: expected one of loadBalancer, weighted and failover")),
        }
    }

    fn balancer(&self, balancer: LoadBalancer) -> Result<Flat, String> {
        let LoadBalancer { servers, proxy_protocol, servers_transport, health_check } = balancer;
        let is_tcp = self.kind == Kind::Tcp;
        if let Some(transport) = servers_transport.filter(|_| is_tcp) {
            return Err(format!("the serversTransport {transport} is not served"));
        }
        let mut backends = Vec::new();
        for Server { url, address, weight, tls } in servers {
            if tls && is_tcp {
                return Err("TLS to a server is not served".to_owned());
            }
            let target = match (self.kind, url, address) {
                (Kind::Http, Some(url), _) => authority(&url)?,
                (Kind::Tcp, _, Some(address)) => address,
                (Kind::Http, None, _) => return Err("a server has no url".to_owned()),
                (Kind::Tcp, _, None) => return Err("a server has no address".to_owned()),
            };
            backends.push((BackendConfig::parse(&target, 1)?, u64::from(weight.unwrap_or(1).min(MAX_SHARE))));
        }
        let proxy_protocol = match proxy_protocol.map(|proxy| proxy.version.unwrap_or(2)) {
            None => ProxyProtocol::None,
            Some(1) => ProxyProtocol::V1,
            Some(2) => ProxyProtocol::V2(ProxyTlvs::default()),
            Some(version) => return Err(format!("PROXY protocol version {version} does not exist")),
        };
        let health = match health_check {
            Some(check) if !is_tcp => Some(health(check)?),
            Some(_) | None => None,
        };
        Ok(Flat { backends, fallback: Vec::new(), proxy_protocol, health })
    }

    /// A server's part is its part of its service, times that of the service.
    fn weighted(&self, name: &str, weighted: Weighted, depth: usize) -> Result<Flat, String> {
        let mut all: Option<Flat> = None;
        let mut parts = Vec::new();
        for Share { name: child, weight } in weighted.services {
            let Flat { backends, fallback, proxy_protocol, health } = self.flat(&child, depth)?;
            if !fallback.is_empty() {
                return Err(format!("service {name}: a failover below a weighted service is not served"));
            }
            let whole = all.get_or_insert_with(|| Flat {
                backends: Vec::new(),
                fallback: Vec::new(),
                proxy_protocol,
                health: health.clone(),
            });
            if whole.proxy_protocol != proxy_protocol {
                return Err(format!("service {name}: its services differ in their PROXY protocol"));
            }
            parts.push((u64::from(weight.unwrap_or(1).min(MAX_SHARE)), backends));
        }
        let mut all = all.ok_or_else(|| format!("service {name}: the list of services is empty"))?;
        let sums: Vec<u64> = parts.iter().map(|(_, list)| list.iter().map(|(_, share)| share).sum()).collect();
        let multiple = sums.iter().filter(|sum| **sum > 0).copied().fold(1, lcm);
        for ((weight, backends), sum) in parts.into_iter().zip(sums) {
            let factor = multiple.checked_div(sum).unwrap_or(0).saturating_mul(weight);
            all.backends.extend(backends.into_iter().map(|(b, share)| (b, share.saturating_mul(factor))));
        }
        Ok(all)
    }

    fn failover(&self, failover: Failover, depth: usize) -> Result<Flat, String> {
        let mut first = self.flat(&failover.service, depth)?;
        let then = self.flat(&failover.fallback, depth)?;
        first.fallback.extend(then.backends);
        first.fallback.extend(then.fallback);
        Ok(first)
    }
}

/// Shares of any size -> weights of a pool, at most [`MAX_WEIGHT`]; whoever has a share keeps one. A server that stands
/// twice counts twice.
fn weigh(list: Vec<(BackendConfig, u64)>) -> Vec<BackendConfig> {
    let mut unique: Vec<(BackendConfig, u64)> = Vec::new();
    for (backend, share) in list {
        match unique.iter_mut().find(|(known, _)| known.name == backend.name) {
            Some((_, sum)) => *sum = sum.saturating_add(share),
            None => unique.push((backend, share)),
        }
    }
    let divisor = unique.iter().map(|(_, share)| *share).fold(0, gcd).max(1);
    let largest = unique.iter().map(|(_, share)| share / divisor).max().unwrap_or(0);
    let weight = |share: u64| {
        let share = share / divisor;
        let scaled = match largest > u64::from(MAX_WEIGHT) {
            true => u128::from(share) * u128::from(MAX_WEIGHT) / u128::from(largest),
            false => u128::from(share),
        };
        u32::try_from(scaled).unwrap_or(MAX_WEIGHT).max(u32::from(share > 0))
    };
    unique.into_iter().map(|(backend, share)| BackendConfig { weight: weight(share), ..backend }).collect()
}

/// Host and port of a URL; the scheme's port where it names none.
fn authority(url: &str) -> Result<String, String> {
    let bad = || format!("{url:?} is not a URL such as http://10.0.0.3:8080");
    let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
    let port = match scheme {
        "http" | "h2c" => 80,
        "https" => 443,
        _ => return Err(bad()),
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let has_port = match host.rsplit_once(']') {
        Some((_, after)) => after.starts_with(':'),
        None => host.contains(':'),
    };
    match (host.is_empty(), has_port) {
        (true, _) => Err(bad()),
        (false, true) => Ok(host.to_owned()),
        (false, false) => Ok(format!("{host}:{port}")),
    }
}

/// Traefik's defaults: a check every 30 s, and one answer that decides.
fn health(check: HealthCheck) -> Result<HealthConfig, String> {
    let HealthCheck { path, interval, timeout, port, scheme, hostname, status } = check;
    let http = HttpProbe {
        path: path.unwrap_or_else(|| "/".to_owned()),
        host: hostname,
        expect: vec![status.map_or((200, 399), |status| (status, status))],
    };
    let interval = read_duration(interval.as_ref(), 30)?;
    Ok(HealthConfig {
        probe: match scheme.as_deref() {
            Some("https") => ProbeConfig::Https { http, server_name: None },
            Some(_) | None => ProbeConfig::Http(http),
        },
        port,
        interval,
        timeout: read_duration(timeout.as_ref(), 5)?.min(interval),
        rise: 1,
        fall: 1,
    })
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: u64, b: u64) -> u64 {
    a / gcd(a, b).max(1) * b.min(MAX_LCM)
}

const MAX_DEPTH: usize = 8;
const MAX_WEIGHT: u32 = 256;
const MAX_SHARE: u32 = 1_000_000;
const MAX_LCM: u64 = 1 << 20;
