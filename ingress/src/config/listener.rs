//! Where clients connect.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::defaults;
use crate::route::PoolName;

/// Several addresses with one behaviour. `:443` in the file is `[::]:443` and `0.0.0.0:443` here, each for its own family
/// (`IPV6_V6ONLY`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    pub bind: Vec<SocketAddr>,
    /// `SO_BINDTODEVICE`: accept only what arrives on this device.
    pub device: Option<String>,
    pub protocol: ListenerProtocol,
    /// Networks whose connections start with a PROXY protocol header. Empty: none do.
    pub accept_proxy_from: Vec<IpNet>,
    /// From accept to a whole ClientHello (or PROXY header).
    pub hello_timeout: Duration,
    /// No byte in either direction for this long ends a connection.
    pub idle_timeout: Duration,
    pub max_connections: u32,
    /// Counted per client address (after an accepted PROXY header: per its source).
    pub max_connections_per_source: u32,
}

impl ListenerConfig {
    /// A port that a provider opens; all else as where the file says nothing.
    pub fn tcp(bind: Vec<SocketAddr>, pool: PoolName) -> Self {
        Self {
            bind,
            device: None,
            protocol: ListenerProtocol::Tcp { pool },
            accept_proxy_from: Vec::new(),
            hello_timeout: defaults::HELLO_TIMEOUT,
            idle_timeout: defaults::IDLE_TIMEOUT,
            max_connections: defaults::LISTENER_MAX_CONNECTIONS,
            max_connections_per_source: defaults::MAX_CONNECTIONS_PER_SOURCE,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// Routed by the ClientHello's SNI.
    Tls { default: DefaultRoute },
    /// Every connection goes to one pool; nothing is read before the handoff.
    Tcp { pool: PoolName },
}

/// Where a TLS connection goes when no route claims its SNI, or it has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefaultRoute {
    /// TLS alert `unrecognized_name` (RFC 6066 section 3), then close.
    Reject,
    Pool(PoolName),
}
