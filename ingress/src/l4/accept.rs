//! Accepts on one socket and gives each connection a task of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::Plane;
use super::connection::{self, Entrance};
use super::worker::Listen;

/// Accepts until told to stop.
pub(super) async fn run(plane: Arc<Plane>, connections: TaskTracker, listen: Listen) {
    let Listen { listener, socket, address, stop, open: _open } = listen;
    let socket = match TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(%listener, %error, "cannot watch the listening socket");
            return;
        }
    };
    let entrance = Arc::new(Entrance {
        limits: plane.limits.listener(&listener),
        metrics: plane.metrics.listener(&listener),
        name: listener,
        address: (!address.ip().is_unspecified()).then_some(address),
    });
    let accepting = async {
        loop {
            match socket.accept().await {
                Ok((client, peer)) => {
                    connections.spawn(connection::serve(plane.clone(), entrance.clone(), client, peer));
                }
                Err(error) => pause_after(&entrance, &error).await,
            }
        }
    };
    stop.run_until_cancelled(accepting).await;
    // Closing the socket would reset those whose handshake is done.
    while let Some(Ok((client, peer))) = socket.accept().now_or_never() {
        connections.spawn(connection::serve(plane.clone(), entrance.clone(), client, peer));
    }
}

/// A connection that was gone before we took it is no news; out of descriptors or memory, trying again at once would
/// only burn the CPU that could free some.
async fn pause_after(entrance: &Entrance, error: &io::Error) {
    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        return;
    }
    tracing::warn!(listener = %entrance.name, %error, "cannot accept connections; trying again");
    tokio::time::sleep(PAUSE).await;
}

const PAUSE: Duration = Duration::from_millis(100);
