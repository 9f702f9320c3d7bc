//! When registrations end for want of a heartbeat. Pure: time in, hosts out.
//!
//! Only the node that was told of a registration judges its lease. Leases are counted from the daemon's start again, on a
//! clock that only goes forward: a restart, or a clock that is set, never ends one early.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::route::SniPattern;

#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    ends: BTreeMap<SniPattern, Instant>,
    by_time: BTreeSet<(Instant, SniPattern)>,
}

impl Leases {
    /// Begins or renews; `None`: it has no lease (any more).
    pub(super) fn set(&mut self, host: &SniPattern, ttl: Option<u32>, now: Instant) {
        self.forget(host);
        if let Some(ttl) = ttl {
            self.insert(host.clone(), now + Duration::from_secs(ttl.into()));
        }
    }

    pub(super) fn forget(&mut self, host: &SniPattern) {
        if let Some(end) = self.ends.remove(host) {
            self.by_time.remove(&(end, host.clone()));
        }
    }

    /// When somebody has to look again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(end, _)| *end)
    }

    /// Time that is left.
    pub(super) fn left(&self, host: &SniPattern, now: Instant) -> Option<Duration> {
        self.ends.get(host).map(|end| end.saturating_duration_since(now))
    }

    /// Takes out what has ended. A node that looks too late stood still itself, and its callers' heartbeats may be waiting
    /// at its door: it lets them speak first.
    pub(super) fn due(&mut self, now: Instant) -> Vec<SniPattern> {
        let stood_still = self.next().is_some_and(|end| now.saturating_duration_since(end) > LATE);
        let mut due = Vec::new();
        while let Some((end, host)) = self.by_time.first().cloned().filter(|(end, _)| *end <= now) {
            self.forget(&host);
            due.push((end, host));
        }
        if stood_still {
            tracing::warn!(leases = due.len(), "this node stood still; leases that ended meanwhile get a moment more");
            due.drain(..).for_each(|(_, host)| self.insert(host, now + GRACE));
        }
        due.into_iter().map(|(_, host)| host).collect()
    }

    fn insert(&mut self, host: SniPattern, end: Instant) {
        self.by_time.insert((end, host.clone()));
        self.ends.insert(host, end);
    }
}

/// Beyond what a busy node takes to look at its clock.
const LATE: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> SniPattern {
        SniPattern::parse(name).expect("a host")
    }

    #[test]
    fn a_lease_ends_after_its_time_unless_it_is_renewed() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        leases.set(&host("a"), Some(10), start);
        leases.set(&host("b"), Some(20), start);
        leases.set(&host("c"), None, start);
        assert_eq!(leases.next(), Some(at(10)));
        assert_eq!(leases.due(at(9)), []);
        leases.set(&host("a"), Some(10), at(9));
        assert_eq!(leases.due(at(10)), []);
        assert_eq!(leases.left(&host("a"), at(10)), Some(Duration::from_secs(9)));
        assert_eq!(leases.due(at(20)), [host("a"), host("b")]);
        assert_eq!((leases.next(), leases.left(&host("a"), at(20))), (None, None));
    }

    #[test]
    fn a_lease_that_is_given_up_never_ends() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.set(&host("a"), Some(1), start);
        leases.set(&host("a"), None, start);
        leases.set(&host("b"), Some(1), start);
        leases.forget(&host("b"));
        assert_eq!(leases.due(start + Duration::from_secs(2)), []);
    }

    #[test]
    fn a_node_that_stood_still_hears_heartbeats_before_it_judges() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        leases.set(&host("a"), Some(1), start);
        leases.set(&host("b"), Some(1), start);
        assert_eq!(leases.due(at(60)), []);
        leases.set(&host("b"), Some(30), at(61));
        assert_eq!(leases.due(at(65)), [host("a")]);
    }
}
