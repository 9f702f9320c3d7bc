//! Checks the backends of every pool that asks for it, and says so in [`Backend`], log and flow commands.
//!
//! One task per backend, or one per pool that follows a primary, owned by [`run`]: a snapshot that leaves backends and
//! their checks unchanged leaves their task running. No two tasks ever write to the same backend. Dropping [`run`] ends all probes.

#[cfg(test)]
mod fixture;
pub mod probe;
pub mod redis;
pub mod state;
mod tls;

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use crate::balance::{AdminState, Backend, Check, HealthState, Pool, Primary};
use crate::clock;
use crate::config::{HealthConfig, OnDown, ProxyProtocol};
use crate::events::{EventKind, Events, Item};
use crate::flow::{FlowCommand, FlowFilter};
use crate::l4::outcome::EndReason;
use crate::route::PoolName;
use crate::snapshot::Snapshot;

use probe::Probe;
use state::{Action, Checker, Input, Schedule};
use tls::TlsClients;

/// Runs until `shutdown`, or until nobody publishes snapshots any more.
pub async fn run(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    commands: mpsc::Sender<FlowCommand>,
    events: Events,
    shutdown: CancellationToken,
) {
    let shared = Shared { commands, events, slots: Arc::new(Semaphore::new(MAX_PROBES)), tls: TlsClients::new() };
    let mut running = BTreeMap::new();
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        reconcile(&mut running, &snapshot, &shared).await;
        tokio::select! {
            () = shutdown.cancelled() => break,
            changed = snapshots.changed() => if changed.is_err() { break },
        }
    }
}

/// What all checks use.
#[derive(Clone)]
struct Shared {
    commands: mpsc::Sender<FlowCommand>,
    events: Events,
    slots: Arc<Semaphore>,
    tls: TlsClients,
}

/// A backend of a pool; `None`: the whole pool.
type Key = (PoolName, Option<String>);

struct Running {
    job: Job,
    task: AbortOnDropHandle<()>,
}

/// What one task does.
struct Job {
    checked: Checked,
    plan: Plan,
}

enum Checked {
    One(Arc<Backend>),
    /// Servers of which one may take connections.
    Primary(Vec<Arc<Backend>>, Arc<Primary>),
}

/// Everything in the configuration that a check depends on.
#[derive(Clone, Debug, PartialEq)]
struct Plan {
    health: HealthConfig,
    proxy: ProxyProtocol,
    on_down: OnDown,
}

/// Stops what the snapshot no longer wants or wants otherwise, then starts what is missing.
async fn reconcile(running: &mut BTreeMap<Key, Running>, snapshot: &Snapshot, shared: &Shared) {
    let wanted = wanted(snapshot);
    let is_stale = |key: &Key, check: &mut Running| !wanted.get(key).is_some_and(|job| job.is(&check.job));
    let stale: Vec<_> = running.extract_if(.., is_stale).map(|(_, check)| check.task).collect();
    stale.iter().for_each(AbortOnDropHandle::abort);
    for task in stale {
        // Else an old task's last verdict could come after a new task's first one. It ends at its next await.
        let _ = task.await;
    }
    for pool in snapshot.pools.values().filter(|pool| pool.config.health.is_none()) {
        pool.all().for_each(|backend| backend.forget_health(clock::now()));
    }
    for (key, job) in wanted {
        running.entry(key).or_insert_with(|| {
            let (plan, shared) = (job.plan.clone(), shared.clone());
            let task = match &job.checked {
                Checked::One(backend) => tokio::spawn(check(Arc::clone(backend), plan, shared)),
                Checked::Primary(backends, primary) => {
                    tokio::spawn(redis::run(backends.clone(), Arc::clone(primary), plan, shared))
                }
            };
            Running { job, task: AbortOnDropHandle::new(task) }
        });
    }
}

impl Job {
    fn is(&self, other: &Self) -> bool {
        let checked = match (&self.checked, &other.checked) {
            (Checked::One(one), Checked::One(other)) => Arc::ptr_eq(one, other),
            (Checked::Primary(these, primary), Checked::Primary(those, other)) => {
                let same = these.len() == those.len() && these.iter().zip(those).all(|(a, b)| Arc::ptr_eq(a, b));
                same && Arc::ptr_eq(primary, other)
            }
            (Checked::One(_), Checked::Primary(..)) | (Checked::Primary(..), Checked::One(_)) => false,
        };
        checked && self.plan == other.plan
    }
}

fn wanted(snapshot: &Snapshot) -> BTreeMap<Key, Job> {
    let mut wanted = BTreeMap::new();
    for pool in snapshot.pools.values() {
        let Some(health) = &pool.config.health else { continue };
        let plan = Plan { health: health.clone(), proxy: pool.config.proxy_protocol, on_down: pool.config.on_down };
        if let Some(primary) = &pool.primary {
            let checked = Checked::Primary(distinct(pool), Arc::clone(primary));
            wanted.insert((pool.name.clone(), None), Job { checked, plan });
            continue;
        }
        for backend in pool.all() {
            let key = (pool.name.clone(), Some(backend.name.clone()));
            wanted.insert(key, Job { checked: Checked::One(Arc::clone(backend)), plan: plan.clone() });
        }
    }
    wanted
}

