//! Whatever links lie between: one NIC for both sides, VLANs, bridges and bonds, containers.

mod devices;
mod tunnels;

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ingress_tests::backend::Backend;
use ingress_tests::client::Curl;
use ingress_tests::counters::tcp_counter;
use ingress_tests::forge::{ACK, FrameSocket, Segment};
use ingress_tests::lab::{Host, LabOptions, S1_BACKENDS};
use ingress_tests::netns::Namespace;
use ingress_tests::node::Node;
use ingress_tests::payload::write_file;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::skip::{missing_device, skip_on_this_kernel};
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, amount_here, wait_until};
use ingress_tests::wire::client_hello;
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
fn frames_of_another_vlan_or_for_a_neighbour_do_not_touch_a_flow() -> Result<()> {
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
    let before = unproven()?;

    let (proxy, sender) = (s1.lab.proxy.ns.mac("pub0")?, s1.lab.clients[1].ns.mac("eth0")?);
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
    // As it is, the forgery is forwarded and proves nothing. Tagged, it is another network's; to a host that no switch has seen, each
    // switch sends it by all ports.
    let ipv4 = [0x08, 0x00];
    let plain = [&proxy[..], &sender, &ipv4, &packet].concat();
    let tagged = [&proxy[..], &sender, &[0x81, 0x00, 0x00, 0x05], &ipv4, &packet].concat();
    let to_neighbour = [&[2, 0, 0, 0xff, 0xff, 0xff][..], &sender, &ipv4, &packet].concat();
    for frame in [&plain, &tagged, &to_neighbour, &plain] {
        attacker.send(frame)?;
    }
    wait_until(PATIENCE, "the last one is forwarded", || unproven().is_ok_and(|n| n >= before + 2))?;
    assert_eq!(unproven()?, before + 2);
    talk.finish()?;
    node.all_in_kernel()
}

/// Where `rx-gro-list` is on, GRO gathers segments in a list, each with its own headers: since Linux 6.10 those of TCP too, unless a
/// socket of the host waits for them.
#[test]
fn segments_that_a_device_gathers_in_a_list_are_translated_each() -> Result<()> {
    lists_are_translated("10.5.0.1:443".parse()?, "10.6.0.2:443".parse()?)
}

#[test]
fn segments_that_a_device_gathers_in_a_list_are_translated_each_over_ipv6() -> Result<()> {
    lists_are_translated("[fd00:5::1]:443".parse()?, "[fd00:6::2]:443".parse()?)
}

fn lists_are_translated(listener: SocketAddr, to: SocketAddr) -> Result<()> {
    require!("nginx", "curl", "ethtool");
    let s1 = S1::without_backends(&LabOptions { backends: vec![S1_BACKENDS[0]], ipv6: true, ..LabOptions::default() })?;
    let (client, proxy, backend) = (&s1.lab.clients[0].ns, &s1.lab.proxy.ns, &s1.lab.backends[0]);
    cable(client, (proxy, "to_client"), 5)?;
    cable(&backend.ns, (proxy, "to_backend"), 6)?;
    let web = nginx(&s1, backend)?;
    let mut config = config(&s1, to);
    config["listeners"]["tls"] = json!({ "bind": [listener.to_string()] });
    let node = s1.node_with(config)?;
    move_files(&Curl::new(client, listener, NAME, s1.ca()), &web)?;
    // With the other side's numbers, all but the first segment of each list would have to be sent again, by themselves.
    for (who, ns) in [("client", client), ("backend", &backend.ns)] {
        let again = tcp_counter(ns, "Tcp", "RetransSegs")?;
        assert!(again < 100, "{again} segments of the {who} were sent again");
    }
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
fn port_that_the_host_publishes_for_a_container_works_beside_the_listener_and_behind_it() -> Result<()> {
    require!("nginx", "curl", "nft");
    let s1 = lab(1)?;
    let host = &s1.lab.proxy.ns;
    let container = Container::start(host)?;
    host.sysctl("ipv4/ip_forward", "1")?;
    let (address, public) = (container.host.address, s1.public().ip());
    let published = SocketAddr::new(public, 8443);
    // As Docker does it: for who comes from outside, and for the host itself.
    host.nft(&format!(
        "table ip docker {{
            chain in {{ type nat hook prerouting priority dstnat; ip daddr {public} tcp dport 8444 dnat to {address}; }}
            chain own {{ type nat hook output priority -100; ip daddr {public} tcp dport 8443 dnat to {address}:443; }}
        }}"
    ))?;
    let web = nginx(&s1, &container.host)?;
    let node = s1.node_with(config(&s1, published))?;
    // Past the daemon, by the host's own forwarding.
    let other = container.host.ns.listen(SocketAddr::new(address, 8444))?;
    let client = s1.lab.clients[0].ns.connect(SocketAddr::new(public, 8444))?;
    Talk::accept(client, &other, &[])?.finish()?;
    assert_eq!(node.status()?["connections"]["handed_off_total"], 0);
    move_files(&s1.curl(NAME), &web)?;
    let reasons = &node.status()?["connections"]["relay_reasons"];
    assert_eq!(reasons.as_object().map(|r| r.keys().collect::<Vec<_>>()), Some(vec![&"local".to_owned()]), "{reasons}");
    Ok(())
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

/// What the status says of a device. An error if nothing.
fn interface(node: &Node, name: &str) -> Result<Value> {
    let status = node.status()?;
    let interfaces = status["kernel"]["interfaces"].as_array().context("interfaces")?;
    interfaces.iter().find(|i| i["name"] == name).cloned().with_context(|| format!("no {name} in {interfaces:?}"))
}

/// A VLAN on top of a device at either end.
/// Joins a host and the proxy without a switch between, which would hand on each segment by itself. The host sends them one by one, the
/// proxy's GRO gathers them, and each has to be whole again where it leaves.
fn cable(host: &Namespace, (proxy, device): (&Namespace, &str), network: u8) -> Result<()> {
    host.ip_batch(&format!("link add direct0 type veth peer name {device} netns {}\n", proxy.name()))?;
    for (ns, device, number) in [(proxy, device, 1), (host, "direct0", 2)] {
        ns.ip_batch(&format!(
            "addr add 10.{network}.0.{number}/24 dev {device}\n\
             addr add fd00:{network}::{number}/64 dev {device} nodad\n\
             link set {device} up\n"
        ))?;
    }
    let unsegmented = ["tso", "off", "gso", "off"];
    host.run("ethtool", &[&["-K", "direct0"], &unsegmented[..]].concat())?;
    proxy.run("ethtool", &[&["-K", device, "gro", "on", "rx-gro-list", "on"], &unsegmented[..]].concat()).map(drop)
}

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
    let sent = web.publish("down", amount_here(24 << 20))?;
    assert_eq!(curl.download("/files/down")?.finish(Duration::from_secs(60)).context("download")?, sent);
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("up");
    let sent = write_file(&file, amount_here(12 << 20), 5)?;
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
