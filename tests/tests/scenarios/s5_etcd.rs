//! Nodes that share a real etcd: what is registered at one is routed on all, whatever becomes of the store.

use std::time::Duration;

use anyhow::Result;
use ingress_tests::etcd::EtcdLab;
use ingress_tests::mesh::{BACKEND, NAMES, TOKEN};
use ingress_tests::registration::Answer;
use ingress_tests::require;
use ingress_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

fn simple(host: &str) -> Value {
    json!({ "host": host, "backend": BACKEND, "proxy_protocol": "v2" })
}

fn store(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.body["store"]["state"].as_str().unwrap_or("nothing"))
}

fn hosts(listed: &[(String, String)]) -> Vec<&str> {
    listed.iter().map(|(host, _)| host.as_str()).collect()
}

/// Waits until all nodes list these hosts, and no others.
fn wait_until_all_list(lab: &EtcdLab, wanted: &[&str]) -> Result<()> {
    let lists = || -> Vec<_> { (0..lab.net.nodes.len()).map(|n| lab.net.listed(n).unwrap_or_default()).collect() };
    let all = wait_until(PATIENCE * 2, "all nodes list the same", || lists().iter().all(|list| hosts(list) == wanted));
    all.map_err(|error| error.context(format!("wanted {wanted:?}, found {:?}", lists())))
}

#[test]
fn a_host_that_is_registered_at_one_node_is_routed_on_all_that_share_an_etcd() -> Result<()> {
    require!("curl", "nginx", "etcd", "etcdctl");
    let mut lab = EtcdLab::start(1, 3)?;
    lab.net.serve(&["app.example.com"])?;
    let (a, b, c) = (lab.net.caller(0), lab.net.caller(1), lab.net.caller(2));
    let answer = a.post("/register", &simple("app.example.com"))?;
    assert_eq!(store(&answer), (200, "stored"), "{answer:?}");
    assert!(answer.body["store"]["revision"].as_i64() > Some(0), "{answer:?}");
    wait_until_all_list(&lab, &["app.example.com"])?;
    for node in 0..3 {
        assert_eq!(lab.net.curl(node, "app.example.com").get_json("/whoami")?["backend"], "web", "node {node}");
    }
    let taken = lab.second_caller(2).post("/register", &simple("app.example.com"))?;
    assert_eq!((taken.status, &taken.body["code"]), (409, &json!("host_taken")), "{taken:?}");
    // Two owners at two nodes at one moment: etcd decides, and one of them reads so.
    for n in 0..30 {
        let host = simple(&format!("h{n}.example.com"));
        let (one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(|| b.post("/register", &host));
            let two = lab.second_caller(2).post("/register", &host);
            (one.join().expect("no panic"), two)
        });
        let mut statuses = [one?.status, two?.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409], "h{n}");
    }
    for n in 0..30 {
        let host = json!({ "host": format!("h{n}.example.com") });
        let gone = [a.post("/deregister", &host)?.status, lab.second_caller(0).post("/deregister", &host)?.status];
        assert!(gone.contains(&200), "{gone:?}");
    }
    let gone = c.post("/deregister", &json!({ "host": "app.example.com" }))?;
    assert_eq!(store(&gone), (200, "stored"), "{gone:?}");
    wait_until_all_list(&lab, &[])?;
    // No token is there, and removals fade.
    let kept = lab.etcdctl(&["get", "--prefix", "/ingress/"])?;
    assert!(kept.contains("app.example.com") && !kept.contains(TOKEN), "{kept}");
    let leased = lab.etcdctl(&["get", "/ingress/v1/registrations/self/app.example.com", "--write-out=json"])?;
    assert!(leased.contains("\"lease\":"), "{leased}");
    let shown = || lab.net.nodes[0].verb(&["status"]).unwrap_or_default();
    assert!(shown().contains("this node is a, at http://10.0.0.110:2379"), "{}", shown());
    wait_until(PATIENCE, "each node sees the others", || shown().contains("nodes: a b c"))?;
    assert_eq!(lab.net.nodes[0].metric("ingress_etcd_connected", &[])?, 1.0);
    Ok(())
}

