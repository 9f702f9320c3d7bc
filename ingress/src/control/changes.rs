//! What would change: two configurations side by side. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::compile;
use super::merge::merge;
use super::state::{Change, Changes, ProviderState};
use crate::config::{self, Config, ListenerConfig, PoolConfig};
use crate::route::{Contribution, RouteSpec};
use crate::snapshot::Snapshot;

/// What a reload of `file` would change, or what `said` would instead of its provider's last word. Changes nothing.
///
/// # Errors
/// The file's problems, as `ingress check` prints them.
pub fn preview(
    file: &Path,
    current: &Snapshot,
    providers: &[ProviderState],
    said: Option<Contribution>,
) -> Result<Changes, String> {
    let config::Loaded { config: file, warnings, .. } = config::load(file).map_err(|error| error.to_string())?;
    let last_words = providers.iter().filter_map(|state| Some((state.name.clone(), state.contribution.clone()?)));
    let mut contributions: BTreeMap<_, _> = last_words.filter(|(name, _)| file.providers.contains_key(name)).collect();
    let mut asked = Vec::new();
    if let Some(said) = said {
        asked.extend(said.unserved_items().iter().map(ToString::to_string));
        contributions.insert(said.provider().clone(), Arc::new(said));
    }
    let mut merged = merge(&file, &contributions);
    let after = compile(merged.config, Some(current));
    merged.refused.names(after.routes.conflicts());
    for name in contributions.keys() {
        asked.extend(merged.refused.of(name).iter().map(ToString::to_string));
    }
    let mut changes = between(&current.config, &after.config);
    changes.unserved = asked;
    changes.warnings = warnings.iter().map(ToString::to_string).collect();
    Ok(changes)
}

fn between(before: &Config, after: &Config) -> Changes {
    let mut list = Vec::new();
    let by_name = |routes: &[Arc<RouteSpec>]| -> BTreeMap<String, Arc<RouteSpec>> {
        routes.iter().map(|route| (route.name.to_string(), Arc::clone(route))).collect()
    };
    compare("route", &by_name(&before.routes), &by_name(&after.routes), |route| describe_route(route), &mut list);
    compare("listener", &before.listeners, &after.listeners, describe_listener, &mut list);
    compare("pool", &before.pools, &after.pools, |pool| describe_pool(pool), &mut list);
    let Config {
        listeners: _,
        routes: _,
        pools: _,
        providers,
        peers,
        ddns,
        etcd,
        hooks,
        limits,
        admin,
        kernel,
        interfaces,
        admission,
        log,
        state_dir,
    } = after;
    let others = [
        ("providers", *providers != before.providers),
        ("peers", *peers != before.peers),
        ("ddns", *ddns != before.ddns),
        ("etcd", *etcd != before.etcd),
        ("hooks", *hooks != before.hooks),
        ("limits", *limits != before.limits),
        ("admin", *admin != before.admin),
        ("kernel", *kernel != before.kernel),
        ("interfaces", *interfaces != before.interfaces),
        ("admission", *admission != before.admission),
        ("log", *log != before.log),
        ("state_dir", *state_dir != before.state_dir),
    ];
    for (section, _) in others.into_iter().filter(|(_, differs)| *differs) {
        list.push(Change { what: section.to_owned(), name: String::new(), before: None, after: None });
    }
    Changes { changes: list, unserved: Vec::new(), warnings: Vec::new() }
}

fn compare<K: Ord + ToString, V: PartialEq>(
    what: &str,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    describe: impl Fn(&V) -> String,
    list: &mut Vec<Change>,
) {
    for name in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let (old, new) = (before.get(name), after.get(name));
        if old != new {
            let (before, after) = (old.map(&describe), new.map(&describe));
            list.push(Change { what: what.to_owned(), name: name.to_string(), before, after });
        }
    }
}

fn describe_route(route: &RouteSpec) -> String {
    let sni: Vec<String> = route.sni.iter().map(ToString::to_string).collect();
    let on: Vec<&str> = route.listeners.iter().map(|listener| listener.as_str()).collect();
    let on = if on.is_empty() { String::new() } else { format!(" on {}", on.join(" ")) };
    format!("{} -> {}{on}", sni.join(" "), route.pool)
}

fn describe_listener(listener: &ListenerConfig) -> String {
    let bind: Vec<String> = listener.bind.iter().map(ToString::to_string).collect();
    bind.join(" ")
}

fn describe_pool(pool: &PoolConfig) -> String {
    let names = |list: &[config::BackendConfig]| {
        let words = list.iter().map(|backend| match backend.weight {
            1 => backend.name.clone(),
            weight => format!("{} (weight {weight})", backend.name),
        });
        if list.is_empty() { "none".to_owned() } else { words.collect::<Vec<_>>().join(" ") }
    };
    let fallback = if pool.fallback.is_empty() { String::new() } else { format!(", then {}", names(&pool.fallback)) };
    format!("{}{fallback}", names(&pool.backends))
}
