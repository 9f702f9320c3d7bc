//! What the dashboard always asks for: everything that does not grow with the number of routes.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::pace::Sample;
use super::{Dashboard, Visitor};
use crate::admin::api::Answer;
use crate::admin::status::{ConfigStatus, ConnectionSummary, HttpStatus, ListenerStatus};
use crate::admin::{Admin, ProviderStatus, unix_now};
use crate::balance::{Backend, HealthState, Pool, Transition};
use crate::dataplane::view::KernelStatus;
use crate::metrics::process::ProcessUse;
use crate::peers::view::PeersStatus;
use crate::snapshot::Snapshot;

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct OverviewQuery {
    /// Samples that are younger, by their `time`.
    since: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Overview {
    /// Unix seconds.
    time: f64,
    session: Session,
    node: String,
    version: String,
    pid: u32,
    /// Seconds.
    uptime: f64,
    /// Why no connection should come here; `None`: it is ready.
    not_ready: Option<&'static str>,
    config: ConfigStatus,
    kernel: KernelStatus,
    listeners: Vec<ListenerStatus>,
    connections: ConnectionSummary,
    http: Vec<HttpStatus>,
    providers: Vec<ProviderStatus>,
    peers: Option<PeersStatus>,
    census: Census,
    memory_bytes: Option<u64>,
    samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
struct Session {
    /// `None`: nobody was asked for a password, so nothing can be changed here, and clients are not shown.
    user: Option<String>,
    /// What an order has to show.
    token: Option<String>,
}

/// Pools and backends, counted; of those in trouble, the first few.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Census {
    /// Patterns and ports that are served.
    routes: usize,
    pools: usize,
    /// Without a backend that takes connections.
    pools_down: usize,
    backends: usize,
    /// Down, or without an address.
    backends_down: usize,
    /// Kept back by operators.
    backends_drained: usize,
    troubles: Vec<Trouble>,
    /// The newest first.
    changes: Vec<Change>,
}

/// A backend that is not well.
#[derive(Debug, PartialEq, Serialize)]
struct Trouble {
    pool: String,
    backend: String,
    /// `down` or `unresolved`.
    state: &'static str,
    error: Option<String>,
}

/// Of a backend: what checks found, or what an operator said.
#[derive(Debug, PartialEq, Serialize)]
struct Change {
    pool: String,
    backend: String,
    /// A word of health or of administration.
    to: &'static str,
    error: Option<String>,
    by: Option<String>,
    /// Seconds.
    age: f64,
}

pub(super) async fn overview(
    State(dashboard): State<Arc<Dashboard>>,
    Extension(Visitor(user)): Extension<Visitor>,
    query: Result<Query<OverviewQuery>, QueryRejection>,
) -> Answer<Overview> {
    let Query(OverviewQuery { since }) = query?;
    let token = user.is_some().then(|| dashboard.token.shown()).flatten();
    let session = Session { user, token };
    Ok(Json(dashboard.read(move |admin| Overview::of(admin, session, since)).await?))
}

impl Overview {
    fn of(admin: &Admin, session: Session, since: f64) -> Self {
        let listeners = admin.listeners();
        let snapshot = admin.sources.snapshots.borrow().clone();
        Self {
            time: unix_now(),
            session,
            node: admin.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: admin.started.elapsed().as_secs_f64(),
            not_ready: admin.not_ready(&listeners),
            config: admin.config(),
            kernel: admin.sources.kernel.status(),
            connections: ConnectionSummary::of(listeners.iter().map(|listener| &listener.counts)),
            listeners,
            http: admin.http.lock().clone(),
            providers: admin.providers(),
            peers: (admin.sources.peers.status)(),
            census: Census::of(&snapshot, Instant::now()),
            memory_bytes: ProcessUse::read_cpu_and_memory().resident_bytes,
            samples: admin.pace.since(since),
        }
    }
}

impl Census {
    /// Of what can be many, so many are listed.
    const LISTED: usize = 20;

    fn of(snapshot: &Snapshot, now: Instant) -> Self {
        let mut census = Self {
            routes: snapshot.config.routes.iter().map(|route| route.sni.len()).sum(),
            pools: snapshot.pools.len(),
            ..Self::default()
        };
        for pool in snapshot.pools.values() {
            census.count(pool, now);
        }
        census.changes.sort_by(|a, b| a.age.total_cmp(&b.age));
        census.changes.truncate(Self::LISTED);
        census
    }

    fn count(&mut self, pool: &Pool, now: Instant) {
        for backend in pool.all() {
            self.backends += 1;
            self.backends_drained += usize::from(!backend.is_ready());
            if let Some(state) = trouble(backend) {
                self.backends_down += 1;
                if self.troubles.len() < Self::LISTED {
                    let error = backend.health().last_check.and_then(|check| check.error);
                    let (pool, backend) = (pool.name.to_string(), backend.name.clone());
                    self.troubles.push(Trouble { pool, backend, state, error });
                }
            }
            self.changes.extend(changes(pool, backend, now));
        }
        self.pools_down += usize::from(!pool.all().any(|backend| backend.takes_connections()));
    }
}

fn changes(pool: &Pool, backend: &Backend, now: Instant) -> impl Iterator<Item = Change> {
    let change =
        |to, error, by, age| Change { pool: pool.name.to_string(), backend: backend.name.clone(), to, error, by, age };
    // A first good check is no news.
    let is_news = |t: &Transition| (t.from, t.to) != (HealthState::Unchecked, HealthState::Up);
    let health = backend.history().into_iter().filter(is_news).map(move |Transition { at, from: _, to, error }| {
        change(to.as_str(), error, None, now.saturating_duration_since(at).as_secs_f64())
    });
    let said = backend.admin().map(|said| {
        let age = said.at.elapsed().unwrap_or_default().as_secs_f64();
        change(said.state.as_str(), None, Some(said.by.clone()), age)
    });
    health.chain(said)
}

/// What is wrong with a backend.
fn trouble(backend: &Backend) -> Option<&'static str> {
    if !backend.is_resolved() {
        return Some("unresolved");
    }
    (!backend.is_up()).then_some(HealthState::Down.as_str())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::balance::{Check, fixture};
    use crate::route::PoolName;

    #[test]
    fn the_census_counts_what_is_down_and_tells_changes_newest_first() {
        let pool = |name: &str, backends: &[&str]| {
            let backends: Vec<_> = backends.iter().map(|name| fixture::backend(name, 1)).collect();
            Pool::new(PoolName::new(name), fixture::pool_config(backends, []), None)
        };
        let (half, gone) = (pool("half", &["a", "b"]), pool("gone", &["c"]));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        half.backends[0].checked(HealthState::Up, Check::good(Duration::ZERO, at(0)));
        half.backends[1].checked(HealthState::Down, Check::failed("refused", at(1)));
        gone.backends[0].checked(HealthState::Down, Check::failed("no answer", at(2)));
        let census = Census::of(&fixture::snapshot([half, gone]), at(5));
        assert_eq!((census.pools, census.pools_down, census.backends, census.backends_down), (2, 1, 3, 2));
        let told: Vec<_> = census.changes.iter().map(|c| (c.backend.as_str(), c.age)).collect();
        assert_eq!(told, [("c", 3.0), ("b", 4.0)], "a first good check is no news");
        let troubles: Vec<_> = census.troubles.iter().map(|t| (t.pool.as_str(), t.error.as_deref())).collect();
        assert_eq!(troubles, [("gone", Some("no answer")), ("half", Some("refused"))]);
    }
}
