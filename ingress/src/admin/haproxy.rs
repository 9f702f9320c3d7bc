//! A second Unix socket, which speaks as HAProxy's does: for runbooks, scripts and exporters that know that one.
//!
//! Reads what the rest of admin reads, and gives orders by the same function. docs/operations.md says what differs.

mod commands;
mod help;
mod info;
mod proxies;
mod session;
mod show;
mod stat;
mod table;
mod words;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Admin, AdminSocket, SocketStatus};
use crate::config::HaproxySocketConfig;
use crate::serve::Accept;

/// Serves what `admin.haproxy_socket` says now, and again whenever a reload changes it. A socket that cannot be made is
/// tried again and shown in `ingress status`; it keeps nobody from serving.
pub(super) async fn supervise(admin: Arc<Admin>, shutdown: CancellationToken) {
    let mut snapshots = admin.sources.snapshots.clone();
    while !shutdown.is_cancelled() {
        let config = snapshots.borrow_and_update().config.admin.haproxy_socket.clone();
        let changed = async {
            while snapshots.changed().await.is_ok() {
                if snapshots.borrow_and_update().config.admin.haproxy_socket != config {
                    return;
                }
            }
            // Nobody publishes any more: the daemon is about to stop.
            shutdown.cancelled().await;
        };
        let path = config.as_ref().map(|config| config.path.display().to_string());
        *admin.haproxy.lock() = path.map(|path| SocketStatus { path, error: None });
        let serving = async {
            match &config {
                Some(config) => listen(&admin, config).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = serving => {}
            () = changed => {}
            () = shutdown.cancelled() => {}
        }
    }
}

async fn listen(admin: &Arc<Admin>, config: &HaproxySocketConfig) {
    let socket = loop {
        match AdminSocket::bind_for_haproxy(config) {
            Ok(socket) => break socket,
            Err(error) => {
                if admin.socket_state(Some(error.to_string())) {
                    tracing::warn!(%error, "admin.haproxy_socket is not there; it is tried again");
                }
            }
        }
        sleep(BIND_RETRY).await;
    };
    admin.socket_state(None);
    tracing::info!(path = %config.path.display(), level = config.level.as_str(), "HAProxy's commands are understood");
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = sessions.join_next() => {}
            // Above the limit they wait in the kernel's backlog.
            accepted = socket.accept(), if sessions.len() < SESSIONS => match accepted {
                Ok((stream, operator)) => {
                    let (admin, level) = (admin.clone(), config.level);
                    sessions.spawn(async move {
                        if let Err(error) = session::serve(admin, stream, operator, level).await {
                            tracing::debug!(%error, "HAProxy's socket");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "HAProxy's socket: accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

impl Admin {
    /// Says whether it is news.
    fn socket_state(&self, error: Option<String>) -> bool {
        let mut socket = self.haproxy.lock();
        let Some(status) = socket.as_mut() else { return false };
        let news = status.error != error;
        status.error = error;
        news
    }
}

/// At one time.
const SESSIONS: usize = 32;
const BIND_RETRY: Duration = Duration::from_secs(5);
/// Accept fails when descriptors run out; trying at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
