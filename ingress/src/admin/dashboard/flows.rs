//! Live connections: the first of those that match.
//!
//! They name clients and what these asked for, so they are shown to visitors with a password only.

use std::cmp::Reverse;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::page::Words;
use super::{Dashboard, Visitor, forbidden};
use crate::admin::api::Answer;
use crate::flow::FlowView;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FlowsQuery {
    q: String,
    mode: Mode,
    order: Order,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    #[default]
    Any,
    Kernel,
    Relay,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    #[default]
    Newest,
    Oldest,
    /// Most bytes, in both directions.
    Largest,
    /// Longest without a packet.
    Quietest,
}

#[derive(Debug, Serialize)]
pub(super) struct FlowRows {
    matching: usize,
    all: usize,
    rows: Vec<FlowView>,
}

pub(super) async fn flows(
    State(dashboard): State<Arc<Dashboard>>,
    Extension(Visitor(user)): Extension<Visitor>,
    query: Result<Query<FlowsQuery>, QueryRejection>,
) -> Answer<FlowRows> {
    let Query(query) = query?;
    if user.is_none() {
        return Err(forbidden("connections name clients; set admin.http.basic_auth to see them here"));
    }
    // It is never closed; and who waits here holds one of the bounded connections, and is timed.
    let _walk = dashboard.walks.acquire().await;
    Ok(Json(dashboard.read(move |admin| FlowRows::of(admin.flows(), &query)).await?))
}

impl FlowRows {
    fn of(mut flows: Vec<FlowView>, query: &FlowsQuery) -> Self {
        let all = flows.len();
        let words = Words::new(&query.q);
        flows.retain(|flow| query.wants(flow, &words));
        match query.order {
            Order::Newest => flows.sort_unstable_by(|a, b| a.age.total_cmp(&b.age)),
            Order::Oldest => flows.sort_unstable_by(|a, b| b.age.total_cmp(&a.age)),
            Order::Largest => flows.sort_unstable_by_key(|flow| Reverse(flow.bytes_to_client + flow.bytes_to_backend)),
            Order::Quietest => flows.sort_unstable_by(|a, b| b.idle.total_cmp(&a.idle)),
        }
        let matching = flows.len();
        flows.truncate(SHOWN);
        Self { matching, all, rows: flows }
    }
}

impl FlowsQuery {
    fn wants(&self, flow: &FlowView, words: &Words) -> bool {
        let mode = match self.mode {
            Mode::Any => true,
            Mode::Kernel => flow.mode == "kernel",
            Mode::Relay => flow.mode == "relay",
        };
        mode && (words.is_empty() || {
            let client = flow.client.to_string();
            let (sni, reason) = (flow.sni.as_deref().unwrap_or_default(), flow.reason.as_deref().unwrap_or_default());
            words.are_in(&[&client, sni, reason, &flow.pool, &flow.backend, &flow.listener])
        })
    }
}

const SHOWN: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fixture::flow;

    fn ids(query: &FlowsQuery) -> Vec<u64> {
        let mut flows = vec![flow(1, "kernel", "app.example.com"), flow(2, "kernel", "www.example.com")];
        flows.push(flow(3, "relay", "app.example.com"));
        flows[1].bytes_to_client = 1 << 40;
        flows[2].idle = 60.0;
        FlowRows::of(flows, query).rows.iter().map(|flow| flow.id).collect()
    }

    #[test]
    fn connections_are_found_by_client_name_reason_and_mode() {
        let typed = |q: &str, mode| ids(&FlowsQuery { q: q.into(), mode, ..FlowsQuery::default() });
        assert_eq!(typed("APP.example", Mode::Any), [3, 1]);
        assert_eq!(typed("192.0.2.100 www", Mode::Any), [2]);
        assert_eq!(typed("local", Mode::Any), [3]);
        assert_eq!(typed("app.example", Mode::Kernel), [1]);
        assert_eq!(typed("", Mode::Relay), [3]);
    }

    #[test]
    fn the_order_says_which_stand_first() {
        let ordered = |order| ids(&FlowsQuery { order, ..FlowsQuery::default() });
        assert_eq!(ordered(Order::Newest), [3, 2, 1]);
        assert_eq!(ordered(Order::Oldest), [1, 2, 3]);
        assert_eq!(ordered(Order::Largest)[0], 2);
        assert_eq!(ordered(Order::Quietest)[0], 3);
    }

    #[test]
    fn a_list_is_bounded_and_says_how_many_there_are() {
        let flows = (0..500).map(|id| flow(id, "kernel", "app.example.com")).collect();
        let rows = FlowRows::of(flows, &FlowsQuery::default());
        assert_eq!((rows.rows.len(), rows.matching, rows.all), (SHOWN, 500, 500));
    }
}
