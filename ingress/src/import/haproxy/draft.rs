//! Sections that were read -> listeners, routes and pools.
//!
//! HAProxy takes the first rule that holds; here an exact name goes before a wildcard, wherever they stand. So a name that an
//! earlier suffix covers is given to that suffix's backend, as it was.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Draft, Listener, Route};
use super::bind::distinct;
use super::check;
use super::proxy::{Kind, Proxy, Rule, Settings};
use super::words::At;
use crate::config::PoolConfig;
use crate::route::SniPattern;

type Notes = Vec<(At, String)>;

/// Backends by name, and what became of those that something leads to.
struct Pools<'a> {
    sections: BTreeMap<&'a str, &'a Proxy>,
    made: BTreeMap<&'a str, Result<(), String>>,
    list: Vec<(String, PoolConfig)>,
}

pub(super) fn assemble(proxies: &[Proxy], notes: &mut Notes) -> Draft {
    let mut draft = Draft::default();
    let mut pools = Pools { sections: BTreeMap::new(), made: BTreeMap::new(), list: Vec::new() };
    for proxy in proxies {
        if matches!(proxy.kind, Kind::Backend | Kind::Listen) {
            pools.sections.entry(&proxy.name).or_insert(proxy);
        }
    }
    let mut names = BTreeSet::new();
    for proxy in proxies.iter().filter(|proxy| proxy.kind != Kind::Backend) {
        match carried_over(proxy) {
            Ok(()) if !names.insert(&proxy.name) => {
                notes.push((proxy.at, format!("{}: another section of this name stands before it", proxy.name)));
            }
            Ok(()) => frontend(proxy, &mut pools, &mut draft, notes),
            Err(why) => notes.push((proxy.at, format!("{}: {why}", proxy.name))),
        }
    }
    for proxy in proxies.iter().filter(|proxy| proxy.kind == Kind::Backend) {
        if !pools.made.contains_key(proxy.name.as_str()) {
            let why =
                carried_over(proxy).err().unwrap_or_else(|| "nothing that was carried over leads there".to_owned());
            notes.push((proxy.at, format!("{}: {why}", proxy.name)));
        }
    }
    draft.pools = pools.list;
    // One listener for names needs no mention in its routes.
    if draft.listeners.iter().filter(|listener| listener.pool.is_none()).count() < 2 {
        draft.routes.iter_mut().for_each(|route| route.listeners.clear());
    }
    draft
}

/// Whether a section is for us at all.
fn carried_over(proxy: &Proxy) -> Result<(), String> {
    match &proxy.settings {
        Settings { other_mode: Some(mode), .. } if mode == "http" => {
            Err("mode http needs HTTP: requests are not read".to_owned())
        }
        Settings { other_mode: Some(mode), .. } => Err(format!("mode {mode}: only mode tcp is carried over")),
        Settings { disabled: true, .. } => Err("it is disabled".to_owned()),
        _ => Ok(()),
    }
}

fn frontend<'a>(proxy: &'a Proxy, pools: &mut Pools<'a>, draft: &mut Draft, notes: &mut Notes) {
    notes.extend(proxy.notes.iter().cloned());
    let device = proxy.binds.first().and_then(|bind| bind.device.clone());
    let (here, elsewhere): (Vec<_>, Vec<_>) = proxy.binds.iter().partition(|bind| bind.device == device);
    let binds = distinct(here.into_iter().flat_map(|bind| bind.addresses.clone()).collect());
    for bind in elsewhere {
        let addresses = bind.addresses.join(", ");
        notes.push((proxy.at, format!("bind {addresses}: a listener has one device; write another for it")));
    }
    if binds.is_empty() {
        return notes.push((proxy.at, format!("{}: there is no address on which it could listen", proxy.name)));
    }
    let (mut names, mut default) = (Names::default(), None);
    for Rule { at, backend, taken } in &proxy.rules {
        if let Some(line) = default.as_ref().map(|(line, _): &(At, &str)| line.line) {
            notes.push((*at, format!("use_backend {backend}: line {line} takes everything before it")));
            continue;
        }
        let found = pools.find(backend, notes);
        if let Err(why) = &found {
            notes.push((*at, format!("use_backend {backend}: {why}")));
        }
        // A rule that is left out still takes its names away from those behind it.
        let pool = found.is_ok().then_some(backend.as_str());
        taken.names.iter().for_each(|name| names.add(*at, name, pool, notes));
        if taken.tls && !taken.all {
            notes.push((*at, format!("use_backend {backend}: what is not TLS is not served beside it")));
        }
        if taken.tls || taken.all {
            default = Some((*at, backend));
        }
    }
    let own = (proxy.kind == Kind::Listen && !proxy.servers.is_empty()).then_some((proxy.at, proxy.name.as_str()));
    let last = proxy.settings.default_backend.as_ref().map(|(at, name)| (*at, name.as_str())).or(own);
    match (&default, last) {
        (Some((line, _)), Some((at, name))) if proxy.settings.default_backend.is_some() => {
            notes.push((at, format!("default_backend {name}: line {} takes everything before it", line.line)));
        }
        (Some(_), _) => {}
        (None, last) => default = last,
    }
    let default = default.and_then(|(at, name)| match pools.find(name, notes) {
        Ok(()) => Some(name.to_owned()),
        Err(why) => {
            notes.push((at, format!("{name}: {why}")));
            None
        }
    });
    let by_name = proxy.by_name || !names.routes.is_empty();
    if names.routes.is_empty() && default.is_none() {
        return notes.push((proxy.at, format!("{}: it leads to no pool", proxy.name)));
    }
    let Settings { client, server, tunnel, inspect_delay, max_connections, .. } = &proxy.settings;
    let idle_timeout = tunnel.or(*client);
    if let (None, Some((at, server)), Some(client)) = (tunnel, server, client)
        && server != client
    {
        notes.push((*at, "timeout server: a connection has one idle_timeout, that of timeout client".to_owned()));
    }
    for (sni, pool) in names.routes {
        let listeners = vec![proxy.name.clone()];
        draft.routes.push(Route { sni, pool, listeners });
    }
    draft.listeners.push(Listener {
        name: proxy.name.clone(),
        bind: binds,
        device,
        pool: default.clone().filter(|_| !by_name),
        default: default.filter(|_| by_name),
        hello_timeout: inspect_delay.filter(|_| by_name),
        idle_timeout,
        max_connections: max_connections.filter(|most| *most > 0),
    });
}

