//! The checks of one backend as a state machine: `(state, input, now) -> actions`. No sockets, no tasks, no clock.
//!
//! ```text
//!                  first probe good
//!   Unchecked ---------------------------> Up
//!       |                                 |  ^
//!       |            fall failed in a row |  | rise good in a row
//!       |                                 v  |
//!       '-------------------------------> Down
//!                  first probe failed
//! ```
//!
//! The first probe decides at once, so that a fresh daemon neither sends clients to a dead backend for `fall` intervals
//! nor keeps a good one out for `rise`. But one failed probe after a restart is no reason to cut the connections that the
//! kernel carried on: `Cut` waits for `fall` failures in a row, whatever the state.

use std::time::{Duration, Instant};

use crate::balance::HealthState;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The time of [`Checker::next`] has come.
    Timer,
    Good,
    Failed,
    /// There was nothing to probe: the backend's name has no address yet.
    Unresolved,
    /// Operators have it in maintenance: nobody asks how it is, and what earlier probes said is forgotten.
    Maintained,
}

/// What to do about it, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    StartProbe,
    /// The backend is in this state from now on.
    Enter(HealthState),
    /// Its live connections are hopeless.
    Cut,
}

/// How a pool wants its backends checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub interval: Duration,
    /// Good probes in a row until up.
    pub rise: u32,
    /// Failed probes in a row until down.
    pub fall: u32,
    /// Where in the interval this backend's probes fall, so that a thousand backends are not probed in the same instant.
    /// Below `interval`. The first probe starts at once.
    pub phase: Duration,
}

/// The checks of one backend.
#[derive(Clone, Debug)]
pub struct Checker {
    schedule: Schedule,
    state: State,
    next: Instant,
    /// A first probe has fixed the phase.
    started: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unchecked,
    Up {
        /// In a row.
        failed: u32,
    },
    Down {
        /// In a row; one of the two is 0.
        good: u32,
        failed: u32,
        cut: bool,
    },
}

impl Checker {
    /// `state` is what earlier checks of this backend found, before a reload changed the schedule.
    pub fn new(schedule: Schedule, state: HealthState, now: Instant) -> Self {
        let state = match state {
            HealthState::Unchecked => State::Unchecked,
            HealthState::Up => State::Up { failed: 0 },
            // Of a pool that followed a primary until this reload.
            HealthState::Standby => State::Unchecked,
            // Perhaps `on_down` is `cut` only since this reload.
            HealthState::Down => State::Down { good: 0, failed: 0, cut: false },
        };
        Self { schedule, state, next: now, started: false }
    }

    /// When [`Input::Timer`] is due. Not before the last probe has ended.
    pub fn next(&self) -> Instant {
        self.next
    }

    pub fn health(&self) -> HealthState {
        match self.state {
            State::Unchecked => HealthState::Unchecked,
            State::Up { failed: _ } => HealthState::Up,
            State::Down { good: _, failed: _, cut: _ } => HealthState::Down,
        }
    }

    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Action> {
        match input {
            Input::Timer => {
                self.schedule_next(now);
                vec![Action::StartProbe]
            }
            Input::Unresolved => {
                self.next = now + self.schedule.interval.min(UNRESOLVED_RETRY);
                self.started = false;
                Vec::new()
            }
            Input::Maintained => {
                self.next = now + self.schedule.interval.min(MAINTAINED_RETRY);
                self.started = false;
                self.state = State::Unchecked;
                Vec::new()
            }
            Input::Good => self.probed(true),
            Input::Failed => self.probed(false),
        }
    }

    fn probed(&mut self, good: bool) -> Vec<Action> {
        let before = self.health();
        let Schedule { rise, fall, .. } = self.schedule;
        self.state = match (self.state, good) {
            (State::Unchecked, true) => State::Up { failed: 0 },
            (State::Unchecked, false) => State::Down { good: 0, failed: 1, cut: false },
            (State::Up { failed: _ }, true) => State::Up { failed: 0 },
            (State::Up { failed }, false) if failed + 1 < fall => State::Up { failed: failed + 1 },
            (State::Up { failed }, false) => State::Down { good: 0, failed: failed + 1, cut: false },
            (State::Down { good, failed: _, cut }, true) if good + 1 < rise => {
                State::Down { good: good + 1, failed: 0, cut }
            }
            (State::Down { good: _, failed: _, cut: _ }, true) => State::Up { failed: 0 },
            (State::Down { good: _, failed, cut }, false) => {
                State::Down { good: 0, failed: failed.saturating_add(1), cut }
            }
        };
        let mut actions = Vec::new();
        if self.health() != before {
            actions.push(Action::Enter(self.health()));
        }
        if let State::Down { good: _, failed, cut: cut @ false } = &mut self.state
            && *failed >= fall
        {
            *cut = true;
            actions.push(Action::Cut);
        }
        actions
    }

    /// Once per interval at the backend's phase; a probe that was late does not make the next ones pile up.
    fn schedule_next(&mut self, now: Instant) {
        let Schedule { interval, phase, .. } = self.schedule;
        self.next = if self.started { self.next + interval } else { now + phase };
        self.started = true;
        if self.next <= now {
            self.next = now + interval;
        }
    }
}

