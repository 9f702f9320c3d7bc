//! One router -> one route, one port, or the reason why not.

use std::net::SocketAddr;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::sni::{Names, names};
use super::{Protocol, Settings, rule, service};
use crate::config::EntryPoint;
use crate::route::rule::Rule;
use crate::route::{Contribution, HttpRoute, ListenerName};

/// Of both kinds. Traefik knows more keys; those that are not here change nothing that we do.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a router")]
struct Router {
    rule: Option<String>,
    service: Option<String>,
    #[serde(default)]
    priority: i64,
    #[serde(default)]
    entry_points: Vec<String>,
    #[serde(default)]
    middlewares: Vec<String>,
    tls: Option<Map<String, Value>>,
}

impl Router {
    fn read(router: &Value) -> Result<(Self, Rule, String), String> {
        let router: Self = serde_json::from_value(router.clone()).map_err(|error| error.to_string())?;
        let text = router.rule.as_deref().ok_or("it has no rule")?;
        let parsed = rule::parse(text).map_err(|error| error.to_string())?;
        let service = router.service.as_deref().ok_or("it has no service")?;
        let service = service::local_name(service)?.to_owned();
        Ok((router, parsed, service))
    }

    /// Traefik's own order: a longer rule goes first, unless it says otherwise.
    fn priority(&self) -> i64 {
        match self.priority {
            0 => self.rule.as_ref().map_or(0, |rule| rule.len() as i64),
            priority => priority,
        }
    }
}

pub(super) fn http(
    name: &str,
    router: &Value,
    http: &Protocol,
    settings: &Settings,
    contribution: &mut Contribution,
) -> Result<(), String> {
    let (router, rule, service) = Router::read(router)?;
    let pool = service::http_pool(&service, &http.services, settings)?;
    if let Some(missing) = router.middlewares.iter().find(|name| is_missing(name, &http.middlewares)) {
        return Err(format!("there is no middleware {missing}"));
    }
    let pool = contribution.http_pool(&service, pool);
    let name = contribution.provider().route(name);
    let (priority, tls) = (router.priority(), router.tls.is_some());
    let sticky = service::sticky(&service, &http.services);
    contribution.http(HttpRoute { name, rule, pool, priority, middlewares: router.middlewares, tls, sticky });
    Ok(())
}

pub(super) fn tcp(
    name: &str,
    router: &Value,
    tcp: &Protocol,
    settings: &Settings,
    contribution: &mut Contribution,
) -> Result<(), String> {
    let (router, rule, service) = Router::read(router)?;
    // A router whose allow list is left out would let everybody in.
    if let Some(middleware) = router.middlewares.first() {
        return Err(format!("the middleware {middleware} is not served on TCP"));
    }
    let passthrough = router.tls.as_ref().map(|tls| tls.get("passthrough").is_some_and(is_true));
    match (names(&rule)?, passthrough) {
        (_, Some(false)) => Err("it terminates TLS; only `tls.passthrough: true` is served".to_owned()),
        (Names::Only(_), None) => Err("a server name is only sent in TLS; add `tls.passthrough: true`".to_owned()),
        (Names::Any, Some(true)) => {
            Err("HostSNI(`*`) with TLS is a listener's default; write `default` there".to_owned())
        }
        (Names::Only(patterns), Some(true)) => {
            let listeners = listeners(&router.entry_points, settings)?;
            let pool = service::tcp_pool(&service, &tcp.services, settings)?;
            let pool = contribution.pool(&service, pool);
            contribution.route(name, patterns, &pool, listeners, router.priority());
            Ok(())
        }
        (Names::Any, None) => {
            let bind = ports(&router.entry_points, settings)?;
            let pool = service::tcp_pool(&service, &tcp.services, settings)?;
            let pool = contribution.pool(&service, pool);
            contribution.listen(name, bind, &pool);
            Ok(())
        }
    }
}

/// Those of a router for server names; none of any other.
pub(super) fn entry_points_by_name(router: &Value) -> Vec<String> {
    match serde_json::from_value(router.clone()) {
        Ok(Router { tls: Some(_), entry_points, .. }) => entry_points,
        Ok(Router { tls: None, .. }) | Err(_) => Vec::new(),
    }
}

/// Where a route for server names holds. Entry points that were never mapped are all listeners.
fn listeners(entry_points: &[String], settings: &Settings) -> Result<Vec<ListenerName>, String> {
    if settings.entry_points.is_empty() {
        return Ok(Vec::new());
    }
    let mapped = entry_points.iter().map(|name| match settings.entry_points.get(name) {
        Some(EntryPoint::Listener(listener)) => Ok(listener.clone()),
        Some(EntryPoint::Open(_)) => Err(format!("the entry point {name} is a TCP port: it reads no server name")),
        None => Err(unmapped(name)),
    });
    mapped.collect()
}

/// The addresses of a port for everything.
fn ports(entry_points: &[String], settings: &Settings) -> Result<Vec<SocketAddr>, String> {
    if entry_points.is_empty() {
        return Err("it names no entry point, so there is no port to open".to_owned());
    }
    let mut bind = Vec::new();
    for name in entry_points {
        match settings.entry_points.get(name) {
            Some(EntryPoint::Open(addresses)) => bind.extend(addresses),
            Some(EntryPoint::Listener(listener)) => {
                return Err(format!("the entry point {name} is listener {listener}, which routes by server name"));
            }
            None => return Err(unmapped(name)),
        }
    }
    Ok(bind)
}

fn unmapped(entry_point: &str) -> String {
    format!("the entry point {entry_point} is not in the provider's `entry_points`")
}

fn is_missing(name: &str, middlewares: &Map<String, Value>) -> bool {
    match service::local_name(name) {
        Ok(name) => !middlewares.contains_key(name),
        Err(_) => true,
    }
}

/// Labels and key-value stores say `"true"`.
fn is_true(value: &Value) -> bool {
    value.as_bool().unwrap_or_else(|| value.as_str() == Some("true"))
}
