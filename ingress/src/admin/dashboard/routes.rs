//! Routes: found by any part of what they say, a page at a time.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};

use super::Dashboard;
use super::page::{Page, Words};
use crate::admin::Admin;
use crate::admin::api::Answer;
use crate::admin::routes::{RouteView, RoutesQuery};
use crate::route::PoolName;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RouteQuery {
    q: String,
    /// A provider's name, or `file`; empty: any.
    provider: String,
    state: RouteState,
    page: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RouteState {
    #[default]
    Any,
    Served,
    /// Served, and no backend is up.
    Down,
    Unserved,
}

#[derive(Debug, Serialize)]
pub(super) struct RouteRow {
    #[serde(flatten)]
    route: RouteView,
    /// Of its pool, the fallback's included.
    backends: Option<usize>,
}

pub(super) async fn routes(
    State(dashboard): State<Arc<Dashboard>>,
    query: Result<Query<RouteQuery>, QueryRejection>,
) -> Answer<Page<RouteRow>> {
    let Query(query) = query?;
    Ok(Json(dashboard.read(move |admin| find(admin, &query)).await?))
}

fn find(admin: &Admin, query: &RouteQuery) -> Page<RouteRow> {
    let words = Words::new(&query.q);
    let snapshot = admin.sources.snapshots.borrow().clone();
    let mut routes = admin.routes(&RoutesQuery::default());
    let all = routes.len();
    routes.retain(|route| query.wants(route, &words));
    Page::cut(routes, all, query.page, PAGE, |route| {
        let pool = route.pool.as_deref().and_then(|pool| snapshot.pools.get(&PoolName::new(pool)));
        RouteRow { backends: pool.map(|pool| pool.all().count()), route }
    })
}

impl RouteQuery {
    fn wants(&self, route: &RouteView, words: &Words) -> bool {
        let state = match self.state {
            RouteState::Any => true,
            RouteState::Served => route.is_served(),
            RouteState::Down => route.is_served() && route.up == Some(0),
            RouteState::Unserved => !route.is_served(),
        };
        let RouteView { matches, route: name, provider, owner, pool, why, .. } = route;
        let optional = [owner, pool, why].map(|text| text.as_deref().unwrap_or_default());
        let texts = [matches, name, provider, optional[0], optional[1], optional[2]];
        state && (self.provider.is_empty() || self.provider == *provider) && words.are_in(&texts)
    }
}

/// Rows of one page.
const PAGE: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    fn route(matches: &str, pool: &str, up: Option<usize>, state: &str) -> RouteView {
        RouteView {
            matches: matches.into(),
            kind: "sni".into(),
            route: matches.into(),
            provider: "file".into(),
            owner: None,
            lease: None,
            listeners: Vec::new(),
            pool: Some(pool.into()),
            up,
            state: state.into(),
            why: None,
        }
    }

    fn wants(query: &RouteQuery, route: &RouteView) -> bool {
        query.wants(route, &Words::new(&query.q))
    }

    #[test]
    fn a_route_is_found_by_its_name_and_by_its_pool() {
        let shop = route("shop.example.com", "web-7", Some(1), "served");
        for (typed, found) in [("shop", true), ("WEB-7", true), ("shop web-7", true), ("shop web-8", false)] {
            let query = RouteQuery { q: typed.into(), ..RouteQuery::default() };
            assert_eq!(wants(&query, &shop), found, "{typed}");
        }
        let elsewhere = RouteQuery { provider: "traefik".into(), ..RouteQuery::default() };
        assert!(!wants(&elsewhere, &shop));
    }

    #[test]
    fn states_part_what_is_served_from_what_has_no_backend_and_what_is_not() {
        let routes = [
            route("a", "p", Some(2), "served"),
            route("b", "p", Some(0), "served"),
            route("c", "p", None, "needs_http"),
        ];
        let found = |state| {
            let query = RouteQuery { state, ..RouteQuery::default() };
            routes.iter().filter(|route| wants(&query, route)).map(|r| r.matches.as_str()).collect::<String>()
        };
        assert_eq!(found(RouteState::Any), "abc");
        assert_eq!(found(RouteState::Served), "ab");
        assert_eq!(found(RouteState::Down), "b");
        assert_eq!(found(RouteState::Unserved), "c");
    }
}
