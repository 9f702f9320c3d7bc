//! What operators say about a backend: ready, drain or maintenance, and another weight. Pure data and the book of it.
//!
//! The last word about each backend is kept by its pool's name and its own, whatever becomes of the configuration: a drain
//! holds over reloads, restarts and another address. `control::administration` keeps the book and carries it to the backends.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::select;

/// Whether a backend takes connections, as far as operators are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminState {
    #[default]
    Ready,
    /// No new connections; those that are there go on.
    Drain,
    /// No new connections, and those that are there are cut. No health checks.
    Maint,
}

/// A weight in place of the configured one. On the wire a number or `"50%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WireWeight", into = "WireWeight")]
pub enum AdminWeight {
    /// 0 to [`AdminWeight::MAX`]; 0 takes no new connections.
    Absolute(u32),
    /// Of the configured weight, 0 to [`AdminWeight::MAX_PERCENT`], also after a reload that changes that.
    Percent(u32),
}

/// What an operator wants of one backend. What is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackendOrder {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<AdminState>,
    /// `"100%"`: the configured one again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<AdminWeight>,
}

/// The last word about one backend, and whose it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminChange {
    pub state: AdminState,
    /// `None`: the configured one.
    pub weight: Option<AdminWeight>,
    /// A person, as far as the door knows.
    pub by: String,
    /// On the wire Unix seconds.
    #[serde(with = "unix_seconds")]
    pub at: SystemTime,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ordered {
    pub pool: String,
    pub backend: String,
    pub change: AdminChange,
    /// `false`: it was so already, and still is by the one who said it first.
    pub changed: bool,
    /// Connections to the backend just before.
    pub in_flight: u64,
    /// Why it holds only until the daemon ends.
    pub warning: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    #[error("there is no pool {0}; `ingress pools` lists them")]
    NoPool(String),
    #[error("pool {pool} has no backend {backend}; `ingress pools` lists them")]
    NoBackend { pool: String, backend: String },
    #[error("{} backends are drained, in maintenance or weighted by hand; put some of them back first", Book::MAX)]
    Full,
    #[error("the order is empty: give a state, a weight or both")]
    Empty,
}

/// The last words about all backends, also about those that are not configured now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Book(BTreeMap<(String, String), AdminChange>);

/// One line of the book on disk.
#[derive(Serialize, Deserialize)]
struct Entry {
    pool: String,
    backend: String,
    #[serde(flatten)]
    change: AdminChange,
}

impl AdminState {
    pub const ALL: [Self; 3] = [Self::Ready, Self::Drain, Self::Maint];

    /// The word in views, metrics and orders.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

impl AdminWeight {
    /// As for weights in the configuration.
    pub const MAX: u32 = 256;
    pub const MAX_PERCENT: u32 = 1_000;

    /// In [`select::UNIT`]s, of a backend with this weight in its configuration.
    pub(super) fn units(self, configured: u32) -> u64 {
        match self {
            Self::Absolute(weight) => u64::from(weight) * select::UNIT,
            Self::Percent(percent) => u64::from(configured) * u64::from(percent) * select::UNIT / 100,
        }
    }

    /// In one word for an atomic; never 0.
    pub(super) fn pack(self) -> u64 {
        match self {
            Self::Absolute(weight) => u64::from(weight) << 2 | 1,
            Self::Percent(percent) => u64::from(percent) << 2 | 2,
        }
    }

    pub(super) fn unpack(packed: u64) -> Option<Self> {
        let value = (packed >> 2) as u32;
        match packed & 3 {
            1 => Some(Self::Absolute(value)),
            2 => Some(Self::Percent(value)),
            _ => None,
        }
    }
}

impl AdminChange {
    /// Whether this says nothing but "as configured".
    fn is_plain(&self) -> bool {
        self.state == AdminState::Ready && self.weight.is_none()
    }
}

impl Book {
    /// Entries; each is a few hundred bytes in memory and on disk.
    pub const MAX: usize = 4_096;

    pub fn get(&self, pool: &str, backend: &str) -> Option<&AdminChange> {
        // Keys are small, and who asks is an operator or a reload.
        self.0.get(&(pool.to_owned(), backend.to_owned()))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &AdminChange)> {
        self.0.iter().map(|((pool, backend), change)| (pool.as_str(), backend.as_str(), change))
    }

