//! Keeps the bound sockets equal to the snapshot's listeners.
//!
//! A socket that a new snapshot still wants is never touched: its connections read timeouts, limits and routes from the
//! snapshot, so only address, device and name are bound to the socket. A port that is taken makes a degraded listener,
//! which is retried and shown; it never fails a start or a reload.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Plane;
use super::kept::{self, Kept};
use super::segments::{Paths, Segments};
use super::socket::{self, Binding};
use super::worker::{Listen, Workers};
use crate::config::{Config, ListenerProtocol};
use crate::dataplane::Kernel;
use crate::route::ListenerName;
use crate::snapshot::Snapshot;

/// What each listener's sockets do now, for status and metrics.
#[derive(Clone, Debug, Default)]
pub struct ListenerStates(Arc<Mutex<Vec<ListenerState>>>);

/// One address of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerState {
    pub listener: String,
    /// As bound: a configured port 0 is the one that the kernel chose.
    pub address: SocketAddr,
    pub device: Option<String>,
    /// Why it does not listen; `None`: it does.
    pub error: Option<String>,
    pub since: std::time::Instant,
}

/// Binds and closes. One task; ends with all sockets closed.
#[derive(Debug)]
pub struct Listeners {
    workers: Vec<mpsc::Sender<Listen>>,
    kernel: Kernel,
    segments: Arc<Segments>,
    states: ListenerStates,
    bound: BTreeMap<Wanted, Bound>,
    degraded: BTreeMap<Wanted, Degraded>,
    /// Sockets of an earlier daemon, or of a socket unit.
    kept: Kept,
    /// An operator wants no new connections on this node (`ingress drain`).
    drained: watch::Receiver<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    listener: ListenerName,
    binding: Binding,
}

#[derive(Debug)]
struct Bound {
    /// Handles on the workers' sockets.
    sockets: Vec<TcpListener>,
    /// The MSS that they announce; `None`: the kernel's own choice.
    segment: Option<u32>,
    address: SocketAddr,
    since: Instant,
    stop: CancellationToken,
    open: TaskTracker,
}

#[derive(Debug)]
struct Degraded {
    error: String,
    since: Instant,
    retry_at: Instant,
    wait: Duration,
}

impl ListenerStates {
    pub fn all(&self) -> Vec<ListenerState> {
        self.0.lock().clone()
    }
}

impl Listeners {
    /// Takes over what `workers` listen to.
    pub fn new(
        workers: &mut Workers,
        plane: &Plane,
        states: ListenerStates,
        kept: Kept,
        drained: watch::Receiver<bool>,
    ) -> Self {
        Self {
            workers: std::mem::take(&mut workers.commands),
            kernel: plane.kernel.clone(),
            segments: plane.segments.clone(),
            states,
            bound: BTreeMap::new(),
            degraded: BTreeMap::new(),
            kept,
            drained,
        }
    }

