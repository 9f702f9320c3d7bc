//! The life of the daemon: parse, build in order, say that it is ready, wait, drain.
//!
//! Everything that runs is owned here: worker threads by [`Workers`], tasks by one [`JoinSet`]. None of them ends before
//! the daemon stops; one that does ends the daemon.

mod admission;
mod log;
mod systemd;
mod views;

use std::num::NonZero;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, AdminSocket, Sources};
use crate::config::LoadError;
use crate::control::{Control, Doors};
use crate::dataplane::Kernel;
use crate::etcd::Store;
use crate::events::{EventKind, Events, Item};
use crate::flow::{FlowCommand, FlowFilter};
use crate::hooks::{self, Hooks};
use crate::l4::Plane;
use crate::l4::ends::Ends;
use crate::l4::kept::Kept;
use crate::l4::listener::{ListenerStates, Listeners};
use crate::l4::log::ConnectionLog;
use crate::l4::outcome::EndReason;
use crate::l4::worker::Workers;
use crate::metrics::Metrics;
use crate::peers::Mesh;
use crate::snapshot::Snapshot;
use crate::{ddns, health, providers, resolve};

/// How the daemon failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nothing was started.
    #[error(transparent)]
    Config(#[from] LoadError),
    #[error("{0:#}")]
    Runtime(anyhow::Error),
}

/// Runs the daemon until a signal ends it, and says what it ended with: 0, 1 after a failure, 2 for a configuration that
/// cannot be used.
pub fn run(config: &Path) -> ExitCode {
    log::start();
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Config(LoadError::Problems(problems))) => {
            let file = problems.file().display();
            problems.iter().for_each(|problem| tracing::error!("{file}:{problem}"));
            ExitCode::from(2)
        }
        Err(Failure::Config(error @ LoadError::Read { .. })) => {
            tracing::error!("{error}");
            ExitCode::from(2)
        }
        Err(Failure::Runtime(error)) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: &Path) -> Result<(), Failure> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "ingress starts");
    let kept = Kept::claim();
    let metrics = Metrics::new();
    let control = Control::start(config, metrics.clone())?;
    raise_open_files(control.snapshots().borrow().config.limits.max_connections);
    // Traffic has threads of its own; this runtime serves operators, checks and names.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| Failure::Runtime(error.into()))?;
    let served = runtime.block_on(serve(control, metrics, kept));
    runtime.shutdown_timeout(STOP_TIMEOUT);
    served.map_err(Failure::Runtime)
}

