//! A daemon made of fakes, for tests of admin and the CLI.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Admin, AdminSocket, ConfigSource, ConfigState, ConnectionsView, KernelView, ListenersView, Sources};
use super::{ListenerStatus, ReloadRequest};
use crate::balance::{BackendOrder, Book, OrderError, Ordered, Pool, fixture};
use crate::config::{AdminHttpConfig, Config};
use crate::dataplane::view::KernelStatus;
use crate::flow::{FlowCommand, FlowView};
use crate::hooks::view::{HookStatus, HookTested};
use crate::l4::outcome::{Refusal, RelayReason};
use crate::metrics::{ListenerCounts, Metrics};
use crate::route::{ListenerName, PoolName};
use crate::snapshot::Snapshot;

/// A served [`Admin`] and the other ends of all its channels.
pub(crate) struct Daemon {
    pub(crate) admin: Arc<Admin>,
    pub(crate) socket: std::path::PathBuf,
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(crate) config: watch::Sender<ConfigState>,
    pub(crate) commands: mpsc::Receiver<FlowCommand>,
    pub(crate) reloads: mpsc::Receiver<ReloadRequest>,
    pub(crate) draining: CancellationToken,
    pub(crate) shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Daemon {
    /// Serves until dropped. Must run inside a tokio runtime.
    pub(crate) fn start(http: Option<AdminHttpConfig>) -> Self {
        let metrics = Metrics::new();
        let public = metrics.listener(&ListenerName::new("public"));
        (0..4).for_each(|_| public.accepted());
        public.handed_off();
        public.relayed(RelayReason::Window);
        public.relayed(RelayReason::Local);
        public.refused(Refusal::UnknownSni);
        let (snapshots, snapshots_rx) = watch::channel(snapshot(http));
        let (config, config_rx) = watch::channel(ConfigState {
            path: "/etc/ingress/ingress.yaml".into(),
            source: ConfigSource::File,
            loaded_at: SystemTime::now(),
            last_error: None,
            text: "listeners: {}\n".into(),
        });
        let (commands_tx, commands) = mpsc::channel(4);
        let (reload_tx, reloads) = mpsc::channel(4);
        let (draining, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let (_, providers) = watch::channel(Arc::default());
        let admin = Admin::new(Sources {
            snapshots: snapshots_rx,
            metrics,
            kernel: Arc::new(Fake),
            connections: Arc::new(Fake),
            listeners: Arc::new(Fake),
            config: config_rx,
            providers,
            commands: commands_tx,
            reload: reload_tx,
            preview: Box::new(|_| Ok(crate::control::state::Changes::default())),
            peers: crate::admin::PeersDoor {
                status: Box::new(|| None),
                remove: Box::new(|_| Err("there is no mesh".into())),
            },
            administer: Box::new(fake_administer),
            dns_records: Box::new(Vec::new),
            etcd: Box::new(|| None),
            hooks: crate::admin::HooksDoor {
                status: Box::new(|| vec![hook()]),
                test: Box::new(|name| {
                    Box::pin(async move {
                        match name.as_str() {
                            "chat" => Ok(HookTested { name, id: "evt_1".into() }),
                            _ => Err(format!("there is no hook {name} in use; `hooks` names chat")),
                        }
                    })
                }),
            },
            draining: draining.clone(),
            drain: watch::channel(false).0,
        });
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("admin.sock");
        let bound = AdminSocket::bind(&socket).expect("bind");
        tokio::spawn(admin.clone().serve(bound, shutdown.clone()));
        Self { admin, socket, snapshots, config, commands, reloads, draining, shutdown, _dir: dir }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) fn hook() -> HookStatus {
    HookStatus {
        name: "chat".into(),
        kind: "webhook".into(),
        place: "https://chat.example.com".into(),
        state: HookStatus::FAILING.into(),
        waiting: 3,
        delivered_total: 7,
        retried_total: 2,
        failed_total: 1,
        dropped_total: 0,
        last_success: Some(1.0),
        failing_since: Some(2.0),
        last_error: Some("answered 503 Service Unavailable".into()),
    }
}

pub(crate) fn snapshot(http: Option<AdminHttpConfig>) -> Arc<Snapshot> {
    let backends = vec![fixture::backend("192.0.2.7:443", 1)];
    let pool = Pool::new(PoolName::new("app"), fixture::pool_config(backends, vec![]), None);
    let snapshot = fixture::snapshot([pool]);
    let admin = crate::config::AdminConfig { http, ..snapshot.config.admin.clone() };
    let config = Arc::new(Config { admin, ..Config::clone(&snapshot.config) });
    Arc::new(Snapshot {
        generation: snapshot.generation,
        published: snapshot.published,
        config,
        routes: snapshot.routes.clone(),
        pools: snapshot.pools.clone(),
        awaited: Vec::new(),
    })
}

/// Knows one backend.
fn fake_administer(pool: &str, backend: &str, order: BackendOrder, by: &str) -> Result<Ordered, OrderError> {
    if (pool, backend) != ("app", "192.0.2.7:443") {
        return Err(OrderError::NoPool(pool.to_owned()));
    }
    let (change, changed) = Book::default().follow(pool, backend, order, by, SystemTime::now());
    Ok(Ordered { pool: pool.into(), backend: backend.into(), change, changed, in_flight: 2, warning: None })
}

pub(crate) fn flow(id: u64, mode: &str, sni: &str) -> FlowView {
    let address = |last: u8, port| SocketAddr::from(([192, 0, 2, last], port));
    FlowView {
        id,
        mode: mode.into(),
        reason: (mode == "relay").then(|| "local".into()),
        state: if mode == "relay" { "relay" } else { "spliced" }.into(),
        client: address(100, 40_000),
        local: address(1, 443),
        source: address(1, 20_000),
        backend_address: address(7, 443),
        listener: "public".into(),
        sni: Some(sni.into()),
        alpn: Some("h2".into()),
        route: Some(sni.into()),
        pool: "app".into(),
        backend: "192.0.2.7:443".into(),
        bytes_to_backend: 1_000,
        bytes_to_client: 2_000_000,
        packets_to_backend: 10,
        packets_to_client: 1_400,
        age: 100.0 - id as f64,
        idle: 0.5,
    }
}

struct Fake;

impl KernelView for Fake {
    fn status(&self) -> KernelStatus {
        KernelStatus { mode: "kernel".into(), connections: 1, max_connections: 65_536, ..KernelStatus::default() }
    }

    fn flows(&self) -> Vec<FlowView> {
        vec![flow(1, "kernel", "app.example.com"), flow(2, "kernel", "www.example.com")]
    }
}

impl ConnectionsView for Fake {
    fn flows(&self) -> Vec<FlowView> {
        vec![flow(3, "relay", "app.example.com")]
    }
}

impl ListenersView for Fake {
    fn listeners(&self) -> Vec<ListenerStatus> {
        let listener = |name: &str, state: &str, error: Option<&str>| ListenerStatus {
            name: name.into(),
            bind: vec![SocketAddr::from(([192, 0, 2, 1], 443))],
            state: state.into(),
            error: error.map(str::to_owned),
            since: 12.0,
            counts: ListenerCounts::default(),
        };
        let taken = "192.0.2.1:8443: address in use";
        vec![
            listener("public", ListenerStatus::LISTENING, None),
            listener("spare", ListenerStatus::DEGRADED, Some(taken)),
        ]
    }
}
