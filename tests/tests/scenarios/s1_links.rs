//! Whatever links lie between: one NIC for both sides, VLANs, tunnels without Ethernet, bridges and bonds.

use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ingress_tests::backend::Backend;
use ingress_tests::client::Curl;
use ingress_tests::distance::Line;
use ingress_tests::forge::{ACK, FrameSocket, Segment};
use ingress_tests::lab::{Host, LabOptions, S1_BACKENDS};
use ingress_tests::netns::Namespace;
use ingress_tests::node::Node;
use ingress_tests::payload::write_file;
use ingress_tests::process::Process;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::skip::{missing_device, skip_on_this_kernel};
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Ending, client_hello, ending};
use serde_json::{Value, json};

#[test]
fn client_and_backend_behind_the_same_device_meet_in_the_kernel() -> Result<()> {
    require!("nginx", "curl");
    let s1 = lab(2)?;
    let neighbour = &s1.lab.clients[1];
    let backend = nginx(&s1, neighbour)?;
    let node = s1.node_with(config(&s1, neighbour.socket(443)))?;
    move_files(&s1.curl(NAME), &backend)?;
    node.all_in_kernel()
}

#[test]
fn vlans_carry_both_sides() -> Result<()> {
    require!("nginx", "curl");
    if let Some(reason) = missing_device("vlan")? {
        return skip_on_this_kernel(&reason);
    }
    let s1 = lab(1)?;
    let (client, proxy, backend) = (&s1.lab.clients[0].ns, &s1.lab.proxy.ns, &s1.lab.backends[0]);
    vlan((client, "eth0", "10.5.0.2/24"), (proxy, "pub0", "10.5.0.1/24"), 5)?;
    vlan((&backend.ns, "eth0", "10.6.0.2/24"), (proxy, "priv0", "10.6.0.1/24"), 6)?;
    let web = nginx(&s1, backend)?;
    let mut config = config(&s1, "10.6.0.2:443".parse()?);
    config["listeners"]["tls"] = json!({ "bind": ["10.5.0.1:443"] });
    let node = s1.node_with(config)?;
    move_files(&Curl::new(client, "10.5.0.1:443".parse()?, NAME, s1.ca()), &web)?;
    node.all_in_kernel()
}

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
        let status = node.status()?;
        let interfaces = status["kernel"]["interfaces"].as_array().context("interfaces")?;
        let device = interfaces.iter().find(|i| i["name"] == tunnel.name).context("the tunnel's device")?;
        assert_eq!(device["admission"]["mode"], "tc", "{device}");
        let error = client.exec(|| TcpStream::connect_timeout(&private, Duration::from_millis(900)));
        assert_eq!(error.map_err(|e| e.kind()).err(), Some(ErrorKind::TimedOut));
        assert!(verdict(&node, "drop_private_port")? > 0);
    }
    Ok(())
}

#[test]
fn tagged_packet_of_another_vlan_does_not_touch_a_flow() -> Result<()> {
    require!();
    let s1 = lab(2)?;
    let listener = s1.lab.backends[0].ns.listen(s1.lab.backends[0].socket(443))?;
    let mut config = config(&s1, s1.lab.backends[0].socket(443));
    config["pools"]["web"]["proxy_protocol"] = "none".into();
    let node = s1.node_with(config)?;
    let mut talk = call(&s1.lab.clients[0].ns, s1.public(), &listener)?;
    talk.exchange()?;
    node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;
    let unproven = || verdict(&node, "spliced_unproven");
    let (missed, before) = (verdict(&node, "miss")?, unproven()?);

    // Plain, the forgery is forwarded and proves nothing; tagged, it is another network's.
    let mut frame = s1.lab.proxy.ns.mac("pub0")?.to_vec();
    frame.extend(s1.lab.clients[1].ns.mac("eth0")?);
    let packet = Segment {
        from: talk.client.local_addr()?,
        to: s1.public(),
        flags: ACK,
        seq: 1,
        ack: 1,
        window: 1,
        options: &[],
        payload: b"forged",
    }
    .whole_packet()?;
    let attacker = FrameSocket::open(&s1.lab.clients[1].ns, "eth0")?;
    attacker.send(&[&frame[..], &[0x08, 0x00], &packet].concat())?;
    wait_until(PATIENCE, "the plain one is forwarded", || unproven().is_ok_and(|n| n == before + 1))?;
    attacker.send(&[&frame[..], &[0x81, 0x00, 0x00, 0x05, 0x08, 0x00], &packet].concat())?;
    wait_until(PATIENCE, "the tagged one is passed", || verdict(&node, "miss").is_ok_and(|n| n > missed))?;
    assert_eq!(unproven()?, before + 1);
    talk.finish()?;
    node.all_in_kernel()
}

