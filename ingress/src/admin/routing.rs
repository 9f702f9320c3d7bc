//! Who says what is routed where, and what of it is not served.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Admin, ProviderState};
use crate::metrics::scrape::ProviderGauge;
use crate::route::{Unserved, Why};

/// Of `unserved`, so many are listed in the status; `ingress routes` lists all.
const LISTED: usize = 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProviderStatus {
    pub name: String,
    /// Its key in the configuration, such as `registry`.
    pub kind: String,
    /// A path or URL.
    pub place: String,
    /// `good`, `failing`, `last-good` (serves what was kept on disk) or `waiting` (has not said anything yet).
    pub state: String,
    pub priority: u32,
    /// Unix seconds, of the source's last answer.
    pub last_success: Option<f64>,
    /// Unix seconds, of the answer that is in use, if it came from disk.
    pub from_disk: Option<f64>,
    pub last_error: Option<String>,
    /// Unix seconds.
    pub failing_since: Option<f64>,
    pub changes_total: u64,
    pub failures_total: u64,
    pub served: usize,
    pub needs_http: usize,
    pub unsupported: usize,
    pub conflicts: usize,
    /// The first of what is not served, with the reason.
    pub unserved: Vec<UnservedItem>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnservedItem {
    pub item: String,
    /// `needs_http`, `unsupported` or `conflict`.
    pub reason: String,
    pub why: String,
}

impl Admin {
    pub(super) fn providers(&self) -> Vec<ProviderStatus> {
        self.sources.providers.borrow().iter().map(ProviderStatus::of).collect()
    }
}

impl ProviderStatus {
    fn of(provider: &ProviderState) -> Self {
        let ProviderState {
            name,
            kind,
            place,
            priority,
            contribution,
            from_disk,
            last_success,
            last_error,
            failing_since,
            changes,
            failures,
            refused,
        } = provider;
        let unserved = contribution.as_ref().map_or(&[][..], |c| c.unserved_items());
        let all = unserved.iter().chain(refused.iter());
        let count = |wanted: fn(&Why) -> bool| all.clone().filter(|item| wanted(&item.why)).count();
        let asked = contribution.as_ref().map_or(0, |c| c.routes().len() + c.listeners().len());
        let state = match (contribution, from_disk, last_error) {
            (None, _, _) => "waiting",
            (Some(_), Some(_), _) => "last-good",
            (Some(_), None, Some(_)) => "failing",
            (Some(_), None, None) => "good",
        };
        Self {
            name: name.to_string(),
            kind: (*kind).to_owned(),
            place: place.clone(),
            state: state.to_owned(),
            priority: *priority,
            last_success: last_success.map(unix),
            from_disk: from_disk.map(unix),
            last_error: last_error.clone(),
            failing_since: failing_since.map(unix),
            changes_total: *changes,
            failures_total: *failures,
            served: asked.saturating_sub(refused.len()),
            needs_http: contribution.as_ref().map_or(0, |c| c.http_routes().len())
                + count(|why| matches!(why, Why::NeedsHttp)),
            unsupported: count(|why| matches!(why, Why::Unsupported(_))),
            conflicts: count(|why| matches!(why, Why::Conflict(_))),
            unserved: all.clone().take(LISTED).map(UnservedItem::of).collect(),
        }
    }

    pub(super) fn gauge(&self) -> ProviderGauge {
        ProviderGauge {
            name: self.name.clone(),
            failing: self.last_error.is_some(),
            last_success: self.last_success,
            changes: self.changes_total,
            failures: self.failures_total,
            items: [
                ("served", self.served as u64),
                ("needs_http", self.needs_http as u64),
                ("unsupported", self.unsupported as u64),
                ("conflict", self.conflicts as u64),
            ],
        }
    }
}

impl UnservedItem {
    fn of(unserved: &Unserved) -> Self {
        let Unserved { item, why } = unserved;
        Self { item: item.clone(), reason: why.as_str().to_owned(), why: why.to_string() }
    }
}

fn unix(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
