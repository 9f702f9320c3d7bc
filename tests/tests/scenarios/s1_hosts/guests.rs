//! Other programs on the hooks that ours stand on: they run, and stay when ours go.

use std::io::Write as _;
use std::net::TcpListener;

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::LabOptions;
use ingress_tests::netns::Namespace;
use ingress_tests::node::Node;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::skip::skip_on_this_kernel;
use ingress_tests::talk::Talk;
use ingress_tests::tcx::{Guest, Place, Then};
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::client_hello;
use serde_json::Value;

#[test]
fn program_behind_ours_gets_what_is_not_ours_and_outlives_us() -> Result<()> {
    require!("nft");
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let (proxy, client) = (&s1.lab.proxy.ns, &s1.lab.clients[0].ns);
    let mut node = start(&s1)?;
    if !uses_tcx(&node)? {
        return skip_on_this_kernel("this kernel has no TCX");
    }
    count_marked(proxy)?;
    let _guest = Guest::mark(proxy, "pub0", MARK, Then::Next, Place::Last)?;
    let listener = proxy.listen(s1.lab.public(8080))?;
    client.connect(s1.lab.public(8080))?;
    let before = marked(proxy)?;
    ensure!(before > 0, "it has not seen a packet that is not ours");
    call(&s1, &backend)?.finish()?;
    node.all_in_kernel()?;
    ensure!(missing(&node)?.is_empty(), "{:?}", missing(&node)?);
    node.terminate()?;
    node.verb(&["detach"])?;
    let before = marked(proxy)?;
    client.connect(s1.lab.public(8080))?;
    ensure!(marked(proxy)? > before, "it went with ours");
    drop(listener);
    Ok(())
}

#[test]
fn mark_of_a_program_before_ours_leads_no_spliced_packet_astray() -> Result<()> {
    require!();
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let proxy = &s1.lab.proxy.ns;
    let node = start(&s1)?;
    if !uses_tcx(&node)? {
        return skip_on_this_kernel("this kernel has no TCX");
    }
    // Where marked packets go nobody answers.
    proxy.ip_batch(&format!(
        "route add 192.0.2.0/24 via 192.0.2.250 table 100\n\
         route add 172.24.0.0/24 via 172.24.0.250 table 100\n\
         rule add fwmark {MARK} table 100\n"
    ))?;
    let guests = ["pub0", "priv0"].map(|device| Guest::mark(proxy, device, MARK, Then::Next, Place::First));
    let guests = guests.into_iter().collect::<Result<Vec<_>>>()?;
    call(&s1, &backend)?.finish()?;
    node.all_in_kernel()?;
    for guest in &guests {
        let named = |line: &String| line.contains(&format!("program {} ", guest.id)) && line.contains("ingress");
        ensure!(missing(&node)?.iter().any(named), "{}: {:?}", guest.id, missing(&node)?);
    }
    drop(guests);
    ensure!(missing(&node)?.is_empty(), "{:?}", missing(&node)?);
    Ok(())
}

#[test]
fn program_that_keeps_packets_from_ours_stalls_a_flow_and_resets_none() -> Result<()> {
    require!();
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let proxy = &s1.lab.proxy.ns;
    let node = start(&s1)?;
    if !uses_tcx(&node)? {
        return skip_on_this_kernel("this kernel has no TCX");
    }
    let mut talk = call(&s1, &backend)?;
    talk.exchange()?;
    node.wait_for_flow("it is spliced", |flow| flow["state"] == "spliced")?;
    let dropped = node.verdict("drop_local_stack")?;
    let guest = Guest::mark(proxy, "pub0", MARK, Then::Pass, Place::First)?;
    talk.client.write_all(b"past our program")?;
    // The stack, which knows nothing of the connection, would reset it.
    let silenced = || node.verdict("drop_local_stack").is_ok_and(|now| now > dropped);
    wait_until(PATIENCE, "the stack's answer is dropped", silenced)?;
    drop(guest);
    talk.arrives(b"past our program")?;
    talk.finish().map(drop)
}

