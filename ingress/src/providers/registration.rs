//! Backends register themselves: an HTTP API on the private network, a journal on disk, and leases.
//!
//! ```text
//!  caller -- door -- api ---- order ----> registrar -- journal (fsync)
//!          sources   token, fields, scope    |     \-- control (holds for new connections)
//!            <------------- answer ----------+
//! ```
//! An answer with status 200 means: it is on this node's disk, and it holds for new connections.

mod api;
mod book;
mod compile;
mod door;
mod journal;
mod leases;
mod order;
mod problem;
mod registrar;
mod request;
mod tokens;
mod upstreams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::{ProviderConfig, RegistrationConfig};
use crate::etcd::Store;
use crate::metrics::Metrics;
use crate::peers::Mesh;
use crate::serve::{Bounds, bind_tcp, serve};
use crate::snapshot::Snapshot;
use crate::watch::FileWatch;

use super::outlet::Outlet;
use api::{Api, MAX_BODY};
use compile::Settings;
use door::{Door, Inside};
use journal::Journal;
use order::Order;
use registrar::{Registrar, Stopping};
use tokens::Tokens;

/// An address, and what is in the way of listening there.
type DoorNews = (SocketAddr, Option<String>);

/// Serves what the journal says, then opens the door, until it is dropped.
pub(super) async fn run(
    config: ProviderConfig,
    source: RegistrationConfig,
    outlet: Outlet,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    metrics: Arc<Metrics>,
    mesh: Mesh,
    store: Store,
) {
    let provider = outlet.provider().clone();
    let journal = open(&outlet, &snapshots).await;
    let settings = Settings::new(&config, source.clone());
    let seat = mesh.open(format!("registrations/{provider}"));
    let store = store.open(format!("registrations/{provider}"));
    let started = Registrar::start(settings, outlet, snapshots, metrics.clone(), journal, seat, store).await;
    let Ok(mut registrar) = started else { return };

    let (orders, waiting) = mpsc::channel(ORDERS);
    let tokens = RwLock::new(read_tokens(&source, &mut registrar).await);
    let api = Arc::new(Api { provider, tokens, orders, metrics });
    let mut doors = JoinSet::new();
    let (news, told) = mpsc::channel(1);
    for bind in &source.bind {
        doors.spawn(keep_open(*bind, source.clone(), api.clone(), news.clone()));
    }
    // Ends when the daemon stops; the doors close with it.
    let Err(Stopping) = work(&mut registrar, &api, &source, waiting, told).await;
}

/// Everything that happens to the registrar, one after the other.
async fn work(
    registrar: &mut Registrar,
    api: &Api,
    source: &RegistrationConfig,
    mut waiting: mpsc::Receiver<Order>,
    mut told: mpsc::Receiver<DoorNews>,
) -> Result<std::convert::Infallible, Stopping> {
    let files = Tokens::files(&source.tokens);
    let mut watch = FileWatch::start(files.iter().map(AsRef::as_ref));
    let mut orders = Vec::new();
    loop {
        let (expiry, compare) = (registrar.next_expiry(), registrar.next_compare());
        tokio::select! {
            // Heartbeats that wait are heard before leases are judged.
            biased;
            1.. = waiting.recv_many(&mut orders, ORDERS) => registrar.take(orders.drain(..)).await?,
            () = clock::sleep_until(expiry) => registrar.expire().await?,
            news = registrar.heard() => registrar.hear(news).await?,
            () = clock::sleep_until(compare) => registrar.compare().await?,
            () = watch.settled() => {
                let tokens = read_tokens(source, registrar).await;
                *api.tokens.write() = tokens;
            }
            Some((bind, trouble)) = told.recv() => registrar.note(&format!("listening on {bind}"), trouble).await,
        }
    }
}

/// What was registered before; tries until it can be read, since nothing may be acknowledged that would be lost.
async fn open(outlet: &Outlet, snapshots: &watch::Receiver<Arc<Snapshot>>) -> (Journal, book::Book) {
    loop {
        let (provider, state_dir) = (outlet.provider().clone(), snapshots.borrow().config.state_dir.clone());
        let opened = tokio::task::spawn_blocking(move || Journal::open(&state_dir, &provider)).await;
        match opened {
            Ok(Ok((journal, recovered))) => {
                tracing::info!(provider = %outlet.provider(), registrations = recovered.book.len(), "registrations read");
                return (journal, recovered.book);
            }
            Ok(Err(error)) => outlet.failed(error).await,
            Err(error) => outlet.failed(error).await,
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn read_tokens(source: &RegistrationConfig, registrar: &mut Registrar) -> Tokens {
    let config = source.tokens.clone();
    let read = tokio::task::spawn_blocking(move || Tokens::read(&config, |name| std::env::var(name).ok())).await;
    let (tokens, problems) = read.unwrap_or_default();
    registrar.note("tokens", (!problems.is_empty()).then(|| problems.join("; "))).await;
    tokens
}

/// Listens on `bind`, and tries until it can.
async fn keep_open(bind: SocketAddr, source: RegistrationConfig, api: Arc<Api>, news: mpsc::Sender<DoorNews>) {
    let RegistrationConfig { device, sources, .. } = source;
    let listener = loop {
        match bind_tcp(bind, device.as_deref()) {
            Ok(listener) => break listener,
            Err(error) => {
                // Nobody listens any more: the provider ends.
                let _ = news.send((bind, Some(error.to_string()))).await;
            }
        }
        tokio::time::sleep(RETRY).await;
    };
    let _ = news.send((bind, None)).await;
    tracing::info!(provider = %api.provider, %bind, device, "registration API");
    let (metrics, provider) = (api.metrics.clone(), api.provider.clone());
    let door = Door { listener, sources, inside: Arc::<Inside>::default(), metrics, provider };
    // It ends by being dropped.
    serve(door, api::router(api), BOUNDS, CancellationToken::new()).await;
}

const BOUNDS: Bounds = Bounds { connections: 512, body: MAX_BODY, request: Duration::from_secs(30) };
/// Callers that may wait for their turn, and how many are taken with one `fsync`.
const ORDERS: usize = 256;
/// Until something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
