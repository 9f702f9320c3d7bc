//! What waits for one hook, and when it is tried: `(state, input, now) -> what to do`. No sockets, no tasks, no clock.
//!
//! ```text
//!  event -> gathered (one kind, one message) -> waiting, oldest first -> attempt -> delivered
//!                                                  ^      |                |
//!                                      too many: the oldest goes           again, later; refused or too old: given up
//! ```
//!
//! One message at a time, in order. How long to wait after a failure belongs to the receiver, not to the message: the next
//! one would meet the same receiver.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::HookConfig;
use crate::events::{Event, Message};

/// The messages of one hook.
#[derive(Debug)]
pub(super) struct Queue {
    node: Arc<str>,
    gather: Duration,
    retry_for: Duration,
    limit: usize,
    /// What still takes events in, and until when.
    open: Option<(Message, Instant)>,
    waiting: VecDeque<Waiting>,
    /// The first of `waiting` is on its way.
    in_flight: bool,
    /// In a row.
    failures: u32,
    not_before: Option<Instant>,
    pub(super) counts: Counts,
}

#[derive(Debug)]
struct Waiting {
    message: Arc<Message>,
    given_up: Instant,
}

/// Messages, since the hook is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) delivered: u64,
    /// Attempts that failed and are made again.
    pub(super) retried: u64,
    /// Refused, or given up after `retry_for`.
    pub(super) failed: u64,
    /// Pushed out by newer ones.
    pub(super) dropped: u64,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Delivered,
    /// It may go better later; not before `after`, if the receiver said so.
    Again {
        why: String,
        after: Option<Duration>,
    },
    /// It would go the same way again.
    Refused {
        why: String,
    },
}

impl Queue {
    pub(super) fn new(node: Arc<str>, config: &HookConfig) -> Self {
        let mut queue = Self {
            node,
            gather: Duration::ZERO,
            retry_for: Duration::ZERO,
            limit: 1,
            open: None,
            waiting: VecDeque::new(),
            in_flight: false,
            failures: 0,
            not_before: None,
            counts: Counts::default(),
        };
        queue.follow(config);
        queue
    }

    /// The hook's configuration is another now: what waits stays, and is tried at once.
    pub(super) fn follow(&mut self, config: &HookConfig) {
        let HookConfig { target: _, filter: _, gather, retry_for, queue } = config;
        (self.gather, self.retry_for, self.limit) = (*gather, *retry_for, *queue);
        (self.failures, self.not_before) = (0, None);
    }

    /// `id`: of the message, should this be a new one.
    pub(super) fn take(&mut self, event: &Event, id: String, now: Instant) {
        if let Some((message, _)) = &mut self.open
            && message.add(event)
        {
            return;
        }
        // What happened before goes before.
        self.close(now);
        self.open = Some((Message::new(id, Arc::clone(&self.node), event), now + self.gather));
    }

    /// When [`next`](Self::next) has something to say. `None`: not before the next event or answer.
    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let open = self.open.as_ref().map(|(_, due)| *due);
        let ready = (!self.in_flight && !self.waiting.is_empty()).then(|| self.not_before.unwrap_or(now));
        [open, ready].into_iter().flatten().min()
    }

    /// What to attempt now; then [`answered`](Self::answered) is awaited.
    pub(super) fn next(&mut self, now: Instant) -> Option<Arc<Message>> {
        if self.open.as_ref().is_some_and(|(_, due)| *due <= now) {
            self.close(now);
        }
        if self.in_flight || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let first = self.waiting.front()?;
        self.in_flight = true;
        Some(Arc::clone(&first.message))
    }

    /// `random`: all of its bits are.
    pub(super) fn answered(&mut self, outcome: &Outcome, now: Instant, random: u64) {
        self.in_flight = false;
        match outcome {
            Outcome::Delivered => {
                self.waiting.pop_front();
                self.counts.delivered += 1;
                (self.failures, self.not_before) = (0, None);
            }
            Outcome::Refused { why: _ } => {
                self.waiting.pop_front();
                self.counts.failed += 1;
                (self.failures, self.not_before) = (0, None);
            }
            Outcome::Again { why: _, after } => {
                self.failures = self.failures.saturating_add(1);
                let wait = back_off(self.failures, random).max(after.unwrap_or_default().min(LONGEST_WISH));
                self.not_before = Some(now + wait);
                let before = self.waiting.len();
                // Those behind it are too old as well, if they are.
                while self.waiting.front().is_some_and(|waiting| waiting.given_up <= now + wait) {
                    self.waiting.pop_front();
                }
                let given_up = (before - self.waiting.len()) as u64;
                self.counts.failed += given_up;
                self.counts.retried += u64::from(given_up == 0);
            }
        }
    }

    /// The daemon stops: everything is due.
    pub(super) fn flush(&mut self, now: Instant) {
        self.close(now);
        self.not_before = None;
    }

    /// Messages that are not delivered yet, the one on its way among them.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.open.is_some())
    }

    fn close(&mut self, now: Instant) {
        let Some((message, _)) = self.open.take() else { return };
        self.waiting.push_back(Waiting { message: Arc::new(message), given_up: now + self.retry_for });
        while self.waiting.len() > self.limit {
            // What is on its way cannot be called back.
            let oldest = usize::from(self.in_flight && self.waiting.len() > 1);
            self.waiting.remove(oldest);
            self.counts.dropped += 1;
        }
    }
}

/// 1 s, 2 s, 4 s to 5 min, of which the upper half is left to chance: many nodes must not come back to one receiver at once.
fn back_off(failures: u32, random: u64) -> Duration {
    let whole = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(LONGEST_WAIT);
    let part = (random >> 32) as f64 / f64::from(u32::MAX);
    whole.mul_f64(1.0 - part / 2.0)
}

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// A receiver may ask for no more.
const LONGEST_WISH: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
