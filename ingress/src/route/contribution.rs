//! What one provider says: its whole part of the routing, made item by item, valid by construction.
//!
//! A provider fills a new [`Contribution`] each time its source says something new. One bad item never takes the rest down:
//! it is noted as [`Unserved`] and shown. Parts are shared: a copy costs a pointer an item, and what did not change is
//! recognised by its address.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::rule::Rule;
use super::{ListenerName, OnRemove, PoolName, ProviderName, RouteName, RouteSpec, SniPattern};
use crate::config::PoolConfig;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contribution {
    provider: ProviderName,
    on_remove: OnRemove,
    routes: BTreeMap<RouteName, Arc<RouteSpec>>,
    listeners: BTreeMap<ListenerName, TcpEntry>,
    pools: BTreeMap<PoolName, Arc<PoolConfig>>,
    http: BTreeMap<RouteName, Arc<HttpRoute>>,
    http_pools: BTreeMap<PoolName, Arc<PoolConfig>>,
    unserved: Vec<Unserved>,
    owners: BTreeMap<RouteName, Owner>,
}

/// Who is behind a route, where a provider speaks for several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub name: Arc<str>,
    /// Without a word of the owner for so long, the route goes.
    pub lease: Option<Duration>,
}

/// A port that the provider wants open, with one pool behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpEntry {
    pub bind: Vec<SocketAddr>,
    pub pool: PoolName,
}

/// A route that only HTTP can decide. Kept, shown as "needs HTTP", and served as soon as something can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRoute {
    pub name: RouteName,
    pub rule: Rule,
    /// One of [`Contribution::http_pools`].
    pub pool: PoolName,
    pub priority: i64,
    /// What the source asks for on the way, in its own words.
    pub middlewares: Vec<String>,
    /// Whether the source wants TLS terminated for it.
    pub tls: bool,
    /// Whether a client stays with its backend.
    pub sticky: Option<Sticky>,
}

/// By a cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sticky {
    /// `None`: whoever serves it chooses.
    pub cookie: Option<String>,
}

/// An item that is not served as its provider means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// In the provider's words, such as `tcp router redis`.
    pub item: String,
    pub why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Only what reads HTTP can serve it.
    NeedsHttp,
    /// Nobody here can, or it is wrong.
    Unsupported(String),
    /// Somebody of higher precedence was first.
    Conflict(String),
}

impl Contribution {
    pub fn new(provider: &ProviderName, on_remove: OnRemove) -> Self {
        Self {
            provider: provider.clone(),
            on_remove,
            routes: BTreeMap::new(),
            listeners: BTreeMap::new(),
            pools: BTreeMap::new(),
            http: BTreeMap::new(),
            http_pools: BTreeMap::new(),
            unserved: Vec::new(),
            owners: BTreeMap::new(),
        }
    }

    /// A pool for routes and ports. One of the same name is replaced.
    pub fn pool(&mut self, name: &str, config: PoolConfig) -> PoolName {
        let name = self.provider.pool(name);
        self.pools.insert(name.clone(), Arc::new(config));
        name
    }

    /// A pool for [`http`](Self::http) routes.
    pub fn http_pool(&mut self, name: &str, config: PoolConfig) -> PoolName {
        let name = self.provider.pool(name);
        self.http_pools.insert(name.clone(), Arc::new(config));
        name
    }

    /// Connections for these names go to `pool`, on `listeners` only (empty: on every TLS listener). A route of the same name
    /// is replaced.
    pub fn route(
        &mut self,
        name: &str,
        sni: Vec<SniPattern>,
        pool: &PoolName,
        listeners: Vec<ListenerName>,
        priority: i64,
    ) {
        if !self.pools.contains_key(pool) {
            return self.unserved(format!("route {name}"), Why::Unsupported(format!("there is no pool {pool}")));
        }
        let (name, on_remove) = (self.provider.route(name), self.on_remove);
        let spec = RouteSpec { name, sni, pool: pool.clone(), listeners, priority, on_remove };
        self.routes.insert(spec.name.clone(), Arc::new(spec));
    }

