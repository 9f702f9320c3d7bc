//! A traffic plane with its listeners, and the clients and backends around it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::*;
use crate::control::compile;
use crate::dataplane::Kernel;
use crate::l4::Plane;
use crate::l4::ends::Ends;
use crate::l4::kept::Kept;
use crate::l4::listener::{ListenerState, ListenerStates, Listeners};
use crate::l4::log::ConnectionLog as Log;
use crate::l4::worker::Workers;
use crate::metrics::{ListenerCounts, Metrics};
use crate::route::{ListenerName, OnRemove, PoolName, RouteName, RouteSpec, SniPattern};
use crate::snapshot::Snapshot;

pub(super) const DEADLINE: Duration = Duration::from_secs(10);
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(super) struct Lab {
    pub(super) plane: Arc<Plane>,
    pub(super) states: ListenerStates,
    pub(super) log: LogLines,
    snapshots: watch::Sender<Arc<Snapshot>>,
    listening: JoinHandle<()>,
    stop: CancellationToken,
    workers: Workers,
}

#[derive(Clone, Default)]
pub(super) struct LogLines(Arc<Mutex<Vec<u8>>>);

/// A backend that the test itself plays.
pub(super) struct Backend(TcpListener);

impl Lab {
    pub(super) async fn start(config: Config) -> Self {
        let snapshots = watch::Sender::new(Arc::new(compile(config, None)));
        let log = LogLines::default();
        let (writer, _thread) = Log::start(log.clone()).expect("log thread");
        let kernel = Kernel::off(vec![]);
        let ends = Arc::new(Ends::new(snapshots.subscribe(), Metrics::new(), writer));
        let plane = Arc::new(Plane::new(snapshots.subscribe(), kernel, ends));
        let mut workers = Workers::start(&plane, 2).expect("workers");
        let states = ListenerStates::default();
        let mut listeners =
            Listeners::new(&mut workers, &plane, states.clone(), Kept::default(), watch::channel(false).1);
        let first = snapshots.borrow().clone();
        listeners.follow(&first).await;
        let stop = CancellationToken::new();
        let listening = tokio::spawn(listeners.run(snapshots.subscribe(), stop.clone()));
        Self { plane, states, log, snapshots, listening, stop, workers }
    }

    /// Publishes a changed configuration, as a reload does.
    pub(super) fn reload(&self, change: impl FnOnce(&mut Config)) {
        let current = self.snapshots.borrow().clone();
        let mut config = Config::clone(&current.config);
        change(&mut config);
        self.snapshots.send_replace(Arc::new(compile(config, Some(&current))));
    }

    pub(super) fn state(&self, listener: &str) -> Option<ListenerState> {
        self.states.all().into_iter().find(|state| state.listener == listener)
    }

    pub(super) fn address(&self, listener: &str) -> SocketAddr {
        self.state(listener).expect("listener of the test").address
    }

    pub(super) async fn connect(&self, listener: &str) -> TcpStream {
        TcpStream::connect(self.address(listener)).await.expect("connect")
    }

    pub(super) fn counts(&self, listener: &str) -> ListenerCounts {
        self.plane.metrics.listener(&ListenerName::new(listener)).counts()
    }

    pub(super) fn refused(&self, listener: &str, cause: &str) -> u64 {
        self.counts(listener).refused.get(cause).copied().unwrap_or(0)
    }

    pub(super) fn ended(&self, listener: &str, reason: &str) -> u64 {
        self.counts(listener).ended.get(reason).copied().unwrap_or(0)
    }

    /// Closes the listeners, as a stopping daemon does.
    pub(super) async fn stop_listening(&mut self) {
        self.stop.cancel();
        (&mut self.listening).await.expect("listeners");
    }

