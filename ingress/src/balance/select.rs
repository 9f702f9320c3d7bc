//! Smooth weighted round robin and least connections, over whoever is usable right now.

use parking_lot::Mutex;

/// A weight of 1, so that slow start can be part of it.
pub(super) const UNIT: u64 = 1000;

/// A backend that may take the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Into the pool's list.
    pub(super) index: usize,
    /// In [`UNIT`]s, above 0.
    pub(super) weight: u64,
}

/// Smooth weighted round robin, as nginx does it: each candidate's credit grows by its weight, the richest one is chosen
/// and pays the sum of all weights. Over any full round each gets exactly its share, spread as evenly as can be.
///
/// A lock, because the credits only make sense together. It is held for one pass over the candidates.
#[derive(Debug)]
pub(super) struct Rotation(Mutex<Vec<i64>>);

impl Rotation {
    pub(super) fn new(len: usize) -> Self {
        Self(Mutex::new(vec![0; len]))
    }

    /// The index of the chosen candidate. `None`: there is none.
    pub(super) fn next(&self, candidates: &[Candidate]) -> Option<usize> {
        if let [only] = candidates {
            return Some(only.index);
        }
        let mut credits = self.0.lock();
        let mut total = 0;
        let mut richest: Option<(usize, i64)> = None;
        for candidate in candidates {
            // UNIT * u32::MAX fits 43 bits, so even a million such candidates stay within an i64.
            let weight = i64::try_from(candidate.weight).unwrap_or(i64::MAX >> 20);
            let credit = credits.get_mut(candidate.index)?;
            *credit += weight;
            total += weight;
            if richest.is_none_or(|(_, most)| *credit > most) {
                richest = Some((candidate.index, *credit));
            }
        }
        let (index, _) = richest?;
        *credits.get_mut(index)? -= total;
        Some(index)
    }
}

/// Keeps those whose load would be least with one connection more: (in flight + 1) / weight. Without the "+ 1" an idle
/// backend would look the same at any weight, and slow start would mean nothing.
pub(super) fn keep_least_loaded(candidates: &mut Vec<Candidate>, in_flight: impl Fn(usize) -> u64) {
    // Read once: other connections change the counters meanwhile.
    let loads: Vec<u64> = candidates.iter().map(|c| in_flight(c.index).saturating_add(1)).collect();
    let heavier = |(load, c): (u64, Candidate), (other_load, other): (u64, Candidate)| {
        u128::from(load) * u128::from(other.weight) > u128::from(other_load) * u128::from(c.weight)
    };
    let mut least: Option<(u64, Candidate)> = None;
    for (&load, &candidate) in loads.iter().zip(candidates.iter()) {
        if least.is_none_or(|least| heavier(least, (load, candidate))) {
            least = Some((load, candidate));
        }
    }
    let Some(least) = least else { return };
    let mut loads = loads.into_iter();
    candidates.retain(|&c| loads.next().is_some_and(|load| !heavier((load, c), least)));
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn candidates(weights: &[u32]) -> Vec<Candidate> {
        let weights = weights.iter().enumerate().filter(|(_, w)| **w > 0);
        weights.map(|(index, w)| Candidate { index, weight: u64::from(*w) * UNIT }).collect()
    }

    #[test]
    fn the_turns_of_a_heavy_backend_are_spread_out() {
        let rotation = Rotation::new(3);
        let turns: Vec<_> = (0..7).filter_map(|_| rotation.next(&candidates(&[5, 1, 1]))).collect();
        assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0], "the example of nginx's own commit");
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let rotation = Rotation::new(1000);
        let all = candidates(&[u32::MAX; 1000]);
        let mut turns: Vec<_> = (0..1000).filter_map(|_| rotation.next(&all)).collect();
        turns.sort_unstable();
        assert!(turns.into_iter().eq(0..1000));
    }

    proptest! {
        #[test]
        fn a_full_round_gives_each_exactly_its_weight(weights in vec(0u32..20, 1..30)) {
            let all = candidates(&weights);
            let rotation = Rotation::new(weights.len());
            let round: u32 = weights.iter().sum();
            for _ in 0..2 {
                let mut turns = vec![0; weights.len()];
                for _ in 0..round {
                    turns[rotation.next(&all).expect("a weight is above 0")] += 1;
                }
                prop_assert_eq!(&turns, &weights);
            }
        }

        #[test]
        fn no_backend_waits_longer_than_its_weight_demands(weights in vec(1u32..20, 2..12)) {
            let all = candidates(&weights);
            let rotation = Rotation::new(weights.len());
            let round: u32 = weights.iter().sum();
            let turns: Vec<_> = (0..2 * round).filter_map(|_| rotation.next(&all)).collect();
            for (index, weight) in weights.iter().enumerate() {
                let at: Vec<_> = turns.iter().enumerate().filter(|(_, i)| **i == index).map(|(at, _)| at).collect();
                let longest = at.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default();
                let even = round.div_ceil(*weight) as usize;
                prop_assert!(longest <= 2 * even, "backend {} of {:?} waited {} turns", index, weights, longest);
            }
        }

        #[test]
        fn a_missing_candidate_is_never_chosen_and_returns_without_a_burst(weights in vec(1u32..9, 3..12)) {
            let all = candidates(&weights);
            let rotation = Rotation::new(weights.len());
            let (without, round) = (&all[1..], weights.iter().sum::<u32>());
            for _ in 0..1000 {
                prop_assert_ne!(rotation.next(without), Some(0));
            }
            let burst = (0..round).filter(|_| rotation.next(&all) == Some(0)).count();
            prop_assert!(burst <= 2 * weights[0] as usize + 1, "{} of {} turns", burst, round);
        }

        #[test]
        fn least_connections_keeps_exactly_the_least_loaded(
            backends in vec((1u32..50, 0u64..1000), 1..40),
        ) {
            let weights: Vec<u32> = backends.iter().map(|b| b.0).collect();
            let mut kept = candidates(&weights);
            keep_least_loaded(&mut kept, |index| backends[index].1);
            let load = |index: usize| (backends[index].1 + 1) as f64 / f64::from(backends[index].0);
            let least = (0..backends.len()).map(load).fold(f64::INFINITY, f64::min);
            for index in 0..backends.len() {
                let is_kept = kept.iter().any(|c| c.index == index);
                prop_assert_eq!(is_kept, load(index) <= least, "backend {} of {:?}", index, backends);
            }
        }
    }
}
