//! When which name is asked, and what is known of it: `(state, input, now) -> actions`. No sockets, no tasks, no clock.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Answer, ResolveError};

/// All names that backends use now.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<String, Name>);

#[derive(Debug)]
struct Name {
    /// `None` while the question is open.
    due: Option<Instant>,
    /// The last good answer, in ascending order; empty: there was none yet.
    addresses: Vec<IpAddr>,
    /// In a row.
    failures: u32,
}

/// What a log line is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    Changed {
        from: Vec<IpAddr>,
        to: Vec<IpAddr>,
    },
    /// The same answer as before the failures.
    Recovered,
    /// The first failure in a row.
    Failed {
        error: ResolveError,
        kept: Vec<IpAddr>,
    },
}

impl Names {
    /// Forgets every other name; a new one is due at once.
    pub(super) fn watch<'a>(&mut self, hosts: impl Iterator<Item = &'a String>, now: Instant) {
        let mut before = std::mem::take(&mut self.0);
        for host in hosts {
            let name = before.remove(host).unwrap_or(Name { due: Some(now), addresses: Vec::new(), failures: 0 });
            self.0.insert(host.clone(), name);
        }
    }

    /// The name to ask for now, the one that waits longest first. It is not due again until it is answered.
    pub(super) fn due(&mut self, now: Instant) -> Option<String> {
        let due = self.0.iter_mut().filter(|(_, name)| name.due.is_some_and(|due| due <= now));
        let (host, name) = due.min_by_key(|(_, name)| name.due)?;
        name.due = None;
        Some(host.clone())
    }

    /// When [`Names::due`] has something again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|name| name.due).min()
    }

    /// The last good answer; empty: there is none.
    pub(super) fn addresses(&self, host: &str) -> &[IpAddr] {
        self.0.get(host).map_or(&[], |name| &name.addresses)
    }

    /// `None`: nothing changed.
    pub(super) fn answered(&mut self, host: &str, answer: Result<Answer, ResolveError>, now: Instant) -> Option<News> {
        let name = self.0.get_mut(host)?;
        match answer {
            Ok(Answer { mut addresses, ttl }) => {
                addresses.sort_unstable();
                addresses.dedup();
                name.due = Some(now + ttl.clamp(MIN_TTL, MAX_TTL));
                let failures = std::mem::take(&mut name.failures);
                if name.addresses != addresses {
                    let from = std::mem::replace(&mut name.addresses, addresses);
                    return Some(News::Changed { from, to: name.addresses.clone() });
                }
                (failures > 0).then_some(News::Recovered)
            }
            Err(error) => {
                let wait = MIN_TTL.saturating_mul(1 << name.failures.min(16));
                name.due = Some(now + wait.min(MAX_RETRY));
                name.failures = name.failures.saturating_add(1);
                (name.failures == 1).then(|| News::Failed { error, kept: name.addresses.clone() })
            }
        }
    }
}

/// A TTL of 0 would mean a question per connection; so often is often enough.
const MIN_TTL: Duration = Duration::from_secs(1);

/// A TTL of a day is no reason to miss a move for a day.
const MAX_TTL: Duration = Duration::from_secs(5 * 60);

/// Failures are asked again after 1 s, 2 s, 4 s and so on, up to this.
const MAX_RETRY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "app.example.com";

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn good(addresses: &[u8], ttl: u64) -> Result<Answer, ResolveError> {
        let addresses = addresses.iter().copied().map(ip).collect();
        Ok(Answer { addresses, ttl: Duration::from_secs(ttl) })
    }

    fn bad() -> Result<Answer, ResolveError> {
        Err(ResolveError::NoSuchName { host: HOST.into() })
    }

    fn watching(now: Instant) -> Names {
        let mut names = Names::default();
        names.watch([HOST.to_owned()].iter(), now);
        names
    }

    /// Asks as soon as it is due; how many seconds that was after `now`, and the news.
    fn ask(names: &mut Names, now: &mut Instant, answer: Result<Answer, ResolveError>) -> (u64, Option<News>) {
        let due = names.next().expect("the name is watched");
        let waited = due.saturating_duration_since(*now).as_secs();
        *now = due.max(*now);
        assert_eq!(names.due(*now).as_deref(), Some(HOST));
        assert_eq!(names.due(*now), None, "one question at a time");
        (waited, names.answered(HOST, answer, *now))
    }

    #[test]
    fn a_name_is_asked_at_once_and_then_by_its_ttl() {
        let mut now = Instant::now();
        let mut names = watching(now);
        let changed = News::Changed { from: vec![], to: vec![ip(1), ip(2)] };
        assert_eq!(ask(&mut names, &mut now, good(&[2, 1, 2], 30)), (0, Some(changed)));
        assert_eq!(ask(&mut names, &mut now, good(&[1, 2], 0)), (30, None), "the order means nothing");
        assert_eq!(ask(&mut names, &mut now, good(&[1, 2], 86_400)), (1, None), "a TTL of 0 is 1 s");
        assert_eq!(ask(&mut names, &mut now, good(&[1, 2], 9)), (300, None), "a TTL of a day is 5 min");
    }

    #[test]
    fn failures_keep_the_last_good_answer_back_off_and_are_news_once() {
        let mut now = Instant::now();
        let mut names = watching(now);
        ask(&mut names, &mut now, good(&[1], 30));
        let (_, news) = ask(&mut names, &mut now, bad());
        assert!(matches!(news, Some(News::Failed { kept, .. }) if kept == [ip(1)]));
        let waits: Vec<_> = (0..8)
            .map(|_| {
                let (waited, news) = ask(&mut names, &mut now, bad());
                assert_eq!(news, None);
                waited
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(names.addresses(HOST), [ip(1)]);
        assert_eq!(ask(&mut names, &mut now, good(&[1], 30)).1, Some(News::Recovered));
        let (waited, _) = ask(&mut names, &mut now, bad());
        assert_eq!(waited, 30);
        assert_eq!(ask(&mut names, &mut now, bad()).0, 1, "the back-off starts again");
    }

    #[test]
    fn a_moved_name_is_news_also_after_failures() {
        let mut now = Instant::now();
        let mut names = watching(now);
        ask(&mut names, &mut now, good(&[1], 30));
        ask(&mut names, &mut now, bad());
        let moved = News::Changed { from: vec![ip(1)], to: vec![ip(2)] };
        assert_eq!(ask(&mut names, &mut now, good(&[2], 30)).1, Some(moved));
    }

    #[test]
    fn an_answer_for_a_name_that_nobody_uses_any_more_is_ignored() {
        let now = Instant::now();
        let mut names = watching(now);
        names.due(now);
        names.watch([].iter(), now);
        assert_eq!(names.answered(HOST, good(&[1], 30), now), None);
        assert_eq!(names.next(), None);
    }

    #[test]
    fn a_name_that_stays_in_use_keeps_its_answer_and_its_time() {
        let mut now = Instant::now();
        let mut names = watching(now);
        ask(&mut names, &mut now, good(&[1], 30));
        let later = now + Duration::from_secs(5);
        names.watch([HOST.to_owned(), "b.example.com".to_owned()].iter(), later);
        assert_eq!(names.addresses(HOST), [ip(1)]);
        assert_eq!(names.due(later).as_deref(), Some("b.example.com"));
        assert_eq!(names.next(), Some(now + Duration::from_secs(30)));
    }
}
