use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::*;
use crate::balance::{Pool, fixture};
use crate::config::BackendConfig;
use crate::route::PoolName;

/// Answers what the test wrote down; counts the questions.
#[derive(Clone, Default)]
struct Scripted {
    answers: Arc<Mutex<BTreeMap<String, Vec<IpAddr>>>>,
    asked: Arc<AtomicUsize>,
}

impl Scripted {
    fn set(&self, host: &str, last: &[u8]) {
        let addresses = last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect();
        self.answers.lock().insert(host.into(), addresses);
    }

    fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

impl Resolve for Scripted {
    async fn lookup(&self, host: &str) -> Result<Answer, ResolveError> {
        self.asked.fetch_add(1, Relaxed);
        match self.answers.lock().get(host) {
            Some(addresses) => Ok(Answer { addresses: addresses.clone(), ttl: Duration::from_secs(30) }),
            None => Err(ResolveError::NoSuchName { host: host.to_owned() }),
        }
    }
}

struct Lab {
    dns: Scripted,
    publish: watch::Sender<Arc<Snapshot>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Lab {
    fn start(dns: &Scripted, pools: impl IntoIterator<Item = Pool>) -> Self {
        let (publish, snapshots) = watch::channel(fixture::snapshot(pools));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run_with(dns.clone(), snapshots, shutdown.clone()));
        Self { dns: dns.clone(), publish, shutdown, task }
    }

    fn backend(&self, pool: &str) -> Arc<Backend> {
        Arc::clone(&self.publish.borrow().pools[&PoolName::new(pool)].backends[0])
    }
}

fn pool(name: &str, host: &str, port: u16, previous: Option<&Pool>) -> Pool {
    let address = BackendAddress::Dns { host: host.into(), port };
    let backend = BackendConfig { name: host.into(), address, weight: 1 };
    Pool::new(PoolName::new(name), fixture::pool_config([backend], []), previous)
}

fn sockets(last: &[u8], port: u16) -> Vec<SocketAddr> {
    last.iter().map(|n| SocketAddr::from(([10, 0, 0, *n], port))).collect()
}

/// On a stopped clock: waiting costs no time, and timers fire in their order.
async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(3600);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "still waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn names_are_resolved_once_for_all_backends_that_use_them() {
    let dns = Scripted::default();
    dns.set("app.example.com", &[2, 1]);
    let lab = Lab::start(&dns, [pool("web", "app.example.com", 443, None), pool("api", "app.example.com", 8443, None)]);
    let (web, api) = (lab.backend("web"), lab.backend("api"));
    wait_until("both have addresses", || web.is_resolved() && api.is_resolved()).await;
    assert_eq!((web.addresses(), api.addresses()), (sockets(&[1, 2], 443), sockets(&[1, 2], 8443)));
    assert_eq!(dns.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_moved_name_is_followed_when_its_ttl_ends() {
    let dns = Scripted::default();
    dns.set("app.example.com", &[1]);
    let lab = Lab::start(&dns, [pool("web", "app.example.com", 443, None)]);
    let web = lab.backend("web");
    let start = tokio::time::Instant::now();
    wait_until("an address", || web.is_resolved()).await;
    dns.set("app.example.com", &[7]);
    wait_until("the new address", || web.addresses() == sockets(&[7], 443)).await;
    let waited = start.elapsed().as_secs();
    assert!((30..=31).contains(&waited), "after {waited} s, the TTL is 30 s");
}

#[tokio::test(start_paused = true)]
async fn the_last_good_answer_survives_failures() {
    let dns = Scripted::default();
    dns.set("app.example.com", &[1]);
    let lab = Lab::start(&dns, [pool("web", "app.example.com", 443, None)]);
    let web = lab.backend("web");
    wait_until("an address", || web.is_resolved()).await;
    dns.answers.lock().clear();
    wait_until("many failures", || lab.dns.asked() > 6).await;
    assert_eq!(web.addresses(), sockets(&[1], 443));
    dns.set("app.example.com", &[9]);
    wait_until("the new address", || web.addresses() == sockets(&[9], 443)).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_backend_with_a_known_name_does_not_wait() {
    let dns = Scripted::default();
    dns.set("app.example.com", &[1]);
    let lab = Lab::start(&dns, [pool("web", "app.example.com", 443, None)]);
    let web = lab.backend("web");
    wait_until("an address", || web.is_resolved()).await;
    let kept = pool("web", "app.example.com", 443, Some(&lab.publish.borrow().pools[&PoolName::new("web")]));
    lab.publish.send_replace(fixture::snapshot([kept, pool("api", "app.example.com", 8443, None)]));
    let api = lab.backend("api");
    wait_until("the same address", || api.addresses() == sockets(&[1], 8443)).await;
    assert_eq!(dns.asked(), 1);
    assert!(Arc::ptr_eq(&lab.backend("web"), &web));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_appears_later_is_found() {
    let dns = Scripted::default();
    let lab = Lab::start(&dns, [pool("web", "app.example.com", 443, None)]);
    wait_until("failures", || dns.asked() > 2).await;
    assert!(!lab.backend("web").is_resolved());
    dns.set("app.example.com", &[1]);
    wait_until("an address", || lab.backend("web").is_resolved()).await;
}

#[tokio::test(start_paused = true)]
async fn many_names_are_all_resolved() {
    let dns = Scripted::default();
    let names: Vec<_> = (0..200).map(|n| format!("app{n}.example.com")).collect();
    names.iter().for_each(|name| dns.set(name, &[1]));
    let lab = Lab::start(&dns, names.iter().map(|name| pool(name, name, 443, None)));
    let pools = lab.publish.borrow().pools.clone();
    wait_until("all names", || pools.values().all(|pool| pool.backends[0].is_resolved())).await;
    assert_eq!(dns.asked(), 200);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_the_runner() {
    let dns = Scripted::default();
    let lab = Lab::start(&dns, [pool("web", "app.example.com", 443, None)]);
    lab.shutdown.cancel();
    lab.task.await.expect("no panic");
}
