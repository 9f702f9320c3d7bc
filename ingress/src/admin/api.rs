//! The JSON API on the Unix socket; [`crate::cli`] is its main user. docs/operations.md lists it for others.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`](super::Status) |
//! | `GET /v1/flows?filter` | [`FlowList`] |
//! | `POST /v1/flows/kill` with [`FlowQuery`] | [`Killed`] |
//! | `GET /v1/pools` | a list of [`PoolView`](crate::balance::PoolView) |
//! | `POST /v1/pools/{pool}/backends/{backend}` with [`BackendOrder`] | [`Ordered`], 404, or 422 and why not |
//! | `POST /v1/routes` with [`RoutesQuery`] | a list of [`RouteView`] |
//! | `POST /v1/preview` with [`PreviewQuery`] | [`Changes`], or 422 and why not |
//! | `POST /v1/reload` | [`Reloaded`], or 422 and why not |
//! | `POST /v1/drain` with [`DrainOrder`] | [`Drained`] |
//! | `POST /v1/peers/remove` with [`PeerName`] | `{}`, or 422 and why not |
//! | `GET /v1/hooks` | a list of [`HookStatus`] |
//! | `POST /v1/hooks/test` with [`HookName`] | [`HookTested`], or 422 and why nothing arrived |
//! | `GET /v1/config` | the YAML in use |
//! | `GET /metrics` | as on TCP |

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::operator::Operator;
use super::routes::{RouteView, RoutesQuery};
use super::{Admin, Changes, ReloadRequest, Reloaded, http};
use crate::balance::{BackendOrder, OrderError, Ordered};
use crate::flow::{FlowCommand, FlowFilter, FlowView};
use crate::hooks::view::{HookStatus, HookTested};
use crate::l4::outcome::EndReason;

/// Which connections. Unknown keys are errors: a typo must never widen what `kill` hits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowQuery {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Of a list: at most so many, the newest. `None`: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Of a kill: an empty filter is meant.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// What would change if: the configuration file as it is now, or another word of one provider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PreviewQuery {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Needed with `provider`: where its word stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlowList {
    /// How many matched; `flows` may be fewer.
    pub total: usize,
    pub flows: Vec<FlowView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Killed {
    pub killed: usize,
}

/// No new connections on this node, or again as ever. A restart ends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrainOrder {
    pub cancel: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drained {
    pub draining: bool,
    /// Connections that are open now.
    pub open: u64,
}

/// Who is to leave the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerName {
    pub name: String,
}

/// Which hook to try.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookName {
    pub name: String,
}

/// The body of every answer that is not 2xx.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
}

#[derive(Debug)]
pub(super) struct ApiError(pub(super) StatusCode, pub(super) String);

pub(super) type Answer<T> = Result<Json<T>, ApiError>;

pub(super) fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/flows", get(flows))
        .route("/v1/flows/kill", post(kill))
        .route("/v1/pools", get(pools))
        .route("/v1/pools/{pool}/backends/{backend}", post(administer))
        .route("/v1/routes", post(routes))
        .route("/v1/preview", post(preview))
        .route("/v1/reload", post(reload))
        .route("/v1/drain", post(drain))
        .route("/v1/peers/remove", post(remove_peer))
        .route("/v1/hooks", get(hooks))
        .route("/v1/hooks/test", post(test_hook))
        .route("/v1/config", get(config))
        .route("/metrics", get(http::metrics))
        .fallback(|| async { ApiError(StatusCode::NOT_FOUND, "no such endpoint".into()) })
        .with_state(admin)
}

async fn status(State(admin): State<Arc<Admin>>) -> Answer<super::Status> {
    Ok(Json(admin.read(Admin::status).await?))
}

async fn pools(State(admin): State<Arc<Admin>>) -> Answer<Vec<crate::balance::PoolView>> {
    Ok(Json(admin.read(Admin::pools).await?))
}

