//! Whom network devices face, and who may come in by them.

use std::collections::BTreeSet;

use super::Networks;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceConfig {
    pub side: Side,
    pub xdp: XdpChoice,
}

/// Whom a network device faces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The world: private ports are dropped.
    Public,
    /// Our own machines: nothing is judged.
    Private,
}

/// Where a public device's packets are judged. tc ingress is the last rung of each but `Off`, whose only one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpChoice {
    /// Native, then generic.
    Auto,
    Native,
    Generic,
    Off,
}

/// Who may come in. Empty: everybody, everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdmissionConfig {
    /// TCP and UDP ports that are dropped on public devices.
    pub private_ports: BTreeSet<u16>,
    /// Who may not connect to our listeners.
    pub deny: Networks,
    pub new_connections_per_source: Option<ConnectionRate>,
}

/// New connections that one source may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionRate {
    /// A second, for ever; at least 1.
    pub rate: u32,
    /// At once; at least 1.
    pub burst: u32,
}

impl AdmissionConfig {
    /// As many as fit into the kernel's tables.
    pub const MOST_PORTS: usize = 1_024;
    pub const MOST_NETWORKS: usize = 65_536;

    /// Nothing is judged.
    pub fn is_empty(&self) -> bool {
        let Self { private_ports, deny, new_connections_per_source } = self;
        private_ports.is_empty() && deny.is_empty() && new_connections_per_source.is_none()
    }
}
