//! What happens when a connection begins to run and when it ends, wherever it ran: metrics, log lines, backend state.

use std::sync::Arc;

use tokio::sync::watch;

use super::limits::Limits;
use super::log::ConnectionLog;
use super::outcome::{ConnectionEnd, ConnectionInfo};
use crate::balance::Backend;
use crate::config;
use crate::dataplane::{EndSink, Held};
use crate::flow::Transferred;
use crate::metrics::Metrics;
use crate::route::{ListenerName, PoolName};
use crate::snapshot::Snapshot;

/// The books of the traffic plane. Relays and the kernel path report here.
#[derive(Debug)]
pub struct Ends {
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) log: ConnectionLog,
    pub(super) limits: Arc<Limits>,
}

impl Ends {
    pub fn new(snapshots: watch::Receiver<Arc<Snapshot>>, metrics: Arc<Metrics>, log: ConnectionLog) -> Self {
        Self { snapshots, metrics, log, limits: Arc::default() }
    }

    /// A connection has its backend.
    pub(super) fn started(&self, info: &ConnectionInfo) {
        if self.log_level() == config::ConnectionLog::Both {
            self.log.started(info);
        }
    }

    /// Counts and logs an end; the backend is the caller's.
    pub(super) fn record(&self, end: &ConnectionEnd, told: Transferred) {
        self.metrics.listener(&end.info.listener).ended_after(end, told);
        if self.log_level() != config::ConnectionLog::None {
            self.log.ended(end);
        }
    }

    fn log_level(&self) -> config::ConnectionLog {
        self.snapshots.borrow().config.log.connections
    }

    fn backend(&self, pool: &PoolName, backend: &str) -> Option<Arc<Backend>> {
        let snapshot = self.snapshots.borrow();
        let pool = snapshot.pools.get(pool)?;
        pool.find(backend).cloned()
    }
}

impl EndSink for Ends {
    fn ended(&self, end: ConnectionEnd, told: Transferred) {
        if let Some(backend) = self.backend(&end.info.pool, &end.info.backend) {
            let all = Transferred { to_backend: end.bytes_to_backend, to_client: end.bytes_to_client };
            let rest = all.since(told);
            backend.connection_ended(rest.to_backend, rest.to_client);
        }
        self.record(&end, told);
    }

    fn moved(&self, listener: &ListenerName, pool: &PoolName, backend: &str, bytes: Transferred) {
        if let Some(backend) = self.backend(pool, backend) {
            backend.moved(bytes.to_backend, bytes.to_client);
        }
        self.metrics.listener(listener).progress(pool, bytes);
    }

    fn adopted(&self, info: &ConnectionInfo) -> Held {
        if let Some(backend) = self.backend(&info.pool, &info.backend) {
            backend.connection_started();
        }
        self.metrics.listener(&info.listener).adopted();
        Box::new(self.limits.adopt(&info.listener, info.client.ip()))
    }
}
