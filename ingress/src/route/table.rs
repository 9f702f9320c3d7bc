//! Compiles route specs into a lookup table. Pure: the daemon, `ingress check` and tests run the same code.

use std::borrow::Borrow;
use std::collections::HashMap;

use super::{ListenerName, PoolName, RouteName, RouteSpec, Sni, SniPattern};

/// SNI -> route, per listener. Lookups cost two hash probes, whatever the number of routes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteTable {
    exact: HashMap<Sni, Vec<Target>>,
    wildcard: HashMap<Sni, Vec<Target>>,
    conflicts: Vec<Conflict>,
}

/// Where a matched connection goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub route: RouteName,
    pub pool: PoolName,
    listeners: Vec<ListenerName>,
}

/// Two routes claim the same name on the same listener; the first keeps it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{pattern} is claimed by route {first} and again by route {second}")]
pub struct Conflict {
    pub pattern: SniPattern,
    pub first: RouteName,
    pub second: RouteName,
}

impl RouteTable {
    /// Earlier specs win; every loser is named by [`conflicts`](Self::conflicts). Linear in the number of specs.
    pub fn compile(specs: &[impl Borrow<RouteSpec>]) -> Self {
        let exact = HashMap::with_capacity(specs.len());
        let mut table = Self { exact, ..Self::default() };
        for spec in specs {
            let spec: &RouteSpec = spec.borrow();
            for pattern in &spec.sni {
                let (map, key) = match pattern {
                    SniPattern::Exact(sni) => (&mut table.exact, sni),
                    SniPattern::Wildcard(suffix) => (&mut table.wildcard, suffix),
                };
                let targets = map.entry(key.clone()).or_default();
                if let Some(first) = targets.iter().find(|t| t.overlaps(&spec.listeners)) {
                    table.conflicts.push(Conflict {
                        pattern: pattern.clone(),
                        first: first.route.clone(),
                        second: spec.name.clone(),
                    });
                    continue;
                }
                targets.push(Target {
                    route: spec.name.clone(),
                    pool: spec.pool.clone(),
                    listeners: spec.listeners.clone(),
                });
            }
        }
        table
    }

    /// Whoever claimed a name that was taken.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// The exact name first, then the wildcard one label up.
    pub fn by_sni(&self, listener: &ListenerName, sni: &Sni) -> Option<&Target> {
        let on_listener = |targets: &'_ Vec<Target>| targets.iter().position(|t| t.serves(listener));
        if let Some(targets) = self.exact.get(sni)
            && let Some(at) = on_listener(targets)
        {
            return targets.get(at);
        }
        let (_, parent) = sni.as_str().split_once('.')?;
        let targets = self.wildcard.get(parent)?;
        targets.get(on_listener(targets)?)
    }

    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty()
    }
}

impl Target {
    fn serves(&self, listener: &ListenerName) -> bool {
        self.listeners.is_empty() || self.listeners.contains(listener)
    }

    fn overlaps(&self, listeners: &[ListenerName]) -> bool {
        self.listeners.is_empty() || listeners.is_empty() || listeners.iter().any(|l| self.listeners.contains(l))
    }
}

impl std::borrow::Borrow<str> for Sni {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::OnRemove;

    fn table(specs: &[(&str, &[&str])]) -> RouteTable {
        let specs: Vec<RouteSpec> = specs
            .iter()
            .map(|(name, patterns)| RouteSpec {
                name: RouteName::new(*name),
                sni: patterns.iter().map(|p| SniPattern::parse(p).expect("test pattern")).collect(),
                pool: PoolName::new(*name),
                listeners: vec![],
                priority: 0,
                on_remove: OnRemove::L4,
            })
            .collect();
        RouteTable::compile(&specs)
    }

    fn lookup<'a>(table: &'a RouteTable, sni: &str) -> Option<&'a str> {
        let sni = Sni::parse(sni).expect("test name");
        table.by_sni(&ListenerName::new("tls"), &sni).map(|t| t.route.as_str())
    }

    #[test]
    fn exact_name_wins_over_wildcard() {
        let t = table(&[("wild", &["*.example.com"]), ("app", &["app.example.com"])]);
        assert_eq!(lookup(&t, "app.example.com"), Some("app"));
        assert_eq!(lookup(&t, "other.example.com"), Some("wild"));
    }

    #[test]
    fn wildcard_matches_exactly_one_label() {
        let t = table(&[("wild", &["*.example.com"])]);
        assert_eq!(lookup(&t, "example.com"), None);
        assert_eq!(lookup(&t, "a.b.example.com"), None);
    }

    #[test]
    fn longest_wildcard_wins() {
        let t = table(&[("short", &["*.example.com"]), ("long", &["*.eu.example.com"])]);
        assert_eq!(lookup(&t, "a.eu.example.com"), Some("long"));
        assert_eq!(lookup(&t, "eu.example.com"), Some("short"));
    }
}
