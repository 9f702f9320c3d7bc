//! What became of one backend lately: its last changes of health, for operators who ask "since when, and why?".
//!
//! Bounded in number and in length, and empty, without memory, for a backend that never changed.

use std::collections::VecDeque;
use std::time::Instant;

use super::HealthState;

/// One change of health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    pub at: Instant,
    pub from: HealthState,
    pub to: HealthState,
    /// Of the check that decided it; `None` for a good one.
    pub error: Option<String>,
}

/// The newest stands last.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Transition>);

impl History {
    /// More changes than this are forgotten, the oldest first.
    pub(super) const CAPACITY: usize = 16;
    /// Characters of an error: some servers explain themselves at length.
    const ERROR: usize = 200;

    pub(super) fn push(&mut self, mut transition: Transition) {
        if let Some(error) = &mut transition.error
            && let Some((end, _)) = error.char_indices().nth(Self::ERROR)
        {
            error.truncate(end);
            error.push('…');
        }
        if self.0.len() == Self::CAPACITY {
            self.0.pop_front();
        }
        self.0.push_back(transition);
    }

    /// The newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Transition> {
        self.0.iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(error: &str) -> Transition {
        let error = Some(error.to_owned());
        Transition { at: Instant::now(), from: HealthState::Up, to: HealthState::Down, error }
    }

    #[test]
    fn the_oldest_changes_are_forgotten_first() {
        let mut history = History::default();
        (0..History::CAPACITY + 3).for_each(|n| history.push(failed(&n.to_string())));
        let errors: Vec<_> = history.newest_first().filter_map(|t| t.error.clone()).collect();
        assert_eq!(errors.len(), History::CAPACITY);
        assert_eq!((errors[0].as_str(), errors[History::CAPACITY - 1].as_str()), ("18", "3"));
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let mut history = History::default();
        history.push(failed(&"ä".repeat(5_000)));
        let kept = history.newest_first().find_map(|t| t.error.clone()).expect("it was pushed");
        assert_eq!(kept.chars().count(), History::ERROR + 1);
        assert!(kept.ends_with("ä…"), "{kept}");
    }
}
