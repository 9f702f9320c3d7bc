//! Consistent source hash: weighted rendezvous hashing.
//!
//! Every candidate gets a score from its name and the client's address, the highest wins. A candidate that comes or goes
//! moves only the clients it wins or held; a weight that grows only takes clients, in proportion. The scores depend on
//! nothing else, so all nodes agree, before and after a restart.

use std::net::{IpAddr, SocketAddr};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::select::Candidate;

/// What a backend's name adds to its scores.
pub(super) fn seed(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}

/// The index of the candidate with the highest score. `None`: there is none.
pub(super) fn choose(candidates: &[Candidate], client: IpAddr, seed: impl Fn(usize) -> u64) -> Option<usize> {
    let best = candidates.iter().map(|c| (c.index, score(of_client(client, seed(c.index)), c.weight)));
    best.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(index, _)| index)
}

/// Orders the addresses of one backend for a client.
pub(super) fn of_address(client: IpAddr, socket: SocketAddr) -> u64 {
    of_client(client, seed(&socket.to_string()))
}

fn of_client(client: IpAddr, seed: u64) -> u64 {
    match client {
        IpAddr::V4(ip) => xxh3_64_with_seed(&ip.octets(), seed),
        IpAddr::V6(ip) => xxh3_64_with_seed(&ip.octets(), seed),
    }
}

/// `-weight / ln(u)` for a uniform `u`: an exponential race, which each candidate wins with probability weight / sum
/// (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", 2005).
fn score(hash: u64, weight: u64) -> f64 {
    // 52 bits and a half: exactly representable, never 0 or 1.
    let uniform = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
    weight as f64 / -uniform.ln()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::select::UNIT;
    use super::*;

    const CLIENTS: u32 = 20_000;

    fn client(n: u32) -> IpAddr {
        // Consecutive addresses of a few networks, as real clients have them.
        IpAddr::from((0x0a00_0000 + n).to_be_bytes())
    }

    fn pool(weights: &[(usize, u32)]) -> Vec<Candidate> {
        weights.iter().map(|&(index, w)| Candidate { index, weight: u64::from(w) * UNIT }).collect()
    }

    fn equal(len: usize) -> Vec<Candidate> {
        pool(&(0..len).map(|i| (i, 1)).collect::<Vec<_>>())
    }

    fn chosen(candidates: &[Candidate], n: u32) -> usize {
        choose(candidates, client(n), |index| seed(&format!("10.0.0.{index}:443"))).expect("candidates are given")
    }

    #[test]
    fn the_choice_is_the_same_in_every_release() {
        let first: Vec<usize> = (0..16).map(|n| chosen(&equal(10), n)).collect();
        assert_eq!(first, PINNED, "clients would move at an upgrade and between old and new nodes");
    }
    const PINNED: [usize; 16] = [5, 4, 7, 7, 9, 4, 6, 6, 4, 2, 6, 6, 6, 2, 2, 0];

    #[test]
    fn nobody_is_chosen_from_nothing() {
        assert_eq!(choose(&[], client(1), |_| 0), None);
    }

    #[test]
    fn scores_are_finite_at_both_ends() {
        for hash in [0, u64::MAX] {
            assert!(score(hash, 1).is_finite() && score(hash, 1) > 0.0, "{hash:x}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn shares_follow_the_weights(weights in proptest::collection::vec(1u32..10, 2..12)) {
            let all = pool(&weights.iter().copied().enumerate().collect::<Vec<_>>());
            let mut counts = vec![0u32; weights.len()];
            (0..CLIENTS).for_each(|n| counts[chosen(&all, n)] += 1);
            let sum: u32 = weights.iter().sum();
            for (weight, count) in weights.iter().zip(&counts) {
                let share = f64::from(*weight) / f64::from(sum);
                // Five standard deviations of a binomial distribution.
                let slack = 5.0 * (f64::from(CLIENTS) * share * (1.0 - share)).sqrt();
                let off = f64::from(*count) - f64::from(CLIENTS) * share;
                prop_assert!(off.abs() <= slack, "{:?} got {:?}", weights, counts);
            }
        }

        #[test]
        fn a_lost_backend_moves_its_own_clients_only(len in 2usize..30, lost in 0usize..30) {
            let lost = lost % len;
            let (all, left) = (equal(len), pool(&(0..len).filter(|i| *i != lost).map(|i| (i, 1)).collect::<Vec<_>>()));
            let mut moved = 0u32;
            for n in 0..CLIENTS {
                let (before, after) = (chosen(&all, n), chosen(&left, n));
                if before == lost { moved += 1 } else { prop_assert_eq!(before, after) }
            }
            let share = 1.0 / len as f64;
            let slack = 5.0 * (f64::from(CLIENTS) * share * (1.0 - share)).sqrt();
            prop_assert!((f64::from(moved) - f64::from(CLIENTS) * share).abs() <= slack, "{} moved", moved);
        }

        #[test]
        fn a_heavier_backend_only_takes_clients(len in 2usize..20, weight in 2u32..9) {
            let before = equal(len);
            let mut after = before.clone();
            after[0].weight *= u64::from(weight);
            for n in 0..CLIENTS {
                let (old, new) = (chosen(&before, n), chosen(&after, n));
                prop_assert!(new == old || new == 0, "client {} went from {} to {}", n, old, new);
            }
        }
    }
}
