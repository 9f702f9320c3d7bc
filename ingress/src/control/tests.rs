//! Files that come, change, break and return.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::PoolConfig;
use crate::route::{Contribution, News, OnRemove, PoolName, ProviderName, SniPattern};

const BROKEN: &str = "listeners: [";
const DEADLINE: Duration = Duration::from_secs(10);

struct Lab {
    directory: TempDir,
    file: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let directory = TempDir::new().expect("directory");
        let file = directory.path().join("ingress.yaml");
        Self { directory, file }
    }

    /// `backend` is the port of pool `app`'s one backend.
    fn text(&self, backend: u16) -> String {
        let state = self.directory.path().join("state");
        format!(
            "listeners: {{ tls: {{ bind: '127.0.0.1:0' }} }}\n\
             routes: [{{ sni: app.example.com, pool: app }}]\n\
             pools: {{ app: {{ backends: ['192.0.2.1:{backend}'] }}, other: {{ backends: ['192.0.2.2:443'] }} }}\n\
             state_dir: {}\n",
            state.display()
        )
    }

    fn write(&self, text: &str) {
        fs::write(&self.file, text).expect("write");
    }

    fn start(&self) -> Result<Control, LoadError> {
        Control::start(&self.file, Metrics::new())
    }
}

/// A control that runs, and the one way to stop it.
struct Running {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    state: watch::Receiver<ConfigState>,
    requests: mpsc::Sender<ReloadRequest>,
    updates: mpsc::Sender<ProviderUpdate>,
    orders: mpsc::Receiver<FlowCommand>,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Running {
    fn new(control: Control) -> Self {
        let (snapshots, state) = (control.snapshots(), control.state());
        let (requests, received) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let (updates, said) = mpsc::channel(1);
        let (commands, orders) = mpsc::channel(8);
        let doors = Doors { requests: received, updates: said, commands };
        let task = tokio::spawn(control.run(doors, stop.clone()));
        Self { snapshots, state, requests, updates, orders, stop, task }
    }

    async fn reload(&self) -> Result<Reloaded, String> {
        let (done, answer) = tokio::sync::oneshot::channel();
        self.requests.send(ReloadRequest { done }).await.expect("control runs");
        timeout(DEADLINE, answer).await.expect("answer in time").expect("an answer")
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.task).await.expect("end in time").expect("no panic").expect("no error");
    }
}

#[tokio::test]
async fn a_changed_file_is_the_next_generation_and_an_unchanged_backend_stays_the_same() {
    let lab = Lab::new();
    lab.write(&lab.text(443));
    let mut control = lab.start().expect("good file");
    let before = control.snapshots().borrow().clone();
    lab.write(&lab.text(444));
    assert_eq!(control.reload().map(|reloaded| reloaded.generation), Ok(2));
    let after = control.snapshots().borrow().clone();
    let backend = |snapshot: &Snapshot, pool| Arc::clone(&snapshot.pools[&PoolName::new(pool)].backends[0]);
    assert!(Arc::ptr_eq(&backend(&before, "other"), &backend(&after, "other")));
    assert!(!Arc::ptr_eq(&backend(&before, "app"), &backend(&after, "app")));
}

#[tokio::test]
async fn a_reload_that_changes_nothing_publishes_nothing() {
    let lab = Lab::new();
    lab.write(&lab.text(443));
    let mut control = lab.start().expect("good file");
    let snapshots = control.snapshots();
    lab.write(&format!("{}# a comment is no change\n", lab.text(443)));
    assert_eq!(control.reload().map(|reloaded| reloaded.generation), Ok(1));
    assert!(!snapshots.has_changed().expect("control is alive"));
    assert!(control.state().borrow().text.ends_with("no change\n"), "the text in use is the new one");
}

