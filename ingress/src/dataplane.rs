//! The kernel path: the only module that knows aya. Loads and pins the programs, installs flows, reaps them.
//!
//! Userspace serves every connection without it; [`KernelStatus`] says what is missing.

mod admission;
mod batch;
mod conntrack;
mod devices;
mod dump;
mod flows;
mod keepalive;
mod labels;
mod links;
mod loader;
mod narrow;
mod offloads;
mod path;
mod pin_lock;
mod pinned_link;
mod ports;
mod predecessor;
mod program_log;
#[cfg(test)]
mod program_tests;
mod reaper;
pub(crate) mod repair;
mod reset;
mod routes;
mod rules;
mod slots;
mod standing;
mod tcx;
pub mod view;
mod xdp;

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

pub(crate) use flows::{Arming, Flows, Leg, Plan, Server, Way};
pub(crate) use path::Paths;
pub(crate) use ports::PortGuard;
pub use view::{AdmissionStatus, InterfaceStatus, KernelStatus, PortStatus};

use crate::config::{Config, KernelConfig, Side};
use crate::flow::{FlowFilter, FlowView, Transferred};
use crate::l4::outcome::{ConnectionEnd, ConnectionInfo, EndReason};
use crate::route::{ListenerName, PoolName};

/// Handle to the kernel path. Cheap to clone.
#[derive(Clone)]
pub struct Kernel {
    flows: Option<Arc<Flows>>,
    missing: Arc<Vec<String>>,
    /// Devices that nobody guards, in userspace mode.
    unguarded: Arc<Mutex<Vec<InterfaceStatus>>>,
}

/// Whatever a connection holds until it ends; dropped then.
pub type Held = Box<dyn Any + Send>;

/// Learns of connections in the kernel.
pub trait EndSink: Send + Sync {
    /// `told`: how much of its bytes went to [`EndSink::moved`].
    fn ended(&self, end: ConnectionEnd, told: Transferred);

    /// Bytes moved by connections that go on.
    fn moved(&self, listener: &ListenerName, pool: &PoolName, backend: &str, bytes: Transferred);

    /// A connection of an earlier daemon goes on under this one. What is returned is dropped at its end.
    fn adopted(&self, info: &ConnectionInfo) -> Held;
}

impl Kernel {
    /// Userspace only, and why.
    pub fn off(reasons: Vec<String>) -> Self {
        Self { flows: None, missing: Arc::new(reasons), unguarded: Arc::default() }
    }

    /// Loads or adopts, attaches, and starts the reaper. Never fails: what is missing is said by [`Kernel::status`].
    pub fn start(config: &Config, sink: Arc<dyn EndSink>) -> Self {
        let kernel = if config.kernel.enabled {
            match Flows::start(config, sink) {
                Ok(flows) => return Self { flows: Some(flows), ..Self::off(Vec::new()) },
                Err(error) => Self::off(vec![format!("{error:#}")]),
            }
        } else {
            Self::off(vec!["kernel.enabled is false".to_owned()])
        };
        kernel.admit(config);
        kernel
    }

    /// Makes admission what the configuration says: rules, and who judges on which device.
    pub fn admit(&self, config: &Config) {
        match &self.flows {
            Some(flows) => flows.admit(&config.interfaces, &config.admission),
            None => *self.unguarded.lock() = unguarded(config, &self.missing.join("; ")),
        }
    }

    pub(crate) fn flows_table(&self) -> Option<&Arc<Flows>> {
        self.flows.as_ref()
    }

    /// Tells the programs for which addresses SYNs are to be made ready for a handoff.
    pub fn listen_on(&self, addresses: &[SocketAddr]) {
        if let Some(flows) = &self.flows {
            flows.listen_on(addresses);
        }
    }

    pub fn status(&self) -> KernelStatus {
        match &self.flows {
            Some(flows) => flows.status(),
            None => {
                let interfaces = self.unguarded.lock().clone();
                let openings = interfaces.iter().filter_map(InterfaceStatus::opening);
                let missing = self.missing.iter().cloned().chain(openings).collect();
                KernelStatus { mode: "userspace".to_owned(), missing, interfaces, ..KernelStatus::default() }
            }
        }
    }

    pub fn flows(&self) -> Vec<FlowView> {
        self.flows.as_ref().map(|flows| flows.views()).unwrap_or_default()
    }

    /// RST to both ends of every connection in the kernel that matches. Returns how many.
    pub fn cut(&self, filter: &FlowFilter, reason: EndReason) -> usize {
        self.flows.as_ref().map_or(0, |flows| flows.cut(filter, reason))
    }

    /// Ends the reaper thread. Flows go on; the next daemon adopts them.
    pub fn stop(&self) {
        if let Some(flows) = &self.flows {
            flows.stop();
        }
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("on", &self.flows.is_some()).finish_non_exhaustive()
    }
}

/// Public devices, when no program stands on any.
fn unguarded(config: &Config, why: &str) -> Vec<InterfaceStatus> {
    if config.admission.is_empty() {
        return Vec::new();
    }
    let public = config.interfaces.iter().filter(|(_, interface)| interface.side == Side::Public);
    let statuses = public.map(|(name, interface)| InterfaceStatus {
        name: name.clone(),
        ifindex: 0,
        attached: "none".to_owned(),
        why: Some(why.to_owned()),
        admission: Some(AdmissionStatus::open(Some(interface), why.to_owned())),
    });
    statuses.inspect(|status| tracing::error!("{}", status.opening().unwrap_or_default())).collect()
}

/// Removes everything that is pinned or attached below `config.pin_dir`. Live flows end with it.
pub fn detach(config: &KernelConfig) -> anyhow::Result<Vec<String>> {
    Ok(loader::detach(&config.pin_dir)?)
}
