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
        let Registration { host, shape, owner, ttl, registered: _ } = registration;
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
    to.http(HttpRoute { name: to.provider().route(name), rule, pool, priority, middlewares, tls: true });
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
mod tests {
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
        let expected =
            ["forward_auth http://10.0.1.5:3000/auth/check", "set_header x-gateway-token from secret gateway"];
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
        let outside = Shape::Template {
            template: "both".into(),
            address: "10.9.0.1".parse().expect("ip"),
            secrets: BTreeMap::new(),
        };
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
}
