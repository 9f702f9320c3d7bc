//! Accepts connections, reads the ClientHello, connects to a backend, then relays or hands off to the kernel.
//!
//! [`listener`] keeps the bound sockets equal to the snapshot's listeners; [`worker`] threads accept and carry each
//! connection from begin to end (`connection`). All of them share one [`Plane`].

pub mod client_hello;
pub mod ends;
pub mod kept;
pub mod limits;
pub mod listener;
pub mod log;
pub mod outcome;
pub mod proxy_header;
pub mod relays;
pub mod worker;

pub(crate) mod connect;
pub(crate) mod handoff;

mod accept;
mod carry;
mod connection;
mod opening;
mod reader;
mod relay;
mod segments;
mod socket;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use self::ends::Ends;
use self::limits::Limits;
use self::relays::Relays;
use self::segments::Segments;
use crate::dataplane::Kernel;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;

/// What every connection needs. One per daemon.
#[derive(Debug)]
pub struct Plane {
    pub limits: Arc<Limits>,
    pub relays: Arc<Relays>,
    pub metrics: Arc<Metrics>,
    /// Where ends are counted and logged; the dataplane reports the kernel's there.
    pub ends: Arc<Ends>,
    kernel: Kernel,
    segments: Arc<Segments>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    ids: ConnectionIds,
}

/// Hands out connection ids that no earlier daemon on this host has used.
///
/// They begin at the start time in microseconds: as long as fewer than a million connections per second come, ids never
/// catch up with the clock. They stay below 2^53 until the year 2255, so JSON readers keep them exact.
#[derive(Debug)]
struct ConnectionIds(AtomicU64);

impl Plane {
    pub fn new(snapshots: watch::Receiver<Arc<Snapshot>>, kernel: Kernel, ends: Arc<Ends>) -> Self {
        Self {
            limits: ends.limits.clone(),
            relays: Arc::default(),
            metrics: ends.metrics.clone(),
            ends,
            kernel,
            segments: Arc::default(),
            snapshots,
            ids: ConnectionIds::default(),
        }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }
}

impl ConnectionIds {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Relaxed)
    }
}

impl Default for ConnectionIds {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(AtomicU64::new(since.as_micros() as u64))
    }
}