#[tokio::test]
async fn a_broken_file_keeps_the_old_configuration_until_it_is_mended() {
    let lab = Lab::new();
    lab.write(&lab.text(443));
    let mut control = lab.start().expect("good file");
    lab.write(BROKEN);
    let problems = control.reload().expect_err("broken");
    assert!(problems.contains("ingress.yaml:2:1"), "{problems}");
    assert_eq!(control.snapshots().borrow().generation.0, 1);
    assert_eq!(control.state().borrow().last_error.as_deref(), Some(&*problems));
    lab.write(&lab.text(443));
    assert_eq!(control.reload().map(|reloaded| reloaded.generation), Ok(1));
    assert_eq!(control.state().borrow().last_error, None);
}

#[tokio::test]
async fn a_start_with_a_broken_file_serves_the_last_good_one_and_returns_to_the_file_when_it_is_mended() {
    let lab = Lab::new();
    lab.write(&lab.text(443));
    drop(lab.start().expect("good file"));
    // The end is missing, as in a copy that was cut off; where state is kept can still be read.
    lab.write(&format!("{}pools: [", lab.text(443)));
    let mut control = lab.start().expect("last good");
    let state = control.state().borrow().clone();
    assert_eq!((state.source, &*state.text), (ConfigSource::LastGood, &*lab.text(443)));
    assert!(state.last_error.is_some());
    lab.write(&lab.text(444));
    control.reload().expect("mended");
    assert_eq!(control.state().borrow().source, ConfigSource::File);
}

#[tokio::test]
async fn without_any_good_configuration_the_start_fails_with_the_problems() {
    let lab = Lab::new();
    assert!(matches!(lab.start(), Err(LoadError::Read { .. })), "a missing file");
    lab.write(&format!("nonsense: true\n{}", lab.text(443)));
    let problems = lab.start().expect_err("broken and no last good").to_string();
    assert!(problems.contains("nonsense"), "{problems}");
}

#[tokio::test]
async fn a_changed_file_is_noticed_however_it_was_written() {
    let lab = Lab::new();
    lab.write(&lab.text(443));
    let mut running = Running::new(lab.start().expect("good file"));
    // The answer proves that the watch stands.
    running.reload().await.expect("good file");

    lab.write(&lab.text(444));
    timeout(DEADLINE, running.snapshots.changed()).await.expect("in place: noticed").expect("control runs");
    running.snapshots.mark_unchanged();

    let beside = lab.directory.path().join("ingress.yaml.new");
    fs::write(&beside, lab.text(445)).expect("write");
    fs::rename(&beside, &lab.file).expect("rename");
    timeout(DEADLINE, running.snapshots.changed()).await.expect("renamed: noticed").expect("control runs");

    running.state.mark_unchanged();
    lab.write(BROKEN);
    let refused = running.state.wait_for(|state| state.last_error.is_some());
    timeout(DEADLINE, refused).await.expect("broken: noticed").expect("control runs");
    running.stop().await;
}

#[tokio::test]
async fn a_file_behind_a_symbolic_link_is_watched_where_it_is() {
    let lab = Lab::new();
    let real = TempDir::new().expect("directory");
    let target = real.path().join("real.yaml");
    fs::write(&target, lab.text(443)).expect("write");
    std::os::unix::fs::symlink(&target, &lab.file).expect("link");
    let mut running = Running::new(lab.start().expect("good file"));
    running.reload().await.expect("good file");
    fs::write(&target, lab.text(444)).expect("write");
    timeout(DEADLINE, running.snapshots.changed()).await.expect("noticed").expect("control runs");
    running.stop().await;
}

/// With one provider, `nodes`.
impl Lab {
    fn provided(&self) -> String {
        format!("{}providers: {{ nodes: {{ registry: {{ path: /r.yaml }}, on_remove: cut }} }}\n", self.text(443))
    }
}

fn nodes() -> ProviderName {
    ProviderName::new("nodes")
}

fn update(news: News) -> ProviderUpdate {
    ProviderUpdate::new(&nodes(), news)
}

fn names(hosts: &[&str]) -> News {
    let mut contribution = Contribution::new(&nodes(), OnRemove::Cut);
    for host in hosts {
        let pool = PoolConfig::new(Vec::new(), Vec::new());
        let pool = contribution.pool(host, pool);
        contribution.route(host, vec![SniPattern::parse(host).expect("a name")], &pool, Vec::new(), 0);
    }
    News::Contribution(Arc::new(contribution))
}

