//! What admin, metrics and the CLI see of the kernel path. Plain data, serialisable, no aya.

use serde::{Deserialize, Serialize};

use crate::config::{InterfaceConfig, Side};

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
    /// On which other programs' sockets stood when one was wanted, within the last minute.
    #[serde(default)]
    pub held_by_others: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    pub name: String,
    pub ifindex: u32,
    /// `tcx`, `clsact` or `none`.
    pub attached: String,
    /// Why not better.
    pub why: Option<String>,
    /// `None`: nothing that comes by this device is judged, because nothing is to be.
    #[serde(default)]
    pub admission: Option<AdmissionStatus>,
}

/// Who judges what comes by one device, and what was dropped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdmissionStatus {
    /// `public`, or empty where the configuration does not say.
    pub side: String,
    /// `native` or `generic` XDP, `tc`, or `none`: it is open.
    pub mode: String,
    /// Why not better.
    pub why: Option<String>,
    /// Packets per verdict, each that can be.
    pub dropped: Vec<(String, u64)>,
}

impl AdmissionStatus {
    pub const OPEN: &'static str = "none";

    /// Nobody judges, although somebody should.
    pub fn open(interface: Option<&InterfaceConfig>, why: String) -> Self {
        let side = if interface.is_some_and(|i| i.side == Side::Public) { "public" } else { "" };
        Self { side: side.to_owned(), mode: Self::OPEN.to_owned(), why: Some(why), dropped: Vec::new() }
    }

    pub fn is_open(&self) -> bool {
        self.mode == Self::OPEN
    }
}

impl InterfaceStatus {
    /// What an operator must know if nobody judges what comes by this device.
    pub fn opening(&self) -> Option<String> {
        let admission = self.admission.as_ref().filter(|admission| admission.is_open())?;
        let why = admission.why.as_deref().or(self.why.as_deref()).unwrap_or("no program stands on it");
        let what = if admission.side == "public" { "PRIVATE PORTS ARE OPEN on it" } else { "nothing is judged on it" };
        Some(format!("admission on {}: {what}: {why}", self.name))
    }
}
