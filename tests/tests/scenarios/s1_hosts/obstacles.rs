//! Hosts that lack something, or take something away: the daemon serves all the same, says what is missing, and puts back what it can.

use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ingress_tests::bpf::detach_link;
use ingress_tests::lab::LabOptions;
use ingress_tests::node::{ADMIN_PORT, Node};
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::skip::skip_on_this_kernel;
use ingress_tests::talk::Talk;
use ingress_tests::tcx::Guest;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::client_hello;
use serde_json::{Value, json};

#[test]
fn host_without_a_bpf_file_system_is_served_in_userspace_and_told() -> Result<()> {
    require!("unshare", "umount");
    lacking(
        &["unshare", "--mount", "sh", "-c", "umount /sys/fs/bpf && exec \"$0\" \"$@\""],
        "mount -t bpf bpf /sys/fs/bpf",
    )
}

#[test]
fn daemon_without_its_capabilities_serves_in_userspace_and_says_which() -> Result<()> {
    require!("setpriv");
    lacking(&["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin"], "needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
}

/// A daemon that is started in this way relays, and says what would mend it.
fn lacking(starter: &[&str], missing: &str) -> Result<()> {
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let mut node = Node::prepare(&s1.lab.proxy.ns)?;
    node.start_by(starter);
    node.write_config(guarded(&s1))?;
    node.launch()?;
    call(&s1, s1.public(), &backend)?.finish()?;
    let status = node.status()?;
    assert_eq!(status["connections"]["relay_reasons"], json!({ "kernel_off": 1 }));
    assert_eq!(status["kernel"]["mode"], "userspace");
    let said = |words: &str| status["kernel"]["missing"].to_string().contains(words);
    ensure!(said(missing) && said("PRIVATE PORTS ARE OPEN"), "{}", status["kernel"]);
    Ok(())
}

#[test]
fn second_daemon_on_the_same_pins_relays_and_leaves_the_first_one_alone() -> Result<()> {
    require!();
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let mut first = s1.node_with(s1.config_of_bytes())?;
    let mut talk = call(&s1, s1.public(), &backend)?;
    talk.exchange()?;

    // As somebody who tries a copy of the configuration: another port, another socket.
    let mut second = Node::prepare(&s1.lab.proxy.ns)?;
    let mut copy = s1.config_of_bytes();
    copy["listeners"]["tls"]["bind"] = json!([s1.lab.public(8443).to_string()]);
    second.write_config(copy)?;
    let (own, other) = (second.pin_dir().display().to_string(), first.pin_dir().display().to_string());
    let written = std::fs::read_to_string(second.config_path())?;
    second.write_config_text(
        &written.replace(&own, &other).replace(&format!(":{ADMIN_PORT}"), &format!(":{}", ADMIN_PORT + 1)),
    )?;
    second.launch()?;
    call(&s1, s1.lab.public(8443), &backend)?.finish()?;
    let status = second.status()?;
    assert_eq!(status["connections"]["relay_reasons"], json!({ "kernel_off": 1 }));
    ensure!(status["kernel"]["missing"].to_string().contains("in use by a running daemon"), "{}", status["kernel"]);

    talk.exchange()?;
    call(&s1, s1.public(), &backend)?.finish()?;
    first.all_in_kernel()?;
    let refused = first.output(&["detach"])?;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && why.contains("stop that one first"), "{}: {why}", refused.status);
    talk.finish()?;
    first.terminate()?;
    first.verb(&["detach"]).map(drop)
}

#[test]
fn programs_that_somebody_takes_off_a_device_are_put_back() -> Result<()> {
    require!("tc");
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let proxy = &s1.lab.proxy.ns;
    let _service = proxy.listen(([0, 0, 0, 0], PRIVATE_PORT).into())?;
    let node = s1.node_with(guarded(&s1))?;
    call(&s1, s1.public(), &backend)?.finish()?;
    node.all_in_kernel()?;
    let device = public_device(&node)?;
    let index = &device["ifindex"];
    let taken: &[&str] =
        if device["attached"] == "tcx" { &["in", "out", "xdp_native"] } else { &["clsact", "xdp_native"] };
    let told = || node.log().lines().iter().filter(|l| l.to_string().contains("took our programs off")).count();
    for what in taken {
        let before = told();
        match *what {
            "clsact" => proxy.run("tc", &["qdisc", "del", "dev", "pub0", "clsact"]).map(drop)?,
            hook => detach_link(&node.pins()?.join(format!("link_{index}_{hook}")))?,
        }
        wait_until(PATIENCE, "the daemon says so", || told() > before).context(*what)?;
        wait_until(PATIENCE, "the private port is closed again", || is_dropped(&s1))?;
        assert_eq!(public_device(&node)?["admission"]["mode"], "native", "{what}");
        call(&s1, s1.public(), &backend)?.finish()?;
        node.all_in_kernel().context(*what)?;
    }
    ensure!(missing(&node)?.is_empty(), "{:?}", missing(&node)?);
    Ok(())
}

