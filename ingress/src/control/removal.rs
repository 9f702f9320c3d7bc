//! Routes that are there no more, and when their connections have to end. Pure: routes and time in, names out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use crate::route::{OnRemove, RouteName, RouteSpec};

/// Whose connections have to end later.
#[derive(Debug, Default)]
pub(super) struct Removals(BTreeMap<RouteName, Instant>);

impl Removals {
    /// The routes whose connections have to end now. One that returns before its time is up is forgiven.
    pub(super) fn changed(
        &mut self,
        before: &[Arc<RouteSpec>],
        after: &[Arc<RouteSpec>],
        now: Instant,
    ) -> Vec<RouteName> {
        let is_bounded = |route: &&Arc<RouteSpec>| route.on_remove != OnRemove::Drain(None);
        let bounded: Vec<_> = before.iter().filter(is_bounded).collect();
        if bounded.is_empty() && self.0.is_empty() {
            return Vec::new();
        }
        let present: BTreeSet<&RouteName> = after.iter().map(|route| &route.name).collect();
        self.0.retain(|name, _| !present.contains(name));
        let mut cut = Vec::new();
        for route in bounded.into_iter().filter(|route| !present.contains(&route.name)) {
            match route.on_remove {
                OnRemove::Cut => cut.push(route.name.clone()),
                OnRemove::Drain(time) => {
                    if let Some(at) = time.and_then(|time| now.checked_add(time)) {
                        self.0.entry(route.name.clone()).or_insert(at);
                    }
                }
            }
        }
        cut
    }

    /// When [`due`](Self::due) has something to say.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }

    /// Those whose time is up.
    pub(super) fn due(&mut self, now: Instant) -> Vec<RouteName> {
        self.0.extract_if(.., |_, at| *at <= now).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::route::PoolName;

    fn routes(list: &[(&str, OnRemove)]) -> Vec<Arc<RouteSpec>> {
        let route = |(name, on_remove): &(&str, OnRemove)| RouteSpec {
            name: RouteName::new(*name),
            sni: Vec::new(),
            pool: PoolName::new("app"),
            listeners: Vec::new(),
            priority: 0,
            on_remove: *on_remove,
        };
        list.iter().map(route).map(Arc::new).collect()
    }

    const MINUTE: OnRemove = OnRemove::Drain(Some(Duration::from_secs(60)));

    #[test]
    fn a_removed_route_ends_as_it_says() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        let all =
            routes(&[("cut", OnRemove::Cut), ("minute", MINUTE), ("free", OnRemove::L4), ("stays", OnRemove::Cut)]);
        let left = routes(&[("stays", OnRemove::Cut)]);
        assert_eq!(removals.changed(&all, &left, now), [RouteName::new("cut")]);
        let at = removals.next().expect("the drain has an end");
        assert_eq!(at, now + Duration::from_secs(60));
        assert!(removals.due(now + Duration::from_secs(59)).is_empty());
        assert_eq!(removals.due(at), [RouteName::new("minute")]);
        assert_eq!(removals.next(), None);
    }

    #[test]
    fn a_route_that_returns_in_time_keeps_its_connections_and_a_reload_does_not_prolong_a_drain() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        let all = routes(&[("a", MINUTE), ("b", MINUTE)]);
        assert!(removals.changed(&all, &[], now).is_empty());
        let later = now + Duration::from_secs(30);
        assert!(removals.changed(&[], &routes(&[("b", MINUTE)]), later).is_empty());
        assert_eq!(removals.next(), Some(now + Duration::from_secs(60)));
        assert_eq!(removals.due(now + Duration::from_secs(60)), [RouteName::new("a")]);
    }
}
