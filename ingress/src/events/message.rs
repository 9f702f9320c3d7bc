//! What people and programs get to read: one message for all that happened at one time, of one kind.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use super::{Event, EventKind, Item};

/// Events of one kind, told together. Its JSON is what webhooks and commands get.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// The same in each attempt to deliver it.
    pub id: String,
    #[serde(rename = "event")]
    pub kind: EventKind,
    /// Of the first event. UTC, RFC 3339.
    #[serde(rename = "time", serialize_with = "rfc3339")]
    pub at: SystemTime,
    /// Host name.
    pub node: Arc<str>,
    /// How many items there were; the first of them are in `items`.
    pub count: usize,
    /// One line for people.
    pub text: String,
    /// At most [`LISTED`].
    pub items: Vec<Item>,
}

/// So many items of a message are named.
pub const LISTED: usize = 20;
/// So many of them in its text.
const NAMED: usize = 5;

impl Message {
    pub fn new(id: String, node: Arc<str>, event: &Event) -> Self {
        let text = String::new();
        let mut message = Self { id, kind: event.kind, at: event.at, node, count: 0, text, items: Vec::new() };
        message.add(event);
        message
    }

    /// Takes a later event in. `false`: it is of another kind, and needs a message of its own.
    pub fn add(&mut self, event: &Event) -> bool {
        if event.kind != self.kind {
            return false;
        }
        self.count += event.items.len();
        let room = LISTED.saturating_sub(self.items.len());
        self.items.extend(event.items.iter().take(room).cloned());
        self.text = self.words().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        true
    }

    /// One message of every kind, with all that makes trouble in texts: what a template is tried with.
    pub fn samples() -> Vec<Self> {
        let error = Some("said \"no\" \\ <&'>\u{1}there\nand more".to_owned());
        let item = |kind| match kind {
            EventKind::BackendDown | EventKind::BackendUp => Item::Backend {
                pool: crate::route::PoolName::new("app"),
                backend: "app-1".into(),
                address: "10.0.0.3:8443".into(),
                error: error.clone(),
            },
            EventKind::RouteAdded | EventKind::RouteRemoved => {
                Item::Route { route: crate::route::RouteName::new("app.example.com") }
            }
            EventKind::ProviderStale | EventKind::ProviderRecovered => {
                Item::Provider { provider: crate::route::ProviderName::new("platform"), error: error.clone() }
            }
            EventKind::ConfigRefused | EventKind::ConfigAccepted => {
                Item::Config { path: "/etc/ingress/ingress.yaml".into(), generation: 7, problems: error.clone() }
            }
            EventKind::DaemonStarted | EventKind::DaemonStopping | EventKind::Test => Item::Daemon { version: VERSION },
        };
        let sample = |kind| {
            let event = Event { at: UNIX_EPOCH, kind, items: Arc::from([item(kind)]) };
            Self::new("evt_0".into(), "proxy-1".into(), &event)
        };
        EventKind::ALL.into_iter().map(sample).collect()
    }

    fn words(&self) -> String {
        let first = self.items.first().map(|item| one(item, self.kind)).unwrap_or_default();
        match (self.kind, self.count) {
            (EventKind::BackendDown, 1) => format!("backend {first}"),
            (EventKind::BackendDown, _) => self.list("backends are down"),
            (EventKind::BackendUp, 1) => format!("backend {first}"),
            (EventKind::BackendUp, _) => self.list("backends are up again"),
            (EventKind::RouteAdded, 1) => format!("route {first} was added"),
            (EventKind::RouteAdded, _) => self.list("routes were added"),
            (EventKind::RouteRemoved, 1) => format!("route {first} was removed"),
            (EventKind::RouteRemoved, _) => self.list("routes were removed"),
            (EventKind::ProviderStale, 1) => format!("provider {first}"),
            (EventKind::ProviderStale, _) => self.list("providers do not answer; what they said before stays"),
            (EventKind::ProviderRecovered, 1) => format!("provider {first} answers again"),
            (EventKind::ProviderRecovered, _) => self.list("providers answer again"),
            (EventKind::ConfigRefused, _) => format!("configuration refused, the old one stays: {first}"),
            (EventKind::ConfigAccepted, _) => format!("configuration in use: {first}"),
            (EventKind::DaemonStarted, _) => format!("ingress {first} has started"),
            (EventKind::DaemonStopping, _) => format!("ingress {first} stops"),
            (EventKind::Test, _) => "this is a test of a hook; nothing has happened".to_owned(),
        }
    }

