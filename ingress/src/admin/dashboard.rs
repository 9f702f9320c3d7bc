//! The dashboard: embedded files, and the JSON that they ask for every two seconds.
//!
//! | request | answer |
//! |---|---|
//! | `GET /dashboard` | the page; its files are at `/dashboard/...` |
//! | `GET /dashboard/api/overview?since` | [`Overview`](overview::Overview) |
//! | `GET /dashboard/api/routes?q&provider&state&page` | a [`Page`](page::Page) of [`RouteRow`](routes::RouteRow) |
//! | `GET /dashboard/api/pools?q&state&page` | a page of [`PoolRow`](pools::PoolRow) |
//! | `GET /dashboard/api/flows?q&mode&order` | [`FlowRows`](flows::FlowRows); for a visitor with a password |
//! | `POST /dashboard/api/pools/{pool}/backends/{backend}` with [`BackendOrder`](crate::balance::BackendOrder) | [`Ordered`](crate::balance::Ordered) |
//!
//! What is long is searched and cut into pages here, so that ten thousand routes cost a browser no more than fifty.

mod assets;
mod flows;
mod orders;
mod overview;
mod page;
mod pools;
mod routes;

pub(super) mod pace;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use tokio::sync::Semaphore;

use super::Admin;
use super::api::ApiError;

pub(super) use assets::add_headers;

/// One per configuration of `admin.http`.
pub(super) struct Dashboard {
    admin: Arc<Admin>,
    /// A look at every connection walks all of them: one walk at a time, whoever asks.
    walks: Semaphore,
    token: orders::Token,
}

/// Whom the middleware let in; `None`: the configuration asks nobody for a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Visitor(pub(super) Option<String>);

pub(super) fn router(admin: Arc<Admin>) -> Router {
    let dashboard = Arc::new(Dashboard { admin, walks: Semaphore::new(1), token: orders::Token::new() });
    Router::new()
        .route("/dashboard/api/overview", get(overview::overview))
        .route("/dashboard/api/routes", get(routes::routes))
        .route("/dashboard/api/pools", get(pools::pools))
        .route("/dashboard/api/flows", get(flows::flows))
        .route("/dashboard/api/pools/{pool}/backends/{backend}", post(orders::administer))
        .with_state(dashboard)
        .merge(assets::router())
}

impl Dashboard {
    /// Runs `read` where a long walk disturbs nobody.
    async fn read<T: Send + 'static>(&self, read: impl FnOnce(&Admin) -> T + Send + 'static) -> Result<T, ApiError> {
        let admin = self.admin.clone();
        Ok(tokio::task::spawn_blocking(move || read(&admin)).await?)
    }
}

fn forbidden(why: &str) -> ApiError {
    ApiError(StatusCode::FORBIDDEN, why.to_owned())
}
