//! Tunnels without Ethernet headers: tun devices, and wireguard-go's, which have offloads.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ingress_tests::client::Curl;
use ingress_tests::distance::Line;
use ingress_tests::netns::Namespace;
use ingress_tests::process::Process;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Ending, ending};
use serde_json::json;

use super::{NAME, call, config, interface, lab, move_files, nginx, verdict};

#[test]
fn backend_at_the_end_of_a_tunnel_is_reached_in_the_kernel() -> Result<()> {
    require!("nginx", "curl");
    for tunnel in TUNNELS {
        let s1 = lab(1)?;
        let backend = &s1.lab.backends[0];
        let _line = tunnel.dig(&s1.lab.proxy.ns, &backend.ns)?;
        let web = nginx(&s1, backend)?;
        let mut config = config(&s1, tunnel.far(443)?);
        config["listeners"]["tls"]["bind"] = json!([tunnel.near_public(&s1)?]);
        let node = s1.node_with(config)?;
        let public = tunnel.near_public(&s1)?.parse()?;
        move_files(&Curl::new(&s1.lab.clients[0].ns, public, NAME, s1.ca()), &web)?;
        node.all_in_kernel()?;
    }
    Ok(())
}

#[test]
fn backend_behind_wireguard_is_reached_in_the_kernel() -> Result<()> {
    require!("nginx", "curl", "wireguard-go", "wg");
    let s1 = lab(1)?;
    let (proxy, backend) = (&s1.lab.proxy.ns, &s1.lab.backends[0]);
    // The control sockets of all namespaces lie in one directory.
    let names = ["p", "b"].map(|end| format!("wg{}{end}", std::process::id()));
    let near = WireGuard::start(proxy, &names[0], "10.7.0.1/24")?;
    let far = WireGuard::start(&backend.ns, &names[1], "10.7.0.2/24")?;
    near.meet(&far, "10.7.0.2/32", &backend.address.to_string())?;
    far.meet(&near, "10.7.0.1/32", &s1.lab.private_address(backend).to_string())?;
    let web = nginx(&s1, backend)?;
    let node = s1.node_with(config(&s1, "10.7.0.2:443".parse()?))?;
    move_files(&s1.curl(NAME), &web)?;
    node.all_in_kernel()
}

#[test]
fn client_at_the_end_of_a_tunnel_is_served_in_the_kernel() -> Result<()> {
    require!("nginx", "curl");
    let s1 = lab(1)?;
    let (client, backend) = (&s1.lab.clients[0].ns, &s1.lab.backends[0]);
    let _line = TUNNELS[0].dig(&s1.lab.proxy.ns, client)?;
    let web = nginx(&s1, backend)?;
    let near = SocketAddr::new(TUNNELS[0].near.parse()?, 443);
    let mut config = config(&s1, backend.socket(443));
    config["listeners"]["tls"] = json!({ "bind": [near.to_string()] });
    let node = s1.node_with(config)?;
    move_files(&Curl::new(client, near, NAME, s1.ca()), &web)?;
    node.all_in_kernel()
}

#[test]
fn connection_from_tunnel_to_tunnel_can_be_killed_at_both_ends() -> Result<()> {
    require!();
    let s1 = lab(1)?;
    let (client, proxy, backend) = (&s1.lab.clients[0].ns, &s1.lab.proxy.ns, &s1.lab.backends[0].ns);
    let [public, private] = TUNNELS_SIDE_BY_SIDE;
    let _lines = (public.dig(proxy, client)?, private.dig(proxy, backend)?);
    let near = SocketAddr::new(public.near.parse()?, 443);
    let mut config = config(&s1, private.far(443)?);
    config["listeners"]["tls"] = json!({ "bind": [near.to_string()] });
    config["pools"]["web"]["proxy_protocol"] = "none".into();
    let listener = backend.listen(private.far(443)?)?;
    let mut node = s1.node_with(config)?;

    call(client, near, &listener)?.finish()?;
    let mut quiet = call(client, near, &listener)?;
    let mut talking = call(client, near, &listener)?;
    node.all_in_kernel()?;
    node.kill9()?;
    talking.exchange()?;
    node.launch()?;
    assert_eq!(node.json(&["flows", "kill", "--sni", NAME])?["killed"], 2);
    for talk in [&mut quiet, &mut talking] {
        assert_eq!(ending(&mut talk.client, PATIENCE)?, Ending::Reset);
        assert_eq!(ending(&mut talk.backend, PATIENCE)?, Ending::Reset);
    }
    Ok(())
}

