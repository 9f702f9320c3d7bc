//! Keeps the addresses of backends that are given by DNS name: resolves each name when its TTL ends.
//!
//! One task, which owns its lookups: dropping [`run`] ends them. When and what to ask is decided by `names`, how by a
//! [`Resolve`]; a backend whose name has never been answered takes no connection.

mod names;
mod system;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::balance::Backend;
use crate::clock;
use crate::config::BackendAddress;
use crate::snapshot::Snapshot;

use names::{Names, News};
pub use system::SystemResolver;

/// Asks for the addresses of a host name.
pub trait Resolve: Send + Sync + 'static {
    /// IPv4 and IPv6 addresses; never an empty answer.
    fn lookup(&self, host: &str) -> impl Future<Output = Result<Answer, ResolveError>> + Send;
}

/// The addresses of a name, for a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub addresses: Vec<IpAddr>,
    /// For how long it may be used without asking again.
    pub ttl: Duration,
}

/// Why a name has no addresses, in words for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("{host} does not exist or has no address")]
    NoSuchName { host: String },
    #[error("no name server answers for {host} ({reason}); see /etc/resolv.conf")]
    Unavailable { host: String, reason: String },
}

/// Resolves with the system's configuration until `shutdown`, or until nobody publishes snapshots any more.
pub async fn run(snapshots: watch::Receiver<Arc<Snapshot>>, shutdown: CancellationToken) {
    run_with(SystemResolver::new(), snapshots, shutdown).await;
}

/// [`run`] with another way to look names up.
pub async fn run_with(
    resolver: impl Resolve,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    shutdown: CancellationToken,
) {
    let mut names = Names::default();
    let mut users = Users::new();
    let mut lookups = FuturesUnordered::new();
    // The snapshot that is already there is news too.
    snapshots.mark_changed();
    loop {
        while lookups.len() < MAX_LOOKUPS
            && let Some(host) = names.due(clock::now())
        {
            lookups.push(lookup(&resolver, host));
        }
        let next = names.next().filter(|_| lookups.len() < MAX_LOOKUPS);
        tokio::select! {
            () = shutdown.cancelled() => break,
            changed = snapshots.changed() => {
                if changed.is_err() {
                    break;
                }
                users = users_of(&snapshots.borrow_and_update());
                names.watch(users.keys(), clock::now());
                // A backend that is new may have a name that is not.
                users.iter().for_each(|(host, backends)| tell(backends, names.addresses(host)));
            }
            Some((host, answer)) = lookups.next() => {
                if let Some(news) = names.answered(&host, answer, clock::now()) {
                    log(&host, &news);
                    tell(users.get(&host).map_or(&[], Vec::as_slice), names.addresses(&host));
                }
            }
            () = clock::sleep_until(next) => {}
        }
    }
}

async fn lookup(resolver: &impl Resolve, host: String) -> (String, Result<Answer, ResolveError>) {
    let answer = tokio::time::timeout(LOOKUP_TIMEOUT, resolver.lookup(&host)).await.unwrap_or_else(|_| {
        Err(ResolveError::Unavailable { host: host.clone(), reason: format!("no answer within {LOOKUP_TIMEOUT:?}") })
    });
    (host, answer)
}

/// Who stands behind each name, and at which port.
type Users = BTreeMap<String, Vec<(Arc<Backend>, u16)>>;

fn users_of(snapshot: &Snapshot) -> Users {
    let mut users = Users::new();
    for backend in snapshot.pools.values().flat_map(|pool| pool.all()) {
        match &backend.target {
            BackendAddress::Socket(_) => {}
            BackendAddress::Dns { host, port } => {
                users.entry(host.clone()).or_default().push((Arc::clone(backend), *port));
            }
        }
    }
    users
}

/// Nothing, while the name has no answer: a backend is never without the addresses it had.
fn tell(backends: &[(Arc<Backend>, u16)], addresses: &[IpAddr]) {
    for (backend, port) in backends.iter().filter(|_| !addresses.is_empty()) {
        backend.set_addresses(addresses.iter().map(|ip| SocketAddr::new(*ip, *port)).collect());
    }
}

fn log(host: &str, news: &News) {
    match news {
        News::Changed { from, to } => info!(host, ?from, ?to, "backend name resolves to new addresses"),
        News::Recovered => info!(host, "backend name resolves again"),
        News::Failed { error, kept } if kept.is_empty() => {
            warn!(host, %error, "backend name cannot be resolved; its backends take no connections until it can");
        }
        News::Failed { error, kept } => {
            warn!(host, %error, ?kept, "backend name cannot be resolved; the last good answer stays");
        }
    }
}

/// Questions that may be open at the same time.
const MAX_LOOKUPS: usize = 32;

/// For one name with all its retries and search domains.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;
