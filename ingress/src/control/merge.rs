//! The file and what each provider says -> one configuration. Pure, and independent of the order in which they spoke.
//!
//! The file goes first, then the providers by priority, then by name. Names cannot collide (`name@provider`); what several
//! want and only one can have (a server name, a port) goes to the first, and the others are told so.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::{Config, ListenerConfig, ListenerProtocol, ProviderSource, share_a_port};
use crate::route::provider::provider_of;
use crate::route::table::Conflict;
use crate::route::{Contribution, ListenerName, ProviderName, RouteSpec, TcpEntry, Unserved, Why};

/// All that is wanted at one time.
#[derive(Debug)]
pub struct Merged {
    pub config: Config,
    /// What of each contribution came too late; conflicts over server names are found by the route table.
    pub refused: Refused,
}

/// By the provider that does not get it.
#[derive(Debug, Default)]
pub struct Refused(BTreeMap<ProviderName, Vec<Unserved>>);

/// Costs a pointer for each route and pool.
pub fn merge(file: &Config, contributions: &BTreeMap<ProviderName, Arc<Contribution>>) -> Merged {
    let mut config = file.clone();
    let mut refused = Refused::default();
    let mut ports = Ports::of(file);
    for contribution in precedence(file).into_iter().filter_map(|provider| contributions.get(provider)) {
        let provider = contribution.provider();
        config.pools.append(&mut contribution.pools().clone());
        for (name, TcpEntry { bind, pool }) in contribution.listeners() {
            match ports.take(name, bind) {
                Ok(()) => drop(config.listeners.insert(name.clone(), ListenerConfig::tcp(bind.clone(), pool.clone()))),
                Err(why) => refused.note(provider, format!("port {name}"), why),
            }
        }
        for route in contribution.routes() {
            match missing_listener(file, route) {
                None => config.routes.push(Arc::clone(route)),
                Some(why) => refused.note(provider, format!("route {}", route.name), why),
            }
        }
    }
    Merged { config, refused }
}

fn precedence(file: &Config) -> Vec<&ProviderName> {
    let mut providers: Vec<_> = file.providers.iter().collect();
    providers.sort_by_key(|(name, provider)| (Reverse(provider.priority), *name));
    providers.into_iter().map(|(name, _)| name).collect()
}

fn missing_listener(file: &Config, route: &RouteSpec) -> Option<String> {
    route.listeners.iter().find_map(|name| match file.listeners.get(name).map(|listener| &listener.protocol) {
        Some(ListenerProtocol::Tls { .. }) => None,
        Some(ListenerProtocol::Tcp { .. }) => Some(format!("listener {name} is `tcp`: it follows no route")),
        None => Some(format!("there is no listener {name}")),
    })
}

/// Who listens where.
struct Ports(HashMap<u16, Vec<(SocketAddr, String)>>);

impl Ports {
    fn of(file: &Config) -> Self {
        let mut ports = Self(HashMap::new());
        for (name, listener) in &file.listeners {
            ports.insert(&listener.bind, &format!("listener {name}"));
        }
        if let Some(http) = &file.admin.http {
            ports.insert(&http.bind, "admin.http");
        }
        for (name, provider) in &file.providers {
            if let ProviderSource::Registration(api) = &provider.source {
                ports.insert(&api.bind, &format!("the API of provider {name}"));
            }
        }
        ports
    }

    fn take(&mut self, name: &ListenerName, bind: &[SocketAddr]) -> Result<(), String> {
        for address in bind {
            let others = self.0.get(&address.port()).map_or(&[][..], Vec::as_slice);
            if let Some((_, owner)) = others.iter().find(|(other, _)| share_a_port(*address, *other)) {
                return Err(format!("{address} belongs to {owner}"));
            }
        }
        self.insert(bind, &format!("listener {name}"));
        Ok(())
    }

    fn insert(&mut self, bind: &[SocketAddr], owner: &str) {
        for address in bind {
            self.0.entry(address.port()).or_default().push((*address, owner.to_owned()));
        }
    }
}

impl Refused {
    fn note(&mut self, provider: &ProviderName, item: String, why: String) {
        self.0.entry(provider.clone()).or_default().push(Unserved { item, why: Why::Conflict(why) });
    }

    /// Server names that went to somebody else. Routes of the file cannot lose any.
    pub fn names(&mut self, conflicts: &[Conflict]) {
        for Conflict { pattern, first, second } in conflicts {
            let Some(provider) = provider_of(second.as_str()) else { continue };
            let why = format!("{pattern} belongs to route {first}");
            self.note(&ProviderName::new(provider), format!("route {second}"), why);
        }
    }

    pub fn of(&self, provider: &ProviderName) -> Arc<[Unserved]> {
        self.0.get(provider).map_or_else(|| Arc::from([]), |refused| refused.as_slice().into())
    }
}

#[cfg(test)]
mod tests;