impl<'a> Pools<'a> {
    /// Whether there is a pool of this name; it is made when it is first asked for.
    fn find(&mut self, name: &str, notes: &mut Notes) -> Result<(), String> {
        let Some((&name, &proxy)) = self.sections.get_key_value(name) else {
            return Err("there is no such backend".to_owned());
        };
        if let Some(made) = self.made.get(name) {
            return made.clone();
        }
        // Of a `listen` section they are told with its frontend.
        if proxy.kind == Kind::Backend {
            notes.extend(proxy.notes.iter().cloned());
        }
        let made = carried_over(proxy).and_then(|()| {
            let pool = check::pool(proxy, &mut |at, why| notes.push((at, why)));
            let pool = pool.ok_or("none of its servers could be carried over")?;
            self.list.push((name.to_owned(), pool));
            Ok(())
        });
        self.made.insert(name, made.clone());
        made
    }
}

/// The names of one frontend, in the order of its rules.
#[derive(Default)]
struct Names<'a> {
    /// Names that follow one another to the same pool.
    routes: Vec<(Vec<String>, String)>,
    /// Who has a name: the first rule. Without a pool: one that was left out.
    exact: BTreeMap<&'a str, At>,
    suffixes: BTreeMap<&'a str, (At, Option<&'a str>)>,
}

impl<'a> Names<'a> {
    fn add(&mut self, at: At, pattern: &'a SniPattern, pool: Option<&'a str>, notes: &mut Notes) {
        let (name, is_wildcard) = match pattern {
            SniPattern::Exact(name) => (name.as_str(), false),
            SniPattern::Wildcard(suffix) => (suffix.as_str(), true),
        };
        let mut elsewhere = |first: At| {
            if first != at {
                notes.push((at, format!("{pattern} goes where line {} sends it, which stands first", first.line)));
            }
        };
        let first = match is_wildcard {
            true => self.suffixes.get(name).map(|(first, _)| *first),
            false => self.exact.get(name).copied(),
        };
        if let Some(first) = first {
            return elsewhere(first);
        }
        let (labels, owner) = match self.covered(name, is_wildcard) {
            Some((labels, first, owner)) => {
                if owner != pool {
                    elsewhere(first);
                }
                (labels, owner)
            }
            None => (0, pool),
        };
        match is_wildcard {
            true => drop(self.suffixes.insert(name, (at, owner))),
            false => drop(self.exact.insert(name, at)),
        }
        // One label below a suffix, its wildcard has the name already.
        if labels != 1 {
            self.route(pattern, owner);
        }
    }

    /// The suffix before it that takes all of it: how many labels it is above, where it stands, and its pool. The nearest
    /// is the first, because one that an earlier suffix covers has that one's pool.
    fn covered(&self, name: &str, is_wildcard: bool) -> Option<(usize, At, Option<&'a str>)> {
        let (mut rest, mut labels) = (name, usize::from(is_wildcard));
        while let Some((_, parent)) = rest.split_once('.') {
            labels += 1;
            if let Some((first, owner)) = self.suffixes.get(parent) {
                return Some((labels, *first, *owner));
            }
            rest = parent;
        }
        None
    }

    fn route(&mut self, pattern: &SniPattern, pool: Option<&str>) {
        let Some(pool) = pool else { return };
        match self.routes.last_mut() {
            Some((names, last)) if last == pool => names.push(pattern.to_string()),
            _ => self.routes.push((vec![pattern.to_string()], pool.to_owned())),
        }
    }
}