    fn list(&self, what: &str) -> String {
        let names: Vec<String> = self.items.iter().take(NAMED).map(name).collect();
        let more = match self.count - names.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("{} {what}: {}{more}", self.count, names.join(", "))
    }
}

/// What there is to say about it where it is the only one.
fn one(item: &Item, kind: EventKind) -> String {
    let because = |error: &Option<String>| match error.as_deref().and_then(|text| text.lines().next()) {
        Some(error) => format!(": {error}"),
        None => String::new(),
    };
    match item {
        Item::Backend { pool, backend, .. } if kind == EventKind::BackendUp => {
            format!("{backend} of pool {pool} is up again")
        }
        Item::Backend { pool, backend, address: _, error } => {
            format!("{backend} of pool {pool} is down{}", because(error))
        }
        Item::Provider { provider, error } if kind == EventKind::ProviderStale => {
            format!("{provider} does not answer; what it said before stays{}", because(error))
        }
        Item::Config { path, generation, problems } => match problems.as_deref().and_then(|text| text.lines().next()) {
            Some(problem) => problem.to_owned(),
            None => format!("{}, generation {generation}", path.display()),
        },
        Item::Provider { .. } | Item::Route { .. } | Item::Daemon { .. } => name(item),
    }
}

fn name(item: &Item) -> String {
    match item {
        Item::Backend { pool, backend, .. } => format!("{backend} of pool {pool}"),
        Item::Route { route } => route.to_string(),
        Item::Provider { provider, .. } => provider.to_string(),
        Item::Config { path, .. } => path.display().to_string(),
        Item::Daemon { version } => (*version).to_owned(),
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn rfc3339<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&utc(*at))
}

/// `2026-01-15T09:29:42.248Z`
fn utc(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Year, month and day of the Gregorian calendar, so many days after 1970-01-01. Years are counted from March, so that the
/// leap day is the last of its year.
fn date(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097; // days in 400 years
    let days = days + 719_468; // from 0000-03-01
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::route::RouteName;

    fn routes(names: impl Iterator<Item = u32>) -> Event {
        let route = |n| Item::Route { route: RouteName::new(format!("r{n}")) };
        Event { at: UNIX_EPOCH, kind: EventKind::RouteAdded, items: names.map(route).collect() }
    }

    #[test]
    fn ten_thousand_routes_are_one_message_with_the_first_names() {
        let mut message = Message::new("evt_1".into(), "proxy-1".into(), &routes(0..1));
        assert_eq!(message.text, "route r0 was added");
        assert!(message.add(&routes(1..10_000)));
        assert_eq!((message.count, message.items.len()), (10_000, LISTED));
        assert_eq!(message.text, "10000 routes were added: r0, r1, r2, r3, r4 and 9995 more");
        let other = Event { kind: EventKind::RouteRemoved, ..routes(0..1) };
        assert!(!message.add(&other));
    }

    #[test]
    fn every_kind_says_what_happened_in_one_line() {
        let texts: Vec<String> = Message::samples().into_iter().map(|message| message.text).collect();
        insta::assert_snapshot!(texts.join("\n"), @r#"
        backend app-1 of pool app is down: said "no" \ <&'> there
        backend app-1 of pool app is up again
        route app.example.com was added
        route app.example.com was removed
        provider platform does not answer; what it said before stays: said "no" \ <&'> there
        provider platform answers again
        configuration refused, the old one stays: said "no" \ <&'> there
        configuration in use: said "no" \ <&'> there
        ingress 0.1.0 has started
        ingress 0.1.0 stops
        this is a test of a hook; nothing has happened
        "#);
    }

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_768_469_382, "2026-01-15T09:29:42.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
