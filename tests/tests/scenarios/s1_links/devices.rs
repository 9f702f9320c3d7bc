//! Devices that come, go and are made anew while the daemon runs.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ingress_tests::guest;
use ingress_tests::node::Node;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::skip::skip_on_this_kernel;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Ending, ending};
use serde_json::{Value, json};

use super::tunnels::TUNNELS;
use super::{Container, NAME, call, config, interface, lab, move_files, nginx, verdict};

#[test]
fn flows_outlive_their_device_and_new_ones_run_over_its_successor() -> Result<()> {
    require!();
    let (s1, listener) = stage()?;
    let (client, proxy, backend) = (&s1.lab.clients[0].ns, &s1.lab.proxy.ns, &s1.lab.backends[0].ns);
    let [tunnel, _] = TUNNELS;
    let mut line = tunnel.dig(proxy, backend)?;
    let node = s1.node_with(unspoken(&s1, tunnel.far(443)?))?;
    let mut talk = call(client, s1.public(), &listener)?;
    talk.exchange()?;
    for again in 0..3 {
        drop(line);
        // Sometimes another device gets the number of the old one, and sometimes its successor.
        if again == 1 {
            proxy.ip_batch("link add other0 type bridge\n")?;
        }
        wait_until(PATIENCE, "its device is gone", || interface(&node, tunnel.name).is_err())?;
        line = tunnel.dig(proxy, backend)?;
        wait_until(PATIENCE, "the new one carries the programs", || carries(&node, tunnel.name))?;
        talk.exchange().with_context(|| format!("over device {again}"))?;
        call(client, s1.public(), &listener)?.finish()?;
    }
    let flow = node.flows()?.first().cloned().context("the first connection is in the kernel")?;
    assert_eq!(flow["state"], "spliced", "{flow}");
    talk.finish()?;
    node.all_in_kernel()
}

#[test]
fn flow_whose_device_was_made_anew_while_no_daemon_ran_goes_on_with_the_next() -> Result<()> {
    require!();
    let (s1, listener) = stage()?;
    let (client, proxy, backend) = (&s1.lab.clients[0].ns, &s1.lab.proxy.ns, &s1.lab.backends[0].ns);
    let [tunnel, _] = TUNNELS;
    let line = tunnel.dig(proxy, backend)?;
    let mut node = s1.node_with(unspoken(&s1, tunnel.far(443)?))?;
    let mut talk = call(client, s1.public(), &listener)?;
    talk.exchange()?;
    node.kill9()?;
    drop(line);
    proxy.ip_batch("link add other0 type bridge\n")?;
    let _line = tunnel.dig(proxy, backend)?;
    node.launch()?;
    talk.exchange()?;
    talk.finish()?;
    Ok(())
}

#[test]
fn flow_without_a_device_is_cut_and_the_client_learns_of_it() -> Result<()> {
    require!();
    let (s1, listener) = stage()?;
    let [tunnel, _] = TUNNELS;
    let line = tunnel.dig(&s1.lab.proxy.ns, &s1.lab.backends[0].ns)?;
    let node = s1.node_with(unspoken(&s1, tunnel.far(443)?))?;
    let mut talk = call(&s1.lab.clients[0].ns, s1.public(), &listener)?;
    talk.exchange()?;
    drop(line);
    // Half a minute after its device went.
    let ended = || node.log().lines().into_iter().find(|line| line["message"] == "connection ended");
    wait_until(Duration::from_secs(30) + PATIENCE, "its end", || ended().is_some())?;
    let end = ended().context("its end")?;
    assert_eq!((&end["mode"], &end["end_reason"]), (&"kernel".into(), &"device_gone".into()), "{end}");
    assert_eq!(ending(&mut talk.client, PATIENCE)?, Ending::Reset);
    Ok(())
}

#[test]
fn container_that_starts_after_the_daemon_is_reached_in_the_kernel() -> Result<()> {
    require!("nginx", "curl");
    let s1 = lab(1)?;
    let node = s1.node_with(config(&s1, "172.17.0.2:443".parse()?))?;
    for _ in 0..2 {
        let container = Container::start(&s1.lab.proxy.ns)?;
        let web = nginx(&s1, &container.host)?;
        wait_until(PATIENCE, "its bridge carries the programs", || carries(&node, "docker0"))?;
        wait_until(PATIENCE, "what is part of it does not", || interface(&node, "veth0").is_err())?;
        move_files(&s1.curl(NAME), &web)?;
        drop(web);
        drop(container);
        s1.lab.proxy.ns.ip_batch("link del docker0\n")?;
        wait_until(PATIENCE, "the status forgets it", || interface(&node, "docker0").is_err())?;
    }
    node.all_in_kernel()?;
    let pins = std::fs::read_dir(node.pin_dir()).context("pins")?.flatten();
    let left: Vec<_> = pins.flat_map(|version| std::fs::read_dir(version.path())).flatten().flatten().collect();
    let links = left.iter().filter(|pin| pin.file_name().to_string_lossy().starts_with("link_")).count();
    assert_eq!(links, 4, "two for each NIC: {left:?}");
    Ok(())
}

