//! The TCP side: `/metrics`, the dashboard, `/healthz` and `/readyz`. The dashboard's orders about backends are the only
//! thing that changes anything, and need a password.
//!
//! An address that cannot be bound is retried and shown in `ingress status`; it never keeps the daemon from serving.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::auth::{Denied, Login};
use super::{Admin, BOUNDS, HttpStatus, dashboard};
use crate::config::AdminHttpConfig;
use crate::metrics::CONTENT_TYPE;
use crate::serve::{bind_tcp, serve};

/// Serves what `admin.http` says now, and again whenever a reload changes it.
pub(super) async fn supervise(admin: Arc<Admin>, shutdown: CancellationToken) {
    let mut snapshots = admin.sources.snapshots.clone();
    while !shutdown.is_cancelled() {
        let config = snapshots.borrow_and_update().config.admin.http.clone();
        let this_config = shutdown.child_token();
        let mut addresses = start(&admin, config.as_ref(), &this_config);
        let changed = async {
            while snapshots.changed().await.is_ok() {
                if snapshots.borrow_and_update().config.admin.http != config {
                    return;
                }
            }
            // Nobody publishes any more: the daemon is about to stop.
            shutdown.cancelled().await;
        };
        tokio::select! {
            () = changed => {}
            () = shutdown.cancelled() => {}
        }
        this_config.cancel();
        while addresses.join_next().await.is_some() {}
    }
}

fn start(admin: &Arc<Admin>, config: Option<&AdminHttpConfig>, until: &CancellationToken) -> JoinSet<()> {
    let mut addresses = JoinSet::new();
    let bind = config.map_or(&[][..], |config| &config.bind);
    *admin.http.lock() = bind.iter().map(|bind| HttpStatus { bind: *bind, error: None }).collect();
    let Some(config) = config else { return addresses };
    let auth = Login::new(config.basic_auth.as_ref(), |name| std::env::var(name).ok());
    if let Login::Unset { variables } = &auth {
        tracing::warn!(?variables, "the dashboard answers nobody until these environment variables are set");
    }
    let router = router(admin.clone(), auth);
    for bind in &config.bind {
        addresses.spawn(listen(admin.clone(), *bind, router.clone(), until.clone()));
    }
    addresses
}

async fn listen(admin: Arc<Admin>, bind: SocketAddr, router: Router, until: CancellationToken) {
    let listener = loop {
        match bind_tcp(bind, None) {
            Ok(listener) => break listener,
            Err(error) => {
                if admin.http_state(bind, Some(error.to_string())) {
                    tracing::warn!(%bind, %error, "admin.http is not bound; it is tried again");
                }
            }
        }
        tokio::select! {
            () = until.cancelled() => return,
            () = sleep(BIND_RETRY) => {}
        }
    };
    admin.http_state(bind, None);
    tracing::info!(%bind, "metrics and dashboard");
    serve(listener, router, BOUNDS, until).await;
}

impl Admin {
    /// Says whether it is news.
    fn http_state(&self, bind: SocketAddr, error: Option<String>) -> bool {
        let mut http = self.http.lock();
        let Some(status) = http.iter_mut().find(|status| status.bind == bind) else { return false };
        let news = status.error != error;
        status.error = error;
        news
    }
}

fn router(admin: Arc<Admin>, auth: Login) -> Router {
    let dashboard =
        dashboard::router(admin.clone()).layer(middleware::from_fn_with_state(Arc::new(auth), require_password));
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(admin)
        .merge(dashboard)
        .fallback(|| async { (StatusCode::NOT_FOUND, "try /dashboard or /metrics\n") })
        .layer(middleware::map_response(dashboard::add_headers))
}

pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let text = admin.read(|admin| admin.sources.metrics.encode(admin.scrape())).await;
    match text {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Liveness is `/healthz`; this one says whether traffic should come here.
async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    match admin.not_ready(&admin.sources.listeners.listeners()) {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn require_password(State(auth): State<Arc<Login>>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    match auth.check(header) {
        Ok(visitor) => {
            request.extensions_mut().insert(visitor);
            next.run(request).await
        }
        Err(Denied::WrongPassword) => {
            let challenge = [(header::WWW_AUTHENTICATE, r#"Basic realm="ingress", charset="UTF-8""#)];
            (StatusCode::UNAUTHORIZED, challenge, "user and password, please\n").into_response()
        }
        Err(Denied::Unset { variables }) => {
            let variables = variables.join(" and ");
            let why = format!(
                "The dashboard is closed: admin.http.basic_auth names {variables}, which the daemon's environment does \
                 not hold.\nSet it, for example in /etc/ingress/ingress.env, and restart ingress.\n"
            );
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

const BIND_RETRY: Duration = Duration::from_secs(5);
