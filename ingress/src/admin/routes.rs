//! `GET /v1/routes`: what is served, who said so, and what is not served and why.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Admin, ProviderState};
use crate::config::{DefaultRoute, ListenerProtocol};
use crate::route::provider::provider_of;
use crate::route::{Owner, PoolName, ProviderName, RouteName, Unserved, Why};
use crate::snapshot::Snapshot;

/// Which of them. Unknown keys are errors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoutesQuery {
    /// A provider's name, or `file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Only what is in some way about this host name or port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matching: Option<String>,
    /// Only what is not served.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unserved: bool,
}

/// One pattern of one route, one port, or one thing that a provider names and that is not served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteView {
    /// A server name, a port, a rule.
    pub matches: String,
    /// `sni`, `default`, `tcp`, `http`, or `item` where it is nothing that could be read.
    pub kind: String,
    pub route: String,
    /// `file`, or the provider's name.
    pub provider: String,
    /// Who is behind it, where the provider speaks for several: the token that registered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Seconds without a word of the owner after which it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u64>,
    /// Empty: all `tls` listeners.
    pub listeners: Vec<String>,
    pub pool: Option<String>,
    /// Backends of the pool that take connections now, its fallback's included.
    pub up: Option<usize>,
    /// `served`, `needs_http`, `unsupported` or `conflict`.
    pub state: String,
    /// Of what is not served.
    pub why: Option<String>,
}

const SERVED: &str = "served";

impl Admin {
    /// In the order of their precedence; what is not served stands last, by provider.
    pub(super) fn routes(&self, query: &RoutesQuery) -> Vec<RouteView> {
        let snapshot = self.sources.snapshots.borrow().clone();
        let providers = self.sources.providers.borrow().clone();
        let mut routes = served(&snapshot);
        let contributions: HashMap<_, _> =
            providers.iter().map(|provider| (provider.name.as_str(), provider)).collect();
        for route in &mut routes {
            let contribution = contributions.get(route.provider.as_str()).and_then(|p| p.contribution.as_ref());
            let owner = contribution.and_then(|said| said.owner(&RouteName::new(route.route.as_str())));
            route.set_owner(owner);
        }
        routes.extend(providers.iter().flat_map(unserved));
        routes.retain(|route| query.wants(route));
        routes
    }
}

fn served(snapshot: &Snapshot) -> Vec<RouteView> {
    let view = |kind: &str, matches: String, route: &str, listeners: Vec<String>, pool: &PoolName| RouteView {
        matches,
        kind: kind.to_owned(),
        route: route.to_owned(),
        provider: provider_of(route).unwrap_or(ProviderName::FILE).to_owned(),
        owner: None,
        lease: None,
        listeners,
        pool: Some(pool.to_string()),
        up: snapshot.pools.get(pool).map(|pool| pool.all().filter(|b| b.takes_connections()).count()),
        state: SERVED.to_owned(),
        why: None,
    };
    // The losers are told among what is not served.
    let lost: HashSet<_> = snapshot.routes.conflicts().iter().map(|lost| (&lost.second, &lost.pattern)).collect();
    let mut routes = Vec::new();
    for (name, listener) in &snapshot.config.listeners {
        let on = vec![name.to_string()];
        match &listener.protocol {
            ListenerProtocol::Tcp { pool } => {
                let ports: Vec<String> = listener.bind.iter().map(ToString::to_string).collect();
                routes.push(view("tcp", ports.join(" "), name.as_str(), on, pool));
            }
            ListenerProtocol::Tls { default: DefaultRoute::Pool(pool) } => {
                routes.push(view("default", "*".to_owned(), name.as_str(), on, pool));
            }
            ListenerProtocol::Tls { default: DefaultRoute::Reject } => {}
        }
    }
    for route in &snapshot.config.routes {
        let listeners: Vec<String> = route.listeners.iter().map(ToString::to_string).collect();
        for pattern in route.sni.iter().filter(|pattern| !lost.contains(&(&route.name, *pattern))) {
            routes.push(view("sni", pattern.to_string(), route.name.as_str(), listeners.clone(), &route.pool));
        }
    }
    routes
}

fn unserved(provider: &ProviderState) -> Vec<RouteView> {
    let Some(contribution) = &provider.contribution else { return Vec::new() };
    let view = |kind: &str, matches: String, route: String, pool: Option<String>, why: &Why| RouteView {
        matches,
        kind: kind.to_owned(),
        route,
        provider: provider.name.to_string(),
        owner: None,
        lease: None,
        listeners: Vec::new(),
        pool,
        up: None,
        state: why.as_str().to_owned(),
        why: Some(why.to_string()),
    };
    let http = contribution.http_routes().map(|route| {
        let pool = Some(route.pool.to_string());
        let view = view("http", route.rule.to_string(), route.name.to_string(), pool, &Why::NeedsHttp);
        view.of(contribution.owner(&route.name))
    });
    let items = contribution.unserved_items().iter().chain(provider.refused.iter());
    let items = items.map(|Unserved { item, why }| view("item", String::new(), item.clone(), None, why));
    http.chain(items).collect()
}

impl RouteView {
    pub(super) fn is_served(&self) -> bool {
        self.state == SERVED
    }

    fn of(mut self, owner: Option<&Owner>) -> Self {
        self.set_owner(owner);
        self
    }

    fn set_owner(&mut self, owner: Option<&Owner>) {
        let Some(Owner { name, lease }) = owner else { return };
        self.owner = Some(name.to_string());
        self.lease = lease.map(|lease| lease.as_secs());
    }
}

impl RoutesQuery {
    fn wants(&self, route: &RouteView) -> bool {
        let Self { provider, matching, unserved } = self;
        let contains = |text: &String| {
            let why = route.why.as_deref().unwrap_or_default();
            [&route.matches, &route.route].iter().any(|at| at.contains(text)) || why.contains(text)
        };
        provider.as_ref().is_none_or(|provider| *provider == route.provider)
            && matching.as_ref().is_none_or(contains)
            && (!unserved || !route.is_served())
    }
}