#[test]
fn pins_that_vanish_are_told_and_a_restart_mends_it() -> Result<()> {
    require!("curl");
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let _service = s1.lab.proxy.ns.listen(([0, 0, 0, 0], PRIVATE_PORT).into())?;
    let mut node = s1.node_with(guarded(&s1))?;
    if public_device(&node)?["attached"] != "tcx" {
        return skip_on_this_kernel("this kernel has no TCX, and filters need no pins");
    }
    call(&s1, s1.public(), &backend)?.finish()?;
    node.all_in_kernel()?;

    // As `umount /sys/fs/bpf` does it.
    std::fs::remove_dir_all(node.pins()?)?;
    wait_until(PATIENCE, "the status says so", || public_device(&node).is_ok_and(|d| d["attached"] == "none"))?;
    let said = missing(&node)?.join("\n");
    ensure!(said.contains("restart ingress") && said.contains("PRIVATE PORTS ARE OPEN on it"), "{said}");
    assert_eq!(node.metric("ingress_admission_active", &["interface=\"pub0\"", "mode=\"none\""])?, 0.0);
    call(&s1, s1.public(), &backend)?.finish()?;
    assert_eq!(node.status()?["connections"]["relay_reasons"], json!({ "device": 1 }));

    node.terminate()?;
    node.launch()?;
    ensure!(missing(&node)?.is_empty() && is_dropped(&s1), "{:?}", missing(&node)?);
    call(&s1, s1.public(), &backend)?.finish()?;
    node.all_in_kernel()
}

#[test]
fn connections_go_on_whatever_is_done_to_devices_addresses_and_rules() -> Result<()> {
    require!("nft");
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let proxy = &s1.lab.proxy.ns;
    let mut config = s1.config_of_bytes();
    // Bound to a device, it would know that by its name.
    config["listeners"]["tls"] = json!({ "bind": [s1.public().to_string()] });
    let node = s1.node_with(config)?;
    let mut talk = call(&s1, s1.public(), &backend)?;
    talk.exchange()?;
    node.all_in_kernel()?;
    let address = s1.public().ip();
    for order in [
        "link set priv0 down\nlink set priv0 up\n".to_owned(),
        "link set pub0 down\nlink set pub0 name wan0\nlink set wan0 up\n".to_owned(),
        format!("addr del {address}/24 dev wan0\naddr add {address}/24 dev wan0\n"),
    ] {
        proxy.ip_batch(&order)?;
        talk.exchange().with_context(|| format!("after {order:?}"))?;
    }
    proxy.nft("flush ruleset")?;
    call(&s1, s1.public(), &backend)?.finish()?;
    talk.finish()?;
    node.all_in_kernel()
}

#[test]
fn device_that_has_an_xdp_program_keeps_it_and_tc_judges() -> Result<()> {
    require!();
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let _service = s1.lab.proxy.ns.listen(([0, 0, 0, 0], PRIVATE_PORT).into())?;
    let guest = Guest::xdp(&s1.lab.proxy.ns, "pub0")?;
    let mut node = s1.node_with(guarded(&s1))?;
    for _ in 0..2 {
        let device = public_device(&node)?;
        assert_eq!(device["admission"]["mode"], "tc", "{device}");
        ensure!(device["admission"]["why"].as_str().is_some_and(|why| why.contains("native XDP: ")), "{device}");
        ensure!(is_dropped(&s1), "the private port is open");
        call(&s1, s1.public(), &backend)?.finish()?;
        node.all_in_kernel()?;
        let shown = s1.lab.proxy.ns.run("ip", &["-details", "link", "show", "pub0"])?;
        ensure!(shown.contains(&format!("prog/xdp id {} ", guest.id)), "{shown}");
        // The next daemon finds it so, too.
        node.kill9()?;
        ensure!(is_dropped(&s1), "the private port is open while no daemon runs");
        node.launch()?;
    }
    drop(guest);
    node.terminate()?;
    node.launch()?;
    assert_eq!(public_device(&node)?["admission"]["mode"], "native", "once the device is free");
    Ok(())
}

fn guarded(s1: &S1) -> Value {
    let mut config = s1.config_of_bytes();
    config["interfaces"] = json!({ "pub0": { "side": "public" }, "priv0": { "side": "private" } });
    config["admission"] = json!({ "private_ports": [PRIVATE_PORT] });
    config
}

fn call(s1: &S1, to: SocketAddr, backend: &TcpListener) -> Result<Talk> {
    let hello = client_hello(Some("fiscalismia.com"))?;
    let mut client = s1.lab.clients[0].ns.connect(to)?;
    client.write_all(&hello)?;
    Talk::accept(client, backend, &hello)
}

/// Nobody answers on the private port.
fn is_dropped(s1: &S1) -> bool {
    // Too short for a SYN to be sent again.
    const ANSWER: Duration = Duration::from_millis(900);
    let to = s1.lab.public(PRIVATE_PORT);
    let answer = s1.lab.clients[0].ns.exec(|| TcpStream::connect_timeout(&to, ANSWER));
    answer.is_err_and(|error| error.kind() == ErrorKind::TimedOut)
}

fn public_device(node: &Node) -> Result<Value> {
    let status = node.status()?;
    let interfaces = status["kernel"]["interfaces"].as_array().context("interfaces")?;
    interfaces.iter().find(|interface| interface["name"] == "pub0").cloned().with_context(|| format!("{status}"))
}

fn missing(node: &Node) -> Result<Vec<String>> {
    let status = node.status()?;
    let lines = status["kernel"]["missing"].as_array().context("what is missing")?;
    Ok(lines.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

const PRIVATE_PORT: u16 = 9_876;
