//! Traefik's dynamic configuration, and of its static one the entry points.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Draft, Listener, Route};
use crate::config::{EntryPoint, OnDown, PoolConfig};
use crate::providers::traefik::{Document, Settings};
use crate::route::{Contribution, ListenerName, OnRemove, PoolName, ProviderName};

/// What follows a name that a provider has given.
const SUFFIX: &str = "@import";
/// Where the listener for server names is, if nothing says where Traefik's is.
const TLS: &str = "tls";

/// The part of the static configuration that says where Traefik listens.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Static {
    #[serde(default)]
    entry_points: BTreeMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    address: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// `document` with its parts laid together; `entry_points` are addresses such as `:443`, by name.
pub fn import(document: &Document, entry_points: &BTreeMap<String, String>) -> Draft {
    let mut draft = Draft::default();
    let names = document.entry_points_by_name();
    let mut known = BTreeMap::new();
    for (name, address) in entry_points {
        if names.contains(name) {
            known.insert(name.clone(), EntryPoint::Listener(ListenerName::new(name.as_str())));
            continue;
        }
        match addresses(address) {
            Some(addresses) => {
                known.insert(name.clone(), EntryPoint::Open(addresses));
            }
            None => draft.left_out(format!("entry point {name}"), format!("{address:?} is no address with a port")),
        }
    }
    let settings = Settings { entry_points: known, health: None, on_down: OnDown::Keep };
    let provider = ProviderName::new(SUFFIX.trim_start_matches('@'));
    let contribution = document.compile(&settings, Contribution::new(&provider, OnRemove::L4));

    for item in contribution.unserved_items() {
        draft.left_out(&item.item, item.why.to_string());
    }
    for route in contribution.http_routes() {
        let why = "needs HTTP: TLS is not terminated, and requests are not read";
        draft.left_out(format!("http router {}", bare(route.name.as_str())), why);
    }
    routes(&contribution, &names, entry_points, &mut draft);
    for (name, entry) in contribution.listeners() {
        let bind = entry.bind.iter().map(ToString::to_string).collect();
        let pool = Some(bare(entry.pool.as_str()));
        draft.listeners.push(Listener { name: bare(name.as_str()), bind, pool, ..Listener::default() });
    }
    let used: BTreeSet<&PoolName> = contribution
        .routes()
        .iter()
        .map(|route| &route.pool)
        .chain(contribution.listeners().values().map(|entry| &entry.pool))
        .collect();
    for (name, pool) in contribution.pools().iter().filter(|(name, _)| used.contains(name)) {
        draft.pools.push((bare(name.as_str()), PoolConfig::clone(pool)));
    }
    draft
}

/// The routes by server name, and the listeners that they hold on.
fn routes(
    contribution: &Contribution,
    names: &BTreeSet<String>,
    entry_points: &BTreeMap<String, String>,
    draft: &mut Draft,
) {
    let mut seen: BTreeMap<(String, Vec<ListenerName>), String> = BTreeMap::new();
    for route in contribution.routes() {
        let mut sni = Vec::new();
        for pattern in &route.sni {
            let first = seen.entry((pattern.to_string(), route.listeners.clone())).or_insert_with(|| {
                sni.push(pattern.to_string());
                bare(route.name.as_str())
            });
            if sni.last() != Some(&pattern.to_string()) {
                let why = format!("{pattern} is the router {first}'s already, which goes first");
                draft.left_out(format!("tcp router {}", bare(route.name.as_str())), why);
            }
        }
        if !sni.is_empty() {
            let listeners = route.listeners.iter().map(|name| name.as_str().to_owned()).collect();
            draft.routes.push(Route { sni, pool: bare(route.pool.as_str()), listeners });
        }
    }
    if draft.routes.is_empty() {
        return;
    }
    for name in names {
        if let Some(address) = entry_points.get(name) {
            let bind = vec![address.trim_end_matches("/tcp").to_owned()];
            draft.listeners.push(Listener { name: name.clone(), bind, ..Listener::default() });
        }
    }
    if draft.listeners.is_empty() {
        draft.listeners.push(Listener { name: TLS.to_owned(), bind: vec![":443".to_owned()], ..Listener::default() });
        let why = "not known here: server names are served on :443; name the static configuration with --static";
        draft.left_out("entry points", why);
    }
}

/// Entry points of the static configuration, and what else it says of them.
///
/// # Errors
/// It is none.
pub fn entry_points(document: Value, draft: &mut Vec<super::LeftOut>) -> Result<BTreeMap<String, String>, String> {
    let Static { entry_points } = serde_json::from_value(document).map_err(|error| error.to_string())?;
    let mut addresses = BTreeMap::new();
    for (name, Entry { address, rest }) in entry_points {
        for key in rest.keys().filter(|key| ["proxyProtocol", "transport"].contains(&key.as_str())) {
            let why = match key.as_str() {
                "proxyProtocol" => "say at the listener whose header is believed: accept_proxy_from",
                _ => "its timeouts stand at the listener: hello_timeout, idle_timeout",
            };
            draft.push(super::LeftOut { place: format!("entry point {name}: {key}"), why: why.to_owned() });
        }
        if let Some(address) = address {
            addresses.insert(name, address);
        }
    }
    Ok(addresses)
}

/// `:6379` is all addresses, both IPv6 and IPv4.
fn addresses(address: &str) -> Option<Vec<SocketAddr>> {
    let address = address.strip_suffix("/tcp").unwrap_or(address);
    match address.strip_prefix(':') {
        Some(port) => ["[::]", "0.0.0.0"].iter().map(|any| format!("{any}:{port}").parse().ok()).collect(),
        None => Some(vec![address.parse().ok()?]),
    }
}

fn bare(name: &str) -> String {
    name.strip_suffix(SUFFIX).unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests;
