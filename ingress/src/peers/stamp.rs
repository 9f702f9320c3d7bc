//! When something was written, in an order that all nodes agree on: a hybrid logical clock.
//!
//! A stamp is later than every stamp that its writer had seen, whatever its wall clock says. What was seen survives a
//! restart, because the writer's own records carry their stamps.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Ordered by time, then count, then name: two nodes never write the same one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// Unix milliseconds of the writer's wall clock, or of the latest stamp that it had seen.
    pub ms: u64,
    /// Tells apart what has the same `ms`.
    pub count: u32,
    /// Who wrote it. Empty: a node that had no peers then.
    pub node: Arc<str>,
}

/// One node's source of stamps.
#[derive(Clone, Debug)]
pub struct Clock {
    node: Arc<str>,
    last: (u64, u32),
}

/// A stamp of a time that is further ahead than clocks may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("written {} s in the future: the clocks of the two nodes differ", ahead_ms / 1000)]
pub struct TooFarAhead {
    pub ahead_ms: u64,
}

impl Clock {
    pub fn new(node: Arc<str>) -> Self {
        Self { node, last: (0, 0) }
    }

    pub fn node(&self) -> &Arc<str> {
        &self.node
    }

    /// Later than all that was seen. `now`: Unix milliseconds.
    pub fn tick(&mut self, now: u64) -> Stamp {
        let (ms, count) = self.last;
        self.last = match () {
            () if now > ms => (now, 0),
            () => count.checked_add(1).map_or((ms + 1, 0), |count| (ms, count)),
        };
        Stamp { ms: self.last.0, count: self.last.1, node: self.node.clone() }
    }

    /// What comes next is later than this.
    pub fn saw(&mut self, stamp: &Stamp) {
        self.last = self.last.max((stamp.ms, stamp.count));
    }

    /// # Errors
    /// It would drag this clock, and with it everybody's, into the future.
    pub fn judge(stamp: &Stamp, now: u64) -> Result<(), TooFarAhead> {
        match stamp.ms.saturating_sub(now) {
            ahead_ms if ahead_ms > MAX_AHEAD_MS => Err(TooFarAhead { ahead_ms }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ms, count, node } = self;
        write!(f, "{ms}.{count}@{node}")
    }
}

/// By which a peer's clock may be ahead.
pub const MAX_AHEAD_MS: u64 = 5 * 60 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_go_forward_when_the_wall_clock_stands_or_goes_back() {
        let mut clock = Clock::new("a".into());
        let stamps: Vec<_> = [100, 100, 50, 101].into_iter().map(|now| clock.tick(now)).collect();
        assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
    }

    #[test]
    fn what_was_seen_is_earlier_than_what_is_written_next() {
        let mut clock = Clock::new("a".into());
        let theirs = Stamp { ms: 900, count: u32::MAX, node: "z".into() };
        clock.saw(&theirs);
        assert!(clock.tick(100) > theirs);
    }

    #[test]
    fn a_clock_that_is_minutes_ahead_is_refused() {
        let stamp = |ms| Stamp { ms, count: 0, node: "z".into() };
        assert_eq!(Clock::judge(&stamp(1000 + MAX_AHEAD_MS), 1000), Ok(()));
        let refused = Clock::judge(&stamp(1001 + MAX_AHEAD_MS), 1000);
        assert_eq!(refused, Err(TooFarAhead { ahead_ms: MAX_AHEAD_MS + 1 }));
    }
}
