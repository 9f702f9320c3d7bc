//! Events that follow from what control publishes: routes, providers, configuration. Control knows nothing of it.
//!
//! What is looked at is the state, from time to time: what was undone in between did not happen, and ten thousand
//! registrations in a second are one event.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::control::state::{ConfigState, ProviderState};
use crate::events::{EventKind, Events, Item};
use crate::route::{ProviderName, RouteName};
use crate::snapshot::Snapshot;

/// What control publishes.
#[derive(Debug)]
pub struct Published {
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub config: watch::Receiver<ConfigState>,
    pub providers: watch::Receiver<Arc<Vec<ProviderState>>>,
}

/// Runs until `stop`, or until nobody publishes any more.
pub async fn observe(published: Published, events: Events, stop: CancellationToken) {
    let Published { mut snapshots, mut config, mut providers } = published;
    let mut observer = Observer::default();
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let state = config.borrow_and_update().clone();
        let said = Arc::clone(&providers.borrow_and_update());
        for (kind, items) in observer.look(&snapshot, &state, &said, SystemTime::now()) {
            events.emit(kind, items);
        }
        let next = observer.next(&snapshot.config, &said, SystemTime::now());
        drop((snapshot, said));
        let changed = async {
            tokio::select! {
                changed = snapshots.changed() => changed.is_ok(),
                changed = config.changed() => changed.is_ok(),
                changed = providers.changed() => changed.is_ok(),
                () = sleep(next) => true,
            }
        };
        match stop.run_until_cancelled(changed).await {
            Some(true) => {}
            Some(false) | None => return,
        }
        // What comes together is looked at together.
        if stop.run_until_cancelled(tokio::time::sleep(SETTLE)).await.is_none() {
            return;
        }
    }
}

/// What was seen last.
#[derive(Debug, Default)]
struct Observer {
    /// `None`: providers have not all spoken yet; what they bring at a start is not new.
    routes: Option<Arc<Config>>,
    config: Option<ConfigState>,
    /// Who is stale, and since when it fails.
    stale: BTreeMap<ProviderName, SystemTime>,
}

type Found = Vec<(EventKind, Vec<Item>)>;

impl Observer {
    fn look(
        &mut self,
        snapshot: &Snapshot,
        config: &ConfigState,
        providers: &[ProviderState],
        now: SystemTime,
    ) -> Found {
        let mut found = Found::new();
        self.config(config, snapshot, &mut found);
        self.providers(&snapshot.config, providers, now, &mut found);
        self.routes(snapshot, &mut found);
        found
    }

    fn config(&mut self, state: &ConfigState, snapshot: &Snapshot, found: &mut Found) {
        let before = self.config.replace(state.clone());
        let item = |problems: Option<String>| {
            let (path, generation) = (state.path.clone(), snapshot.generation.0);
            vec![Item::Config { path, generation, problems }]
        };
        let was = before.as_ref().map(|before| (&before.last_error, &before.text));
        match (&state.last_error, was) {
            (Some(problems), was) if was.is_none_or(|(error, _)| error.as_ref() != Some(problems)) => {
                let problems = problems.chars().take(LONGEST).collect();
                found.push((EventKind::ConfigRefused, item(Some(problems))));
            }
            // A start with a good file is told by the start.
            (None, Some((error, text))) if error.is_some() || *text != state.text => {
                found.push((EventKind::ConfigAccepted, item(None)));
            }
            (Some(_) | None, _) => {}
        }
    }

    fn providers(&mut self, config: &Config, states: &[ProviderState], now: SystemTime, found: &mut Found) {
        let item = |state: &ProviderState| {
            let error = state.last_error.as_ref().map(|error| error.chars().take(LONGEST).collect());
            Item::Provider { provider: state.name.clone(), error }
        };
        let (mut stale, mut recovered) = (Vec::new(), Vec::new());
        for state in states {
            match state.failing_since {
                Some(since) if is_due(config, &state.name, since, now) => {
                    if self.stale.insert(state.name.clone(), since).is_none() {
                        stale.push(item(state));
                    }
                }
                Some(_) => {}
                None => {
                    if self.stale.remove(&state.name).is_some() {
                        recovered.push(item(state));
                    }
                }
            }
        }
        // One that was taken out of the configuration has not recovered.
        self.stale.retain(|name, _| states.iter().any(|state| state.name == *name));
        let kinds = [(EventKind::ProviderStale, stale), (EventKind::ProviderRecovered, recovered)];
        found.extend(kinds.into_iter().filter(|(_, items)| !items.is_empty()));
    }

    fn routes(&mut self, snapshot: &Snapshot, found: &mut Found) {
        let Some(before) = self.routes.replace(Arc::clone(&snapshot.config)) else {
            if !snapshot.awaited.is_empty() {
                self.routes = None;
            }
            return;
        };
        let wants = |kind| snapshot.config.hooks.values().any(|hook| hook.filter.wants(kind));
        let is_wanted = wants(EventKind::RouteAdded) || wants(EventKind::RouteRemoved);
        if !is_wanted || Arc::ptr_eq(&before, &snapshot.config) {
            return;
        }
        let missing = |these: &Config, those: &Config| -> Vec<Item> {
            let known: HashSet<&RouteName> = those.routes.iter().map(|route| &route.name).collect();
            let names = these.routes.iter().map(|route| &route.name).filter(|name| !known.contains(name));
            names.map(|route| Item::Route { route: route.clone() }).collect()
        };
        let kinds = [
            (EventKind::RouteRemoved, missing(&before, &snapshot.config)),
            (EventKind::RouteAdded, missing(&snapshot.config, &before)),
        ];
        found.extend(kinds.into_iter().filter(|(_, items)| !items.is_empty()));
    }

    /// How long until a provider that fails will be stale, if nothing else happens.
    fn next(&self, config: &Config, states: &[ProviderState], now: SystemTime) -> Option<Duration> {
        let failing = states.iter().filter(|state| !self.stale.contains_key(&state.name));
        let due = failing.filter_map(|state| state.failing_since?.checked_add(stale_after(config, &state.name)));
        due.map(|at| at.duration_since(now).unwrap_or_default()).min()
    }
}

fn is_due(config: &Config, provider: &ProviderName, since: SystemTime, now: SystemTime) -> bool {
    now.duration_since(since).is_ok_and(|failing| failing >= stale_after(config, provider))
}

fn stale_after(config: &Config, provider: &ProviderName) -> Duration {
    // One that is about to go is not told of.
    config.providers.get(provider).map_or(Duration::MAX, |provider| provider.stale_after)
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Between two looks, at least.
const SETTLE: Duration = Duration::from_millis(500);
/// Characters of a file's problems, or of an error.
const LONGEST: usize = 4096;

#[cfg(test)]
mod tests;
