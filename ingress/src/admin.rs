//! What operators and their tools ask a running daemon, and tell it.
//!
//! Three doors. The Unix socket (mode 0600) speaks the whole API to the CLI: [`api`]. The optional TCP address has metrics, the
//! dashboard and probes, and changes nothing but whether a backend takes connections, for visitors with a password: [`http`]. An
//! optional second Unix socket speaks as HAProxy's: `haproxy`. All read what others publish; the only state here is that of our
//! own sockets, and the last minutes in numbers.

pub mod api;
mod haproxy;
pub mod http;
pub mod routes;
pub mod routing;
pub mod socket;
pub mod status;

mod auth;
mod dashboard;
mod operator;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::balance::{BackendOrder, OrderError, Ordered};
use crate::dataplane::view::KernelStatus;
use crate::ddns::view::DnsRecordView;
use crate::etcd::view::EtcdStatus;
use crate::flow::{FlowCommand, FlowView};
use crate::hooks::view::{HookStatus, HookTested};
use crate::metrics::Metrics;
use crate::peers::view::PeersStatus;
use crate::serve::{Bounds, serve};
use crate::snapshot::Snapshot;

use dashboard::pace::Pace;

pub use crate::control::state::{Changes, ConfigSource, ConfigState, ProviderState, ReloadRequest, Reloaded};
pub use api::PreviewQuery;
pub use routing::ProviderStatus;
pub use socket::AdminSocket;
pub use status::{HttpStatus, ListenerStatus, SocketStatus, Status};

/// The kernel path as admin sees it. Calls may take milliseconds; admin makes them off the async threads.
pub trait KernelView: Send + Sync + 'static {
    fn status(&self) -> KernelStatus;
    fn flows(&self) -> Vec<FlowView>;
}

/// The connections that userspace relays.
pub trait ConnectionsView: Send + Sync + 'static {
    fn flows(&self) -> Vec<FlowView>;
}

/// The bound ports. Only identity and state need be filled; admin adds the counts from [`Metrics`].
pub trait ListenersView: Send + Sync + 'static {
    fn listeners(&self) -> Vec<ListenerStatus>;
}

/// Says what would change. It may read files; admin makes the call off the async threads.
pub type Preview = Box<dyn Fn(PreviewQuery) -> Result<Changes, String> + Send + Sync>;

/// Takes a member's name.
pub type RemovePeer = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Carries out an order about a backend: pool, backend, order, and who wants it. It writes a file; admin makes the call off
/// the async threads.
pub type Administer = Box<dyn Fn(&str, &str, BackendOrder, &str) -> Result<Ordered, OrderError> + Send + Sync>;

/// The mesh as admin sees it.
pub struct PeersDoor {
    /// `None`: there is none.
    pub status: Box<dyn Fn() -> Option<PeersStatus> + Send + Sync>,
    /// Shuts a member out, or says why not. It writes files; admin makes the call off the async threads.
    pub remove: RemovePeer,
}

/// The DNS records that this node keeps.
pub type DnsRecords = Box<dyn Fn() -> Vec<DnsRecordView> + Send + Sync>;

/// Takes a hook's name; why nothing arrived, otherwise.
pub type TestHook = Box<dyn Fn(String) -> BoxFuture<'static, Result<HookTested, String>> + Send + Sync>;

/// The hooks as admin sees them.
pub struct HooksDoor {
    pub status: Box<dyn Fn() -> Vec<HookStatus> + Send + Sync>,
    pub test: TestHook,
}

/// Everything that admin reads from, and the channels that it may write to.
pub struct Sources {
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub metrics: Arc<Metrics>,
    pub kernel: Arc<dyn KernelView>,
    pub connections: Arc<dyn ConnectionsView>,
    pub listeners: Arc<dyn ListenersView>,
    pub config: watch::Receiver<ConfigState>,
    pub providers: watch::Receiver<Arc<Vec<ProviderState>>>,
    pub commands: mpsc::Sender<FlowCommand>,
    pub reload: mpsc::Sender<ReloadRequest>,
    pub preview: Preview,
    pub peers: PeersDoor,
    pub administer: Administer,
    pub dns_records: DnsRecords,
    /// `None`: there is no shared store.
    pub etcd: Box<dyn Fn() -> Option<EtcdStatus> + Send + Sync>,
    pub hooks: HooksDoor,
    /// Cancelled when the daemon takes no new connections: `/readyz` says so.
    pub draining: CancellationToken,
    /// An operator's wish that this node takes no new connections. Whoever brings connections here follows it: the listeners do.
    pub drain: watch::Sender<bool>,
}

/// One per daemon.
pub struct Admin {
    sources: Sources,
    started: Instant,
    node: String,
    http: Mutex<Vec<HttpStatus>>,
    /// `None`: `admin.haproxy_socket` is not set.
    haproxy: Mutex<Option<SocketStatus>>,
    pace: Pace,
}

impl Admin {
    pub fn new(sources: Sources) -> Arc<Self> {
        let node = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        Arc::new(Self {
            sources,
            started: Instant::now(),
            node,
            http: Mutex::default(),
            haproxy: Mutex::default(),
            pace: Pace::default(),
        })
    }

    /// Answers on the Unix socket, and on TCP as the configuration says, until `shutdown`.
    pub async fn serve(self: Arc<Self>, socket: AdminSocket, shutdown: CancellationToken) {
        let api = serve(socket, api::router(self.clone()), BOUNDS, shutdown.clone());
        let haproxy = haproxy::supervise(self.clone(), shutdown.clone());
        let http = http::supervise(self.clone(), shutdown.clone());
        let pace = Pace::keep(self, shutdown);
        tokio::join!(api, haproxy, http, pace);
    }

    /// Every live connection, in no order.
    fn flows(&self) -> Vec<FlowView> {
        let mut flows = self.sources.kernel.flows();
        flows.extend(self.sources.connections.flows());
        flows
    }

    /// What `by` wants of one backend, whichever door it came by. Runs off the async threads.
    pub(crate) async fn administer(
        self: Arc<Self>,
        pool: String,
        backend: String,
        order: BackendOrder,
        by: String,
    ) -> Result<Result<Ordered, OrderError>, tokio::task::JoinError> {
        tokio::task::spawn_blocking(move || (self.sources.administer)(&pool, &backend, order, &by)).await
    }

    /// Runs `read` where a system call or a long walk disturbs nobody.
    async fn read<T: Send + 'static>(self: Arc<Self>, read: fn(&Self) -> T) -> Result<T, tokio::task::JoinError> {
        tokio::task::spawn_blocking(move || read(&self)).await
    }
}

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A reload resolves names and opens sockets within the time of a request.
const BOUNDS: Bounds = Bounds { connections: 64, body: 1 << 20, request: Duration::from_secs(30) };

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