#[test]
fn nodes_go_on_without_their_etcd_and_agree_when_it_is_back() -> Result<()> {
    require!("curl", "nginx", "etcd", "etcdctl");
    let mut lab = EtcdLab::start(1, 3)?;
    lab.net.serve(&["before.example.com", "only-a.example.com"])?;
    let (a, b) = (lab.net.caller(0), lab.net.caller(1));
    let leased = json!({ "host": "leased.example.com", "backend": BACKEND, "ttl": 4 });
    for wish in [simple("before.example.com"), simple("removed.example.com"), leased] {
        assert_eq!(store(&a.post("/register", &wish)?), (200, "stored"));
    }
    wait_until_all_list(&lab, &["before.example.com", "leased.example.com", "removed.example.com"])?;
    lab.members[0].kill9()?;
    lab.wait_until_away()?;
    let shown = || lab.net.nodes[0].verb(&["status"]).unwrap_or_default();
    let expected = "is etcd up, and does it listen there?";
    wait_until(PATIENCE, "what is wrong is shown", || shown().contains("AWAY") && shown().contains(expected))?;
    // Taken, served here, and said to be here only.
    let answer = a.post("/register", &simple("only-a.example.com"))?;
    assert_eq!(store(&answer), (200, "pending"), "{answer:?}");
    for name in ["before.example.com", "only-a.example.com"] {
        assert_eq!(lab.net.curl(0, name).get_json("/whoami")?["backend"], "web", "{name}");
    }
    assert_eq!(store(&b.post("/deregister", &json!({ "host": "removed.example.com" }))?), (200, "pending"));
    // Two owners of one host, who cannot know of one another.
    let contested = simple("contested.example.com");
    assert_eq!(store(&a.post("/register", &contested)?), (200, "pending"));
    assert_eq!(store(&lab.second_caller(1).post("/register", &contested)?), (200, "pending"));
    // A node that starts without etcd serves what its journal has.
    lab.net.nodes[1].kill9()?;
    lab.net.nodes[1].launch()?;
    assert_eq!(lab.net.curl(1, "before.example.com").get_json("/whoami")?["backend"], "web");
    // Its backend renews the lease at the node that was told; nobody else ends it meanwhile.
    for _ in 0..2 {
        assert_eq!(a.post("/heartbeat", &json!({ "host": "leased.example.com" }))?.status, 200);
    }
    lab.members[0].spawn()?;
    lab.wait_until_connected()?;
    let mut all = vec!["before.example.com", "contested.example.com", "only-a.example.com"];
    let lease_is_there = lab.net.listed(2)?.iter().any(|(host, _)| host == "leased.example.com");
    // Without further heartbeats it ends, on all nodes.
    wait_until_all_list(&lab, &all)?;
    assert!(lease_is_there, "the lease was ended by a node that was not told");
    let lost: f64 = (0..3).map(|n| lab.net.nodes[n].metric("ingress_etcd_claims_lost_total", &[]).unwrap_or(0.0)).sum();
    assert_eq!(lost, 1.0, "one of the two owners gave way");
    let owners: Vec<_> = (0..3)
        .map(|n| lab.net.caller(n).get("/routes").map(|answer| answer.body["routes"][1]["owner"].clone()))
        .collect::<Result<_>>()?;
    assert!(owners.iter().all(|owner| *owner == owners[0] && owner.is_string()), "{owners:?}");

    // The store loses all that it had: its nodes fill it again.
    lab.members[0].kill9()?;
    lab.members[0].wipe()?;
    lab.members[0].spawn()?;
    wait_until(PATIENCE * 2, "etcd has all again", || {
        let kept = lab.etcdctl(&["get", "--prefix", "--keys-only", "/ingress/v1/registrations/"]).unwrap_or_default();
        all.iter().all(|host| kept.contains(host))
    })?;
    lab.wait_until_connected()?;
    assert_eq!(store(&b.post("/register", &simple("again.example.com"))?), (200, "stored"));
    all.insert(0, "again.example.com");
    wait_until_all_list(&lab, &all)
}