#[test]
fn private_port_is_out_of_reach_from_a_public_tunnel() -> Result<()> {
    require!();
    for tunnel in TUNNELS {
        let s1 = lab(1)?;
        let (client, proxy) = (&s1.lab.clients[0].ns, &s1.lab.proxy.ns);
        let _line = tunnel.dig(proxy, client)?;
        let private = SocketAddr::new(tunnel.near.parse()?, 9_876);
        let _service = proxy.listen(private)?;
        assert!(client.connect(private).is_ok(), "without rules the service is open");
        let mut config = config(&s1, s1.lab.backends[0].socket(443));
        config["interfaces"] = json!({ tunnel.name: { "side": "public" } });
        config["admission"] = json!({ "private_ports": [private.port()] });
        let node = s1.node_with(config)?;
        let device = interface(&node, tunnel.name)?;
        assert_eq!(device["admission"]["mode"], "tc", "{device}");
        let error = client.exec(|| TcpStream::connect_timeout(&private, Duration::from_millis(900)));
        assert_eq!(error.map_err(|e| e.kind()).err(), Some(ErrorKind::TimedOut));
        assert!(verdict(&node, "drop_private_port")? > 0);
    }
    Ok(())
}

/// One end of a WireGuard tunnel, as wireguard-go makes it: a tun device with offloads.
struct WireGuard {
    ns: Namespace,
    name: String,
    public_key: String,
    _process: Process,
}

impl WireGuard {
    const PORT: u16 = 51_820;

    fn start(ns: &Namespace, name: &str, address: &str) -> Result<Self> {
        let mut command = ns.command("wireguard-go");
        // It says at length that a kernel module would be better.
        command.args(["--foreground", name]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::spawn("wireguard-go", &mut command)?;
        let keys = ns.run("sh", &["-c", "key=$(wg genkey) && echo $key && echo $key | wg pubkey"])?;
        let (private, public) = keys.split_once('\n').context("two keys")?;
        let set = format!("echo {private} | wg set {name} listen-port {} private-key /dev/stdin", Self::PORT);
        wait_until(PATIENCE, "wireguard-go listens to wg", || ns.run("sh", &["-c", &set]).is_ok())?;
        ns.ip_batch(&format!("addr add {address} dev {name}\nlink set {name} mtu 1420 up\n"))?;
        Ok(Self { ns: ns.clone(), name: name.to_owned(), public_key: public.trim().to_owned(), _process: process })
    }

    fn meet(&self, other: &Self, allowed: &str, at: &str) -> Result<()> {
        let endpoint = format!("{at}:{}", Self::PORT);
        let peer = ["set", &self.name, "peer", &other.public_key, "allowed-ips", allowed, "endpoint", &endpoint];
        self.ns.run("wg", &peer).map(drop)
    }
}

/// A pair of tunnel ends.
pub(super) struct Tunnel {
    pub(super) name: &'static str,
    pub(super) near: &'static str,
    far: &'static str,
    bits: u8,
}

pub(super) const TUNNELS: [Tunnel; 2] = [
    Tunnel { name: "tun0", near: "10.9.0.1", far: "10.9.0.2", bits: 24 },
    Tunnel { name: "tun0", near: "2001:db8:9::1", far: "2001:db8:9::2", bits: 64 },
];
const TUNNELS_SIDE_BY_SIDE: [Tunnel; 2] = [
    Tunnel { name: "tun1", near: "10.8.0.1", far: "10.8.0.2", bits: 24 },
    Tunnel { name: "tun2", near: "10.9.0.1", far: "10.9.0.2", bits: 24 },
];

impl Tunnel {
    pub(super) fn dig(&self, near: &Namespace, far: &Namespace) -> Result<Line> {
        let Self { name, bits, .. } = self;
        let line = Line::tunnel((near, name), (far, name))?;
        for (ns, address) in [(near, self.near), (far, self.far)] {
            // WireGuard's MTU.
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ns.ip_batch(&format!("addr add {address}/{bits} dev {name} {nodad}\nlink set {name} mtu 1420 up\n"))?;
        }
        Ok(line)
    }

    pub(super) fn far(&self, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.far.parse()?, port))
    }

    /// Where clients on Ethernet call, in the tunnel's own IP version.
    fn near_public(&self, s1: &S1) -> Result<String> {
        if self.bits == 24 {
            return Ok(s1.public().to_string());
        }
        let (client, proxy) = (&s1.lab.clients[0].ns, &s1.lab.proxy.ns);
        client.ip_batch("addr replace 2001:db8::101/64 dev eth0 nodad\n")?;
        proxy.ip_batch("addr replace 2001:db8::1/64 dev pub0 nodad\n")?;
        Ok("[2001:db8::1]:443".into())
    }
}
