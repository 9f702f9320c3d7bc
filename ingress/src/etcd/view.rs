//! The shared store as operators see it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EtcdStatus {
    /// This node's name.
    pub node: String,
    pub endpoints: Vec<String>,
    /// The one that is asked.
    pub endpoint: Option<String>,
    pub prefix: String,
    /// Seconds for which changes are heard. `None`: not now.
    pub connected: Option<f64>,
    /// What does not work.
    pub troubles: Vec<String>,
    /// Unix seconds.
    pub troubled_since: Option<f64>,
    /// Of the last answer.
    pub revision: i64,
    /// Entries that are on this node's disk and not there yet.
    pub waiting: usize,
    /// Times that all was read anew, because changes were compacted or the store went back.
    pub resyncs: u64,
    /// Registrations that were taken without etcd, and given up because another had the host there.
    pub claims_lost: u64,
    /// Nodes that are connected to it.
    pub nodes: Vec<String>,
}

pub(super) fn unix(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
