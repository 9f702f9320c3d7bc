//! One listener's counters, resolved once so that a connection never looks a label up.

use std::collections::BTreeMap;
use std::fmt;

use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use serde::{Deserialize, Serialize};

use super::ConnectionFamilies;
pub use crate::flow::Transferred;
use crate::l4::outcome::{ConnectionEnd, EndReason, Mode, Refusal, RelayReason};
use crate::route::{ListenerName, PoolName};

/// The contract: [`accepted`](Self::accepted) once per connection, then exactly one of [`refused`](Self::refused),
/// [`relayed`](Self::relayed) and [`handed_off`](Self::handed_off), and after the last two [`ended`](Self::ended) once.
/// A relay may be [`handed_off_later`](Self::handed_off_later). A kernel connection of an earlier daemon starts with [`adopted`](Self::adopted) instead.
pub struct ListenerMetrics {
    name: ListenerName,
    accepted: Counter,
    handed_off: Counter,
    handed_off_later: Counter,
    adopted: Counter,
    opening: Gauge,
    in_kernel: Gauge,
    relaying: Gauge,
    refused: Vec<Counter>,
    relayed: Vec<Counter>,
    ended: Vec<Counter>,
    duration: Histogram,
    bytes: super::Counters<3>,
    pools: RwLock<BTreeMap<PoolName, PoolBytes>>,
}

/// What one listener counted since the daemon started. Reasons that never occurred are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ListenerCounts {
    pub accepted_total: u64,
    pub handed_off_total: u64,
    /// Of those: relayed before.
    #[serde(default)]
    pub handed_off_later_total: u64,
    pub open_kernel: u64,
    pub open_relay: u64,
    /// Accepted, and neither refused nor at a backend yet.
    pub opening: u64,
    pub relayed: BTreeMap<String, u64>,
    pub refused: BTreeMap<String, u64>,
    pub ended: BTreeMap<String, u64>,
    pub bytes: Transferred,
}

#[derive(Clone, Debug)]
struct PoolBytes {
    to_backend: Counter,
    to_client: Counter,
}

impl ListenerMetrics {
    pub(super) fn new(name: &ListenerName, families: &ConnectionFamilies) -> Self {
        let ConnectionFamilies { accepted, open, refused, handoffs, later, adopted, relays, ended, bytes, duration } =
            families;
        let listener = || ("listener", name.to_string());
        let mode = |mode: &str| open.get_or_create_owned(&[listener(), ("mode", mode.to_owned())]);
        let word = |family: &super::Counters<2>, label, word: &str| {
            family.get_or_create_owned(&[listener(), (label, word.to_owned())])
        };
        Self {
            name: name.clone(),
            accepted: accepted.get_or_create_owned(&[listener()]),
            handed_off: handoffs.get_or_create_owned(&[listener()]),
            handed_off_later: later.get_or_create_owned(&[listener()]),
            adopted: adopted.get_or_create_owned(&[listener()]),
            opening: mode("opening"),
            in_kernel: mode("kernel"),
            relaying: mode("relay"),
            refused: Refusal::ALL.iter().map(|r| word(refused, "cause", r.as_str())).collect(),
            relayed: RelayReason::ALL.iter().map(|r| word(relays, "reason", r.as_str())).collect(),
            ended: EndReason::ALL.iter().map(|r| word(ended, "reason", r.as_str())).collect(),
            duration: duration.get_or_create_owned(&[listener()]),
            bytes: bytes.clone(),
            pools: RwLock::default(),
        }
    }

    pub fn accepted(&self) {
        self.accepted.inc();
        self.opening.inc();
    }

    pub fn refused(&self, cause: Refusal) {
        self.opening.dec();
        inc(&self.refused, cause as usize);
    }

    pub fn relayed(&self, reason: RelayReason) {
        self.opening.dec();
        self.relaying.inc();
        inc(&self.relayed, reason as usize);
    }

    pub fn handed_off(&self) {
        self.opening.dec();
        self.in_kernel.inc();
        self.handed_off.inc();
    }

    /// A connection that was relayed until it was quiet.
    pub fn handed_off_later(&self) {
        self.relaying.dec();
        self.in_kernel.inc();
        self.handed_off.inc();
        self.handed_off_later.inc();
    }

    /// A kernel connection that an earlier daemon handed off.
    pub fn adopted(&self) {
        self.in_kernel.inc();
        self.adopted.inc();
    }

    /// Bytes that moved since the last call, while their connections go on. Optional: whoever reports here passes the
    /// sum to [`ended_after`](Self::ended_after), and throughput is seen while it happens instead of at the end.
    pub fn progress(&self, pool: &PoolName, moved: Transferred) {
        let bytes = self.pool(pool);
        bytes.to_backend.inc_by(moved.to_backend);
        bytes.to_client.inc_by(moved.to_client);
    }

    /// The end of a connection whose bytes were not reported before.
    pub fn ended(&self, end: &ConnectionEnd) {
        self.ended_after(end, Transferred::default());
    }

    /// The end of a connection of which `reported` has already gone to [`progress`](Self::progress).
    pub fn ended_after(&self, end: &ConnectionEnd, reported: Transferred) {
        match end.mode {
            Mode::Kernel => self.in_kernel.dec(),
            Mode::Relay(_) => self.relaying.dec(),
        };
        inc(&self.ended, end.reason as usize);
        self.duration.observe(end.duration.as_secs_f64());
        let all = Transferred { to_backend: end.bytes_to_backend, to_client: end.bytes_to_client };
        self.progress(&end.info.pool, all.since(reported));
    }

    /// For `ingress status` and the dashboard.
    pub fn counts(&self) -> ListenerCounts {
        let open = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or(0);
        let pools = self.pools.read();
        ListenerCounts {
            accepted_total: self.accepted.get(),
            handed_off_total: self.handed_off.get(),
            handed_off_later_total: self.handed_off_later.get(),
            open_kernel: open(&self.in_kernel),
            open_relay: open(&self.relaying),
            opening: open(&self.opening),
            relayed: occurred(RelayReason::ALL.iter().map(|r| r.as_str()), &self.relayed),
            refused: occurred(Refusal::ALL.iter().map(|r| r.as_str()), &self.refused),
            ended: occurred(EndReason::ALL.iter().map(|r| r.as_str()), &self.ended),
            bytes: Transferred {
                to_backend: pools.values().map(|p| p.to_backend.get()).sum(),
                to_client: pools.values().map(|p| p.to_client.get()).sum(),
            },
        }
    }

    fn pool(&self, pool: &PoolName) -> PoolBytes {
        if let Some(known) = self.pools.read().get(pool) {
            return known.clone();
        }
        let child = |direction: &str| {
            let labels = [("listener", &*self.name.to_string()), ("pool", pool.as_str()), ("direction", direction)];
            self.bytes.get_or_create_owned(&labels.map(|(key, value)| (key, value.to_owned())))
        };
        let new = PoolBytes { to_backend: child("to_backend"), to_client: child("to_client") };
        self.pools.write().entry(pool.clone()).or_insert(new).clone()
    }
}

impl fmt::Debug for ListenerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ListenerMetrics({})", self.name)
    }
}

fn inc(counters: &[Counter], at: usize) {
    // The vector was made from the enum's `ALL`, in order.
    if let Some(counter) = counters.get(at) {
        counter.inc();
    }
}

fn occurred(words: impl Iterator<Item = &'static str>, counters: &[Counter]) -> BTreeMap<String, u64> {
    words.zip(counters).filter(|(_, c)| c.get() > 0).map(|(word, c)| (word.to_owned(), c.get())).collect()
}
