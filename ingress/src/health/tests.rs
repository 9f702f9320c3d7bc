use std::net::SocketAddr;
use std::time::Instant;

use tokio::task::JoinHandle;

use super::fixture::{ClosedPort, Server, health};
use super::*;
use crate::balance::{Pool, fixture};
use crate::config::{BackendAddress, BackendConfig, PoolConfig, ProbeConfig};

/// A running `run`, and what it is told.
struct Lab {
    publish: watch::Sender<Arc<Snapshot>>,
    commands: mpsc::Receiver<FlowCommand>,
    events: tokio::sync::broadcast::Receiver<Arc<crate::events::Event>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Lab {
    fn start(pools: impl IntoIterator<Item = Pool>) -> Self {
        let (publish, snapshots) = watch::channel(fixture::snapshot(pools));
        let (sender, commands) = mpsc::channel(8);
        let (shutdown, emit) = (CancellationToken::new(), Events::new());
        let events = emit.listen();
        let task = tokio::spawn(run(snapshots, sender, emit, shutdown.clone()));
        Self { publish, commands, events, shutdown, task }
    }

    fn pool(&self, name: &str) -> Arc<Pool> {
        Arc::clone(&self.publish.borrow().pools[&PoolName::new(name)])
    }

    fn backend(&self, pool: &str, at: usize) -> Arc<Backend> {
        Arc::clone(&self.pool(pool).backends[at])
    }
}

fn config(addresses: impl IntoIterator<Item = SocketAddr>) -> PoolConfig {
    let backends = addresses.into_iter().enumerate().map(|(n, address)| BackendConfig {
        name: format!("b{n}"),
        address: BackendAddress::Socket(address),
        weight: 1,
    });
    PoolConfig { health: Some(health(ProbeConfig::Tcp)), ..fixture::pool_config(backends, []) }
}

fn pool(name: &str, config: PoolConfig, previous: Option<&Pool>) -> Pool {
    Pool::new(PoolName::new(name), config, previous)
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    assert!(clock::comes_true(async || condition()).await, "still waiting for: {what}");
}

async fn wait_for(backend: &Backend, state: HealthState) {
    wait_until(state.as_str(), || backend.health().state == state).await;
}

#[tokio::test]
async fn backends_become_what_their_probes_say() {
    let server = Server::sink().await;
    let dead = ClosedPort::new();
    let lab = Lab::start([pool("web", config([server.address, dead.address]), None)]);
    wait_for(&lab.backend("web", 0), HealthState::Up).await;
    wait_for(&lab.backend("web", 1), HealthState::Down).await;
    let health = lab.backend("web", 1).health();
    let error = health.last_check.and_then(|c| c.error);
    assert_eq!(error, Some(format!("connect to {}: connection refused", dead.address)));
    assert!(lab.backend("web", 0).health().last_check.is_some_and(|c| c.latency.is_some()));
}

#[tokio::test]
async fn who_listens_hears_of_a_backend_that_goes_and_comes_and_of_no_other() {
    let healthy = Server::sink().await;
    let dead = ClosedPort::new();
    let address = dead.address;
    let mut lab = Lab::start([pool("web", config([healthy.address, address]), None)]);
    wait_for(&lab.backend("web", 0), HealthState::Up).await;
    let down = lab.events.recv().await.expect("the dead one");
    let item =
        |error| Item::Backend { pool: PoolName::new("web"), backend: "b1".into(), address: address.to_string(), error };
    let error = Some(format!("connect to {address}: connection refused"));
    assert_eq!((down.kind, &down.items[..]), (EventKind::BackendDown, &[item(error)][..]));
    let _server = dead.open();
    let up = lab.events.recv().await.expect("it is back");
    assert_eq!((up.kind, &up.items[..]), (EventKind::BackendUp, &[item(None)][..]));
    assert!(lab.events.try_recv().is_err(), "that b0 is up is no news");
}

#[tokio::test]
async fn a_dead_backend_comes_back_when_its_server_does() {
    let closed = ClosedPort::new();
    let lab = Lab::start([pool("web", config([closed.address]), None)]);
    let backend = lab.backend("web", 0);
    wait_for(&backend, HealthState::Down).await;
    let _listener = closed.open();
    wait_for(&backend, HealthState::Up).await;
}

#[tokio::test]
async fn going_down_cuts_the_backends_connections_once() {
    let closed = ClosedPort::new();
    let mut wanted = config([closed.address]);
    wanted.on_down = OnDown::Cut;
    let mut lab = Lab::start([pool("web", wanted, None)]);
    let backend = lab.backend("web", 0);
    let FlowCommand::Cut { filter, reason, done: _ } = lab.commands.recv().await.expect("the runner lives");
    assert_eq!((filter.pool.as_deref(), filter.backend.as_deref()), (Some("web"), Some("b0")));
    assert_eq!(reason, EndReason::BackendDown);
    let failed = backend.checks_failed_total();
    assert!(failed >= 3, "cut after {failed} failures, fall is 3");
    wait_until("more failures", || backend.checks_failed_total() > failed + 3).await;
    assert!(lab.commands.try_recv().is_err(), "cut twice");
}

#[tokio::test]
async fn keep_cuts_nothing() {
    let closed = ClosedPort::new();
    let mut lab = Lab::start([pool("web", config([closed.address]), None)]);
    let backend = lab.backend("web", 0);
    wait_until("failures beyond fall", || backend.checks_failed_total() > 5).await;
    assert!(lab.commands.try_recv().is_err());
}

#[tokio::test]
async fn a_new_snapshot_leaves_unchanged_checks_running() {
    let (old, new) = (Server::sink().await, Server::sink().await);
    let mut hourly = config([old.address]);
    hourly.health.as_mut().expect("set above").interval = Duration::from_secs(3600);
    let lab = Lab::start([pool("web", hourly.clone(), None)]);
    let backend = lab.backend("web", 0);
    wait_for(&backend, HealthState::Up).await;

    hourly.slow_start = Duration::from_secs(30);
    let web = pool("web", hourly, Some(&lab.pool("web")));
    lab.publish.send_replace(fixture::snapshot([web, pool("api", config([new.address]), None)]));
    wait_for(&lab.backend("api", 0), HealthState::Up).await;
    assert!(Arc::ptr_eq(&lab.backend("web", 0), &backend));
    assert_eq!(old.accepted(), 1, "a restarted check would have probed at once");
}

#[tokio::test]
async fn a_changed_check_starts_again_from_the_known_state() {
    let server = Server::sink().await;
    let mut wanted = config([server.address]);
    wanted.health.as_mut().expect("set above").interval = Duration::from_secs(3600);
    let lab = Lab::start([pool("web", wanted.clone(), None)]);
    let backend = lab.backend("web", 0);
    wait_for(&backend, HealthState::Up).await;
    let since = backend.health().since;

    wanted.health.as_mut().expect("set above").fall = 9;
    lab.publish.send_replace(fixture::snapshot([pool("web", wanted, Some(&lab.pool("web")))]));
    wait_until("a second probe", || server.accepted() == 2).await;
    assert_eq!((backend.health().state, backend.health().since), (HealthState::Up, since));
}

#[tokio::test]
async fn a_pool_that_loses_its_checks_loses_its_verdicts() {
    let closed = ClosedPort::new();
    let mut wanted = config([closed.address]);
    let lab = Lab::start([pool("web", wanted.clone(), None)]);
    let backend = lab.backend("web", 0);
    wait_for(&backend, HealthState::Down).await;
    wanted.health = None;
    lab.publish.send_replace(fixture::snapshot([pool("web", wanted, Some(&lab.pool("web")))]));
    wait_for(&backend, HealthState::Unchecked).await;
    assert!(backend.is_up());
}

#[tokio::test]
async fn a_removed_backend_is_no_longer_probed() {
    let (server, other) = (Server::sink().await, Server::sink().await);
    let lab = Lab::start([pool("web", config([server.address]), None)]);
    wait_until("some probes", || server.accepted() > 2).await;
    lab.publish.send_replace(fixture::snapshot([pool("web", config([other.address]), None)]));
    // The new backend has the old one's key: it is probed only after the old check has ended.
    wait_until("the new backend's probes", || other.accepted() > 0).await;
    let last = server.accepted();
    wait_until("many more of them", || other.accepted() > 5).await;
    assert!(server.accepted() <= last + 1, "at most one was on its way");
}

#[tokio::test]
async fn a_name_is_probed_once_it_has_addresses_and_is_good_while_one_of_them_is() {
    let server = Server::sink().await;
    let mut wanted = config([server.address]);
    wanted.backends[0].address = BackendAddress::Dns { host: "app.example.com".into(), port: 443 };
    let lab = Lab::start([pool("web", wanted, None)]);
    let backend = lab.backend("web", 0);
    let dead = ClosedPort::new();
    backend.set_addresses(vec![dead.address, server.address]);
    wait_for(&backend, HealthState::Up).await;
    assert_eq!(backend.address(), Some(server.address), "the dead address is passed over");
    backend.set_addresses(vec![dead.address]);
    wait_for(&backend, HealthState::Down).await;
}

#[tokio::test]
async fn shutdown_ends_the_runner_and_its_probes() {
    let server = Server::sink().await;
    let lab = Lab::start([pool("web", config([server.address]), None)]);
    wait_until("a probe", || server.accepted() > 0).await;
    lab.shutdown.cancel();
    let backend = lab.backend("web", 0);
    lab.task.await.expect("no panic");
    // The snapshot's and ours are left.
    wait_until("the check's task is gone", || Arc::strong_count(&backend) == 2).await;
}

#[tokio::test]
async fn a_backend_in_maintenance_is_not_asked_how_it_is() {
    let server = Server::sink().await;
    let lab = Lab::start([pool("web", config([server.address]), None)]);
    let backend = lab.backend("web", 0);
    wait_for(&backend, HealthState::Up).await;
    let say = |state| {
        let change = crate::balance::AdminChange { state, weight: None, by: "alice".into(), at: std::time::UNIX_EPOCH };
        backend.administer(Arc::new(change), Instant::now());
    };
    say(AdminState::Maint);
    wait_for(&backend, HealthState::Unchecked).await;
    say(AdminState::Ready);
    wait_for(&backend, HealthState::Up).await;
}
