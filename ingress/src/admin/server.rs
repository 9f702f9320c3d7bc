//! HTTP/1.1 for few, patient or hostile peers: bounded in connections, headers, bodies and time.
//!
//! Every connection is a task of the listener's own set and ends with it.

use std::io;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{AdminSocket, REQUEST_TIMEOUT};

/// Something that connections come from.
pub(super) trait Accept: Send {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Cancel-safe.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Accept for AdminSocket {
    type Io = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Self::Io> {
        self.listener.accept().await.map(|(io, _)| io)
    }
}

impl Accept for TcpListener {
    type Io = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Self::Io> {
        TcpListener::accept(self).await.map(|(io, _)| io)
    }
}

/// Serves until `shutdown`, then gives open requests a moment to finish.
pub(super) async fn serve(listener: impl Accept, router: Router, shutdown: CancellationToken) {
    let router = router.layer(DefaultBodyLimit::max(MAX_BODY)).layer(middleware::from_fn(within_time));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            // Above the limit they wait in the kernel's backlog.
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok(io) => drop(connections.spawn(connection(io, router.clone(), shutdown.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "admin: accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(io: impl AsyncRead + AsyncWrite + Unpin, router: Router, shutdown: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEADERS);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(io), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = connection.as_mut() => Ok(ended),
        () = shutdown.cancelled() => Err(()),
        () = sleep(MAX_LIFETIME) => Err(()),
    };
    let ended = match ended {
        Ok(ended) => ended,
        Err(()) => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_REQUEST, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin connection");
    }
}

async fn within_time(request: Request, next: Next) -> Response {
    match timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let seconds = REQUEST_TIMEOUT.as_secs();
            (StatusCode::GATEWAY_TIMEOUT, format!("no answer within {seconds} s\n")).into_response()
        }
    }
}

/// Per listener, so that no crowd on TCP keeps an operator from the Unix socket.
const MAX_CONNECTIONS: usize = 64;
const MAX_HEADERS: usize = 16 * 1024;
const MAX_BODY: usize = 1024 * 1024;
/// Also how long a kept-alive connection may say nothing.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that reads one byte a minute leaves after this, too.
const MAX_LIFETIME: Duration = Duration::from_secs(300);
const LAST_REQUEST: Duration = Duration::from_secs(3);
/// Accept fails when descriptors run out; trying at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