#[test]
fn device_that_merges_segments_for_good_relays_until_that_is_switched_off() -> Result<()> {
    require!("nginx", "curl", "ethtool");
    let Some([ours, theirs]) = guest::nics()? else {
        return skip_on_this_kernel("no NIC with large receive offload: the guests of `cargo xtask test vm` have them");
    };
    let s1 = lab(1)?;
    let (proxy, backend) = (&s1.lab.proxy.ns, &s1.lab.backends[0]);
    for (ns, nic, name, address) in
        [(proxy, ours, "lro0", "10.6.0.1/24"), (&backend.ns, theirs, "direct0", "10.6.0.2/24")]
    {
        ns.take(&nic, name)?;
        ns.ip_batch(&format!("addr add {address} dev {name}\nlink set {name} up\n"))?;
    }
    proxy.run("ethtool", &["-K", "lro0", "lro", "on"])?;
    let web = nginx(&s1, backend)?;
    let node = s1.node_with(config(&s1, "10.6.0.2:443".parse()?))?;
    let advice = || -> Result<bool> {
        let missing = node.status()?["kernel"]["missing"].to_string();
        Ok(missing.contains("ethtool -K lro0 lro off"))
    };
    let counted = |what: &str| -> Result<Value> { Ok(node.status()?["connections"][what].clone()) };
    assert!(advice()?, "{}", node.status()?["kernel"]);
    s1.curl(NAME).get("/whoami")?;
    assert_eq!(counted("relay_reasons")?, json!({ "device": 1 }));

    proxy.run("ethtool", &["-K", "lro0", "lro", "off"])?;
    wait_until(PATIENCE, "the daemon has heard of it", || advice().is_ok_and(|advice| !advice))?;
    move_files(&s1.curl(NAME), &web)?;
    assert_eq!(counted("handed_off_total")?, 2);
    Ok(())
}

#[test]
fn private_port_is_guarded_on_a_public_device_that_comes_later() -> Result<()> {
    require!();
    let s1 = lab(1)?;
    let (client, proxy) = (&s1.lab.clients[0].ns, &s1.lab.proxy.ns);
    let [tunnel, _] = TUNNELS;
    let private = SocketAddr::new(tunnel.near.parse()?, 9_876);
    let mut config = config(&s1, s1.lab.backends[0].socket(443));
    config["interfaces"] = json!({ tunnel.name: { "side": "public" } });
    config["admission"] = json!({ "private_ports": [private.port()] });
    let node = s1.node_with(config)?;
    assert_eq!(interface(&node, tunnel.name)?["why"], "no such device");
    let _line = tunnel.dig(proxy, client)?;
    let judges = |node: &Node| interface(node, tunnel.name).is_ok_and(|i| i["admission"]["mode"] == "tc");
    wait_until(PATIENCE, "tc judges there", || judges(&node))?;
    let _service = proxy.listen(private)?;
    let error = client.exec(|| TcpStream::connect_timeout(&private, Duration::from_millis(900)));
    assert_eq!(error.map_err(|e| e.kind()).err(), Some(ErrorKind::TimedOut));
    assert!(verdict(&node, "drop_private_port")? > 0);
    Ok(())
}

fn stage() -> Result<(S1, TcpListener)> {
    let s1 = lab(1)?;
    let listener = s1.lab.backends[0].ns.listen(SocketAddr::new("0.0.0.0".parse()?, 443))?;
    Ok((s1, listener))
}

/// A backend to which nothing is said but what the client says.
fn unspoken(s1: &S1, backend: SocketAddr) -> Value {
    let mut config = config(s1, backend);
    config["pools"]["web"]["proxy_protocol"] = "none".into();
    config
}

fn carries(node: &Node, device: &str) -> bool {
    interface(node, device).is_ok_and(|i| i["attached"] != "none")
}