#[test]
fn filters_of_an_operator_stay_as_they_are() -> Result<()> {
    require!("tc");
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let proxy = &s1.lab.proxy.ns;
    proxy.run("tc", &["qdisc", "add", "dev", "pub0", "clsact"])?;
    for hook in ["ingress", "egress"] {
        for priority in ["2", "49152"] {
            let filter = ["filter", "add", "dev", "pub0", hook, "prio", priority, "protocol", "ip", "u32"];
            let made = proxy.run("tc", &[&filter[..], &["match", "u32", "0", "0", "classid", "1:1"]].concat());
            if let Err(error) = made {
                return skip_on_this_kernel(&format!("no u32 filters: {error:#}"));
            }
        }
    }
    let shown = || -> Result<String> {
        let show = |hook| proxy.run("tc", &["filter", "show", "dev", "pub0", hook]);
        Ok(show("ingress")? + &show("egress")?)
    };
    let before = shown()?;
    ensure!(before.contains("pref 2 ") && before.contains("pref 49152 "), "{before}");
    let mut node = start(&s1)?;
    call(&s1, &backend)?.finish()?;
    node.all_in_kernel()?;
    let theirs =
        |all: String| all.lines().filter(|line| !line.contains(" bpf ")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(theirs(shown()?), theirs(before.clone()));
    node.terminate()?;
    node.verb(&["detach"])?;
    assert_eq!(shown()?, before);
    Ok(())
}

#[test]
fn filter_at_our_priority_is_left_alone_and_shown() -> Result<()> {
    require!("tc");
    let (s1, backend) = S1::with_one_backend(LabOptions::default())?;
    let proxy = &s1.lab.proxy.ns;
    let filter = ["filter", "add", "dev", "pub0", "ingress", "prio", "1", "protocol", "ip", "u32"];
    proxy.run("tc", &["qdisc", "add", "dev", "pub0", "clsact"])?;
    proxy.run("tc", &[&filter[..], &["match", "u32", "0", "0", "classid", "1:1"]].concat())?;
    let shown = || proxy.run("tc", &["filter", "show", "dev", "pub0", "ingress"]);
    let before = shown()?;
    let mut node = start(&s1)?;
    call(&s1, &backend)?.finish()?;
    if uses_tcx(&node)? {
        // It stands behind ours, whatever its number.
        node.all_in_kernel()?;
    } else {
        assert_eq!(node.status()?["connections"]["relay_reasons"]["device"], 1);
        let named = |line: &String| line.starts_with("pub0: ") && line.contains("has another filter priority 1?");
        ensure!(missing(&node)?.iter().any(named), "{:?}", missing(&node)?);
    }
    assert_eq!(shown()?, before);
    node.terminate()?;
    node.verb(&["detach"])?;
    assert_eq!(shown()?, before);
    Ok(())
}

fn start(s1: &S1) -> Result<Node> {
    s1.node_with(s1.config_of_bytes())
}

fn call(s1: &S1, backend: &TcpListener) -> Result<Talk> {
    let hello = client_hello(Some("fiscalismia.com"))?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&hello)?;
    Talk::accept(client, backend, &hello)
}

fn uses_tcx(node: &Node) -> Result<bool> {
    let status = node.status()?;
    let interfaces = status["kernel"]["interfaces"].as_array().context("interfaces")?;
    Ok(interfaces.iter().any(|interface| interface["attached"] == "tcx"))
}

fn missing(node: &Node) -> Result<Vec<String>> {
    let status = node.status()?;
    let lines = status["kernel"]["missing"].as_array().context("what is missing")?;
    Ok(lines.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

fn count_marked(ns: &Namespace) -> Result<()> {
    ns.nft(&format!(
        "table ip seen {{
            counter marked {{ }}
            chain in {{ type filter hook prerouting priority raw; meta mark {MARK} counter name marked; }}
        }}"
    ))
}

fn marked(ns: &Namespace) -> Result<u64> {
    let said = ns.run("nft", &["list", "counter", "ip", "seen", "marked"])?;
    let packets = said.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    Ok(packets.with_context(|| format!("no counter in {said}"))?.parse()?)
}

const MARK: u32 = 77;
