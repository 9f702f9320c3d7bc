//! What each provider said last. Pure: updates and time in, contributions and states out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::merge::Refused;
use super::state::ProviderState;
use crate::config::{Config, ProviderConfig};
use crate::route::{Contribution, News, ProviderName};

#[derive(Debug, Default)]
pub(super) struct Contributions {
    states: BTreeMap<ProviderName, ProviderState>,
    /// Every provider has spoken once since the start.
    complete: bool,
}

/// What an update was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// There is something new to merge.
    Changed,
    /// Only the provider's state is another.
    Noted,
    /// The provider is not in the configuration any more.
    Unknown,
}

impl Contributions {
    /// Keeps those that the file names. One that is gone takes its contribution along.
    pub(super) fn follow(&mut self, file: &Config) {
        self.states.retain(|name, _| file.providers.contains_key(name));
        for (name, ProviderConfig { source, priority, .. }) in &file.providers {
            let (kind, place, priority) = (source.kind(), source.place(), *priority);
            match self.states.get_mut(name) {
                // Another kind under an old name is another provider.
                Some(state) if state.kind == kind => {
                    state.place = place;
                    state.priority = priority;
                }
                Some(_) | None => drop(self.states.insert(name.clone(), new(name, kind, place, priority))),
            }
        }
    }

    pub(super) fn take(&mut self, provider: &ProviderName, news: News, now: SystemTime) -> Taken {
        let Some(state) = self.states.get_mut(provider) else { return Taken::Unknown };
        match news {
            News::Contribution(contribution) => {
                let recovered = state.last_error.take();
                state.failing_since = None;
                state.last_success = Some(now);
                state.from_disk = None;
                if let Some(error) = recovered {
                    tracing::info!(%provider, after = error, "provider answers again");
                }
                state.replace(contribution)
            }
            News::LastGood { contribution, said } => {
                state.from_disk = Some(said);
                state.replace(contribution)
            }
            News::Unchanged => {
                if let Some(error) = state.last_error.take() {
                    tracing::info!(%provider, after = error, "provider answers again");
                }
                state.failing_since = None;
                state.last_success = Some(now);
                Taken::Noted
            }
            News::Failed(error) => {
                state.failures += 1;
                state.failing_since.get_or_insert(now);
                // A provider that fails as before is no news.
                if state.last_error.as_ref() != Some(&error) {
                    let routes = state.contribution.as_ref().map_or(0, |contribution| contribution.len());
                    tracing::warn!(%provider, error, kept = routes, "provider failed; what it said before stays");
                    state.last_error = Some(error);
                }
                Taken::Noted
            }
        }
    }

    pub(super) fn current(&self) -> BTreeMap<ProviderName, Arc<Contribution>> {
        let said = |(name, state): (&ProviderName, &ProviderState)| Some((name.clone(), state.contribution.clone()?));
        self.states.iter().filter_map(said).collect()
    }

    /// Who has not said anything yet. Only of a start: a provider that is added to a node that serves makes it no less
    /// ready.
    pub(super) fn awaited(&mut self) -> Vec<ProviderName> {
        let silent = self.states.values().filter(|state| state.contribution.is_none() && !self.complete);
        let silent: Vec<_> = silent.map(|state| state.name.clone()).collect();
        self.complete |= silent.is_empty();
        silent
    }

    pub(super) fn refused(&mut self, refused: &Refused) {
        for state in self.states.values_mut() {
            let refused = refused.of(&state.name);
            if state.refused != refused
                && let Some(first) = refused.first()
            {
                let (provider, items) = (&state.name, refused.len());
                tracing::warn!(%provider, items, %first, "in conflict with what goes before; `ingress routes` lists all");
            }
            state.refused = refused;
        }
    }

    pub(super) fn states(&self) -> Vec<ProviderState> {
        self.states.values().cloned().collect()
    }
}

impl ProviderState {
    fn replace(&mut self, contribution: Arc<Contribution>) -> Taken {
        if self.contribution.as_ref() == Some(&contribution) {
            return Taken::Noted;
        }
        self.changes += 1;
        if let Some(first) = contribution.unserved_items().first() {
            let (provider, items) = (&self.name, contribution.unserved_items().len());
            tracing::warn!(%provider, items, %first, "not all of it can be served; `ingress routes` lists all");
        }
        self.contribution = Some(contribution);
        Taken::Changed
    }
}

fn new(name: &ProviderName, kind: &'static str, place: String, priority: u32) -> ProviderState {
    ProviderState {
        name: name.clone(),
        kind,
        place,
        priority,
        contribution: None,
        from_disk: None,
        last_success: None,
        last_error: None,
        failing_since: None,
        changes: 0,
        failures: 0,
        refused: Arc::from([]),
    }
}