    /// The word that would follow `order`, and whether it is news. `by` and `at` stay those of the earlier word if not.
    pub fn follow(
        &self,
        pool: &str,
        backend: &str,
        order: BackendOrder,
        by: &str,
        at: SystemTime,
    ) -> (AdminChange, bool) {
        let BackendOrder { state, weight } = order;
        let before = self.get(pool, backend);
        let now = AdminChange {
            state: state.or(before.map(|b| b.state)).unwrap_or_default(),
            weight: match weight {
                Some(AdminWeight::Percent(100)) => None,
                Some(weight) => Some(weight),
                None => before.and_then(|b| b.weight),
            },
            by: by.to_owned(),
            at: to_the_second(at),
        };
        match before {
            Some(before) if (before.state, before.weight) == (now.state, now.weight) => (before.clone(), false),
            None if now.is_plain() => (now, false),
            Some(_) | None => (now, true),
        }
    }

    /// Writes one word down. `exists` tells which backends are configured now.
    ///
    /// Where the book is full, what goes is the oldest word that says no more than the configuration, then the oldest about a
    /// backend that is not there.
    ///
    /// # Errors
    /// All of it is in force.
    pub fn write(
        &mut self,
        pool: &str,
        backend: &str,
        change: AdminChange,
        exists: impl Fn(&str, &str) -> bool,
    ) -> Result<(), OrderError> {
        let key = (pool.to_owned(), backend.to_owned());
        if self.0.len() >= Self::MAX && !self.0.contains_key(&key) {
            let idle = |(pool, backend): &(String, String), change: &AdminChange| match change.is_plain() {
                true => Some(0),
                false => (!exists(pool, backend)).then_some(1),
            };
            let entries = self.0.iter().filter_map(|(key, change)| Some((idle(key, change)?, change.at, key)));
            let oldest = entries.min().map(|(_, _, key)| key.clone()).ok_or(OrderError::Full)?;
            self.0.remove(&oldest);
        }
        self.0.insert(key, change);
        Ok(())
    }

    /// As it stands on disk: JSON, one backend a line.
    pub fn to_text(&self) -> String {
        let line = |(pool, backend, change): (&str, &str, &AdminChange)| {
            let entry = Entry { pool: pool.to_owned(), backend: backend.to_owned(), change: change.clone() };
            serde_json::to_string(&entry).unwrap_or_default()
        };
        self.iter().map(|entry| line(entry) + "\n").collect()
    }

    /// # Errors
    /// The first line that is none of ours.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let mut book = Self::default();
        for (number, line) in (1..).zip(text.lines()).take(Self::MAX) {
            let entry = serde_json::from_str(line).map_err(|error| format!("line {number}: {error}"))?;
            let Entry { pool, backend, change } = entry;
            book.0.insert((pool, backend), change);
        }
        Ok(book)
    }
}

/// `50` or `"50%"`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WireWeight {
    Number(u32),
    Text(String),
}

impl From<AdminWeight> for WireWeight {
    fn from(weight: AdminWeight) -> Self {
        match weight {
            AdminWeight::Absolute(weight) => Self::Number(weight),
            AdminWeight::Percent(_) => Self::Text(weight.to_string()),
        }
    }
}

impl TryFrom<WireWeight> for AdminWeight {
    type Error = WeightError;

