//! The HTTP side. docs/operations.md shows the calls, `/openapi.json` describes them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use parking_lot::RwLock;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::door::Peer;
use super::order::{Answer, Order, What};
use super::problem::{Kind, Problem};
use super::request;
use super::tokens::{Actor, Tokens};
use crate::metrics::Metrics;
use crate::route::{ProviderName, SniPattern};

pub(super) struct Api {
    pub(super) provider: ProviderName,
    /// As they were read last.
    pub(super) tokens: RwLock<Tokens>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) metrics: Arc<Metrics>,
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

pub(super) fn router(api: Arc<Api>) -> Router {
    let guarded = |operation: &'static str, routes: axum::routing::MethodRouter<Arc<Api>>| {
        routes.route_layer(middleware::from_fn_with_state((api.clone(), operation), require_token))
    };
    Router::new()
        .route("/register", guarded("register", post(register)))
        .route("/deregister", guarded("deregister", post(deregister)))
        .route("/heartbeat", guarded("heartbeat", post(heartbeat)))
        .route("/routes", guarded("routes", get(routes)))
        .route("/health", get(health))
        .route("/openapi.json", get(openapi))
        .fallback(|| async {
            Problem::new(Kind::NotFound, "there is no such path; /openapi.json lists those there are")
        })
        .method_not_allowed_fallback(|| async { Problem::new(Kind::MethodNotAllowed, "this path has other methods") })
        .layer(middleware::from_fn(within_time))
        .with_state(api)
}

async fn register(
    State(api): State<Arc<Api>>,
    Extension(actor): Extension<Actor>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let asked = async {
        let wish = request::register(&read(body)?)?;
        in_scope(&actor, &wish.host)?;
        Ok((Some(wish.host.clone()), What::Register(wish)))
    };
    api.change("register", &actor, peer.address, asked.await).await
}

async fn deregister(
    State(api): State<Arc<Api>>,
    Extension(actor): Extension<Actor>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let asked = scoped_host(&actor, body).map(|host| (Some(host.clone()), What::Deregister(host)));
    api.change("deregister", &actor, peer.address, asked).await
}

async fn heartbeat(
    State(api): State<Arc<Api>>,
    Extension(actor): Extension<Actor>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let asked = scoped_host(&actor, body).map(|host| (Some(host.clone()), What::Heartbeat(host)));
    api.change("heartbeat", &actor, peer.address, asked).await
}

async fn routes(State(api): State<Arc<Api>>, Extension(actor): Extension<Actor>) -> Response {
    let answer = api.ask(&actor, What::List).await;
    let response = match answer {
        Ok(Answer::List(mut list)) => {
            list.routes.retain(|route| actor.may_register(&route.host));
            Json(list).into_response()
        }
        Ok(other) => Json(other).into_response(),
        Err(problem) => problem.into_response(),
    };
    api.metrics.registration_request(&api.provider, "routes", response.status().as_u16());
    response
}

/// For monitors: says nothing that is not everybody's.
async fn health(State(api): State<Arc<Api>>) -> Response {
    let anybody = Actor::nobody();
    match api.ask(&anybody, What::Health).await {
        Ok(_) => Json(Health { status: "ok", detail: None }).into_response(),
        Err(problem) => {
            let body = Health { status: "failing", detail: Some(problem.detail().to_owned()) };
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

async fn openapi() -> Response {
    let document = OPENAPI.replace("@VERSION@", env!("CARGO_PKG_VERSION"));
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
}

impl Api {
    /// Carries out a change, and writes who asked for it and what became of it.
    async fn change(
        &self,
        operation: &'static str,
        actor: &Actor,
        source: SocketAddr,
        asked: Result<(Option<SniPattern>, What), Problem>,
    ) -> Response {
        let (host, answer) = match asked {
            Ok((host, what)) => (host, self.ask(actor, what).await),
            Err(problem) => (None, Err(problem)),
        };
        let (provider, actor) = (&self.provider, &actor.name);
        let host = host.map(|host| host.to_string()).unwrap_or_default();
        let response = match answer {
            Ok(answer) => {
                let (result, generation) = answer.audit();
                // A heartbeat every few seconds of every backend is no news.
                if operation != "heartbeat" {
                    tracing::info!(%provider, %actor, %source, operation, host, result, generation, "registration");
                }
                Json(answer).into_response()
            }
            Err(problem) => {
                let (status, code, detail) = (problem.status().as_u16(), problem.code(), problem.detail());
                let field = problem.field().unwrap_or_default();
                tracing::warn!(
                    %provider, %actor, %source, operation, host, status, code, field, detail, "registration refused"
                );
                problem.into_response()
            }
        };
        self.metrics.registration_request(&self.provider, operation, response.status().as_u16());
        response
    }

    async fn ask(&self, actor: &Actor, what: What) -> Result<Answer, Problem> {
        let (answer, answered) = oneshot::channel();
        let order = Order { actor: actor.name.clone(), what, answer };
        self.orders.send(order).await.map_err(|_| Problem::stopping())?;
        answered.await.map_err(|_| Problem::stopping())?
    }
}

/// Before anything of a body is read.
async fn require_token(
    State((api, operation)): State<(Arc<Api>, &'static str)>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let header = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let given = header.is_some();
    let actor = api.tokens.read().authenticate(header);
    if let Some(actor) = actor {
        request.extensions_mut().insert(actor);
        return next.run(request).await;
    }
    tracing::warn!(provider = %api.provider, source = %peer.address, operation, token = given, "registration: no good token");
    api.metrics.registration_request(&api.provider, operation, StatusCode::UNAUTHORIZED.as_u16());
    let detail = if given { "this token is not known here" } else { "send `Authorization: Bearer <token>`" };
    Problem::new(Kind::Unauthorized, detail).into_response()
}

async fn within_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(Kind::Timeout, "the request took too long; try again").into_response(),
    }
}

fn read(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(Kind::TooLarge, format!("a body has at most {MAX_BODY} bytes")),
        _ => Problem::new(Kind::NotJson, "the body did not arrive whole"),
    })
}

fn scoped_host(actor: &Actor, body: Result<Bytes, BytesRejection>) -> Result<SniPattern, Problem> {
    let host = request::host_only(&read(body)?)?;
    in_scope(actor, &host).map(|()| host)
}

fn in_scope(actor: &Actor, host: &SniPattern) -> Result<(), Problem> {
    match actor.may_register(host) {
        true => Ok(()),
        false => {
            let detail = format!("token {} has no right to {host}; its `hosts` say which it has", actor.name);
            Err(Problem::at(Kind::OutOfScope, "host", detail))
        }
    }
}

pub(super) const OPENAPI: &str = include_str!("openapi.json");
/// Bytes; the largest good body has some 64 backends or a few secrets.
pub(super) const MAX_BODY: usize = 64 * 1024;
/// For a whole request, waiting for the disk included.
const REQUEST_TIME: Duration = Duration::from_secs(20);
