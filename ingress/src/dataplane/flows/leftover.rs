//! Connections that have ended and wait for stragglers: who comes late is still spliced, or answered, but not for ever.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A lost last ACK and its answers come within this time; after so long a silence nobody does.
const SILENCE: Duration = Duration::from_secs(3);
/// However much still comes. What an end says after the end is no longer counted among anybody's connections, and it must not
/// keep a slot by it.
const LONGEST: Duration = Duration::from_secs(10);

/// Slots of ended connections, by when to look at them.
#[derive(Debug, Default)]
pub(super) struct Leftovers(VecDeque<Leftover>);

#[derive(Clone, Copy, Debug)]
struct Leftover {
    look: Instant,
    /// Whatever still comes.
    last: Instant,
    slot: u32,
}

impl Leftovers {
    /// The connection in `slot` has ended now.
    pub(super) fn add(&mut self, slot: u32, now: Instant) {
        self.0.push_back(Leftover { look: now + SILENCE, last: now + LONGEST, slot });
    }

    /// Of an earlier daemon: nobody knows since when.
    pub(super) fn adopt(&mut self, slot: u32, now: Instant) {
        self.0.push_back(Leftover { look: now, last: now + LONGEST, slot });
    }

    /// Slots that could not be given back.
    pub(super) fn again(&mut self, slots: &[u32], now: Instant) {
        let look = now + SILENCE;
        self.0.extend(slots.iter().map(|slot| Leftover { look, last: look, slot: *slot }));
    }

    /// Takes out the slots that can be given back. `silent`: for how long no proven packet has come to one.
    pub(super) fn take(&mut self, now: Instant, silent: impl Fn(u32) -> Duration) -> Vec<u32> {
        let mut over = Vec::new();
        while let Some(leftover) = self.0.front().copied().filter(|leftover| leftover.look <= now) {
            self.0.pop_front();
            let rest = SILENCE.saturating_sub(silent(leftover.slot)).min(leftover.last.saturating_duration_since(now));
            if rest.is_zero() {
                over.push(leftover.slot);
            } else {
                self.0.push_back(Leftover { look: now + rest, ..leftover });
            }
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(20);

    /// When slot 7, which ended at the start, is given back, if the last packet before `now` came at `last_packet(now)`.
    fn given_back(last_packet: impl Fn(Duration) -> Duration) -> Duration {
        let (start, mut leftovers) = (Instant::now(), Leftovers::default());
        leftovers.add(7, start);
        let mut passed = Duration::ZERO;
        while passed < Duration::from_secs(60) {
            passed += TICK;
            let over = leftovers.take(start + passed, |_| passed - last_packet(passed));
            if !over.is_empty() {
                assert_eq!((over, leftovers.0.len()), (vec![7], 0));
                return passed;
            }
        }
        panic!("it was never given back");
    }

    #[test]
    fn a_silent_connection_is_left_alone_for_three_seconds() {
        assert_eq!(given_back(|_| Duration::ZERO), SILENCE);
    }

    #[test]
    fn a_straggler_prolongs_the_wait() {
        let straggler = Duration::from_secs(2);
        let at = given_back(|now| if now < straggler { Duration::ZERO } else { straggler });
        assert_eq!(at, straggler + SILENCE);
    }

    #[test]
    fn one_that_never_falls_silent_is_given_back_all_the_same() {
        assert_eq!(given_back(|now| now), LONGEST);
        assert_eq!(given_back(|now| now.saturating_sub(TICK)), LONGEST);
    }

    #[test]
    fn what_an_earlier_daemon_left_is_looked_at_at_once() {
        let (now, mut leftovers) = (Instant::now(), Leftovers::default());
        leftovers.adopt(1, now);
        leftovers.adopt(2, now);
        let silent = |slot| if slot == 1 { SILENCE } else { Duration::ZERO };
        assert_eq!(leftovers.take(now, silent), [1]);
        assert_eq!(leftovers.take(now + LONGEST, |_| Duration::ZERO), [2]);
    }

    #[test]
    fn what_could_not_be_given_back_is_tried_again() {
        let (now, mut leftovers) = (Instant::now(), Leftovers::default());
        leftovers.again(&[4, 5], now);
        assert_eq!(leftovers.take(now, |_| SILENCE), [0u32; 0]);
        assert_eq!(leftovers.take(now + SILENCE, |_| Duration::ZERO), [4, 5]);
    }
}
