//! What admin, metrics and the CLI see of the kernel path. Plain data, serialisable, no aya.

use serde::{Deserialize, Serialize};

/// The kernel path at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct KernelStatus {
    /// `kernel` or `userspace`.
    pub mode: String,
    /// Why `mode` is not `kernel`, and what would change that. Empty when it is.
    pub missing: Vec<String>,
    pub interfaces: Vec<InterfaceStatus>,
    pub pin_dir: String,
    /// Connections in the kernel now, and how many fit.
    pub connections: u64,
    pub max_connections: u64,
    /// Adopted from an earlier daemon at start.
    pub adopted: u64,
    /// Source ports towards backends, inclusive; `None` in userspace mode.
    #[serde(default)]
    pub ports: Option<PortStatus>,
    /// Packets per verdict since the maps were created.
    pub verdicts: Vec<(String, u64)>,
}

/// Source ports of connections that are handed off. Each (own address, backend) pair has them all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortStatus {
    pub range: (u16, u16),
    /// Towards the backend where most are taken, those that rest in its TIME_WAIT included.
    pub most_taken: u32,
    /// New connections a second to one backend that closes first: each port rests there for a minute.
    pub per_second_if_backend_closes: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InterfaceStatus {
    pub name: String,
    pub ifindex: u32,
    /// `tcx`, `clsact` or `none`.
    pub attached: String,
    /// Why not better.
    pub why: Option<String>,
}
