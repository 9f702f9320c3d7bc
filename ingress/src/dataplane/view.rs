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
    /// Packets per verdict since the maps were created.
    pub verdicts: Vec<(String, u64)>,
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
