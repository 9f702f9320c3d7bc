//! What happened that somebody may want to be told: plain data, a filter, and the channel that carries it.
//!
//! Whoever notices something calls [`Events::emit`] and goes on: nobody waits for those who listen, and with nobody listening
//! nothing is kept. [`Message`] is what becomes of events on their way to people and programs.

mod message;
mod template;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use tokio::sync::broadcast;

use crate::route::{PoolName, ProviderName, RouteName};

pub use message::{LISTED, Message};
pub use template::{Template, TemplateError};

/// Something of one kind, to one or many.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub at: SystemTime,
    pub kind: EventKind,
    /// Of the same kind of thing, at least one.
    pub items: Arc<[Item]>,
}

/// The words of the configuration, of messages, logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    // Its checks failed, `fall` times in a row, or at the first check after a start.
    BackendDown,
    // It was down, and its checks are good again, `rise` times in a row.
    BackendUp,
    RouteAdded,
    RouteRemoved,
    // Its source has not given a good answer for `stale_after`.
    ProviderStale,
    // It was stale, and answers again.
    ProviderRecovered,
    ConfigRefused,
    ConfigAccepted,
    DaemonStarted,
    DaemonStopping,
    // An operator tries a hook. No filter keeps it out, and nothing else emits it.
    #[serde(skip_deserializing)]
    Test,
}

/// What it happened to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Item {
    Backend {
        #[serde(serialize_with = "text")]
        pool: PoolName,
        backend: String,
        /// As configured.
        address: String,
        /// Of the last check.
        error: Option<String>,
    },
    Route {
        #[serde(serialize_with = "text")]
        route: RouteName,
    },
    Provider {
        #[serde(serialize_with = "text")]
        provider: ProviderName,
        /// Of the last attempt.
        error: Option<String>,
    },
    Config {
        path: PathBuf,
        /// In use.
        generation: u64,
        /// What is wrong with the file, a line each.
        problems: Option<String>,
    },
    Daemon {
        version: &'static str,
    },
}

/// What somebody wants to hear of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Empty: all.
    pub kinds: Vec<EventKind>,
    /// Of backends: only those of these pools. Empty: of all.
    pub pools: Vec<glob::Pattern>,
    /// Only these routes. Empty: all.
    pub routes: Vec<glob::Pattern>,
}

/// The way to everybody who listens. Clones lead to the same.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<Arc<Event>>);

impl Events {
    pub fn new() -> Self {
        Self(broadcast::Sender::new(CAPACITY))
    }

    /// Never waits. A listener that is too slow loses the oldest, and learns how many.
    pub fn emit(&self, kind: EventKind, items: impl Into<Arc<[Item]>>) {
        let event = Event { at: SystemTime::now(), kind, items: items.into() };
        // Refused only if nobody listens.
        let _ = self.0.send(Arc::new(event));
    }

    /// All that is emitted from now on.
    pub fn listen(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.subscribe()
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl EventKind {
    pub const ALL: [Self; 11] = [
        Self::BackendDown,
        Self::BackendUp,
        Self::RouteAdded,
        Self::RouteRemoved,
        Self::ProviderStale,
        Self::ProviderRecovered,
        Self::ConfigRefused,
        Self::ConfigAccepted,
        Self::DaemonStarted,
        Self::DaemonStopping,
        Self::Test,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BackendDown => "backend_down",
            Self::BackendUp => "backend_up",
            Self::RouteAdded => "route_added",
            Self::RouteRemoved => "route_removed",
            Self::ProviderStale => "provider_stale",
            Self::ProviderRecovered => "provider_recovered",
            Self::ConfigRefused => "config_refused",
            Self::ConfigAccepted => "config_accepted",
            Self::DaemonStarted => "daemon_started",
            Self::DaemonStopping => "daemon_stopping",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl EventFilter {
    pub fn wants(&self, kind: EventKind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind) || kind == EventKind::Test
    }

    /// The part of it that is wanted. `None`: nothing of it.
    pub fn apply(&self, event: &Arc<Event>) -> Option<Arc<Event>> {
        if !self.wants(event.kind) {
            return None;
        }
        if event.items.iter().all(|item| self.admits(item)) {
            return Some(Arc::clone(event));
        }
        let items: Arc<[Item]> = event.items.iter().filter(|item| self.admits(item)).cloned().collect();
        (!items.is_empty()).then(|| Arc::new(Event { items, ..Event::clone(event) }))
    }

    fn admits(&self, item: &Item) -> bool {
        let among = |patterns: &[glob::Pattern], name: &str| {
            patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name))
        };
        match item {
            Item::Backend { pool, .. } => among(&self.pools, pool.as_str()),
            Item::Route { route } => among(&self.routes, route.as_str()),
            Item::Provider { .. } | Item::Config { .. } | Item::Daemon { .. } => true,
        }
    }
}

fn text<S: Serializer>(name: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

/// Events that may wait for the slowest listener; each is a pointer.
const CAPACITY: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(pools: &[&str]) -> Arc<Event> {
        let item = |pool: &&str| Item::Backend {
            pool: PoolName::new(*pool),
            backend: "a".into(),
            address: "192.0.2.7:443".into(),
            error: None,
        };
        let items = pools.iter().map(item).collect();
        Arc::new(Event { at: SystemTime::UNIX_EPOCH, kind: EventKind::BackendDown, items })
    }

    fn pattern(text: &str) -> glob::Pattern {
        glob::Pattern::new(text).expect("a pattern")
    }

    #[test]
    fn the_word_of_a_kind_is_the_one_of_the_configuration() {
        for kind in EventKind::ALL {
            assert_eq!(serde_json::to_value(kind).expect("a word"), kind.as_str());
        }
    }

    #[test]
    fn a_filter_takes_its_part_of_an_event_and_nothing_of_others() {
        let filter = EventFilter {
            kinds: vec![EventKind::BackendDown],
            pools: vec![pattern("web"), pattern("*@platform")],
            routes: vec![pattern("none")],
        };
        let mixed = filter.apply(&backends(&["web", "db", "app@platform"])).expect("a part");
        assert_eq!(mixed.items, backends(&["web", "app@platform"]).items);
        assert_eq!(filter.apply(&backends(&["db"])), None);
        let up = Event { kind: EventKind::BackendUp, ..Event::clone(&backends(&["web"])) };
        assert_eq!(filter.apply(&Arc::new(up)), None, "another kind");
        assert!(filter.wants(EventKind::Test), "whoever tries a hook hears it");
        let all = EventFilter::default();
        assert_eq!(all.apply(&backends(&["db"])), Some(backends(&["db"])));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_listener_that_sleeps() {
        let events = Events::new();
        let mut asleep = events.listen();
        for _ in 0..CAPACITY + 5 {
            events.emit(EventKind::DaemonStarted, [Item::Daemon { version: "1" }]);
        }
        assert_eq!(asleep.recv().await, Err(broadcast::error::RecvError::Lagged(5)));
        assert!(asleep.recv().await.is_ok(), "the rest is there");
    }
}