fn routes(control: &Control) -> Vec<String> {
    control.snapshots().borrow().config.routes.iter().map(|route| route.name.to_string()).collect()
}

#[tokio::test]
async fn a_provider_replaces_its_own_routes_and_a_failure_removes_none() {
    let lab = Lab::new();
    lab.write(&lab.provided());
    let mut control = lab.start().expect("good file");
    assert_eq!(control.snapshots().borrow().awaited, [nodes()]);
    control.hear([update(names(&["a.example.com", "b.example.com"]))]);
    assert!(control.snapshots().borrow().awaited.is_empty());
    control.hear([update(names(&["b.example.com"])), update(News::Failed("no answer".into()))]);
    assert_eq!(routes(&control), ["app.example.com", "b.example.com@nodes"]);
    let state = control.providers().borrow()[0].clone();
    assert_eq!((state.last_error.as_deref(), state.failures, state.changes), (Some("no answer"), 1, 2));
    control.hear([update(News::Unchanged)]);
    assert_eq!(control.providers().borrow()[0].last_error, None);

    // The file changes, and what the provider said stays.
    lab.write(&lab.provided().replace("192.0.2.1:443", "192.0.2.1:444"));
    assert_eq!(control.reload().map(|reloaded| reloaded.generation), Ok(4));
    assert_eq!(routes(&control), ["app.example.com", "b.example.com@nodes"]);
    // Without the provider, its routes go.
    lab.write(&lab.text(443));
    control.reload().expect("good file");
    assert_eq!(routes(&control), ["app.example.com"]);
    control.hear([update(names(&["late.example.com"]))]);
    assert_eq!(routes(&control), ["app.example.com"], "a word of one who is gone is not heard");
}

#[tokio::test]
async fn a_provider_that_is_added_to_a_node_that_serves_makes_nobody_wait() {
    let lab = Lab::new();
    lab.write(&lab.text(443));
    let mut control = lab.start().expect("good file");
    lab.write(&lab.provided());
    control.reload().expect("good file");
    assert!(control.snapshots().borrow().awaited.is_empty());
    assert_eq!(control.providers().borrow().len(), 1);
}

#[tokio::test]
async fn saying_the_same_again_publishes_nothing() {
    let lab = Lab::new();
    lab.write(&lab.provided());
    let mut control = lab.start().expect("good file");
    control.hear([update(names(&["a.example.com"]))]);
    let snapshots = control.snapshots();
    control.hear([update(names(&["a.example.com"])), update(News::Unchanged)]);
    assert!(!snapshots.has_changed().expect("control is alive"));
}

#[tokio::test]
async fn whoever_asks_hears_when_an_update_holds_and_connections_of_removed_routes_are_cut() {
    let lab = Lab::new();
    lab.write(&lab.provided());
    let mut running = Running::new(lab.start().expect("good file"));
    let tell = async |running: &Running, news| {
        let (done, applied) = tokio::sync::oneshot::channel();
        let update = ProviderUpdate { provider: nodes(), news, done: Some(done) };
        running.updates.send(update).await.expect("control runs");
        timeout(DEADLINE, applied).await.expect("in time").expect("an answer")
    };
    let applied = tell(&running, names(&["a.example.com", "app.example.com"])).await;
    assert_eq!(running.snapshots.borrow().generation, applied.generation);
    let refused: Vec<_> = applied.refused.iter().map(ToString::to_string).collect();
    assert_eq!(refused, ["route app.example.com@nodes: app.example.com belongs to route app.example.com"]);
    tell(&running, names(&[])).await;
    let mut cut = Vec::new();
    for _ in 0..2 {
        let FlowCommand::Cut { filter, reason, .. } =
            timeout(DEADLINE, running.orders.recv()).await.expect("in time").expect("an order");
        assert_eq!(reason, EndReason::RouteRemoved);
        cut.extend(filter.route);
    }
    assert_eq!(cut, ["a.example.com@nodes", "app.example.com@nodes"]);
    running.stop().await;
}