    fn try_from(wire: WireWeight) -> Result<Self, WeightError> {
        match wire {
            WireWeight::Number(weight) => weight.to_string().parse(),
            WireWeight::Text(text) => text.parse(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a weight is 0 to {}, or 0% to {}% of the configured one", AdminWeight::MAX, AdminWeight::MAX_PERCENT)]
pub struct WeightError;

impl FromStr for AdminWeight {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        let number = |text: &str, max| text.parse().ok().filter(|n| *n <= max).ok_or(WeightError);
        match text.strip_suffix('%') {
            Some(percent) => number(percent, Self::MAX_PERCENT).map(Self::Percent),
            None => number(text, Self::MAX).map(Self::Absolute),
        }
    }
}

impl fmt::Display for AdminWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absolute(weight) => write!(f, "{weight}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl fmt::Display for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn to_the_second(at: SystemTime) -> SystemTime {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    UNIX_EPOCH + Duration::from_secs(seconds)
}

mod unix_seconds {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Duration, SystemTime, UNIX_EPOCH};

    pub(super) fn serialize<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let seconds = u64::deserialize(from)?;
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or_else(|| D::Error::custom("the time is out of range"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn state(state: AdminState) -> BackendOrder {
        BackendOrder { state: Some(state), weight: None }
    }

    fn said(book: &mut Book, backend: &str, order: BackendOrder, seconds: u64) -> bool {
        let (change, news) = book.follow("web", backend, order, "alice", at(seconds));
        book.write("web", backend, change, |_, backend| backend != "gone").expect("there is room");
        news
    }

    #[test]
    fn a_weight_and_a_state_are_said_one_after_the_other_and_both_hold() {
        let mut book = Book::default();
        let half = BackendOrder { state: None, weight: Some(AdminWeight::Percent(50)) };
        assert!(said(&mut book, "a", half, 1));
        assert!(said(&mut book, "a", state(AdminState::Drain), 2));
        let word = book.get("web", "a").expect("a word");
        assert_eq!((word.state, word.weight, word.at), (AdminState::Drain, Some(AdminWeight::Percent(50)), at(2)));
        let configured = BackendOrder { state: Some(AdminState::Ready), weight: Some(AdminWeight::Percent(100)) };
        assert!(said(&mut book, "a", configured, 3));
        assert_eq!(book.get("web", "a").map(|w| (w.state, w.weight)), Some((AdminState::Ready, None)));
    }

    #[test]
    fn a_repeated_order_is_no_news_and_keeps_who_said_it_first() {
        let mut book = Book::default();
        assert!(said(&mut book, "a", state(AdminState::Drain), 1));
        let (word, news) = book.follow("web", "a", state(AdminState::Drain), "bob", at(9));
        assert_eq!((word.by.as_str(), word.at, news), ("alice", at(1), false));
        assert!(!Book::default().follow("web", "a", state(AdminState::Ready), "bob", at(9)).1);
    }

    #[test]
    fn the_book_survives_its_own_text() {
        let mut book = Book::default();
        said(&mut book, "[2001:db8::1]:443", state(AdminState::Maint), 7);
        said(&mut book, "a \"quoted\" name", BackendOrder { state: None, weight: Some(AdminWeight::Absolute(3)) }, 8);
        said(&mut book, "b", BackendOrder { state: None, weight: Some(AdminWeight::Percent(7)) }, 9);
        assert_eq!(Book::from_text(&book.to_text()), Ok(book));
        assert!(Book::from_text("{\"pool\":\"web\"}\n").expect_err("half a line").starts_with("line 1: "));
    }

    #[test]
    fn a_full_book_forgets_what_is_not_in_force_and_nothing_else() {
        let mut book = Book::default();
        for n in 0..Book::MAX - 2 {
            said(&mut book, &format!("b{n}"), state(AdminState::Drain), 100);
        }
        said(&mut book, "gone", state(AdminState::Drain), 1);
        said(&mut book, "back", state(AdminState::Drain), 2);
        said(&mut book, "back", state(AdminState::Ready), 50);
        said(&mut book, "c", state(AdminState::Drain), 3);
        assert!(book.get("web", "back").is_none() && book.get("web", "gone").is_some(), "a plain word goes first");
        said(&mut book, "d", state(AdminState::Drain), 4);
        assert!(book.get("web", "gone").is_none(), "then one about a backend that is not there");
        let (change, _) = book.follow("web", "e", state(AdminState::Drain), "alice", at(5));
        assert_eq!(book.write("web", "e", change, |_, _| true), Err(OrderError::Full));
    }

    #[test]
    fn weights_are_numbers_or_percentages_within_bounds() {
        assert_eq!("256".parse(), Ok(AdminWeight::Absolute(256)));
        assert_eq!("50%".parse(), Ok(AdminWeight::Percent(50)));
        for wrong in ["", "%", "-1", "257", "1001%", "50 %", "1.5"] {
            assert_eq!(wrong.parse::<AdminWeight>(), Err(WeightError), "{wrong}");
        }
        for weight in
            [AdminWeight::Absolute(0), AdminWeight::Absolute(256), AdminWeight::Percent(0), AdminWeight::Percent(1_000)]
        {
            assert_eq!(AdminWeight::unpack(weight.pack()), Some(weight));
        }
        assert_eq!(AdminWeight::unpack(0), None);
        assert_eq!(AdminWeight::Percent(50).units(1), select::UNIT / 2, "half of 1 is not 0");
    }

    #[test]
    fn an_order_has_no_other_words() {
        let order: BackendOrder = serde_json::from_str(r#"{"state":"drain","weight":"50%"}"#).expect("an order");
        assert_eq!(order, BackendOrder { state: Some(AdminState::Drain), weight: Some(AdminWeight::Percent(50)) });
        for wrong in [r#"{"state":"down"}"#, r#"{"weight":300}"#, r#"{"stat":"drain"}"#] {
            assert!(serde_json::from_str::<BackendOrder>(wrong).is_err(), "{wrong}");
        }
    }
}
