//! HTTP/1.1 for few, patient or hostile peers: bounded in connections, headers, bodies and time. For operators and for
//! machines that register; not for traffic.
//!
//! Every connection is a task of the listener's own set and ends with it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Something that connections come from.
pub trait Accept: Send {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What is known of a peer. Handlers take it as an [`Extension`]; it is dropped with the connection.
    type Peer: Clone + Send + Sync + 'static;

    /// Cancel-safe.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Io, Self::Peer)>> + Send;
}

impl Accept for TcpListener {
    type Io = tokio::net::TcpStream;
    type Peer = SocketAddr;

    async fn accept(&self) -> io::Result<(Self::Io, SocketAddr)> {
        TcpListener::accept(self).await
    }
}

/// How much of the daemon the peers of one listener can take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Per listener, so that no crowd on one keeps anybody from another.
    pub connections: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// For a whole request, its answer included.
    pub request: Duration,
}

/// Serves until `shutdown`, then gives open requests a moment to finish.
pub async fn serve(listener: impl Accept, router: Router, bounds: Bounds, shutdown: CancellationToken) {
    let Bounds { connections: max_connections, body, request } = bounds;
    let timed = middleware::from_fn(move |asked, next| within_time(request, asked, next));
    let router = router.layer(DefaultBodyLimit::max(body)).layer(timed);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            // Above the limit they wait in the kernel's backlog.
            accepted = listener.accept(), if connections.len() < max_connections => match accepted {
                Ok((io, peer)) => {
                    let router = router.clone().layer(Extension(peer));
                    drop(connections.spawn(connection(io, router, shutdown.clone())));
                }
                Err(error) => {
                    tracing::warn!(%error, "HTTP: accept failed");
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
        tracing::debug!(%error, "HTTP connection");
    }
}

async fn within_time(limit: Duration, request: Request, next: Next) -> Response {
    match timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let seconds = limit.as_secs();
            (StatusCode::GATEWAY_TIMEOUT, format!("no answer within {seconds} s\n")).into_response()
        }
    }
}

/// Listens on `bind`, for what arrives on `device` only (`SO_BINDTODEVICE`).
pub fn bind_tcp(bind: SocketAddr, device: Option<&str>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(bind), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if bind.is_ipv6() {
        // `[::]` beside `0.0.0.0` must work, whatever the host's bindv6only says.
        socket.set_only_v6(true)?;
    }
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.bind(&bind.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
const MAX_HEADERS: usize = 16 * 1024;
/// Also how long a kept-alive connection may say nothing.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that reads one byte a minute leaves after this, too.
const MAX_LIFETIME: Duration = Duration::from_secs(300);
const LAST_REQUEST: Duration = Duration::from_secs(3);
/// Accept fails when descriptors run out; trying at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
