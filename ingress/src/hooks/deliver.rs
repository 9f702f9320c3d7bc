//! The task of one hook: gathers, delivers, tries again. It never waits for its receiver without hearing what else happens.

use std::future::pending;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::command::Command;
use super::queue::{Outcome, Queue};
use super::view::HookStatus;
use super::webhook::Webhook;
use crate::clock;
use crate::config::{HookConfig, HookTarget};
use crate::events::{Event, Message};

/// Where messages go.
#[derive(Debug)]
pub(super) enum Target {
    Webhook(Webhook),
    Command(Command),
}

/// What all hooks share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) node: Arc<str>,
    /// Programs that may run at the same time.
    pub(super) programs: Arc<Semaphore>,
    pub(super) stop: CancellationToken,
}

pub(super) type State = Arc<Mutex<HookStatus>>;

type Attempt = Pin<Box<dyn Future<Output = Outcome> + Send>>;

impl Target {
    pub(super) fn new(config: &HookTarget) -> Self {
        match config {
            HookTarget::Webhook(webhook) => Self::Webhook(Webhook::new(webhook.clone())),
            HookTarget::Command(command) => Self::Command(Command::new(command.clone())),
        }
    }

    pub(super) async fn attempt(self: Arc<Self>, message: Arc<Message>, programs: Arc<Semaphore>) -> Outcome {
        match &*self {
            Self::Webhook(webhook) => webhook.attempt(&message).await,
            Self::Command(command) => {
                // Never closed; a program's time begins with the program.
                let _place = programs.acquire().await;
                command.attempt(&message).await
            }
        }
    }
}

/// Until nobody sends events any more. If that is because the daemon stops, tries for a moment what still waits.
pub(super) async fn run(
    name: String,
    mut config: watch::Receiver<HookConfig>,
    mut events: mpsc::Receiver<Arc<Event>>,
    state: State,
    shared: Shared,
) {
    let first = config.borrow_and_update().clone();
    let mut hook = Hook::new(name, &first, state, shared);
    let mut attempt: Option<Attempt> = None;
    loop {
        if attempt.is_none() {
            attempt = hook.next();
        }
        hook.show();
        let wake = hook.queue.wake(clock::now());
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => hook.queue.take(&event, new_id(), clock::now()),
                None => break,
            },
            outcome = in_flight(&mut attempt) => {
                attempt = None;
                hook.answered(&outcome);
            }
            () = clock::sleep_until(wake) => {}
            Ok(()) = config.changed() => {
                let new = config.borrow_and_update().clone();
                hook.follow(&new);
            }
        }
    }
    if hook.shared.stop.is_cancelled() {
        let _ = tokio::time::timeout(FLUSH, hook.flush(attempt)).await;
    }
    match hook.queue.len() {
        0 => {}
        messages => tracing::warn!(hook = hook.name, messages, "hook ends with messages that are not delivered"),
    }
}

/// A message's id: nobody else's, on any node.
pub(super) fn new_id() -> String {
    let mut bytes = [0; 16];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        // Good enough to tell messages apart; nothing is kept secret by it.
        bytes[..8].copy_from_slice(&random().to_be_bytes());
    }
    format!("evt_{:032x}", u128::from_be_bytes(bytes))
}

struct Hook {
    name: String,
    target: Arc<Target>,
    queue: Queue,
    state: State,
    shared: Shared,
    /// How many drops `state` knows.
    drops_shown: u64,
    /// Of drops, one line is logged until it goes well again.
    drops_told: bool,
}

impl Hook {
    fn new(name: String, config: &HookConfig, state: State, shared: Shared) -> Self {
        let queue = Queue::new(Arc::clone(&shared.node), config);
        let target = Arc::new(Target::new(&config.target));
        let hook = Self { name, target, queue, state, shared, drops_shown: 0, drops_told: false };
        hook.introduce(config);
        hook
    }

    fn follow(&mut self, config: &HookConfig) {
        self.target = Arc::new(Target::new(&config.target));
        self.queue.follow(config);
        self.introduce(config);
    }

    fn introduce(&self, config: &HookConfig) {
        let mut state = self.state.lock();
        state.kind = config.target.kind().to_owned();
        state.place = config.target.place();
    }

    fn next(&mut self) -> Option<Attempt> {
        let message = self.queue.next(clock::now())?;
        Some(Box::pin(Arc::clone(&self.target).attempt(message, Arc::clone(&self.shared.programs))))
    }

    fn answered(&mut self, outcome: &Outcome) {
        let (hook, before) = (&self.name, self.queue.counts);
        self.queue.answered(outcome, clock::now(), random());
        let given_up = self.queue.counts.failed - before.failed;
        let mut state = self.state.lock();
        match outcome {
            Outcome::Delivered => {
                if let Some(after) = state.last_error.take() {
                    tracing::info!(hook, after, "hook delivers again");
                }
                state.failing_since = None;
                state.last_success = Some(unix_now());
                self.drops_told = false;
            }
            Outcome::Refused { why } => tracing::error!(hook, error = why, "hook: a message was refused, and is lost"),
            Outcome::Again { why, .. } if given_up > 0 => {
                tracing::error!(hook, error = why, messages = given_up, "hook: messages are given up after retry_for");
            }
            // A receiver that fails as before is no news.
            Outcome::Again { why, .. } if state.last_error.as_ref() != Some(why) => {
                tracing::warn!(hook, error = why, "hook failed; its messages wait and are tried again");
            }
            Outcome::Again { .. } => {}
        }
        match outcome {
            Outcome::Delivered => {}
            Outcome::Refused { why } | Outcome::Again { why, .. } => {
                state.failing_since.get_or_insert_with(unix_now);
                state.last_error = Some(why.clone());
            }
        }
    }

    /// Lets others see how it is.
    fn show(&mut self) {
        let counts = self.queue.counts;
        let mut state = self.state.lock();
        let drops = counts.dropped - self.drops_shown;
        if drops > 0 && !self.drops_told {
            self.drops_told = true;
            let waiting = self.queue.len();
            tracing::error!(hook = self.name, waiting, "hook: its queue is full; the oldest messages are dropped");
        }
        let failing = state.last_error.is_some();
        state.state = if failing { HookStatus::FAILING } else { HookStatus::GOOD }.to_owned();
        state.waiting = self.queue.len() as u64;
        state.delivered_total = counts.delivered;
        state.retried_total = counts.retried;
        state.failed_total = counts.failed;
        // Others count there as well.
        state.dropped_total += drops;
        self.drops_shown = counts.dropped;
    }

    /// Each message gets one attempt more; the first failure ends it, since time is short.
    async fn flush(&mut self, mut attempt: Option<Attempt>) {
        loop {
            self.queue.flush(clock::now());
            if attempt.is_none() {
                attempt = self.next();
            }
            if attempt.is_none() {
                return;
            }
            let outcome = in_flight(&mut attempt).await;
            attempt = None;
            self.answered(&outcome);
            match outcome {
                Outcome::Delivered | Outcome::Refused { .. } => {}
                Outcome::Again { .. } => return,
            }
        }
    }
}

async fn in_flight(attempt: &mut Option<Attempt>) -> Outcome {
    match attempt {
        Some(attempt) => attempt.await,
        None => pending().await,
    }
}

fn random() -> u64 {
    RandomState::new().hash_one(())
}

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Below the time that a stopping daemon gives its tasks.
const FLUSH: Duration = Duration::from_millis(1500);
