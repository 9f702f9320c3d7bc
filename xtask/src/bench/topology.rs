//! The network of the bench: client, proxy and backend, each a namespace, with one cable between neighbours.
//!
//! ```text
//!  client 10.77.1.2  ---  10.77.1.1 proxy 10.77.2.1  ---  10.77.2.11 .. 18 backend
//!  sources 10.78.0.0/16
//! ```
//! Client and backend know each other's networks through the proxy, which forwards: that is the direct path. Every
//! peer's turn gets a network of its own, so that no TIME_WAIT and no cached route is inherited.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Context;
use ingress_tests::distance::{Distance, Line};
use ingress_tests::netns::Namespace;

/// Where every proxy listens.
pub(super) const PROXY_ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 1, 1), PORT);
pub(super) const PROXY_INTERFACES: [&str; 2] = ["clients", "backends"];
/// Ports that a proxy's connections to backends leave from: 50,000 to each backend.
pub(super) const BACKEND_PORTS: (u16, u16) = (10_000, 60_999);

const PORT: u16 = 443;
const BACKENDS: u8 = 8;
const SOURCES: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 0);

/// What lies between the clients and the proxy, and how senders meet it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) distance: Distance,
    /// Congestion control of every sender, the proxy among them.
    pub(super) congestion: &'static str,
}

pub(super) struct Topology {
    _line: Option<Line>,
    pub(super) client: Namespace,
    pub(super) proxy: Namespace,
    pub(super) backend: Namespace,
}

/// Where the backend program listens.
pub(super) fn backends() -> Vec<SocketAddrV4> {
    (0..BACKENDS).map(|n| SocketAddrV4::new(Ipv4Addr::new(10, 77, 2, 11 + n), PORT)).collect()
}

/// Whether an address is one that clients connect from.
pub(super) fn is_client(address: Ipv4Addr) -> bool {
    address.octets()[..2] == SOURCES.octets()[..2]
}

/// The first of `size` source addresses of the `block`-th client process.
pub(super) fn source_block(block: u32, size: u32) -> Ipv4Addr {
    // The last address of the /16 is its broadcast address; a run is far from using so many.
    Ipv4Addr::from(u32::from(SOURCES) + block * size % 0xff00)
}

impl Topology {
    /// With cables only, unless there is a way to go.
    pub(super) fn build(way: Option<Way>) -> anyhow::Result<Self> {
        let mut topology = Self {
            _line: None,
            client: Namespace::new("bench-client")?,
            proxy: Namespace::new("bench-proxy")?,
            backend: Namespace::new("bench-backend")?,
        };
        for namespace in [&topology.client, &topology.proxy, &topology.backend] {
            // Only IPv4 is measured; duplicate address detection would only make noise.
            namespace.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
            namespace.sysctl("ipv4/conf/default/rp_filter", "0")?;
            namespace.sysctl("ipv4/conf/all/rp_filter", "0")?;
            namespace.sysctl("core/somaxconn", "65535")?;
            namespace.sysctl("ipv4/tcp_max_syn_backlog", "65535")?;
            namespace.sysctl("ipv4/tcp_max_tw_buckets", "1000000")?;
            if way.is_some() {
                // A connection must not begin with what an earlier one has learned.
                namespace.sysctl("ipv4/tcp_no_metrics_save", "1")?;
            }
        }
        topology.proxy.sysctl("ipv4/ip_forward", "1")?;
        // What the manuals of HAProxy and nginx ask for on a busy proxy.
        let (low, high) = BACKEND_PORTS;
        topology.proxy.sysctl("ipv4/ip_local_port_range", &format!("{low} {high}"))?;
        topology.proxy.sysctl("ipv4/tcp_tw_reuse", "1")?;
        // A syslog socket drops what does not fit its queue; systemd raises it likewise.
        topology.proxy.sysctl("unix/max_dgram_qlen", "4096")?;
        topology.lay_cables(way).context("laying the cables")?;
        Ok(topology)
    }

    fn lay_cables(&mut self, way: Option<Way>) -> anyhow::Result<()> {
        let [to_clients, to_backends] = PROXY_INTERFACES;
        match way {
            None => self
                .proxy
                .ip_batch(&format!("link add {to_clients} type veth peer name eth0 netns {}\n", self.client.name()))?,
            Some(Way { distance, .. }) => {
                self._line = Some(Line::between((&self.proxy, to_clients), (&self.client, "eth0"), distance)?);
            }
        }
        self.proxy.ip_batch(&format!(
            "link add {to_backends} type veth peer name eth0 netns {}\n\
             addr add {}/24 dev {to_clients}\n\
             addr add 10.77.2.1/24 dev {to_backends}\n\
             link set {to_clients} up\n\
             link set {to_backends} up\n",
            self.backend.name(),
            PROXY_ADDRESS.ip(),
        ))?;
        // The whole source network is local to the client without an address entry for each.
        self.client.ip_batch(&format!(
            "addr add 10.77.1.2/24 dev eth0\n\
             link set eth0 up\n\
             route add default via {}\n\
             route add local {SOURCES}/16 dev lo\n",
            PROXY_ADDRESS.ip(),
        ))?;
        let addresses: String =
            backends().iter().map(|backend| format!("addr add {}/24 dev eth0\n", backend.ip())).collect();
        // By route: the sysctl of a namespace takes only what the host allows to everybody.
        let congestion = way.map(|way| format!(" congctl {}", way.congestion)).unwrap_or_default();
        self.backend.ip_batch(&format!(
            "{addresses}\
             link set eth0 up\n\
             route change 10.77.2.0/24 dev eth0{congestion}\n\
             route add default via 10.77.2.1{congestion}\n"
        ))?;
        self.proxy.ip_batch(&format!("route add {SOURCES}/16 via 10.77.1.2{congestion}\n"))
    }
}