    /// Follows the snapshots until `stop`; then closes every socket, but for what systemd keeps for the next daemon.
    pub async fn run(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>, stop: CancellationToken) {
        let mut look_again = tokio::time::interval_at(Instant::now() + SEGMENTS_AGAIN, SEGMENTS_AGAIN);
        look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let segments = self.segments.clone();
        loop {
            let retry = self.degraded.values().map(|d| d.retry_at).min();
            tokio::select! {
                () = stop.cancelled() => break,
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let snapshot = snapshots.borrow_and_update().clone();
                    self.follow(&snapshot).await;
                }
                Ok(()) = self.drained.changed() => {
                    let snapshot = snapshots.borrow().clone();
                    self.follow(&snapshot).await;
                }
                // Names resolve late and routes change.
                _ = look_again.tick() => {
                    let snapshot = snapshots.borrow().clone();
                    self.size_segments(&snapshot);
                }
                () = segments.changed() => {
                    let snapshot = snapshots.borrow().clone();
                    self.size_segments(&snapshot);
                }
                () = wait_until(retry), if retry.is_some() => self.retry().await,
            }
        }
        self.close(&BTreeSet::new(), false).await;
        self.publish();
    }

    /// Makes the sockets what `config` says.
    pub async fn follow(&mut self, snapshot: &Snapshot) {
        let wanted = wanted(&snapshot.config);
        if *self.drained.borrow_and_update() {
            return self.rest(&wanted).await;
        }
        // Closed before opened, because an address may have moved from one listener to another.
        self.close(&wanted, true).await;
        // Told before opened: a connection whose SYN the programs have not prepared cannot be handed off.
        self.announce(&wanted);
        for wanted in &wanted {
            if !self.bound.contains_key(wanted) && !self.degraded.contains_key(wanted) {
                self.bind(wanted.clone(), None).await;
            }
        }
        self.announce(&wanted);
        self.size_segments(snapshot);
        self.publish();
        // Providers may yet ask for listeners.
        if snapshot.awaited.is_empty() {
            self.kept.drop_unwanted();
        }
    }

    /// Nobody can connect until the drain is cancelled.
    async fn rest(&mut self, wanted: &BTreeSet<Wanted>) {
        self.close(&BTreeSet::new(), true).await;
        self.kept.drop_unwanted();
        self.announce(&BTreeSet::new());
        let now = Instant::now();
        let closed = |at: &Wanted| ListenerState {
            listener: at.listener.to_string(),
            address: at.binding.address,
            device: at.binding.device.clone(),
            error: Some(DRAINED.to_owned()),
            since: now.into_std(),
        };
        *self.states.0.lock() = wanted.iter().map(closed).collect();
    }

    /// Keeps the announced MSS within the narrowest path behind each listener.
    fn size_segments(&mut self, snapshot: &Snapshot) {
        let segments = self.segments.clone();
        let mut paths = Paths::new(&segments);
        for (wanted, bound) in &mut self.bound {
            let Some(listener) = snapshot.config.listeners.get(&wanted.listener) else { continue };
            let pools: Vec<_> = match &listener.protocol {
                ListenerProtocol::Tcp { pool } => snapshot.pools.get(pool).into_iter().collect(),
                ListenerProtocol::Tls { .. } => snapshot.pools.values().collect(),
            };
            let backends = pools.into_iter().flat_map(|pool| pool.all()).flat_map(|backend| backend.addresses());
            // Only one family goes through the kernel; the other's paths are the relay's.
            let segment = paths.largest_segment(backends.filter(|b| b.is_ipv4() == bound.address.is_ipv4()));
            if segment == bound.segment {
                continue;
            }
            for socket in &bound.sockets {
                if let Err(error) = SockRef::from(socket).set_tcp_mss(segment.unwrap_or(0)) {
                    tracing::warn!(listener = %wanted.listener, %error, "cannot set the MSS: some connections are relayed");
                }
            }
            bound.segment = segment;
        }
        paths.done();
    }

    /// Tells the kernel path where clients connect: where the kernel chose the port, once it is known.
    fn announce(&self, wanted: &BTreeSet<Wanted>) {
        let address = |wanted: &Wanted| self.bound.get(wanted).map_or(wanted.binding.address, |bound| bound.address);
        let addresses: Vec<_> = wanted.iter().map(address).filter(|address| address.port() != 0).collect();
        self.kernel.listen_on(&addresses);
    }

    /// Closes all but `wanted`. `for_good`: nor does systemd keep them, so that clients are refused and do not wait in vain.
    async fn close(&mut self, wanted: &BTreeSet<Wanted>, for_good: bool) {
        self.degraded.retain(|at, _| wanted.contains(at));
        for (at, bound) in self.bound.extract_if(.., |at, _| !wanted.contains(at)) {
            if for_good {
                kept::forget(&at.binding);
            }
            bound.stop.cancel();
            bound.open.close();
            bound.open.wait().await;
            tracing::info!(listener = %at.listener, address = %bound.address, "stopped listening");
        }
    }

    async fn retry(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self.degraded.extract_if(.., |_, degraded| degraded.retry_at <= now).collect();
        for (wanted, before) in due {
            self.bind(wanted, Some(before)).await;
        }
        self.publish();
    }

    async fn bind(&mut self, wanted: Wanted, before: Option<Degraded>) {
        let Wanted { listener, binding } = &wanted;
        match self.open(listener, binding).await {
            Ok(bound) => {
                tracing::info!(%listener, address = %bound.address, "listening");
                self.bound.insert(wanted, bound);
            }
            Err(error) => {
                let error = describe(&error);
                if before.as_ref().is_none_or(|before| before.error != error) {
                    tracing::warn!(%listener, address = %binding.address, error, "cannot listen yet; trying again");
                }
                let now = Instant::now();
                let wait = before.as_ref().map_or(FIRST_RETRY, |before| (before.wait * 2).min(LAST_RETRY));
                let since = before.map_or(now, |before| before.since);
                self.degraded.insert(wanted, Degraded { error, since, retry_at: now + wait, wait });
            }
        }
    }

    async fn open(&mut self, listener: &ListenerName, binding: &Binding) -> io::Result<Bound> {
        let sockets = self.sockets(binding)?;
        let handles = sockets.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?;
        let address = sockets.first().map_or(Ok(binding.address), |socket| socket.local_addr())?;
        let (stop, open) = (CancellationToken::new(), TaskTracker::new());
        for (worker, socket) in self.workers.iter().cycle().zip(sockets) {
            let (listener, stop, open) = (listener.clone(), stop.clone(), open.token());
            let listen = Listen { listener, socket, address, stop, open };
            worker.send(listen).await.map_err(|_| io::Error::other("a worker thread has ended"))?;
        }
        Ok(Bound { sockets: handles, segment: None, address, since: Instant::now(), stop, open })
    }

    /// One for each worker.
    fn sockets(&mut self, binding: &Binding) -> io::Result<Vec<TcpListener>> {
        let inherited = self.kept.take(binding);
        if !inherited.is_empty() {
            tracing::info!(address = %binding.address, sockets = inherited.len(), "taken over with all who wait there");
            return kept::spread(inherited, self.workers.len());
        }
        let sockets = socket::listen(binding, self.workers.len())?;
        kept::keep(binding, &sockets);
        Ok(sockets)
    }

    fn publish(&self) {
        let state = |at: &Wanted, address, error, since: Instant| ListenerState {
            listener: at.listener.to_string(),
            address,
            device: at.binding.device.clone(),
            error,
            since: since.into_std(),
        };
        let bound = self.bound.iter().map(|(at, bound)| state(at, bound.address, None, bound.since));
        let degraded =
            self.degraded.iter().map(|(at, d)| state(at, at.binding.address, Some(d.error.clone()), d.since));
        let mut states: Vec<_> = bound.chain(degraded).collect();
        states.sort_by(|a, b| (&a.listener, a.address).cmp(&(&b.listener, b.address)));
        *self.states.0.lock() = states;
    }
}

fn wanted(config: &Config) -> BTreeSet<Wanted> {
    let addresses = config.listeners.iter().flat_map(|(name, listener)| {
        listener.bind.iter().map(move |address| Wanted {
            listener: name.clone(),
            binding: Binding { address: *address, device: listener.device.clone() },
        })
    });
    addresses.collect()
}

fn describe(error: &io::Error) -> String {
    let words = [
        (io::ErrorKind::AddrInUse, "the port is taken by another process"),
        (io::ErrorKind::AddrNotAvailable, "this host does not have the address"),
        (io::ErrorKind::PermissionDenied, "not permitted; ports below 1024 need CAP_NET_BIND_SERVICE"),
    ];
    let known = words.iter().find(|(kind, _)| *kind == error.kind());
    known.map_or_else(|| error.to_string(), |(_, words)| (*words).to_owned())
}

async fn wait_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

const DRAINED: &str = "closed by `ingress drain`; `ingress drain --cancel` opens it again";
const SEGMENTS_AGAIN: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(5);