    /// Takes a route away, and says whether it was there. Its pool stays, for others may use it.
    pub fn remove_route(&mut self, name: &str) -> bool {
        let name = self.provider.route(name);
        self.owners.remove(&name);
        self.routes.remove(&name).is_some()
    }

    pub fn remove_pool(&mut self, name: &str) -> bool {
        self.pools.remove(&self.provider.pool(name)).is_some()
    }

    /// Opens a port for one pool.
    pub fn listen(&mut self, name: &str, bind: Vec<SocketAddr>, pool: &PoolName) {
        if !self.pools.contains_key(pool) {
            return self.unserved(format!("port {name}"), Why::Unsupported(format!("there is no pool {pool}")));
        }
        self.listeners.insert(self.provider.listener(name), TcpEntry { bind, pool: pool.clone() });
    }

    /// A route for the day when something here reads HTTP.
    pub fn http(&mut self, route: HttpRoute) {
        self.http.insert(route.name.clone(), Arc::new(route));
    }

    /// Takes such a route away with its pool, and says whether it was there.
    pub fn remove_http(&mut self, name: &str) -> bool {
        self.http_pools.remove(&self.provider.pool(name));
        let name = self.provider.route(name);
        self.owners.remove(&name);
        self.http.remove(&name).is_some()
    }

    /// Says who is behind a route, of either kind.
    pub fn owned(&mut self, name: &str, owner: Owner) {
        self.owners.insert(self.provider.route(name), owner);
    }

    pub fn owner(&self, route: &RouteName) -> Option<&Owner> {
        self.owners.get(route)
    }

    /// Notes an item that is not served, and why.
    pub fn unserved(&mut self, item: impl Into<String>, why: Why) {
        self.unserved.push(Unserved { item: item.into(), why });
    }

    pub fn provider(&self) -> &ProviderName {
        &self.provider
    }

    /// In the order of precedence: by priority, then by name.
    pub fn routes(&self) -> Vec<&Arc<RouteSpec>> {
        let mut routes: Vec<_> = self.routes.values().collect();
        if routes.iter().any(|route| route.priority != 0) {
            routes.sort_by_key(|route| std::cmp::Reverse(route.priority));
        }
        routes
    }

    pub fn pools(&self) -> &BTreeMap<PoolName, Arc<PoolConfig>> {
        &self.pools
    }

    pub fn listeners(&self) -> &BTreeMap<ListenerName, TcpEntry> {
        &self.listeners
    }

    pub fn http_routes(&self) -> impl ExactSizeIterator<Item = &Arc<HttpRoute>> {
        self.http.values()
    }

    pub fn http_pools(&self) -> &BTreeMap<PoolName, Arc<PoolConfig>> {
        &self.http_pools
    }

    /// Items that are not served whoever else says what; routes that need HTTP are not repeated here.
    pub fn unserved_items(&self) -> &[Unserved] {
        &self.unserved
    }

    /// Whether something that `before` asked for is not asked for any more.
    pub fn lacks_some_of(&self, before: &Self) -> bool {
        before.routes.keys().any(|name| !self.routes.contains_key(name))
            || before.listeners.keys().any(|name| !self.listeners.contains_key(name))
            || before.http.keys().any(|name| !self.http.contains_key(name))
    }

    /// How many things it asks for, served or not.
    pub fn len(&self) -> usize {
        self.routes.len() + self.listeners.len() + self.http.len() + self.unserved.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Why {
    /// For metrics and JSON.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NeedsHttp => "needs_http",
            Self::Unsupported(_) => "unsupported",
            Self::Conflict(_) => "conflict",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedsHttp => f.write_str("needs HTTP"),
            Self::Unsupported(why) | Self::Conflict(why) => f.write_str(why),
        }
    }
}
