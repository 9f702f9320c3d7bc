//! The network of the scenarios about routing.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result};
use ingress_tests::lab::{Host, LabOptions, S1_BACKENDS};
use ingress_tests::netns::Namespace;
use ingress_tests::node::Node;
use ingress_tests::s1::S1;
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, here};
use ingress_tests::wire::client_hello;
use serde_json::json;
use socket2::{Domain, Socket, Type};

/// S1 with a client that lives behind a gateway: an address that no network of the proxy has. So has the backend, if need be.
pub(super) struct Stage {
    pub(super) s1: S1,
    backend: TcpListener,
    client: IpAddr,
    pub(super) ipv6: bool,
}

impl Stage {
    /// The first client is the gateway, and has the client's address. The second is another gateway, that leads nowhere.
    pub(super) fn set(ipv6: bool) -> Result<Self> {
        let options = LabOptions { clients: 2, backends: vec![S1_BACKENDS[0]], ipv6, ..LabOptions::default() };
        let s1 = S1::without_backends(&options)?;
        let client: IpAddr = if ipv6 { FAR_CLIENT6 } else { FAR_CLIENT }.parse()?;
        let any: IpAddr = if ipv6 { "::" } else { "0.0.0.0" }.parse()?;
        let Host { ns, .. } = &s1.lab.clients[0];
        ns.ip_batch(&format!("addr add {client} dev lo\n"))?;
        let host = &s1.lab.backends[0];
        host.ns.ip_batch(&format!("addr add {FAR_BACKEND} dev lo\naddr add {FAR_BACKEND6} dev lo\n"))?;
        let backend = host.ns.listen(SocketAddr::new(any, 443))?;
        Ok(Self { s1, backend, client, ipv6 })
    }

    pub(super) fn proxy(&self) -> &Namespace {
        &self.s1.lab.proxy.ns
    }

    pub(super) fn default_route_by_the_private_nic(&self) -> Result<()> {
        self.route(&format!("default via {} dev priv0", self.s1.lab.backends[0].address))
    }

    pub(super) fn default_route_by_the_wrong_gateway(&self) -> Result<()> {
        self.route(&format!("default via {} dev pub0", self.s1.lab.clients[1].address))
    }

    /// The route that leads to the client, in this table or of this metric.
    pub(super) fn way_back(&self, which: &str) -> Result<()> {
        self.route(&format!("default via {} dev pub0 {which}", self.s1.lab.clients[0].address))
    }

    pub(super) fn route(&self, route: &str) -> Result<()> {
        self.ip(&["route", "add"], route)
    }

    pub(super) fn rule(&self, rule: &str) -> Result<()> {
        self.ip(&["rule", "add"], &rule.replace("PUBLIC", &self.s1.lab.proxy.address.to_string()))
    }

    pub(super) fn ip(&self, verb: &[&str], words: &str) -> Result<()> {
        let family = if self.ipv6 { "-6" } else { "-4" };
        let words: Vec<&str> = [family].iter().chain(verb).copied().chain(words.split(' ')).collect();
        self.proxy().run("ip", &words).map(drop)
    }