/// Everything that runs, from the first thread to the last.
async fn serve(control: Control, metrics: Arc<Metrics>, kept: Kept) -> anyhow::Result<()> {
    let (log, log_writer) = ConnectionLog::start(std::io::stderr()).context("starting the log thread")?;
    let mut signals = Signals::new().context("listening for signals")?;
    let snapshots = control.snapshots();
    let config = snapshots.borrow().config.clone();
    let ends = Arc::new(Ends::new(snapshots.clone(), metrics.clone(), log.clone()));
    let kernel = Kernel::start(&config, ends.clone());
    let plane = Arc::new(Plane::new(snapshots.clone(), kernel.clone(), ends));
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut workers = Workers::start(&plane, workers).context("starting worker threads")?;

    let (draining, stop) = (CancellationToken::new(), CancellationToken::new());
    let (commands, orders) = mpsc::channel(COMMANDS);
    let (reload, requests) = mpsc::channel(COMMANDS);
    let (say, updates) = mpsc::channel(providers::UPDATES);
    let mut tasks = JoinSet::new();
    let (config_state, provider_states) = (control.state(), control.providers());
    let administration = control.administration();
    let (events, hooks) = (Events::new(), Hooks::new(snapshots.clone(), stop.clone()));
    tasks.spawn(hooks.clone().run(events.listen()));
    let published = hooks::Published {
        snapshots: snapshots.clone(),
        config: config_state.clone(),
        providers: provider_states.clone(),
    };
    tasks.spawn(hooks::observe(published, events.clone(), stop.clone()));
    let mesh = Mesh::new(config.peers.clone(), config.state_dir.clone());
    tasks.spawn(mesh.clone().run(stop.clone()));
    let store = Store::new(config.etcd.clone());
    tasks.spawn(store.clone().run(stop.clone()));
    tasks.spawn(providers::run(snapshots.clone(), metrics.clone(), say, mesh.clone(), store.clone(), stop.clone()));
    let doors = Doors { requests, updates, commands: commands.clone() };
    tasks.spawn(reporting("control", control.run(doors, stop.clone())));

    let states = ListenerStates::default();
    let (drain_order, drained) = watch::channel(false);
    let mut listeners = Listeners::new(&mut workers, &plane, states.clone(), kept, drained);
    let mut snapshots = snapshots;
    // Nobody is refused for a name that is about to be known.
    let _ = timeout(FIRST_WORDS, snapshots.wait_for(|snapshot| snapshot.awaited.is_empty())).await;
    let first = snapshots.borrow_and_update().clone();
    listeners.follow(&first).await;
    drop(first);

    let records = ddns::Records::default();
    let admin = Admin::new(Sources {
        snapshots: snapshots.clone(),
        metrics,
        kernel: Arc::new(kernel.clone()),
        connections: plane.relays.clone(),
        listeners: Arc::new(states),
        config: config_state.clone(),
        providers: provider_states.clone(),
        commands: commands.clone(),
        reload,
        administer: views::administer(administration.clone()),
        peers: views::peers(mesh),
        dns_records: views::dns_records(records.clone()),
        etcd: Box::new(move || store.status()),
        hooks: views::hooks(hooks),
        preview: views::preview(snapshots.clone(), config_state.clone(), provider_states.clone()),
        draining: draining.clone(),
        drain: drain_order,
    });
    match AdminSocket::bind(&config.admin.socket) {
        Ok(socket) => drop(tasks.spawn(admin.serve(socket, stop.clone()))),
        Err(error) => return Err(anyhow!(error).context("opening the admin socket")),
    }
    tasks.spawn(admission::run(snapshots.clone(), kernel.clone(), commands.clone(), stop.clone()));
    tasks.spawn(administration.enforce(commands.clone(), stop.clone()));
    tasks.spawn(health::run(snapshots.clone(), commands, events.clone(), stop.clone()));
    tasks.spawn(resolve::run(snapshots.clone(), stop.clone()));
    tasks.spawn(ddns::run(snapshots.clone(), records.clone(), stop.clone()));
    tasks.spawn(tell_progress(plane.clone(), stop.clone()));
    tasks.spawn(obey(orders, plane.clone(), kernel.clone(), stop.clone()));
    let listening = tokio::spawn(listeners.run(snapshots.clone(), draining.clone()));
    systemd::ready(&mut tasks, stop.clone());
    tracing::info!("ready");
    let version = env!("CARGO_PKG_VERSION");
    events.emit(EventKind::DaemonStarted, [Item::Daemon { version }]);

    let ended = tokio::select! {
        () = signals.stop() => Ok(()),
        Some(end) = workers.next_end() => Err(anyhow!("a worker thread ended{}", if end.panicked { " by a panic" } else { "" })),
        Some(task) = tasks.join_next() => Err(task.err().map_or_else(|| anyhow!("a task ended too early"), Into::into)),
    };

    systemd::stopping();
    events.emit(EventKind::DaemonStopping, [Item::Daemon { version }]);
    draining.cancel();
    if ended.is_ok() {
        listening.await.context("closing the listeners")?;
        drain(&plane, &mut workers, &snapshots, &mut signals).await;
    }
    stop.cancel();
    // Operators' last requests and the like; nothing that may hold up the end.
    let _ = timeout(STOP_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await;
    kernel.stop();
    log.close();
    let _ = timeout(STOP_TIMEOUT, tokio::task::spawn_blocking(|| log_writer.join())).await;
    ended
}

/// Waits until no connection is relayed any more, the time is up, or a second signal comes.
async fn drain(
    plane: &Plane,
    workers: &mut Workers,
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    signals: &mut Signals,
) {
    let time = snapshots.borrow().config.limits.drain_timeout;
    let deadline = Instant::now() + time;
    tracing::info!(relays = plane.relays.len(), seconds = time.as_secs_f64(), "stopping: no new connections");
    let all_ended = async { while workers.next_end().await.is_some() {} };
    tokio::pin!(all_ended);
    let drained = tokio::select! {
        drained = timeout_at(deadline, &mut all_ended) => drained.is_ok(),
        () = signals.stop() => false,
    };
    if !drained {
        let cut = plane.relays.cut(&FlowFilter::default(), EndReason::DaemonStopped);
        tracing::warn!(relays = cut, "stopping: cutting what is left");
        // Those that never got to a backend are not waited for.
        let _ = timeout(CUT_TIMEOUT, all_ended).await;
    }
}

/// Lets counters of relays move while they run; those of the kernel's connections are the reaper's.
async fn tell_progress(plane: Arc<Plane>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(PROGRESS);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        plane.relays.tell_progress(&*plane.ends);
    }
}

/// Carries out flow commands on both kinds of connections.
async fn obey(mut orders: mpsc::Receiver<FlowCommand>, plane: Arc<Plane>, kernel: Kernel, stop: CancellationToken) {
    while let Some(Some(order)) = stop.run_until_cancelled(orders.recv()).await {
        match order {
            FlowCommand::Cut { filter, reason, done } => {
                let (plane, kernel) = (plane.clone(), kernel.clone());
                let cutting = move || plane.relays.cut(&filter, reason) + kernel.cut(&filter, reason);
                let cut = tokio::task::spawn_blocking(cutting).await.unwrap_or_default();
                tracing::info!(connections = cut, %reason, "connections cut");
                if let Some(done) = done {
                    // Who asked may have gone; the cut stands.
                    let _ = done.send(cut);
                }
            }
        }
    }
}

async fn reporting(what: &'static str, task: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = task.await {
        tracing::error!(task = what, %error, "ended by an error");
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Raises the limit of open files as far as it goes, and says if that is too little: a relayed connection takes two.
fn raise_open_files(max_connections: u32) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    let wanted = u64::from(max_connections) * 2 + OWN_FILES;
    match raised {
        Ok(limit) if limit >= wanted => {}
        Ok(limit) => tracing::warn!(
            limit,
            wanted,
            "the limit of open files is below what limits.max_connections may need; raise LimitNOFILE or lower it"
        ),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

/// Listening sockets, maps, the admin API.
const OWN_FILES: u64 = 1024;
/// Operators and failing health checks wait for their turn.
const COMMANDS: usize = 64;
/// Between looks at what relays have moved.
const PROGRESS: Duration = Duration::from_secs(1);
/// For what providers say at a start; a registry takes milliseconds.
const FIRST_WORDS: Duration = Duration::from_secs(1);
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
const CUT_TIMEOUT: Duration = Duration::from_secs(1);
