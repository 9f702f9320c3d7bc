//! Registrations -> routes, pools, and what only HTTP can serve. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::book::{ProxyHeader, Registration, Shape, Tls, Upstream};
use super::problem::{Kind, Problem};
use super::request::invalid;
use super::upstreams::Upstreams;
use crate::config::{
    BackendAddress, BackendConfig, HealthConfig, OnDown, PathMatch, PoolConfig, ProviderConfig, ProxyProtocol,
    ProxyTlvs, RegistrationConfig, TemplateConfig,
};
use crate::route::rule::{Matcher, Rule};
use crate::route::{Contribution, HttpRoute, ListenerName, Owner, RouteName, SniPattern, Why};

/// What the configuration says of every registration.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) api: RegistrationConfig,
    health: Option<HealthConfig>,
    on_down: OnDown,
}

/// How many parts of a registration are served, and how many wait for HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) routes: usize,
    pub(super) needs_http: usize,
}

impl Settings {
    pub(super) fn new(provider: &ProviderConfig, api: RegistrationConfig) -> Self {
        Self { api, health: provider.health.clone(), on_down: provider.on_down }
    }

    /// # Errors
    /// What this configuration does not allow, at its field.
    pub(super) fn judge(&self, shape: &Shape, upstreams: &Upstreams) -> Result<(), Problem> {
        let forbidden = |field: String| move |why| Problem::at(Kind::ForbiddenUpstream, field, why);
        match shape {
            Shape::Simple { backends, .. } => {
                for (n, Upstream { address, weight: _ }) in backends.iter().enumerate() {
                    upstreams.judge(*address).map_err(forbidden(format!("backends[{n}]")))?;
                }
                Ok(())
            }
            Shape::Template { template, address, secrets } => {
                let known = self.template(template).ok_or_else(|| {
                    let names: Vec<_> = self.api.templates.keys().map(String::as_str).collect();
                    let detail = match names.as_slice() {
                        [] => "this proxy has no templates; write `backends`".to_owned(),
                        names => format!("there is no such template; there are {}", names.join(", ")),
                    };
                    invalid("template", detail)
                })?;
                for port in ports(known) {
                    upstreams.judge(SocketAddr::new(*address, port)).map_err(forbidden("address".to_owned()))?;
                }
                if let Some(missing) = known.headers.values().find(|name| !secrets.contains_key(*name)) {
                    return Err(invalid(format!("secrets.{missing}"), "the template needs this secret"));
                }
                match secrets.keys().find(|name| !known.headers.values().any(|known| known == *name)) {
                    None => Ok(()),
                    Some(unknown) => {
                        Err(invalid(format!("secrets.{unknown}"), "the template has no use for this secret"))
                    }
                }
            }
        }
    }

    /// Adds what a judged registration asks for.
    pub(super) fn add(&self, registration: &Registration, to: &mut Contribution) -> Parts {
        let Registration { host, shape, owner, ttl, registered: _, stamp: _, learned: _ } = registration;
        let name = part_name(host);
        let owner =
            Owner { name: owner.as_str().into(), lease: ttl.map(|seconds| Duration::from_secs(seconds.into())) };
        let mut parts = Parts::default();
        match shape {
            Shape::Simple { backends, tls: Tls::Passthrough, proxy_protocol } => {
                let pool = self.pool(backends.iter().map(backend).collect(), header(*proxy_protocol));
                self.route(&name, host, pool, to);
                to.owned(&name, owner);
                parts.routes += 1;
            }
            Shape::Simple { backends, tls: Tls::Terminate, proxy_protocol } => {
                let pool = self.pool(backends.iter().map(backend).collect(), header(*proxy_protocol));
                http(&name, host, &PathMatch::Below("/".to_owned()), Vec::new(), pool, to);
                to.owned(&name, owner);
                parts.needs_http += 1;
            }
            Shape::Template { template, address, secrets: _ } => {
                let Some(template) = self.template(template) else { return parts };
                let at = |port| {
                    let address = SocketAddr::new(*address, port);
                    vec![backend(&Upstream { address, weight: 1 })]
                };
                if let Some(passthrough) = template.passthrough {
                    let pool = self.pool(at(passthrough.port), passthrough.proxy_protocol);
                    self.route(&name, host, pool, to);
                    to.owned(&name, owner.clone());
                    parts.routes += 1;
                }
                for (n, route) in template.routes.iter().enumerate() {
                    let pool = self.pool(at(route.port), ProxyProtocol::None);
                    let name = http_name(&name, n);
                    http(&name, host, &route.path, middlewares(template, *address), pool, to);
                    to.owned(&name, owner.clone());
                    parts.needs_http += 1;
                }
            }
        }
        parts
    }

    /// Takes away what [`add`](Self::add) added for it.
    pub(super) fn remove(&self, registration: &Registration, from: &mut Contribution) {
        let name = part_name(&registration.host);
        from.remove_route(&name);
        from.remove_pool(&name);
        from.remove_http(&name);
        if let Shape::Template { template, .. } = &registration.shape {
            let routes = self.template(template).map_or(0, |template| template.routes.len());
            for n in 0..routes {
                from.remove_http(&http_name(&name, n));
            }
        }
    }

