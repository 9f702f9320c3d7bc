//! The mesh of nodes that this one belongs to.

use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeersConfig {
    /// What other nodes call this one.
    pub node: String,
    pub bind: Vec<SocketAddr>,
    /// `SO_BINDTODEVICE`: accept only what arrives on this device.
    pub device: Option<String>,
    /// Where other nodes reach this one.
    pub address: SocketAddr,
    /// How long an answer waits for the word of peers.
    pub ack_timeout: Duration,
}
