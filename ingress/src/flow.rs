//! Connections as operators and the rest of the daemon speak of them: one view, one filter, one set of commands.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::config::Networks;
use crate::l4::outcome::EndReason;

/// Payload bytes of one connection, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transferred {
    pub to_backend: u64,
    pub to_client: u64,
}

/// One connection, whether relayed or in the kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlowView {
    pub id: u64,
    /// `kernel` or `relay`.
    pub mode: String,
    /// Of a relay.
    pub reason: Option<String>,
    /// `armed`, `spliced`, `draining`, `cut` in the kernel; `relay` else.
    pub state: String,
    pub client: SocketAddr,
    pub local: SocketAddr,
    /// Our own address and port towards the backend.
    pub source: SocketAddr,
    pub backend_address: SocketAddr,
    pub listener: String,
    pub sni: Option<String>,
    pub alpn: Option<String>,
    pub route: Option<String>,
    pub pool: String,
    pub backend: String,
    pub bytes_to_backend: u64,
    pub bytes_to_client: u64,
    pub packets_to_backend: u64,
    pub packets_to_client: u64,
    /// Seconds.
    pub age: f64,
    pub idle: f64,
}

/// What health, admin and control ask of the traffic plane. Reaches relayed connections and kernel flows alike.
#[derive(Debug)]
pub enum FlowCommand {
    /// RST to both ends of every connection that matches. The answer is how many.
    Cut { filter: FlowFilter, reason: EndReason, done: Option<tokio::sync::oneshot::Sender<usize>> },
}

/// All given conditions must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FlowFilter {
    pub id: Option<u64>,
    pub client: Option<IpAddr>,
    pub sni: Option<String>,
    pub route: Option<String>,
    pub pool: Option<String>,
    pub backend: Option<String>,
    pub listener: Option<String>,
    pub mode: Option<String>,
    /// The client is in one of them. The daemon's own; no operator's filter has it.
    #[serde(skip)]
    pub client_in: Option<Networks>,
}

impl Transferred {
    /// What has come since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            to_backend: self.to_backend.saturating_sub(earlier.to_backend),
            to_client: self.to_client.saturating_sub(earlier.to_client),
        }
    }

    pub fn add(&mut self, more: Self) {
        self.to_backend += more.to_backend;
        self.to_client += more.to_client;
    }
}

impl FlowFilter {
    pub fn matches(&self, flow: &FlowView) -> bool {
        let is = |wanted: &Option<String>, has: Option<&str>| wanted.as_deref().is_none_or(|w| has == Some(w));
        self.id.is_none_or(|id| id == flow.id)
            && self.client.is_none_or(|ip| ip == flow.client.ip())
            && self.client_in.as_ref().is_none_or(|networks| networks.contains(flow.client.ip()))
            && is(&self.sni, flow.sni.as_deref())
            && is(&self.route, flow.route.as_deref())
            && is(&self.pool, Some(&flow.pool))
            && is(&self.backend, Some(&flow.backend))
            && is(&self.listener, Some(&flow.listener))
            && is(&self.mode, Some(&flow.mode))
    }

    /// Nothing given: matches every flow.
    pub fn is_empty(&self) -> bool {
        let Self { id, client, sni, route, pool, backend, listener, mode, client_in } = self;
        id.is_none()
            && client_in.is_none()
            && client.is_none()
            && [sni, route, pool, backend, listener, mode].iter().all(|f| f.is_none())
    }
}