    pub(super) fn parts(&self, shape: &Shape) -> Parts {
        match shape {
            Shape::Simple { tls: Tls::Passthrough, .. } => Parts { routes: 1, needs_http: 0 },
            Shape::Simple { tls: Tls::Terminate, .. } => Parts { routes: 0, needs_http: 1 },
            Shape::Template { template, .. } => self.template(template).map_or_else(Parts::default, |template| Parts {
                routes: template.passthrough.iter().len(),
                needs_http: template.routes.len(),
            }),
        }
    }

    /// Everything that is registered, at a start. What this configuration no longer allows is kept, named, and not served.
    pub(super) fn all<'r>(
        &self,
        registrations: impl Iterator<Item = &'r Registration>,
        upstreams: &Upstreams,
        mut to: Contribution,
    ) -> Contribution {
        for registration in registrations {
            match self.judge(&registration.shape, upstreams) {
                Ok(()) => drop(self.add(registration, &mut to)),
                Err(problem) => {
                    let why = format!("{}: {}", problem.field().unwrap_or_default(), problem.detail());
                    to.unserved(format!("registration {}", registration.host), Why::Unsupported(why));
                }
            }
        }
        to
    }

    fn template(&self, name: &str) -> Option<&TemplateConfig> {
        self.api.templates.get(name)
    }

    fn pool(&self, backends: Vec<BackendConfig>, proxy_protocol: ProxyProtocol) -> PoolConfig {
        let pool = PoolConfig::new(backends, Vec::new());
        PoolConfig { proxy_protocol, health: self.health.clone(), on_down: self.on_down, ..pool }
    }

    fn route(&self, name: &str, host: &SniPattern, pool: PoolConfig, to: &mut Contribution) {
        let pool = to.pool(name, pool);
        let listeners: Vec<ListenerName> = self.api.listeners.clone();
        to.route(name, vec![host.clone()], &pool, listeners, 0);
    }
}

/// The route of a host, as logs and metrics call it.
pub(super) fn route_name(host: &SniPattern, contribution: &Contribution) -> RouteName {
    contribution.provider().route(&part_name(host))
}

/// Names that would be cut off are told apart by a hash.
fn part_name(host: &SniPattern) -> String {
    let name = host.to_string();
    match name.get(..LONGEST_NAME) {
        Some(start) if start.len() < name.len() => format!("{start}~{:016x}", xxh3_64(name.as_bytes())),
        Some(_) | None => name,
    }
}

fn http_name(name: &str, part: usize) -> String {
    format!("{name}/{part}")
}

fn http(
    name: &str,
    host: &SniPattern,
    path: &PathMatch,
    middlewares: Vec<String>,
    pool: PoolConfig,
    to: &mut Contribution,
) {
    let host = Rule::Match(Matcher::Host(host.clone()));
    let (rule, length) = match path {
        PathMatch::Below(root) if root == "/" => (host, 0),
        PathMatch::Below(prefix) => {
            (Rule::And(vec![host, Rule::Match(Matcher::PathPrefix(prefix.clone()))]), prefix.len() * 2)
        }
        // An exact path goes before a prefix of its length.
        PathMatch::Exact(path) => (Rule::And(vec![host, Rule::Match(Matcher::Path(path.clone()))]), path.len() * 2 + 1),
    };
    let pool = to.http_pool(name, pool);
    let priority = i64::try_from(length).unwrap_or(i64::MAX);
    to.http(HttpRoute { name: to.provider().route(name), rule, pool, priority, middlewares, tls: true, sticky: None });
}

/// In our own words; secrets by their names only.
fn middlewares(template: &TemplateConfig, address: std::net::IpAddr) -> Vec<String> {
    let asked = template
        .forward_auth
        .iter()
        .map(|auth| format!("forward_auth http://{}{}", SocketAddr::new(address, auth.port), auth.path));
    let headers = template.headers.iter().map(|(header, secret)| format!("set_header {header} from secret {secret}"));
    asked.chain(headers).collect()
}

fn ports(template: &TemplateConfig) -> impl Iterator<Item = u16> {
    let passthrough = template.passthrough.iter().map(|passthrough| passthrough.port);
    let asked = template.forward_auth.iter().map(|auth| auth.port);
    passthrough.chain(template.routes.iter().map(|route| route.port)).chain(asked)
}

fn backend(upstream: &Upstream) -> BackendConfig {
    let Upstream { address, weight } = *upstream;
    BackendConfig { name: address.to_string(), address: BackendAddress::Socket(address), weight }
}

fn header(header: ProxyHeader) -> ProxyProtocol {
    match header {
        ProxyHeader::None => ProxyProtocol::None,
        ProxyHeader::V1 => ProxyProtocol::V1,
        ProxyHeader::V2 => ProxyProtocol::V2(ProxyTlvs::default()),
    }
}

/// Qualified names end at 128 characters; a hash and the number of a part have to fit behind it.
const LONGEST_NAME: usize = 96;

#[cfg(test)]
mod tests;
