//! Pools with their backends, a page at a time.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};

use super::Dashboard;
use super::page::{Page, Words};
use crate::admin::Admin;
use crate::admin::api::Answer;
use crate::balance::{Backend, BackendView, Pool, PoolView};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PoolQuery {
    q: String,
    state: PoolState,
    page: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PoolState {
    #[default]
    Any,
    /// Some backend is down, or has no address.
    Trouble,
    /// No backend takes connections.
    Down,
    /// Operators keep some backend back.
    Drained,
}

#[derive(Debug, Serialize)]
pub(super) struct PoolRow {
    /// Its lists may be cut.
    #[serde(flatten)]
    pool: PoolView,
    /// Backends and fallbacks that are not in the lists.
    hidden: usize,
}

pub(super) async fn pools(
    State(dashboard): State<Arc<Dashboard>>,
    query: Result<Query<PoolQuery>, QueryRejection>,
) -> Answer<Page<PoolRow>> {
    let Query(query) = query?;
    Ok(Json(dashboard.read(move |admin| find(admin, &query)).await?))
}

fn find(admin: &Admin, query: &PoolQuery) -> Page<PoolRow> {
    let words = Words::new(&query.q);
    let snapshot = admin.sources.snapshots.borrow().clone();
    let matching: Vec<_> = snapshot.pools.values().filter(|pool| query.wants(pool, &words)).collect();
    let now = Instant::now();
    Page::cut(matching, snapshot.pools.len(), query.page, PAGE, |pool| PoolRow::of(pool.view(now), &words))
}

impl PoolQuery {
    fn wants(&self, pool: &Pool, words: &Words) -> bool {
        let is_well = |backend: &Arc<Backend>| backend.is_up() && backend.is_resolved();
        let state = match self.state {
            PoolState::Any => true,
            PoolState::Trouble => !pool.all().all(is_well),
            PoolState::Down => !pool.all().any(|backend| backend.takes_connections()),
            PoolState::Drained => !pool.all().all(|backend| backend.is_ready()),
        };
        state
            && (words.are_in(&[pool.name.as_str()])
                || pool.all().any(|backend| words.are_in(&[pool.name.as_str(), &backend.name])))
    }
}

impl PoolRow {
    /// Of a large pool: first the backends that were looked for, then those in trouble.
    fn of(mut pool: PoolView, words: &Words) -> Self {
        let mut hidden = 0;
        for list in [&mut pool.backends, &mut pool.fallback] {
            if list.len() > BACKENDS {
                let is_wanted = |backend: &BackendView| !words.is_empty() && words.are_in(&[&backend.name]);
                let is_in_trouble = |backend: &BackendView| backend.state == "down" || backend.state == "unresolved";
                list.sort_by_key(|backend| (!is_wanted(backend), !is_in_trouble(backend)));
                hidden += list.len() - BACKENDS;
                list.truncate(BACKENDS);
            }
        }
        Self { pool, hidden }
    }
}

/// Pools of one page.
const PAGE: usize = 20;
/// Backends of one list of one pool.
const BACKENDS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{AdminChange, AdminState, HealthState, fixture};
    use crate::route::PoolName;

    fn pool(backends: usize) -> Pool {
        let backends = (0..backends).map(|n| fixture::backend(&format!("b{n}"), 1));
        Pool::new(PoolName::new("web"), fixture::pool_config(backends, []), None)
    }

    #[test]
    fn a_pool_is_found_by_itself_and_by_its_backends() {
        let pool = pool(3);
        for (typed, found) in [("web", true), ("b2", true), ("web b2", true), ("b7", false)] {
            assert_eq!(PoolQuery::default().wants(&pool, &Words::new(typed)), found, "{typed}");
        }
    }

    #[test]
    fn trouble_is_one_backend_and_down_is_all() {
        let pool = pool(2);
        let is = |state| PoolQuery { state, ..PoolQuery::default() }.wants(&pool, &Words::new(""));
        assert_eq!((is(PoolState::Any), is(PoolState::Trouble), is(PoolState::Down)), (true, false, false));
        fixture::mark(&pool.backends[0], HealthState::Down);
        assert_eq!((is(PoolState::Any), is(PoolState::Trouble), is(PoolState::Down)), (true, true, false));
        fixture::mark(&pool.backends[1], HealthState::Down);
        assert_eq!((is(PoolState::Any), is(PoolState::Trouble), is(PoolState::Down)), (true, true, true));
    }

    #[test]
    fn a_drained_pool_is_not_in_trouble_and_takes_no_connections() {
        let pool = pool(1);
        let (at, by) = (std::time::SystemTime::UNIX_EPOCH, "alice".to_owned());
        let change = AdminChange { state: AdminState::Drain, weight: None, by, at };
        pool.backends[0].administer(Arc::new(change), Instant::now());
        let is = |state| PoolQuery { state, ..PoolQuery::default() }.wants(&pool, &Words::new(""));
        assert_eq!((is(PoolState::Drained), is(PoolState::Trouble), is(PoolState::Down)), (true, false, true));
    }

    #[test]
    fn of_a_large_pool_what_was_looked_for_and_what_is_in_trouble_stays() {
        let pool = pool(500);
        fixture::mark(&pool.backends[400], HealthState::Down);
        let row = PoolRow::of(pool.view(Instant::now()), &Words::new("b499"));
        let first: Vec<_> = row.pool.backends.iter().take(3).map(|b| b.name.as_str()).collect();
        assert_eq!((first, row.hidden), (vec!["b499", "b400", "b0"], 400));
    }
}