/// A name that has just been resolved does not wait a long interval for its first probe.
const UNRESOLVED_RETRY: Duration = Duration::from_secs(1);
/// A backend that comes out of maintenance takes connections at once: its first probe should not be long after.
const MAINTAINED_RETRY: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCHEDULE: Schedule =
        Schedule { interval: Duration::from_secs(10), rise: 2, fall: 3, phase: Duration::from_secs(4) };

    fn checker(state: HealthState) -> Checker {
        Checker::new(SCHEDULE, state, Instant::now())
    }

    /// One letter per probe: `g`ood, `f`ailed. Returns the actions of each.
    fn feed(checker: &mut Checker, probes: &str) -> Vec<Vec<Action>> {
        let input = |c| if c == 'g' { Input::Good } else { Input::Failed };
        probes.chars().map(|c| checker.handle(input(c), Instant::now())).collect()
    }

    const UP: Action = Action::Enter(HealthState::Up);
    const DOWN: Action = Action::Enter(HealthState::Down);

    #[test]
    fn the_first_good_probe_makes_it_up() {
        let mut checker = checker(HealthState::Unchecked);
        assert_eq!(feed(&mut checker, "g"), [vec![UP]]);
    }

    #[test]
    fn the_first_failed_probe_makes_it_down_but_cuts_only_after_fall() {
        let mut checker = checker(HealthState::Unchecked);
        assert_eq!(feed(&mut checker, "ffff"), [vec![DOWN], vec![], vec![Action::Cut], vec![]]);
    }

    #[test]
    fn after_maintenance_the_first_probe_decides_as_at_the_beginning() {
        let mut checker = checker(HealthState::Down);
        let now = Instant::now();
        assert_eq!(checker.handle(Input::Maintained, now), []);
        assert_eq!(checker.health(), HealthState::Unchecked);
        assert!(checker.next() - now < Duration::from_secs(1), "it looks often whether that is over");
        assert_eq!(feed(&mut checker, "g"), [vec![UP]]);
    }

    #[test]
    fn fall_failures_in_a_row_make_it_down_and_cut() {
        let mut checker = checker(HealthState::Up);
        assert_eq!(feed(&mut checker, "fff"), [vec![], vec![], vec![DOWN, Action::Cut]]);
    }

    #[test]
    fn a_good_probe_between_failures_starts_the_count_again() {
        let mut checker = checker(HealthState::Up);
        assert_eq!(feed(&mut checker, "ffgffg").concat(), []);
        assert_eq!(checker.health(), HealthState::Up);
    }

    #[test]
    fn rise_good_probes_in_a_row_make_it_up() {
        let mut checker = checker(HealthState::Up);
        feed(&mut checker, "fff");
        assert_eq!(feed(&mut checker, "gfgg"), [vec![], vec![], vec![], vec![UP]]);
    }

    #[test]
    fn a_first_failure_that_heals_by_rise_never_cuts() {
        let mut checker = checker(HealthState::Unchecked);
        assert_eq!(feed(&mut checker, "fgg").concat(), [DOWN, UP]);
    }

    #[test]
    fn a_changed_schedule_goes_on_from_the_known_state() {
        assert_eq!(feed(&mut checker(HealthState::Down), "g").concat(), [], "rise is needed");
        assert_eq!(feed(&mut checker(HealthState::Up), "f").concat(), [], "fall is needed");
    }

    #[test]
    fn the_first_probe_is_at_once_and_the_rest_keep_their_phase() {
        let start = Instant::now();
        let mut checker = Checker::new(SCHEDULE, HealthState::Unchecked, start);
        let mut at = Vec::new();
        for _ in 0..4 {
            let now = checker.next();
            at.push((now - start).as_secs());
            assert_eq!(checker.handle(Input::Timer, now), [Action::StartProbe]);
        }
        assert_eq!(at, [0, 4, 14, 24]);
    }

    #[test]
    fn probes_that_were_late_do_not_pile_up() {
        let start = Instant::now();
        let mut checker = Checker::new(SCHEDULE, HealthState::Unchecked, start);
        checker.handle(Input::Timer, start);
        let late = start + Duration::from_secs(60);
        checker.handle(Input::Timer, late);
        assert_eq!(checker.next(), late + SCHEDULE.interval);
    }

    #[test]
    fn an_unresolved_name_is_looked_at_again_soon_and_changes_nothing() {
        let mut checker = checker(HealthState::Unchecked);
        let now = Instant::now();
        checker.handle(Input::Timer, now);
        assert_eq!(checker.handle(Input::Unresolved, now), []);
        assert_eq!(checker.next(), now + UNRESOLVED_RETRY);
        assert_eq!(checker.health(), HealthState::Unchecked);
    }

    proptest! {
        /// A model with no counters: the answer follows from the last probes alone.
        #[test]
        fn the_state_follows_from_the_last_probes(
            probes in proptest::collection::vec(any::<bool>(), 1..60), rise in 1u32..5, fall in 1u32..5,
        ) {
            let schedule = Schedule { rise, fall, ..SCHEDULE };
            let mut checker = Checker::new(schedule, HealthState::Unchecked, Instant::now());
            let mut up = probes[0];
            let mut cuts = 0;
            for end in 1..=probes.len() {
                let ends_with = |good, n: u32| {
                    end >= n as usize && probes[end - n as usize..end].iter().all(|p| *p == good)
                };
                if end > 1 {
                    up = if up { !ends_with(false, fall) } else { ends_with(true, rise) };
                }
                let input = if probes[end - 1] { Input::Good } else { Input::Failed };
                let actions = checker.handle(input, Instant::now());
                let expected = if up { HealthState::Up } else { HealthState::Down };
                prop_assert_eq!(checker.health(), expected, "after {:?}", &probes[..end]);
                if actions.contains(&Action::Enter(HealthState::Up)) {
                    cuts = 0;
                }
                if actions.contains(&Action::Cut) {
                    cuts += 1;
                    prop_assert!(ends_with(false, fall), "cut after {:?}", &probes[..end]);
                }
                prop_assert!(cuts <= 1, "cut twice in one outage");
            }
        }
    }
}
