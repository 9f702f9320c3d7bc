//! Nodes of a mesh: what is registered at one is routed on all, whatever breaks between them.

use std::time::Instant;

use anyhow::{Context as _, Result};
use ingress_tests::mesh::{BACKEND, MeshLab};
use ingress_tests::node::Node;
use ingress_tests::registration::Answer;
use ingress_tests::require;
use ingress_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

fn simple(host: &str) -> Value {
    json!({ "host": host, "backend": BACKEND, "proxy_protocol": "v2" })
}

/// What the answer says of each peer.
fn peers(answer: &Answer) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let peers = answer.body["peers"].as_array().cloned().unwrap_or_default();
    peers.iter().map(|peer| (text(&peer["name"]), text(&peer["state"]))).collect()
}

fn stored(names: &[&str]) -> Vec<(String, String)> {
    names.iter().map(|name| ((*name).to_owned(), "stored".to_owned())).collect()
}

/// Stderr of a verb that fails.
fn refusal(node: &Node, words: &[&str]) -> Result<String> {
    let output = node.output(words)?;
    anyhow::ensure!(!output.status.success(), "{words:?} succeeded");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_is_registered_at_one_node_is_routed_on_all_when_the_call_returns() -> Result<()> {
    require!("curl", "nginx");
    let mut lab = MeshLab::joined(3)?;
    lab.serve(&["app.example.com"])?;
    let (a, b, c) = (lab.caller(0), lab.caller(1), lab.caller(2));
    for (caller, others) in [(&a, ["b", "c"]), (&c, ["a", "b"])] {
        let answer = caller.post("/register", &simple("app.example.com"))?;
        assert_eq!((answer.status, peers(&answer)), (200, stored(&others)), "{answer:?}");
        for node in 0..3 {
            assert_eq!(lab.curl(node, "app.example.com").get_json("/whoami")?["backend"], "web", "node {node}");
        }
        let gone = b.post("/deregister", &json!({ "host": "app.example.com" }))?;
        assert_eq!((gone.status, peers(&gone)), (200, stored(&["a", "c"])), "{gone:?}");
        assert_eq!(lab.wait_until_same()?, []);
    }
    let (mut calls, mut times) = (a.connect()?, Vec::new());
    for n in 0..200 {
        let start = Instant::now();
        let answer = calls.post("/register", &simple(&format!("h{n}.example.com")))?;
        assert_eq!((answer.status, peers(&answer)), (200, stored(&["b", "c"])), "{answer:?}");
        times.push(start.elapsed());
    }
    times.sort_unstable();
    eprintln!("routable on three nodes after {:?} (half), {:?} (99 %)", times[100], times[198]);
    let shown = lab.nodes[0].verb(&["status"])?;
    assert!(shown.contains("this node is a") && shown.contains("10.0.0.3:9877"), "{shown}");
    assert_eq!(lab.nodes[0].metric("ingress_peer_connected", &[])?, 2.0);
    Ok(())
}

#[test]
fn both_sides_of_a_partition_take_registrations_and_agree_afterwards() -> Result<()> {
    require!("curl", "nft");
    let lab = MeshLab::joined(2)?;
    let (a, b) = (lab.caller(0), lab.caller(1));
    let leased = json!({ "host": "leased.example.com", "backend": BACKEND, "ttl": 3 });
    for wish in [simple("before.example.com"), simple("removed.example.com")] {
        assert_eq!(peers(&a.post("/register", &wish)?), stored(&["b"]));
    }
    lab.cut_off(1)?;
    wait_until(PATIENCE, "both notice", || lab.nodes.iter().all(|node| lab.links(node) == 0))?;
    let answer = a.post("/register", &simple("only-a.example.com"))?;
    assert_eq!((answer.status, peers(&answer)), (200, vec![("b".into(), "unreachable".into())]), "{answer:?}");
    assert_eq!(b.post("/register", &simple("only-b.example.com"))?.status, 200);
    assert_eq!(b.post("/deregister", &json!({ "host": "removed.example.com" }))?.status, 200);
    // The same host on both sides: the later word counts.
    let conflict = |backend: &str| json!({ "host": "both.example.com", "backend": backend });
    assert_eq!(a.post("/register", &conflict("10.0.0.98:443"))?.status, 200);
    assert_eq!(b.post("/register", &conflict("10.0.0.99:443"))?.status, 200);
    assert_eq!(b.post("/register", &leased)?.status, 200);
    lab.heal(1)?;
    lab.wait_until_connected(PATIENCE)?;
    wait_until(PATIENCE, "the lease of b ends on both", || {
        (0..2).all(|n| lab.listed(n).is_ok_and(|all| !all.iter().any(|(host, _)| host.starts_with("leased"))))
    })?;
    let same = lab.wait_until_same()?;
    let expected = [
        ("before.example.com", BACKEND),
        ("both.example.com", "10.0.0.99:443"),
        ("only-a.example.com", BACKEND),
        ("only-b.example.com", BACKEND),
    ];
    let same: Vec<_> = same.iter().map(|(host, backend)| (host.as_str(), backend.as_str())).collect();
    assert_eq!(same, expected);
    Ok(())
}

#[test]
fn a_lease_is_ended_by_the_node_that_was_told_and_by_no_other() -> Result<()> {
    require!("curl", "nft");
    let mut lab = MeshLab::joined(2)?;
    let (a, b) = (lab.caller(0), lab.caller(1));
    let wish = json!({ "host": "leased.example.com", "backend": BACKEND, "ttl": 2 });
    assert_eq!(peers(&a.post("/register", &wish)?), stored(&["b"]));
    lab.nodes[0].kill9()?;
    // What b itself was told afterwards, with the same lease, ends; what a was told stays.
    let own = json!({ "host": "own.example.com", "backend": BACKEND, "ttl": 3 });
    assert_eq!(b.post("/register", &own)?.status, 200);
    wait_until(PATIENCE, "b ends its own lease", || lab.listed(1).is_ok_and(|all| all.len() == 1))?;
    assert_eq!(lab.listed(1)?[0].0, "leased.example.com");
    // A heartbeat at b makes it b's: it ends there, and is not brought back by a.
    assert_eq!(b.post("/heartbeat", &json!({ "host": "leased.example.com" }))?.status, 200);
    wait_until(PATIENCE, "b ends what it took over", || lab.listed(1).is_ok_and(|all| all.is_empty()))?;
    lab.nodes[0].launch()?;
    lab.wait_until_connected(PATIENCE)?;
    assert_eq!(lab.wait_until_same()?, []);
    Ok(())
}

#[test]
fn nothing_that_was_acknowledged_is_lost_when_a_node_is_killed_at_any_moment() -> Result<()> {
    require!("curl");
    let mut lab = MeshLab::joined(2)?;
    let (mut registered, mut doubtful) = (Vec::new(), Vec::new());
    for round in 0..6 {
        let mut calls = lab.caller(0).connect()?;
        std::thread::scope(|scope| -> Result<()> {
            let calling = scope.spawn(move || {
                let (mut good, mut bad) = (Vec::new(), Vec::new());
                for n in 0..200 {
                    let host = format!("h{n}.r{round}.example.com");
                    match calls.post("/register", &simple(&host)) {
                        Ok(answer) if answer.status == 200 => good.push(host),
                        Ok(_) => bad.push(host),
                        Err(_) => {
                            bad.push(host);
                            break;
                        }
                    }
                }
                (good, bad)
            });
            let target = registered.len() + 3 + round * 4;
            wait_until(PATIENCE, "some calls are answered", || lab.listed(1).is_ok_and(|all| all.len() >= target))?;
            // One time the node that is called, one time the other.
            lab.nodes[round % 2].kill9()?;
            if round % 2 == 0 {
                lab.nodes[0].launch()?;
            }
            let (good, bad) = calling.join().map_err(|_| anyhow::anyhow!("the caller panicked"))?;
            registered.extend(good);
            doubtful.extend(bad);
            if round % 2 == 1 {
                lab.nodes[1].launch()?;
            }
            Ok(())
        })?;
        lab.wait_until_connected(PATIENCE)?;
    }
    let same = lab.wait_until_same()?;
    let listed: Vec<_> = same.into_iter().map(|(host, _)| host).collect();
    for host in &registered {
        assert!(listed.contains(host), "{host} was acknowledged and is lost");
    }
    let unknown: Vec<_> = listed.iter().filter(|host| !registered.contains(host) && !doubtful.contains(host)).collect();
    assert!(unknown.is_empty() && registered.len() > 60, "{unknown:?} of {}", registered.len());
    Ok(())
}

#[test]
fn nobody_joins_without_a_good_token_and_nobody_else_is_let_in() -> Result<()> {
    require!("curl");
    let lab = MeshLab::start(3)?;
    let missing = lab.nodes[0].verb(&["status"])?;
    assert!(missing.contains("run `ingress peer init`"), "{missing}");
    let token = lab.token(&["peer", "init"])?;
    lab.wait_until_listening(0)?;
    let (a, b, c) = (&lab.nodes[0], &lab.nodes[1], &lab.nodes[2]);
    assert!(refusal(a, &["peer", "init"])?.contains("there is an identity"), "init twice");
    assert!(refusal(b, &["peer", "join", "nonsense"])?.contains("not a token"));
    b.verb(&["peer", "join", &token])?;
    wait_until(PATIENCE, "a and b are connected", || lab.links(a) == 1 && lab.links(b) == 1)?;
    let used = refusal(c, &["peer", "join", &token])?;
    assert!(used.contains("used already") && used.contains("ingress peer invite"), "{used}");
    // One that nobody used in time, by the clock of the node that gave it.
    let late = lab.token(&["peer", "invite"])?;
    let invitations = a.state_dir().join("peers/invitations");
    for invitation in std::fs::read_dir(&invitations)? {
        let path = invitation?.path();
        let mut kept: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        kept["expires"] = json!(1);
        std::fs::write(&path, kept.to_string())?;
    }
    let expired = refusal(c, &["peer", "join", &late])?;
    assert!(expired.contains("has expired") && expired.contains("ingress peer invite"), "{expired}");
    // A node of another mesh, whose authority is its own.
    c.verb(&["peer", "init"])?;
    lab.wait_until_listening(2)?;
    let strange = lab.nodes[2].json(&["peer", "list"])?;
    assert_eq!(strange["peers"], json!([]), "{strange}");
    // Shut out, b stays out.
    a.verb(&["peer", "remove", "b"])?;
    let why = b.wait_for_log("why it is not let in", |line| {
        line["error"].as_str().is_some_and(|error| error.contains("removed from the mesh"))
    });
    why.context("b is told")?;
    assert_eq!(lab.links(a), 0);
    let keys = lab.nodes.iter().map(|node| node.log().lines()).collect::<Vec<_>>();
    assert!(!format!("{keys:?}").contains("PRIVATE KEY"), "a key is in a log");
    Ok(())
}

#[test]
fn a_node_with_the_certificate_of_another_authority_gets_no_link_and_both_say_why() -> Result<()> {
    require!("curl");
    let mut lab = MeshLab::joined(2)?;
    lab.nodes[1].kill9()?;
    std::fs::remove_dir_all(lab.nodes[1].state_dir().join("peers"))?;
    lab.token_of(1, &["peer", "init"])?;
    lab.nodes[1].launch()?;
    let refused = |node: &Node, message: &'static str| {
        node.wait_for_log(message, |line| {
            line["error"].as_str().is_some_and(|error| error.contains("another mesh's authority"))
        })
    };
    refused(&lab.nodes[0], "the one that dials says why")?;
    refused(&lab.nodes[1], "the one that is called says why")?;
    assert_eq!((lab.links(&lab.nodes[0]), lab.links(&lab.nodes[1])), (0, 0));
    let shown = lab.nodes[0].verb(&["status"])?;
    assert!(shown.contains("another mesh's authority"), "{shown}");
    Ok(())
}