/// Each server once, also one that stands in both lists.
fn distinct(pool: &Pool) -> Vec<Arc<Backend>> {
    let mut distinct: Vec<Arc<Backend>> = Vec::new();
    for backend in pool.all() {
        if !distinct.iter().any(|known| Arc::ptr_eq(known, backend)) {
            distinct.push(Arc::clone(backend));
        }
    }
    distinct
}

/// The life of one backend's checks: moves data between [`Checker`], [`Probe`] and [`Backend`].
async fn check(backend: Arc<Backend>, plan: Plan, shared: Shared) {
    let HealthConfig { probe: _, port: _, interval, timeout: _, rise, fall } = plan.health;
    let schedule = Schedule { interval, rise, fall, phase: phase(interval) };
    let probe = Probe::new(&plan.health, plan.proxy, &backend.target, shared.tls);
    let mut checker = Checker::new(schedule, backend.health().state, clock::now());
    let mut actions = VecDeque::new();
    loop {
        let Some(action) = actions.pop_front() else {
            tokio::time::sleep_until(checker.next().into()).await;
            actions.extend(checker.handle(Input::Timer, clock::now()));
            continue;
        };
        match action {
            Action::StartProbe if backend.admin_state() == AdminState::Maint => {
                backend.forget_health(clock::now());
                actions.extend(checker.handle(Input::Maintained, clock::now()));
            }
            Action::StartProbe => {
                let Some(verdict) = probe_all(&backend, &probe, &shared.slots).await else {
                    actions.extend(checker.handle(Input::Unresolved, clock::now()));
                    continue;
                };
                let before = checker.health();
                let input = if verdict.error.is_none() { Input::Good } else { Input::Failed };
                actions.extend(checker.handle(input, verdict.at));
                backend.checked(checker.health(), verdict);
                tell(&backend, before, checker.health(), &shared.events);
            }
            Action::Enter(state) => log(&backend, state),
            Action::Cut => match plan.on_down {
                OnDown::Keep => {}
                OnDown::Cut => cut(&backend, EndReason::BackendDown, &shared.commands).await,
            },
        }
    }
}

/// Probes every address of the backend; it is good while one of them is. `None`: it has none yet.
async fn probe_all(backend: &Backend, probe: &Probe, slots: &Semaphore) -> Option<Check> {
    let addresses = backend.addresses();
    let verdicts = join_all(addresses.iter().map(|&address| async move {
        // The semaphore is never closed; a probe that waits for its turn has not begun, so its timeout has not either.
        let _slot = slots.acquire().await;
        let verdict = probe.run(address).await;
        backend.address_checked(address, verdict.is_ok());
        verdict.inspect_err(|error| debug!(pool = %backend.pool, backend = backend.name, %error, "probe failed"))
    }))
    .await;
    let now = clock::now();
    let fastest = verdicts.iter().filter_map(|verdict| verdict.as_ref().ok()).min();
    let first_error = verdicts.iter().find_map(|verdict| verdict.as_ref().err());
    match (fastest, first_error) {
        (Some(latency), _) => Some(Check::good(*latency, now)),
        (None, Some(error)) => Some(Check::failed(error, now)),
        (None, None) => None,
    }
}

fn log(backend: &Backend, state: HealthState) {
    let Backend { pool, name, .. } = backend;
    let check = backend.health().last_check;
    match state {
        HealthState::Unchecked | HealthState::Standby => {}
        HealthState::Up => info!(%pool, backend = name, "backend is up"),
        HealthState::Down => {
            let error = check.and_then(|c| c.error).unwrap_or_default();
            warn!(%pool, backend = name, error, "backend is down");
        }
    }
}

fn tell(backend: &Backend, before: HealthState, now: HealthState, events: &Events) {
    let kind = match (before, now) {
        (HealthState::Unchecked | HealthState::Up | HealthState::Standby, HealthState::Down) => EventKind::BackendDown,
        (HealthState::Down, HealthState::Up | HealthState::Standby) => EventKind::BackendUp,
        // That a backend is up when the daemon starts is no news.
        (HealthState::Unchecked | HealthState::Up | HealthState::Standby, HealthState::Up | HealthState::Standby) => {
            return;
        }
        (_, HealthState::Unchecked) | (HealthState::Down, HealthState::Down) => return,
    };
    let Backend { pool, name, target, .. } = backend;
    let error = backend.health().last_check.and_then(|check| check.error);
    let item = Item::Backend { pool: pool.clone(), backend: name.clone(), address: target.to_string(), error };
    events.emit(kind, [item]);
}

/// Returns when it is done, or when somebody stops the daemon.
async fn cut(backend: &Backend, reason: EndReason, commands: &mpsc::Sender<FlowCommand>) {
    let filter = FlowFilter {
        pool: Some(backend.pool.to_string()),
        backend: Some(backend.name.clone()),
        ..FlowFilter::default()
    };
    let (done, is_done) = oneshot::channel();
    let command = FlowCommand::Cut { filter, reason, done: Some(done) };
    if commands.send(command).await.is_err() || is_done.await.is_err() {
        debug!(pool = %backend.pool, backend = backend.name, "nobody is left to cut connections: the daemon stops");
    }
}

/// A random part of the interval: spreads the probes of many backends, and those of many nodes to one backend.
fn phase(interval: Duration) -> Duration {
    let part = RandomState::new().hash_one(()) >> 32;
    interval.mul_f64(part as f64 / (1u64 << 32) as f64)
}

/// Probes that may run at the same time; bounds sockets and memory, whatever the number of backends.
const MAX_PROBES: usize = 256;

#[cfg(test)]
mod tests;
