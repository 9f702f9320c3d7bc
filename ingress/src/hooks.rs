//! Tells people and programs what happens: webhooks and commands, each with a filter and a queue of its own.
//!
//! [`Hooks::run`] hears every event, asks each hook's filter, and passes it on to the hook's task. A receiver that is slow,
//! dead or wrong costs its own queue, and nothing else. Backends that are up and down by turns are a matter of their checks'
//! `rise` and `fall`.

mod command;
mod deliver;
mod observe;
mod queue;
mod signature;
pub mod view;
mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::HookConfig;
use crate::events::{Event, EventKind, Item, Message};
use crate::snapshot::Snapshot;

use deliver::{Shared, State, Target, new_id};
use queue::Outcome;
use view::{HookStatus, HookTested};

pub use observe::{Published, observe};

/// All hooks of this daemon. Clones are the same.
#[derive(Clone, Debug)]
pub struct Hooks {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    states: Arc<Mutex<BTreeMap<String, State>>>,
    shared: Shared,
}

struct Running {
    config: watch::Sender<HookConfig>,
    events: mpsc::Sender<Arc<Event>>,
    state: State,
    task: JoinHandle<()>,
}

impl Hooks {
    /// `stop`: messages that wait are tried once more, for a moment.
    pub fn new(snapshots: watch::Receiver<Arc<Snapshot>>, stop: CancellationToken) -> Self {
        let node = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().into();
        let shared = Shared { node, programs: Arc::new(Semaphore::new(MAX_PROGRAMS)), stop };
        Self { snapshots, states: Arc::default(), shared }
    }

    /// Tells what `events` brings, until the daemon stops.
    pub async fn run(mut self, mut events: broadcast::Receiver<Arc<Event>>) {
        let mut running: BTreeMap<String, Running> = BTreeMap::new();
        let stop = self.shared.stop.clone();
        loop {
            self.reconcile(&mut running);
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.snapshots.changed() => if changed.is_err() { break },
                event = events.recv() => match event {
                    Ok(event) => tell(&running, &event),
                    Err(RecvError::Lagged(lost)) => {
                        tracing::error!(events = lost, "too many events at once; the oldest are told to no hook");
                        running.values().for_each(|hook| hook.state.lock().dropped_total += lost);
                    }
                    Err(RecvError::Closed) => break,
                },
            }
        }
        while let Ok(event) = events.try_recv() {
            tell(&running, &event);
        }
        for (_, Running { events, task, .. }) in running {
            drop(events);
            // It ends by itself within its own time; a panic of it was logged.
            let _ = task.await;
        }
    }

    pub fn status(&self) -> Vec<HookStatus> {
        self.states.lock().values().map(|state| state.lock().clone()).collect()
    }

    /// Sends a message about nothing, at once and beside the queue.
    ///
    /// # Errors
    /// Why it did not arrive.
    pub async fn test(self, name: String) -> Result<HookTested, String> {
        let config = self.snapshots.borrow().config.clone();
        let Some(hook) = config.hooks.get(&name) else {
            let names: Vec<&str> = config.hooks.keys().map(String::as_str).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(format!("there is no hook {name} in use; `hooks` names {names}"));
        };
        let items = Arc::from([Item::Daemon { version: env!("CARGO_PKG_VERSION") }]);
        let event = Event { at: SystemTime::now(), kind: EventKind::Test, items };
        let message = Arc::new(Message::new(new_id(), Arc::clone(&self.shared.node), &event));
        let id = message.id.clone();
        let attempt = Arc::new(Target::new(&hook.target)).attempt(message, Arc::clone(&self.shared.programs));
        let outcome = tokio::time::timeout(TEST_TIMEOUT, attempt).await;
        match outcome.map_err(|_| format!("hook {name}: no answer within {TEST_TIMEOUT:?}"))? {
            Outcome::Delivered => Ok(HookTested { name, id }),
            Outcome::Refused { why } => Err(format!("hook {name}: {why}")),
            Outcome::Again { why, after: _ } => Err(format!("hook {name}: {why} (this would be tried again)")),
        }
    }

    /// Starts what is new, lets go what is gone, and tells the others how they are configured now: their messages stay.
    fn reconcile(&mut self, running: &mut BTreeMap<String, Running>) {
        let config = Arc::clone(&self.snapshots.borrow_and_update().config);
        let mut states = self.states.lock();
        running.retain(|name, _| config.hooks.contains_key(name));
        states.retain(|name, _| config.hooks.contains_key(name));
        for (name, wanted) in &config.hooks {
            if let Some(hook) = running.get(name) {
                hook.config.send_if_modified(|current| {
                    let differs = current != wanted;
                    if differs {
                        current.clone_from(wanted);
                    }
                    differs
                });
                continue;
            }
            let state = State::default();
            state.lock().name.clone_from(name);
            let (config, following) = watch::channel(wanted.clone());
            let (events, inbox) = mpsc::channel(INBOX);
            let task = deliver::run(name.clone(), following, inbox, Arc::clone(&state), self.shared.clone());
            states.insert(name.clone(), Arc::clone(&state));
            running.insert(name.clone(), Running { config, events, state, task: tokio::spawn(task) });
        }
    }
}

fn tell(running: &BTreeMap<String, Running>, event: &Arc<Event>) {
    for (hook, Running { config, events, state, .. }) in running {
        let Some(event) = config.borrow().filter.apply(event) else { continue };
        // Its task does nothing that takes long; this is for the case that the whole host does.
        if let Err(error) = events.try_send(event) {
            tracing::error!(hook, %error, "hook: an event is lost");
            state.lock().dropped_total += 1;
        }
    }
}

/// Programs that run at the same time, over all hooks.
const MAX_PROGRAMS: usize = 8;
/// Events that may wait for a hook's task.
const INBOX: usize = 4096;
/// Below the time of a request to the admin socket.
const TEST_TIMEOUT: Duration = Duration::from_secs(25);

#[cfg(test)]
mod tests;