#[test]
fn a_node_that_missed_changes_which_are_compacted_reads_all_anew() -> Result<()> {
    require!("curl", "nft", "etcd", "etcdctl");
    let lab = EtcdLab::start(1, 2)?;
    let a = lab.net.caller(0);
    for n in 0..20 {
        a.post("/register", &simple(&format!("h{n:02}.example.com")))?;
    }
    lab.net.wait_until_same()?;
    lab.cut_off(1)?;
    wait_until(PATIENCE * 2, "the node notices", || !lab.is_connected(1))?;
    for n in 0..15 {
        let gone = a.post("/deregister", &json!({ "host": format!("h{n:02}.example.com") }))?;
        assert_eq!(store(&gone), (200, "stored"));
    }
    assert_eq!(store(&a.post("/register", &simple("new.example.com"))?), (200, "stored"));
    let revision = lab.status(0)["revision"].as_i64().unwrap_or_default();
    lab.etcdctl(&["compact", &revision.to_string()])?;
    lab.etcdctl(&["defrag"])?;
    let before = lab.net.listed(1)?;
    assert_eq!(before.len(), 20, "the node that is cut off keeps what it had");
    lab.heal(1)?;
    let left: Vec<_> = (15..20).map(|n| format!("h{n}.example.com")).chain(["new.example.com".to_owned()]).collect();
    wait_until_all_list(&lab, &left.iter().map(String::as_str).collect::<Vec<_>>())?;
    assert_eq!(lab.net.nodes[1].metric("ingress_etcd_resyncs_total", &[])?, 1.0);
    Ok(())
}

#[test]
fn three_members_lose_one_and_nobody_notices_and_two_and_registrations_wait() -> Result<()> {
    require!("curl", "etcd", "etcdctl");
    let mut lab = EtcdLab::start(3, 2)?;
    let (a, b) = (lab.net.caller(0), lab.net.caller(1));
    assert_eq!(store(&a.post("/register", &simple("all.example.com"))?), (200, "stored"));
    // The first endpoint is the one that nodes ask.
    lab.members[0].kill9()?;
    wait_until(PATIENCE * 2, "the others go on", || {
        b.post("/register", &simple("two.example.com")).is_ok_and(|answer| store(&answer) == (200, "stored"))
    })?;
    lab.members[1].kill9()?;
    wait_until(PATIENCE * 2, "one alone decides nothing", || {
        a.post("/register", &simple("one.example.com")).is_ok_and(|answer| store(&answer) == (200, "pending"))
    })?;
    lab.members[0].spawn()?;
    lab.members[1].spawn()?;
    lab.wait_until_connected()?;
    wait_until_all_list(&lab, &["all.example.com", "one.example.com", "two.example.com"])
}