#[test]
fn bond_carries_the_backends() -> Result<()> {
    require!("nginx", "curl");
    if let Some(reason) = missing_device("bond")? {
        return skip_on_this_kernel(&reason);
    }
    let s1 = lab(1)?;
    put_under(&s1, "bond0 type bond mode active-backup")?;
    served_over(&s1, "bond0")
}

#[test]
fn bridge_carries_the_backends() -> Result<()> {
    require!("nginx", "curl");
    let s1 = lab(1)?;
    put_under(&s1, "br0 type bridge")?;
    served_over(&s1, "br0")
}

#[test]
fn container_behind_a_bridge_is_a_backend_like_any_other() -> Result<()> {
    require!("nginx", "curl");
    let s1 = lab(1)?;
    let container = Container::start(&s1.lab.proxy.ns)?;
    let web = nginx(&s1, &container.host)?;
    let node = s1.node_with(config(&s1, container.host.socket(443)))?;
    move_files(&s1.curl(NAME), &web)?;
    node.all_in_kernel()
}

#[test]
fn proxy_in_a_container_splices_behind_the_nat_of_its_host() -> Result<()> {
    require!("nginx", "curl", "nft");
    let s1 = lab(1)?;
    let (host, backend) = (&s1.lab.proxy.ns, &s1.lab.backends[0]);
    let container = Container::start(host)?;
    host.sysctl("ipv4/ip_forward", "1")?;
    // A published port, and masquerading, as Docker does it.
    let address = container.host.address;
    host.nft(&format!(
        "table ip docker {{
            chain in {{ type nat hook prerouting priority dstnat; iifname pub0 tcp dport 443 dnat to {address}:443; }}
            chain out {{ type nat hook postrouting priority srcnat; ip saddr {address} oifname priv0 masquerade; }}
        }}"
    ))?;
    let web = nginx(&s1, backend)?;
    let mut config = config(&s1, backend.socket(443));
    config["listeners"]["tls"] = json!({ "bind": ["0.0.0.0:443"] });
    let node = Node::start(&container.host.ns, config)?;
    let seen = s1.curl(NAME).get_json("/whoami")?;
    assert_eq!(seen["client"], s1.lab.clients[0].address.to_string(), "{seen}");
    assert_eq!(seen["peer"], s1.lab.private_address(backend).to_string(), "{seen}");
    move_files(&s1.curl(NAME), &web)?;
    node.all_in_kernel()
}

