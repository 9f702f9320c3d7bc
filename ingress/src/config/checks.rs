//! What only shows when the whole configuration is in view: routes that claim one name, listeners that no route reaches,
//! pools that nobody uses.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use super::convert::{BoundAt, Converted};
use super::decode::At;
use super::report::Report;
use super::yaml::Tree;
use super::{Config, DefaultRoute, ListenerProtocol};
use crate::route::{RouteName, RouteSpec, RouteTable};

pub(super) fn check(converted: &Converted, report: &mut Report<'_>) {
    some_listener(converted, report);
    addresses(converted, report);
    route_listeners(converted, report);
    let conflicts = route_conflicts(converted, report);
    if !conflicts {
        route_names(converted, report);
    }
    if !report.problems.has_errors() {
        unused(converted, report);
    }
}

fn some_listener(converted: &Converted, report: &mut Report<'_>) {
    let tree = report.tree;
    let written = tree.child(Tree::ROOT, "listeners");
    if converted.config.listeners.is_empty() && written.is_none_or(|id| tree.children(id).is_empty()) {
        let at = report.value_of(Tree::ROOT, "listeners");
        report.error(at, "there is no listener; write at least one under `listeners`", None);
    }
}

fn addresses(converted: &Converted, report: &mut Report<'_>) {
    let mut binds: Vec<_> = converted.binds.iter().collect();
    binds.sort_by_key(|bound| report.tree.node(bound.node).place);
    for (index, bound) in binds.iter().enumerate() {
        let Some(first) = binds[..index].iter().find(|first| first.overlaps(bound)) else { continue };
        let (address, owner, line) = (bound.address, &first.owner, report.line(first.node));
        report.error(At::Value(bound.node), format!("{address} is already bound by {owner} in line {line}"), None);
    }
}

/// Routes need an SNI, and so a TLS listener.
fn route_listeners(converted: &Converted, report: &mut Report<'_>) {
    let Converted { config, route_nodes, .. } = converted;
    for (spec, nodes) in config.routes.iter().zip(route_nodes) {
        for (name, written) in spec.listeners.iter().zip(&nodes.listeners) {
            let Some(listener) = config.listeners.get(name) else { continue };
            match listener.protocol {
                ListenerProtocol::Tls { .. } => {}
                ListenerProtocol::Tcp { .. } => {
                    let message = format!("listener {name} is `tcp`: it reads no SNI and follows no route");
                    report.error(At::Value(written.node), message, None);
                }
            }
        }
    }
}

/// Whether there are any.
fn route_conflicts(converted: &Converted, report: &mut Report<'_>) -> bool {
    let Converted { config, route_nodes, .. } = converted;
    // The table tells routes apart by name only, and names may be equal: here the index is the name.
    let numbered: Vec<RouteSpec> = (config.routes.iter().enumerate())
        .map(|(index, spec)| RouteSpec { name: RouteName::new(index.to_string()), ..RouteSpec::clone(spec) })
        .collect();
    let table = RouteTable::compile(&numbered);
    let conflicts = table.conflicts();
    let found = !conflicts.is_empty();
    let index = |name: &RouteName| name.as_str().parse::<usize>().unwrap_or_default();
    let mut told = HashMap::new();
    for conflict in conflicts {
        let (first, second) = (index(&conflict.first), index(&conflict.second));
        let places = |route: usize| {
            let patterns = config.routes[route].sni.iter().zip(&route_nodes[route].sni);
            patterns.filter(|(pattern, _)| **pattern == conflict.pattern).map(|(_, node)| *node)
        };
        // Within one route the first of its equal patterns is the winner.
        let nth = told.entry((second, conflict.pattern.clone())).or_insert(usize::from(first == second));
        let (Some(winner), Some(loser)) = (places(first).next(), places(second).nth(*nth)) else { continue };
        *nth += 1;
        let message = format!("{} is already routed in line {}", conflict.pattern, report.line(winner));
        report.error(At::Value(loser), message, None);
    }
    found
}

/// Two routes of one name would be one line in the metrics.
fn route_names(converted: &Converted, report: &mut Report<'_>) {
    let Converted { config, route_nodes, .. } = converted;
    let mut known = HashMap::new();
    for (spec, nodes) in config.routes.iter().zip(route_nodes) {
        let first = *known.entry(&spec.name).or_insert(nodes.route);
        if first != nodes.route {
            let at = report.value_of(nodes.route, "name");
            let line = report.line(first);
            let message = format!("the route in line {line} is called {} too; give this one another `name`", spec.name);
            report.error(at, message, None);
        }
    }
}

/// Right, but hardly meant.
fn unused(converted: &Converted, report: &mut Report<'_>) {
    let Converted { config, listener_nodes, pool_nodes, .. } = converted;
    let Config { listeners, routes, .. } = config;
    let mut used: BTreeSet<_> = routes.iter().map(|route| &route.pool).collect();
    for (name, listener) in listeners {
        match &listener.protocol {
            ListenerProtocol::Tcp { pool } | ListenerProtocol::Tls { default: DefaultRoute::Pool(pool) } => {
                used.insert(pool);
            }
            ListenerProtocol::Tls { default: DefaultRoute::Reject } => {
                let reached = !config.providers.is_empty()
                    || routes.iter().any(|route| route.listeners.is_empty() || route.listeners.contains(name));
                if !reached {
                    report.warning(At::Key(listener_nodes[name]), "no route uses this listener: it rejects everything");
                }
            }
        }
    }
    for (name, node) in pool_nodes.iter().filter(|(name, _)| !used.contains(name)) {
        report.warning(At::Key(*node), format!("no route and no listener uses pool {name}"));
    }
}

impl BoundAt {
    /// The kernel would refuse to listen on both. Port 0 is a different port each time.
    fn overlaps(&self, other: &Self) -> bool {
        let same_device = match (&self.device, &other.device) {
            (Some(a), Some(b)) => a == b,
            (None, _) | (_, None) => true,
        };
        same_device && share_a_port(self.address, other.address)
    }
}

/// Whether sockets on both cannot listen at the same time (`IPV6_V6ONLY` is set on ours).
pub(crate) fn share_a_port(a: SocketAddr, b: SocketAddr) -> bool {
    let same_address =
        a.is_ipv4() == b.is_ipv4() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified());
    a.port() != 0 && a.port() == b.port() && same_address
}
