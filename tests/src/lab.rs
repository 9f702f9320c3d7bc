//! The network of deployment S1: clients, one proxy with a public and its private NICs, backends.
//!
//! ```text
//!  client 192.0.2.101 --+                +-- proxy --+               +-- backend 172.24.0.3
//!  client 192.0.2.102 --+-- [ public ] --+ pub0 priv0 +-- [ private ]-+-- backend 172.24.0.4
//!                                         .1      .1
//! ```
//! Each party is a namespace of its own, each network a bridge in a switch's namespace. Backends know no way to the
//! clients: a packet that leaves the proxy with a client's address is lost, as it is in real deployments.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};

use crate::distance::{Distance, Line};
use crate::netns::Namespace;

/// One machine of the lab.
#[derive(Clone, Debug)]
pub struct Host {
    pub ns: Namespace,
    /// IPv6 in a lab with [`LabOptions::ipv6`], where the host also has the IPv4 address that it has elsewhere.
    pub address: IpAddr,
}

impl Host {
    pub fn socket(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }
}

/// All machines, wired and up. Dropping it removes every namespace.
#[derive(Debug)]
pub struct Lab {
    pub clients: Vec<Host>,
    /// Its address is the public one.
    pub proxy: Host,
    pub backends: Vec<Host>,
    switch: Namespace,
}

/// What may differ from the plain S1 network.
#[derive(Clone, Debug)]
pub struct LabOptions {
    pub clients: u8,
    pub backends: Vec<Ipv4Addr>,
    /// Of the private networks: clouds have 1450, WireGuard 1420.
    pub private_mtu: u32,
    /// Without them every party computes checksums and segments in software, as hardware would.
    pub offloads: bool,
    /// Connection tracking on the proxy, with the usual `ct state established,related accept`.
    pub conntrack: bool,
    /// Routes from backends to clients through the proxy, which forwards: the plain IPv4 path to compare with.
    pub routed: bool,
    /// Everybody is called by an IPv6 address ([`six`]).
    pub ipv6: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            clients: 1,
            backends: S1_BACKENDS.to_vec(),
            private_mtu: 1500,
            offloads: true,
            conntrack: false,
            routed: false,
            ipv6: false,
        }
    }
}

/// The backends of S1's table, in the order of [`Lab::backends`].
pub const S1_BACKENDS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(172, 24, 0, 3),
    Ipv4Addr::new(172, 24, 0, 4),
    Ipv4Addr::new(172, 20, 0, 2),
    Ipv4Addr::new(172, 24, 0, 2),
];

/// The address that clients call.
pub const PUBLIC_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

impl Lab {
    /// One client, one proxy, the four backends of S1.
    pub fn s1() -> Result<Self> {
        Self::build(&LabOptions::default())
    }

    pub fn build(options: &LabOptions) -> Result<Self> {
        let switch = Namespace::new("switch")?;
        let called = |four: Ipv4Addr| if options.ipv6 { IpAddr::V6(six(four)) } else { IpAddr::V4(four) };
        let proxy = Host { ns: Namespace::new("proxy")?, address: called(PUBLIC_ADDRESS) };
        let cables = Cables { switch: &switch, options };

        cables.network("public", ETHERNET_MTU)?;
        cables.plug(&proxy.ns, "pub0", PUBLIC_ADDRESS, "public", ETHERNET_MTU)?;
        let mut clients = Vec::new();
        for n in 0..options.clients {
            let address = Ipv4Addr::new(192, 0, 2, 101 + n);
            let ns = Namespace::new(&format!("client{n}"))?;
            cables.plug(&ns, "eth0", address, "public", ETHERNET_MTU)?;
            clients.push(Host { ns, address: called(address) });
        }

        let mut gateways: Vec<Ipv4Addr> = options.backends.iter().copied().map(gateway_of).collect();
        gateways.sort_unstable_by(|a, b| b.cmp(a));
        gateways.dedup();
        for (n, &gateway) in gateways.iter().enumerate() {
            cables.network(&format!("private{n}"), options.private_mtu)?;
            cables.plug(&proxy.ns, &format!("priv{n}"), gateway, &format!("private{n}"), options.private_mtu)?;
        }
        let mut backends = Vec::new();
        for &address in &options.backends {
            let n = gateways.iter().position(|&g| g == gateway_of(address)).context("each backend has a network")?;
            let name = format!("private{n}");
            let ns = Namespace::new(&format!("backend{}", backends.len()))?;
            cables.plug(&ns, "eth0", address, &name, options.private_mtu)?;
            backends.push(Host { ns, address: called(address) });
        }

        let lab = Self { clients, proxy, backends, switch };
        if options.conntrack {
            lab.proxy.ns.nft(CONNTRACK_RULES).context("setting up connection tracking")?;
        }
        if options.routed {
            lab.route_plainly()?;
        }
        Ok(lab)
    }

    /// Where the proxy listens.
    pub fn public(&self, port: u16) -> SocketAddr {
        self.proxy.socket(port)
    }

    /// The proxy's own address in a backend's network: what that backend sees as its peer.
    pub fn private_address(&self, backend: &Host) -> IpAddr {
        let gateway = gateway_of(four(backend.address));
        if backend.address.is_ipv4() { gateway.into() } else { six(gateway).into() }
    }

    /// Puts a long line between a host and its network, in place of its cable.
    pub fn move_away(&self, host: &Host, distance: Distance) -> Result<Line> {
        let Host { ns, address } = host;
        let Cable { port, mtu, network } = self.unplug(host)?;
        let line = Line::between((ns, "eth0"), (&self.switch, &port), distance)?;
        self.switch.ip_batch(&format!("link set {port} mtu {mtu} master {network}\nlink set {port} up\n"))?;
        ns.ip_batch(&format!(
            "{}link set eth0 mtu {mtu} up\n",
            take_address(four(*address), "eth0", address.is_ipv6())
        ))?;
        Ok(line)
    }