async fn administer(
    State(admin): State<Arc<Admin>>,
    Extension(operator): Extension<Operator>,
    Path((pool, backend)): Path<(String, String)>,
    headers: HeaderMap,
    order: Result<Json<BackendOrder>, JsonRejection>,
) -> Answer<Ordered> {
    let Json(order) = order?;
    let login = headers.get(LOGIN_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let by = tokio::task::spawn_blocking(move || operator.name(login.as_deref())).await?;
    let done = admin.administer(pool, backend, order, by).await?;
    done.map(Json).map_err(|error| ApiError(order_status(&error), error.to_string()))
}

/// Who typed it, where `sudo` stands between.
pub const LOGIN_HEADER: &str = "ingress-login";

/// Also what other doors answer by.
pub(super) const fn order_status(error: &OrderError) -> StatusCode {
    match error {
        OrderError::NoPool(_) | OrderError::NoBackend { .. } => StatusCode::NOT_FOUND,
        OrderError::Full | OrderError::Empty => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

async fn routes(
    State(admin): State<Arc<Admin>>,
    query: Result<Json<RoutesQuery>, JsonRejection>,
) -> Answer<Vec<RouteView>> {
    let Json(query) = query?;
    Ok(Json(tokio::task::spawn_blocking(move || admin.routes(&query)).await?))
}

async fn flows(State(admin): State<Arc<Admin>>, query: Result<Query<FlowQuery>, QueryRejection>) -> Answer<FlowList> {
    let Query(query) = query?;
    let limit = query.limit.unwrap_or(usize::MAX);
    let filter = FlowFilter::from(query);
    let list = tokio::task::spawn_blocking(move || {
        let mut flows = admin.flows();
        flows.retain(|flow| filter.matches(flow));
        flows.sort_unstable_by(|a, b| a.age.total_cmp(&b.age));
        let total = flows.len();
        flows.truncate(limit);
        FlowList { total, flows }
    });
    Ok(Json(list.await?))
}

async fn kill(State(admin): State<Arc<Admin>>, query: Result<Json<FlowQuery>, JsonRejection>) -> Answer<Killed> {
    let Json(query) = query?;
    let all = query.all;
    let filter = FlowFilter::from(query);
    if filter.is_empty() && !all {
        let why = "an empty filter would end every connection; give a filter, or all=true if that is meant";
        return Err(ApiError(StatusCode::BAD_REQUEST, why.into()));
    }
    tracing::info!(?filter, "connections are ended by an operator");
    let (done, killed) = oneshot::channel();
    let command = FlowCommand::Cut { filter, reason: EndReason::Killed, done: Some(done) };
    admin.sources.commands.send(command).await.map_err(|_| stopping())?;
    Ok(Json(Killed { killed: killed.await.map_err(|_| stopping())? }))
}

async fn preview(State(admin): State<Arc<Admin>>, query: Result<Json<PreviewQuery>, JsonRejection>) -> Answer<Changes> {
    let Json(query) = query?;
    let changes = tokio::task::spawn_blocking(move || (admin.sources.preview)(query)).await?;
    changes.map(Json).map_err(|why| ApiError(StatusCode::UNPROCESSABLE_ENTITY, why))
}

async fn reload(State(admin): State<Arc<Admin>>) -> Answer<Reloaded> {
    let (done, outcome) = oneshot::channel();
    admin.sources.reload.send(ReloadRequest { done }).await.map_err(|_| stopping())?;
    let outcome = outcome.await.map_err(|_| stopping())?;
    outcome.map(Json).map_err(|why| ApiError(StatusCode::UNPROCESSABLE_ENTITY, why))
}

async fn drain(State(admin): State<Arc<Admin>>, order: Result<Json<DrainOrder>, JsonRejection>) -> Answer<Drained> {
    let Json(DrainOrder { cancel }) = order?;
    let draining = !cancel;
    if admin.sources.drain.send_replace(draining) != draining {
        tracing::info!(draining, "an operator drains this node, or takes that back");
    }
    let open = admin.read(|admin| admin.status().connections.open()).await?;
    Ok(Json(Drained { draining, open }))
}

async fn remove_peer(
    State(admin): State<Arc<Admin>>,
    query: Result<Json<PeerName>, JsonRejection>,
) -> Answer<serde_json::Value> {
    let Json(PeerName { name }) = query?;
    let removed = tokio::task::spawn_blocking(move || (admin.sources.peers.remove)(&name)).await?;
    removed.map(|()| Json(serde_json::json!({}))).map_err(|why| ApiError(StatusCode::UNPROCESSABLE_ENTITY, why))
}

async fn hooks(State(admin): State<Arc<Admin>>) -> Json<Vec<HookStatus>> {
    Json((admin.sources.hooks.status)())
}

async fn test_hook(
    State(admin): State<Arc<Admin>>,
    query: Result<Json<HookName>, JsonRejection>,
) -> Answer<HookTested> {
    let Json(HookName { name }) = query?;
    let tested = (admin.sources.hooks.test)(name).await;
    tested.map(Json).map_err(|why| ApiError(StatusCode::UNPROCESSABLE_ENTITY, why))
}

async fn config(State(admin): State<Arc<Admin>>) -> Response {
    let text = admin.sources.config.borrow().text.to_string();
    ([(header::CONTENT_TYPE, "application/yaml")], text).into_response()
}

impl From<FlowQuery> for FlowFilter {
    fn from(query: FlowQuery) -> Self {
        let FlowQuery { id, client, sni, route, pool, backend, listener, mode, limit: _, all: _ } = query;
        Self { id, client, sni, route, pool, backend, listener, mode, client_in: None }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self(status, error) = self;
        (status, Json(ErrorBody { error })).into_response()
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

impl From<tokio::task::JoinError> for ApiError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, format!("reading the state failed: {error}"))
    }
}

fn stopping() -> ApiError {
    ApiError(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping".into())
}
