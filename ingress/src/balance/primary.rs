//! The one backend of a pool that takes connections, where a pool follows a primary.
//!
//! Written by the pool's health task only; read at each pick. Shared by all snapshots of the pool, so that an old snapshot
//! never has another primary than the new one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Backend;

/// Nobody, until the checks have found out.
#[derive(Debug)]
pub struct Primary {
    followed: ArcSwapOption<Backend>,
    changes: AtomicU64,
    notes: Mutex<Notes>,
}

#[derive(Debug)]
struct Notes {
    /// When the followed backend, or nobody, became so.
    since: Instant,
    outlook: Outlook,
    deposed: BTreeSet<String>,
}

/// What the checks see beside the primary itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// Others that say that they are the primary.
    pub rivals: Vec<String>,
    pub sentinels: Option<SentinelsView>,
    /// Why nobody is followed, or what somebody should look at.
    pub problem: Option<String>,
}

/// What operators see of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrimaryView {
    /// `None`: nobody takes connections.
    pub backend: Option<String>,
    /// Seconds.
    pub since: f64,
    pub changes_total: u64,
    pub rivals: Vec<String>,
    pub sentinels: Option<SentinelsView>,
    pub problem: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentinelsView {
    pub asked: usize,
    pub answered: usize,
    /// Those who name the server that most name.
    pub agreed: usize,
}

impl Default for Primary {
    fn default() -> Self {
        let notes = Notes { since: Instant::now(), outlook: Outlook::default(), deposed: BTreeSet::new() };
        Self { followed: ArcSwapOption::empty(), changes: AtomicU64::new(0), notes: Mutex::new(notes) }
    }
}

impl Primary {
    pub fn followed(&self) -> Option<Arc<Backend>> {
        self.followed.load_full()
    }

    pub fn is(&self, backend: &Arc<Backend>) -> bool {
        self.followed.load().as_ref().is_some_and(|followed| Arc::ptr_eq(followed, backend))
    }

    /// From now on this one takes connections, or nobody does.
    pub fn follow(&self, backend: Option<Arc<Backend>>, now: Instant) {
        if backend.is_some() {
            self.changes.fetch_add(1, Relaxed);
        }
        self.notes.lock().since = now;
        self.followed.store(backend);
    }

    pub fn tell(&self, outlook: Outlook) {
        self.notes.lock().outlook = outlook;
    }

    /// Backends that are not believed until they were replicas: kept over reloads.
    pub fn deposed(&self) -> BTreeSet<String> {
        self.notes.lock().deposed.clone()
    }

    pub fn depose(&self, names: BTreeSet<String>) {
        self.notes.lock().deposed = names;
    }

    pub(super) fn view(&self, now: Instant) -> PrimaryView {
        let Notes { since, outlook: Outlook { rivals, sentinels, problem }, deposed: _ } = &*self.notes.lock();
        PrimaryView {
            backend: self.followed.load().as_ref().map(|backend| backend.name.clone()),
            since: now.saturating_duration_since(*since).as_secs_f64(),
            changes_total: self.changes.load(Relaxed),
            rivals: rivals.clone(),
            sentinels: *sentinels,
            problem: problem.clone(),
        }
    }
}