    /// Waits until every worker has ended, without panic.
    pub(super) async fn workers_end(&mut self) {
        while let Some(end) = timeout(DEADLINE, self.workers.next_end()).await.expect("end in time") {
            assert!(!end.panicked);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl LogLines {
    pub(super) fn all(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.0.lock().clone()).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }
}

impl Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Backend {
    pub(super) async fn start() -> Self {
        Self(TcpListener::bind(LOOPBACK).await.expect("backend"))
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("bound")
    }

    pub(super) async fn accept(&self) -> TcpStream {
        timeout(DEADLINE, self.0.accept()).await.expect("a connection in time").expect("accept").0
    }
}

/// One TLS listener `tls`, one TCP listener `tcp`, both to pool `app`; `app.example.com` is routed.
pub(super) fn config(backends: &[SocketAddr]) -> Config {
    let pool = PoolName::new("app");
    let tls = listener(ListenerProtocol::Tls { default: DefaultRoute::Reject });
    let tcp = listener(ListenerProtocol::Tcp { pool: pool.clone() });
    let route = RouteSpec {
        name: RouteName::new("app"),
        sni: vec![SniPattern::parse("app.example.com").expect("pattern")],
        pool: pool.clone(),
        listeners: vec![],
        priority: 0,
        on_remove: OnRemove::L4,
    };
    Config {
        listeners: BTreeMap::from([(ListenerName::new("tls"), tls), (ListenerName::new("tcp"), tcp)]),
        routes: vec![Arc::new(route)],
        pools: BTreeMap::from([(pool, Arc::new(self::pool(backends)))]),
        providers: BTreeMap::new(),
        peers: None,
        ddns: None,
        etcd: None,
        hooks: Default::default(),
        limits: Limits::default(),
        admin: AdminConfig::default(),
        kernel: KernelConfig::default(),
        interfaces: BTreeMap::new(),
        admission: AdmissionConfig::default(),
        log: LogConfig { connections: ConnectionLog::End },
        state_dir: PathBuf::from("/nonexistent"),
    }
}

pub(super) fn listener(protocol: ListenerProtocol) -> ListenerConfig {
    ListenerConfig {
        bind: vec![LOOPBACK],
        device: None,
        protocol,
        accept_proxy_from: vec![],
        hello_timeout: DEADLINE,
        idle_timeout: DEADLINE,
        max_connections: 1000,
        max_connections_per_source: 1000,
    }
}

fn pool(backends: &[SocketAddr]) -> PoolConfig {
    let backend = |(at, address): (usize, &SocketAddr)| BackendConfig {
        name: format!("b{at}"),
        address: BackendAddress::Socket(*address),
        weight: 1,
    };
    PoolConfig {
        backends: backends.iter().enumerate().map(backend).collect(),
        fallback: vec![],
        balance: Balance::RoundRobin,
        proxy_protocol: ProxyProtocol::None,
        connect_timeout: DEADLINE,
        connect_retries: 2,
        handoff: HandoffPolicy::Always,
        health: None,
        on_down: OnDown::Cut,
        slow_start: Duration::ZERO,
        loop_guard: false,
    }
}

impl Config {
    pub(super) fn listener(&mut self, name: &str) -> &mut ListenerConfig {
        self.listeners.get_mut(&ListenerName::new(name)).expect("listener of the test")
    }

    pub(super) fn pool(&mut self) -> &mut PoolConfig {
        Arc::make_mut(self.pools.get_mut(&PoolName::new("app")).expect("pool of the test"))
    }
}

/// The ClientHello of a real TLS client.
pub(super) fn hello(name: &str) -> Vec<u8> {
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).expect("server name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("hello");
    hello
}

/// A relayed connection to the backend, hello behind it.
pub(super) async fn relayed(lab: &Lab, backend: &Backend) -> (TcpStream, TcpStream) {
    let hello = hello("app.example.com");
    let mut client = lab.connect("tls").await;
    client.write_all(&hello).await.expect("hello");
    let mut server = backend.accept().await;
    assert_eq!(read(&mut server, hello.len()).await, hello);
    (client, server)
}

pub(super) async fn read(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    timeout(DEADLINE, stream.read_exact(&mut read)).await.expect("bytes in time").expect("read");
    read
}

/// Everything up to the end of the stream.
pub(super) async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut read)).await.expect("end in time").expect("read");
    read
}

pub(super) async fn assert_reset(stream: &mut TcpStream) {
    let error = timeout(DEADLINE, stream.read(&mut [0])).await.expect("reset in time").expect_err("an error");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Closes with a RST.
pub(super) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
}

pub(super) async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    assert!(clock::comes_true(async || condition()).await, "{what} did not come true");
}
