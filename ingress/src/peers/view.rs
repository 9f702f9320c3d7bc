//! The mesh as operators see it.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeersStatus {
    /// This node's name.
    pub node: String,
    pub bind: Vec<SocketAddr>,
    /// Why this node is not in the mesh.
    pub trouble: Option<String>,
    pub peers: Vec<PeerStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub name: String,
    pub address: SocketAddr,
    /// Seconds. `None`: not now.
    pub connected: Option<f64>,
    pub last_error: Option<String>,
    /// Unix seconds.
    pub last_error_at: Option<f64>,
    /// Entries on their way that the peer has not stored yet.
    pub waiting: usize,
    /// Entries that were not taken, because the clocks differ too much.
    pub refused: usize,
    /// Seconds by which its clock is ahead of this node's.
    pub clock_skew: Option<f64>,
    /// Seconds.
    pub round_trip: Option<f64>,
}

pub(super) fn unix(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
