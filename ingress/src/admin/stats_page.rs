//! The stats page: three embedded files and the JSON that they poll. `cargo run --example stats-page` shows it with made-up
//! data, for those who work on it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::{Admin, Status};
use crate::balance::PoolView;
use crate::metrics::process::ProcessUse;

/// What the page asks for every second. Rates are the page's own sums, from two answers and their `time`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatsData {
    /// Unix seconds.
    pub time: f64,
    pub status: Status,
    pub pools: Vec<PoolView>,
    pub memory_bytes: Option<u64>,
    pub cpu_seconds: Option<f64>,
}

impl StatsData {
    pub fn new(status: Status, pools: Vec<PoolView>) -> Self {
        let ProcessUse { cpu_seconds, resident_bytes, .. } = ProcessUse::read();
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        Self { time, status, pools, memory_bytes: resident_bytes, cpu_seconds }
    }
}

/// The page without its data.
pub fn assets() -> Router {
    let file = |content_type: &'static str, body: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, content_type)], body) })
    };
    Router::new()
        .route("/", get(|| async { Redirect::temporary("stats") }))
        .route("/stats", file("text/html; charset=utf-8", include_str!("stats_page/index.html")))
        .route("/stats/page.css", file("text/css; charset=utf-8", include_str!("stats_page/page.css")))
        .route("/stats/page.js", file("text/javascript; charset=utf-8", include_str!("stats_page/page.js")))
        .route("/stats/icon.svg", file("image/svg+xml", include_str!("stats_page/icon.svg")))
}

pub(super) async fn data(State(admin): State<Arc<Admin>>) -> Response {
    match admin.read(|admin| StatsData::new(admin.status(), admin.pools())).await {
        Ok(data) => Json(data).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Goes around every answer of the TCP side.
pub async fn add_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// The page loads its own files and nothing else, runs no inline script and stands in nobody's frame.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

#[cfg(test)]
mod tests {
    use crate::l4::outcome::{EndReason, Refusal, RelayReason};

    #[test]
    fn the_page_explains_every_word() {
        let script = include_str!("stats_page/page.js");
        let words = Refusal::ALL.iter().map(|r| r.as_str());
        let words = words.chain(RelayReason::ALL.iter().map(|r| r.as_str()));
        for word in words.chain(EndReason::ALL.iter().map(|r| r.as_str())) {
            assert!(script.contains(&format!(" {word}: \"")), "page.js does not explain {word}");
        }
    }
}