#[test]
fn device_that_is_made_anew_is_relayed_until_the_next_start() -> Result<()> {
    require!();
    let s1 = lab(1)?;
    let (client, proxy, backend) = (&s1.lab.clients[0].ns, &s1.lab.proxy.ns, &s1.lab.backends[0].ns);
    let [tunnel, _] = TUNNELS;
    let line = tunnel.dig(proxy, backend)?;
    let listener = backend.listen(SocketAddr::new("0.0.0.0".parse()?, 443))?;
    let mut config = config(&s1, tunnel.far(443)?);
    config["pools"]["web"]["proxy_protocol"] = "none".into();
    let mut node = s1.node_with(config)?;
    let mut before = call(client, s1.public(), &listener)?;
    before.exchange()?;
    node.all_in_kernel()?;

    drop(line);
    let _line = tunnel.dig(proxy, backend)?;
    let relayed = call(client, s1.public(), &listener)?.finish()?;
    let end = node.wait_for_log("its end", |l| l["message"] == "connection ended")?;
    assert_eq!(end["mode"], "relay", "{end}");
    // The new device may have the number of the old one, which is known to carry the programs.
    assert!(["device", "unseen"].map(Value::from).contains(&end["relay_reason"]), "{end}");
    assert_eq!(end["bytes_to_client"], relayed.to_client, "{end}");

    // The flow over the old device leads nowhere now. An operator ends it, and the client learns of it.
    assert_eq!(node.json(&["flows", "kill", "--sni", NAME])?["killed"], 1);
    assert_eq!(ending(&mut before.client, PATIENCE)?, Ending::Reset);
    node.terminate()?;
    node.launch()?;
    call(client, s1.public(), &listener)?.finish()?;
    node.all_in_kernel()
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
struct Tunnel {
    name: &'static str,
    near: &'static str,
    far: &'static str,
    bits: u8,
}

const TUNNELS: [Tunnel; 2] = [
    Tunnel { name: "tun0", near: "10.9.0.1", far: "10.9.0.2", bits: 24 },
    Tunnel { name: "tun0", near: "2001:db8:9::1", far: "2001:db8:9::2", bits: 64 },
];
const TUNNELS_SIDE_BY_SIDE: [Tunnel; 2] = [
    Tunnel { name: "tun1", near: "10.8.0.1", far: "10.8.0.2", bits: 24 },
    Tunnel { name: "tun2", near: "10.9.0.1", far: "10.9.0.2", bits: 24 },
];

impl Tunnel {
    fn dig(&self, near: &Namespace, far: &Namespace) -> Result<Line> {
        let Self { name, bits, .. } = self;
        let line = Line::tunnel((near, name), (far, name))?;
        for (ns, address) in [(near, self.near), (far, self.far)] {
            // WireGuard's MTU.
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ns.ip_batch(&format!("addr add {address}/{bits} dev {name} {nodad}\nlink set {name} mtu 1420 up\n"))?;
        }
        Ok(line)
    }

    fn far(&self, port: u16) -> Result<SocketAddr> {
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

/// A network namespace behind a bridge of its host, as container engines make them.
struct Container {
    host: Host,
}

impl Container {
    fn start(on: &Namespace) -> Result<Self> {
        let ns = Namespace::new("container")?;
        on.ip_batch(&format!(
            "link add docker0 type bridge\n\
             addr add 172.17.0.1/16 dev docker0\n\
             link add veth0 type veth peer name eth0 netns {}\n\
             link set veth0 master docker0\n\
             link set veth0 up\n\
             link set docker0 up\n",
            ns.name()
        ))?;
        ns.ip_batch("addr add 172.17.0.2/16 dev eth0\nlink set eth0 up\nroute add default via 172.17.0.1\n")?;
        Ok(Self { host: Host { ns, address: "172.17.0.2".parse()? } })
    }
}

/// Makes the proxy's private NIC part of a new device, which takes over its address.
fn put_under(s1: &S1, device: &str) -> Result<()> {
    let name = device.split(' ').next().context("a device has a name")?;
    let address = s1.lab.private_address(&s1.lab.backends[0]);
    s1.lab.proxy.ns.ip_batch(&format!(
        "link add {device}\n\
         addr del {address}/24 dev priv0\n\
         link set priv0 down\n\
         link set priv0 master {name}\n\
         link set priv0 up\n\
         addr add {address}/24 dev {name}\n\
         link set {name} up\n"
    ))
}

/// Files reach the backend in the kernel, by the programs on `device` and none below it.
fn served_over(s1: &S1, device: &str) -> Result<()> {
    let backend = &s1.lab.backends[0];
    let web = nginx(s1, backend)?;
    let node = s1.node_with(config(s1, backend.socket(443)))?;
    let status = node.status()?;
    let interfaces = status["kernel"]["interfaces"].as_array().context("interfaces")?;
    let names: Vec<_> = interfaces.iter().filter_map(|i| i["name"].as_str()).collect();
    assert!(names.contains(&device) && !names.contains(&"priv0"), "{names:?}");
    move_files(&s1.curl(NAME), &web)?;
    node.all_in_kernel()
}

fn verdict(node: &Node, name: &str) -> Result<u64> {
    let status = node.status()?;
    let verdicts = status["kernel"]["verdicts"].as_array().context("status lists verdicts")?;
    let found = verdicts.iter().find(|pair| pair[0] == name).with_context(|| format!("no verdict {name}"))?;
    found[1].as_u64().context("a verdict is a number")
}

/// A VLAN on top of a device at either end.
fn vlan(a: (&Namespace, &str, &str), b: (&Namespace, &str, &str), id: u16) -> Result<()> {
    for (ns, device, address) in [a, b] {
        ns.ip_batch(&format!(
            "link add link {device} name {device}.{id} type vlan id {id}\n\
             addr add {address} dev {device}.{id}\n\
             link set {device}.{id} up\n"
        ))?;
    }
    Ok(())
}

fn lab(clients: u8) -> Result<S1> {
    S1::without_backends(&LabOptions { clients, backends: vec![S1_BACKENDS[0]], ..LabOptions::default() })
}

fn nginx(s1: &S1, host: &Host) -> Result<Backend> {
    Backend::nginx("web", host, &s1.leaf("web")?)
}

/// S1's, with this backend for the pool `web`.
fn config(s1: &S1, backend: SocketAddr) -> Value {
    let mut config = s1.config_without_checks();
    config["pools"]["web"]["backends"] = json!([backend.to_string()]);
    config
}

fn move_files(curl: &Curl, web: &Backend) -> Result<()> {
    let sent = web.publish("down", 24 << 20)?;
    assert_eq!(curl.download("/files/down")?.finish(Duration::from_secs(60)).context("download")?, sent);
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("up");
    let sent = write_file(&file, 12 << 20, 5)?;
    assert_eq!(curl.clone().http1().upload(&file, "/upload/up").context("upload")?.status, 201);
    assert_eq!(web.uploaded("up")?, sent);
    Ok(())
}

fn call(from: &Namespace, to: SocketAddr, backend: &TcpListener) -> Result<Talk> {
    let hello = client_hello(Some(NAME))?;
    let mut client = from.connect(to)?;
    client.write_all(&hello)?;
    Talk::accept(client, backend, &hello)
}

const NAME: &str = "fiscalismia.com";