    /// A second cable to the backend, by which it knows the way back. Returns the way, as `ip route` takes it.
    pub(super) fn second_way(&self) -> Result<&'static str> {
        let backend = &self.s1.lab.backends[0].ns;
        if self.ipv6 {
            cable((self.proxy(), "priv9", "2001:db8:99::1/64"), (backend, "eth9", "2001:db8:99::2/64"))?;
            return Ok("via 2001:db8:99::2 dev priv9");
        }
        cable((self.proxy(), "priv9", "10.99.0.1/30"), (backend, "eth9", "10.99.0.2/30"))?;
        Ok("via 10.99.0.2 dev priv9")
    }

    /// The first cable to the backend is cut; it answers by the second.
    pub(super) fn backend_moves_to_its_second_way(&self) -> Result<()> {
        let (family, gateway) = if self.ipv6 { ("-6", "2001:db8:99::1") } else { ("-4", "10.99.0.1") };
        let backend = &self.s1.lab.backends[0].ns;
        backend.ip_batch("link set eth0 down\n")?;
        backend.run("ip", &[family, "route", "add", "default", "via", gateway]).map(drop)
    }

    /// Further addresses behind the first client.
    pub(super) fn far_clients(&self, count: u8) -> Result<Vec<IpAddr>> {
        let address = |n| match self.client {
            IpAddr::V4(four) => IpAddr::from(four.to_bits().wrapping_add(u32::from(n)).to_be_bytes()),
            IpAddr::V6(six) => IpAddr::from(six.to_bits().wrapping_add(u128::from(n)).to_be_bytes()),
        };
        let all: Vec<IpAddr> = (1..=count).map(address).collect();
        let lines: String = all.iter().map(|address| format!("addr add {address} dev lo\n")).collect();
        self.s1.lab.clients[0].ns.ip_batch(&lines)?;
        Ok(all)
    }

    pub(super) fn node(&self, device: bool) -> Result<Node> {
        self.start(self.s1.lab.backends[0].socket(443), device.then_some("pub0"))
    }

    /// Its listener is bound to this device.
    pub(super) fn node_on(&self, device: &str) -> Result<Node> {
        self.start(self.s1.lab.backends[0].socket(443), Some(device))
    }

    pub(super) fn node_towards(&self, backend: IpAddr) -> Result<Node> {
        self.start(SocketAddr::new(backend, 443), None)
    }

    fn start(&self, backend: SocketAddr, device: Option<&str>) -> Result<Node> {
        let mut config = self.s1.config_without_checks();
        config["pools"]["web"] = json!({ "backends": [backend.to_string()] });
        let mut listener = json!({ "bind": [self.s1.public().to_string()] });
        if let Some(device) = device {
            listener["device"] = device.into();
        }
        config["listeners"]["tls"] = listener;
        self.s1.node_with(config)
    }

    /// The client calls, from far away.
    pub(super) fn call(&self) -> Result<Talk> {
        self.call_from(self.client)
    }

    pub(super) fn call_from(&self, client: IpAddr) -> Result<Talk> {
        let hello = client_hello(Some("fiscalismia.com"))?;
        let Host { ns, .. } = &self.s1.lab.clients[0];
        let mut client = connect_from(ns, client, self.s1.public())?;
        client.write_all(&hello)?;
        Talk::accept(client, &self.backend, &hello)
    }
}

fn connect_from(ns: &Namespace, source: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    ns.exec(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&to.into(), here(PATIENCE))?;
        Ok(socket.into())
    })
}

/// A veth pair: namespace, device and address of each end.
pub(super) fn cable(near: (&Namespace, &str, &str), far: (&Namespace, &str, &str)) -> Result<()> {
    let ((ns, device, _), (peer, peers, _)) = (near, far);
    ns.ip_batch(&format!("link add {device} type veth peer name {peers} netns {}\n", peer.name()))?;
    for (ns, device, address) in [near, far] {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        ns.ip_batch(&format!("addr add {address} dev {device} {nodad}\nlink set {device} up\n"))?;
    }
    Ok(())
}

/// Bytes that have arrived on a device.
pub(super) fn received(ns: &Namespace, device: &str) -> Result<u64> {
    let table = ns.exec(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
    let bytes = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {device}"))?;
    Ok(bytes.parse()?)
}

/// Documentation addresses (RFC 5737, RFC 3849) that no network of the lab has.
pub(super) const FAR_CLIENT: &str = "198.51.100.7";
pub(super) const FAR_CLIENT6: &str = "2001:db8:77::7";
pub(super) const FAR_BACKEND: &str = "10.9.9.9";
pub(super) const FAR_BACKEND6: &str = "2001:db8:66::9";