    /// Puts an IPv4 router between a host and its network, whose way lets through no more than `mtu` bytes in either direction. Nobody
    /// has to know of it: it answers ARP for all.
    pub fn put_behind_router(&self, host: &Host, mtu: u32) -> Result<Namespace> {
        let ns = &host.ns;
        let address = four(host.address);
        let Cable { port, mtu: cable_mtu, network } = self.unplug(host)?;
        let router = Namespace::new("router")?;
        self.switch.ip_batch(&format!(
            "link add {port} mtu {cable_mtu} type veth peer name out mtu {cable_mtu} netns {}\n\
             link set {port} master {network}\n\
             link set {port} up\n",
            router.name()
        ))?;
        router.ip_batch(&format!(
            "link add in mtu {cable_mtu} type veth peer name eth0 mtu {cable_mtu} netns {}\n\
             addr add 198.18.0.1/32 dev lo\n\
             link set lo up\nlink set in up\nlink set out up\n",
            ns.name()
        ))?;
        router.sysctl("ipv4/ip_forward", "1")?;
        for device in ["in", "out"] {
            router.sysctl(&format!("ipv4/conf/{device}/proxy_arp"), "1")?;
            router.sysctl(&format!("ipv4/neigh/{device}/proxy_delay"), "0")?;
        }
        let [a, b, c, _] = address.octets();
        router.ip_batch(&format!(
            "route add {address}/32 dev in mtu {mtu}\nroute add {a}.{b}.{c}.0/24 dev out mtu {mtu}\n"
        ))?;
        ns.ip_batch(&format!("{}link set eth0 up\n", take_address(address, "eth0", false)))?;
        Ok(router)
    }

    /// Takes the cable of a host away, and says what it was.
    fn unplug(&self, host: &Host) -> Result<Cable> {
        let port = port_of(four(host.address));
        let cable = self.switch.run("ip", &["-oneline", "link", "show", &port])?;
        let said = |word: &str| cable.split(' ').skip_while(|found| *found != word).nth(1).map(str::to_owned);
        let (mtu, network) = said("mtu").zip(said("master")).with_context(|| format!("a cable in {cable:?}"))?;
        self.switch.ip_batch(&format!("link del {port}\n"))?;
        Ok(Cable { port, mtu, network })
    }

    fn route_plainly(&self) -> Result<()> {
        self.proxy.ns.sysctl("ipv4/ip_forward", "1")?;
        for host in &self.backends {
            host.ns.ip_batch(&format!("route add 192.0.2.0/24 via {}\n", gateway_of(four(host.address))))?;
        }
        for client in &self.clients {
            client.ns.ip_batch(&format!("route add default via {PUBLIC_ADDRESS}\n"))?;
        }
        Ok(())
    }
}

/// Of one host: the switch's end of it, and the bridge that it is part of.
struct Cable {
    port: String,
    mtu: String,
    network: String,
}

/// Lays veth pairs from hosts to bridges.
struct Cables<'a> {
    switch: &'a Namespace,
    options: &'a LabOptions,
}

impl Cables<'_> {
    fn network(&self, name: &str, mtu: u32) -> Result<()> {
        self.switch.ip_batch(&format!("link add {name} mtu {mtu} type bridge\nlink set {name} up\n"))
    }

    fn plug(&self, host: &Namespace, device: &str, address: Ipv4Addr, network: &str, mtu: u32) -> Result<()> {
        let port = port_of(address);
        self.switch.ip_batch(&format!(
            "link add {port} mtu {mtu} type veth peer name {device} mtu {mtu} netns {}\n\
             link set {port} master {network}\n\
             link set {port} up\n",
            host.name()
        ))?;
        host.ip_batch(&format!("{}link set {device} up\n", take_address(address, device, self.options.ipv6)))?;
        if !self.options.offloads {
            for (ns, device) in [(host, device), (self.switch, port.as_str())] {
                ns.run("ethtool", &["-K", device, "tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro", "off"])?;
            }
        }
        Ok(())
    }
}

/// The IPv6 address of whoever has this IPv4 address.
pub fn six(four: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = four.octets();
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

/// The other way round.
fn four(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(four) => four,
        IpAddr::V6(six) => {
            let [.., a, b, c, d] = six.octets();
            Ipv4Addr::new(a, b, c, d)
        }
    }
}

/// Lines for `ip -batch`.
fn take_address(address: Ipv4Addr, device: &str, ipv6: bool) -> String {
    let mut lines = format!("addr add {address}/24 dev {device}\n");
    if ipv6 {
        lines += &format!("addr add {}/120 dev {device} nodad\n", six(address));
    }
    lines
}

/// The switch's end of a host's cable: unique in the switch, and short enough for a device name.
fn port_of(address: Ipv4Addr) -> String {
    format!("p{:08x}", u32::from(address))
}

/// The proxy's address in the /24 of `address`.
fn gateway_of(address: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = address.octets();
    Ipv4Addr::new(a, b, c, 1)
}

const ETHERNET_MTU: u32 = 1500;

/// What Debian's wiki and most operators load on a host like this.
const CONNTRACK_RULES: &str = "\
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        iifname \"lo\" accept
        iifname \"pub0\" tcp dport { 443, 6379 } accept
        meta l4proto { icmp, ipv6-icmp } accept
    }
    chain output {
        type filter hook output priority filter; policy drop;
        ct state established,related accept
        meta l4proto ipv6-icmp accept
        oifname { \"lo\", \"priv0\", \"priv1\" } accept
    }
}
";