#[test]
fn tls_and_login_are_needed_where_etcd_wants_them_and_what_is_wrong_is_named() -> Result<()> {
    require!("curl", "etcd", "etcdctl", "openssl");
    let mut lab = EtcdLab::without_nodes(1, 3, true)?;
    for words in [
        &["user", "add", "root:root-password"][..],
        &["role", "add", "root"],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "ingress"],
        &["role", "grant-permission", "ingress", "--prefix=true", "readwrite", "/ingress/"],
        &["user", "add", "ingress:right-password"],
        &["user", "grant-role", "ingress", "ingress"],
        &["auth", "enable"],
    ] {
        lab.etcdctl(words)?;
    }
    let file = lab.net.dir.path().join("password");
    ingress_tests::secret::write(&file, "right-password")?;
    let strange = strange_authority(&lab)?;
    let good = |n: usize| {
        let mut config = lab.config(n);
        config["etcd"]["username"] = json!("ingress");
        config["etcd"]["password_file"] = json!(file);
        // Nobody is there.
        config["etcd"]["endpoints"] = json!(["https://10.0.0.250:2379", lab.endpoints()[0]]);
        config
    };
    let (mut wrong_password, mut wrong_ca) = (good(1), good(2));
    let wrong = lab.net.dir.path().join("wrong");
    ingress_tests::secret::write(&wrong, "not-this-password")?;
    wrong_password["etcd"]["password_file"] = json!(wrong);
    wrong_password["etcd"]["endpoints"] = json!(lab.endpoints());
    wrong_ca["etcd"]["tls"]["ca_file"] = json!(strange);
    wrong_ca["etcd"]["endpoints"] = json!(lab.endpoints());
    for (n, config) in [good(0), wrong_password, wrong_ca].into_iter().enumerate() {
        lab.net.launch(config, n)?;
    }
    wait_until(PATIENCE * 2, "the good one is connected", || lab.is_connected(0))
        .map_err(|error| error.context(lab.status(0).to_string()))?;
    let answer = lab.net.caller(0).post("/register", &simple("app.example.com"))?;
    assert_eq!(store(&answer), (200, "stored"), "{answer:?}");
    for (n, expected) in [
        (1, "invalid user ID or password; are `etcd.username` and its password right?"),
        (2, "its certificate is of another authority than `etcd.tls.ca_file`"),
    ] {
        let shown = || lab.net.nodes[n].verb(&["status"]).unwrap_or_default();
        wait_until(PATIENCE, "what is wrong is shown", || shown().contains(expected))
            .map_err(|error| error.context(shown()))?;
        lab.net.nodes[n].wait_for_log("what is wrong is logged", |line| {
            line["error"].as_str().is_some_and(|error| error.contains(expected))
        })?;
        let alone = lab.net.caller(n).post("/register", &simple("alone.example.com"))?;
        assert_eq!(store(&alone), (200, "pending"), "{}", NAMES[n]);
    }
    // Put right, it is noticed without a restart.
    std::fs::write(&wrong, "right-password\n")?;
    wait_until(PATIENCE * 2, "the second one is connected", || lab.is_connected(1))?;
    wait_until(PATIENCE, "both have all", || {
        (0..2).all(|n| lab.net.listed(n).is_ok_and(|list| hosts(&list) == ["alone.example.com", "app.example.com"]))
    })?;
    // etcd forgets logins when it is restarted.
    lab.members[0].kill9()?;
    wait_until(PATIENCE, "the nodes notice", || !lab.is_connected(0) && !lab.is_connected(1))?;
    lab.members[0].spawn()?;
    wait_until(PATIENCE * 2, "they are back", || lab.is_connected(0) && lab.is_connected(1))?;
    let answer = lab.net.caller(1).post("/register", &simple("again.example.com"))?;
    assert_eq!(store(&answer), (200, "stored"), "{answer:?}");
    // A role that has lost its right.
    let root = ["--user=root:root-password", "role"];
    lab.etcdctl(&[&root[..], &["revoke-permission", "ingress", "--prefix", "/ingress/"]].concat())?;
    let answer = lab.net.caller(0).post("/register", &simple("late.example.com"))?;
    assert_eq!(store(&answer), (200, "pending"), "{answer:?}");
    let expected = "permission denied; give the user's role the prefix";
    wait_until(PATIENCE, "what is wrong is shown", || {
        lab.net.nodes[0].verb(&["status"]).is_ok_and(|shown| shown.contains(expected))
    })?;
    lab.etcdctl(&[&root[..], &["grant-permission", "ingress", "--prefix=true", "readwrite", "/ingress/"]].concat())?;
    wait_until(PATIENCE * 2, "it is there after all", || lab.is_connected(0) && lab.status(0)["waiting"] == 0)?;
    for node in &lab.net.nodes {
        let log = format!("{:?}", node.log().lines());
        assert!(!log.contains("right-password") && !log.contains("not-this-password"), "a password is in a log");
    }
    Ok(())
}

/// The certificate of an authority that signed nothing here.
fn strange_authority(lab: &EtcdLab) -> Result<std::path::PathBuf> {
    let directory = lab.net.dir.path().join("strange");
    std::fs::create_dir(&directory)?;
    Ok(ingress_tests::certs::Authority::new(&directory)?.certificate())
}

#[test]
fn a_call_is_answered_soon_when_etcd_goes_silent() -> Result<()> {
    require!("curl", "nft", "etcd", "etcdctl");
    let lab = EtcdLab::start(1, 1)?;
    let mut calls = lab.net.caller(0).connect()?;
    assert_eq!(store(&calls.post("/register", &simple("before.example.com"))?), (200, "stored"));
    lab.cut_off(0)?;
    let start = std::time::Instant::now();
    for n in 0..20 {
        let answer = calls.post("/register", &simple(&format!("h{n}.example.com")))?;
        assert_eq!(store(&answer), (200, "pending"), "{answer:?}");
    }
    // One of them waited, twice the second of `timeout`; the others were told at once.
    let took = start.elapsed();
    assert!(took < ingress_tests::wait::here(Duration::from_secs(8)), "{took:?}");
    lab.heal(0)?;
    lab.wait_until_connected()?;
    let answer = calls.post("/register", &simple("h0.example.com"))?;
    assert_eq!((store(&answer), &answer.body["result"]), ((200, "stored"), &json!("unchanged")));
    Ok(())
}
