//! A control plane says what is routed where. It is never on the path of a connection, and whatever it answers badly, or
//! does not answer, takes nothing away.

use std::io::Write as _;
use std::net::TcpListener;

use anyhow::{Context as _, Result};
use ingress_tests::control_plane::{Answer, ControlPlane};
use ingress_tests::lab::LabOptions;
use ingress_tests::node::Node;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::secret;
use ingress_tests::talk::Talk;
use ingress_tests::wait::{PATIENCE, wait_for, wait_until};
use ingress_tests::wire::{Ending, client_hello, ending};
use serde_json::{Value, json};
use tempfile::TempDir;

const TOKEN: &str = "s3cr3t-t0k3n";

/// The network, a control plane in the last backend's place, two backends that a scenario speaks for.
struct S2 {
    plane: ControlPlane,
    backends: Vec<TcpListener>,
    lab: S1,
    dir: TempDir,
}

impl S2 {
    fn start(answer: impl FnOnce(&S1) -> Answer) -> Result<Self> {
        let lab = S1::without_backends(&LabOptions::default())?;
        let plane = ControlPlane::start(&lab.lab.backends[3], 8081, answer(&lab))?;
        let hosts = &lab.lab.backends[..2];
        let backends = hosts.iter().map(|host| host.ns.listen(host.socket(443))).collect::<std::io::Result<_>>()?;
        let dir = tempfile::Builder::new().prefix("ing-s2-").tempdir()?;
        secret::write(&dir.path().join("token"), TOKEN)?;
        Ok(Self { plane, backends, lab, dir })
    }

    fn config(&self) -> Value {
        let mut config = self.lab.config();
        config["routes"] = json!([]);
        config["pools"] = json!({});
        let token = self.dir.path().join("token").display().to_string();
        config["providers"] = json!({ "platform": { "http_poll": {
            "url": self.plane.url(), "interval": "150ms", "timeout": "300ms", "token_file": token,
        } } });
        config
    }

    fn node(&self) -> Result<Node> {
        self.lab.node_with(self.config())
    }

    /// A connection for `name`, and which backend takes it.
    fn talk(&self, name: &str, backend: usize) -> Result<Talk> {
        let hello = client_hello(Some(name))?;
        let mut client = self.lab.lab.clients[0].ns.connect(self.lab.public())?;
        client.write_all(&hello)?;
        Talk::accept(client, &self.backends[backend], &hello).with_context(|| format!("{name} to backend {backend}"))
    }
}

/// Passthrough routers: name of the host, index of the backend.
fn routers(lab: &S1, table: &[(&str, usize)]) -> Value {
    let router = |host: &str, service: &str| json!({ "rule": format!("HostSNI(`{host}`)"), "service": service, "tls": { "passthrough": true } });
    let mut config = json!({ "tcp": { "routers": {}, "services": {} }, "http": {
        "routers": { "site": { "rule": "Host(`site.example.com`) && PathPrefix(`/api`)", "service": "site" } },
        "services": { "site": { "loadBalancer": { "servers": [{ "url": "http://10.0.0.1:3000" }] } } },
    } });
    for (host, backend) in table {
        let address = lab.lab.backends[*backend].socket(443).to_string();
        config["tcp"]["routers"][host] = router(host, host);
        config["tcp"]["services"][host] = json!({ "loadBalancer": { "servers": [{ "address": address }] } });
    }
    config
}

fn provider(node: &Node) -> Result<Value> {
    let status = node.status()?;
    status["providers"].get(0).cloned().with_context(|| format!("no provider in {status}"))
}

/// Waits for the next failure after this answer was set, and returns what is said about it.
fn next_failure(node: &Node) -> Result<String> {
    let before = provider(node)?["failures_total"].as_u64().unwrap_or(0);
    wait_for(PATIENCE, "two more polls failed", || {
        let now = provider(node).ok()?;
        let text = now["last_error"].as_str()?.to_owned();
        (now["failures_total"].as_u64()? >= before + 2).then_some(text)
    })
}

#[test]
fn the_control_plane_decides_the_routes_and_is_asked_with_token_and_etag() -> Result<()> {
    require!();
    let s2 = S2::start(|lab| Answer::Good(routers(lab, &[("a.example.com", 0), ("b.example.com", 1)])))?;
    let node = s2.node()?;
    s2.talk("a.example.com", 0)?.finish()?;
    let held = s2.talk("b.example.com", 1)?;

    let question = s2.plane.wait_for_question()?;
    assert_eq!(question.path, "/v1/traefik/proxy-config");
    assert_eq!(question.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert!(s2.plane.wait_for_question()?.header("if-none-match").is_some(), "what is known is not asked for again");
    let generation = node.status()?["config"]["generation"].clone();
    s2.plane.wait_for_question()?;
    assert_eq!(node.status()?["config"]["generation"], generation, "an unchanged answer publishes nothing");

    // `a` moves, `b` goes, `c` comes; the connection to `b` stays.
    s2.plane.answer(Answer::Good(routers(&s2.lab, &[("a.example.com", 1), ("c.example.com", 0)])));
    wait_until(PATIENCE, "the new routes are served", || provider(&node).is_ok_and(|p| p["changes_total"] == 2))?;
    s2.talk("a.example.com", 1)?.finish()?;
    s2.talk("c.example.com", 0)?.finish()?;
    let mut refused = s2.lab.lab.clients[0].ns.connect(s2.lab.public())?;
    refused.write_all(&client_hello(Some("b.example.com"))?)?;
    wait_until(PATIENCE, "b is refused", || {
        node.metric("ingress_connections_refused_total", &["cause=\"unknown_sni\""]).is_ok_and(|n| n == 1.0)
    })?;
    held.finish()?;

    let state = provider(&node)?;
    assert_eq!((&state["state"], &state["served"], &state["needs_http"]), (&json!("good"), &json!(2), &json!(1)));
    let routes = node.json(&["routes", "--unserved"])?;
    assert_eq!(routes[0]["state"], "needs_http", "{routes}");
    assert_eq!(routes[0]["matches"], "Host(`site.example.com`) && PathPrefix(`/api`)", "{routes}");
    let routes = node.json(&["routes", "a.example.com"])?;
    assert_eq!((&routes[0]["pool"], &routes[0]["up"]), (&json!("a.example.com@platform"), &json!(1)), "{routes}");
    node.all_in_kernel()
}

#[test]
fn no_bad_answer_removes_a_route_or_touches_a_connection() -> Result<()> {
    require!();
    let mut s2 = S2::start(|lab| Answer::Good(routers(lab, &[("a.example.com", 0)])))?;
    let node = s2.node()?;
    let good = routers(&s2.lab, &[("a.example.com", 0)]);
    let mut held = s2.talk("a.example.com", 0)?;
    let generation = node.status()?["config"]["generation"].clone();

    let bad = [
        (Answer::Status("500 Internal Server Error"), "answered 500"),
        (Answer::Status("401 Unauthorized"), "is the token in `token_file` right?"),
        (Answer::Redirect("http://198.51.100.1/x?token=1"), "redirects to http://198.51.100.1/x;"),
        (Answer::Half(good.clone()), ""),
        (Answer::Garbage, "not UTF-8"),
        (Answer::Text("x".repeat(1 << 20)), "of no use"),
        (Answer::Text("{\"error\": \"down for maintenance\"}".into()), "unknown section \"error\""),
        (Answer::Text("{}".into()), "it says nothing"),
        (Answer::Text(String::new()), "of no use"),
        (Answer::Silence, "no answer within 300ms"),
    ];
    for (answer, words) in bad {
        let what = format!("{answer:?}").chars().take(60).collect::<String>();
        s2.plane.answer(answer);
        let error = next_failure(&node)?;
        assert!(error.contains(words), "{what}: {error}");
        assert_eq!(provider(&node)?["state"], "failing", "{what}");
        s2.talk("a.example.com", 0).with_context(|| what.clone())?.finish()?;
        held.exchange().context(what)?;
        // Back-off has no memory of a source that answers.
        s2.plane.answer(Answer::Good(good.clone()));
        wait_until(PATIENCE, "a good answer mends it", || provider(&node).is_ok_and(|p| p["last_error"].is_null()))?;
    }
    s2.plane.stop();
    let error = next_failure(&node)?;
    assert!(error.contains("refused"), "{error}");
    s2.talk("a.example.com", 0)?.finish()?;
    s2.plane.restart()?;
    wait_until(PATIENCE, "it is back", || provider(&node).is_ok_and(|p| p["state"] == "good"))?;

    assert_eq!(node.status()?["config"]["generation"], generation, "nothing of this was a change");
    assert_eq!(node.metric("ingress_provider_failing", &["provider=\"platform\""])?, 0.0);
    assert!(node.metric("ingress_provider_failures_total", &["provider=\"platform\""])? >= 22.0);
    held.finish()?;
    let said = format!("{:?} {}", node.log().lines(), node.status()?);
    assert!(!said.contains(TOKEN), "the token is told to nobody");
    Ok(())
}

#[test]
fn a_start_without_the_control_plane_serves_what_was_kept_and_with_last_good_off_refuses_until_it_answers() -> Result<()>
{
    require!();
    let mut s2 = S2::start(|lab| Answer::Good(routers(lab, &[("a.example.com", 0)])))?;
    let mut node = s2.node()?;
    s2.talk("a.example.com", 0)?.finish()?;
    node.terminate()?;
    s2.plane.stop();
    node.launch()?;
    assert_eq!(provider(&node)?["state"], "last-good");
    s2.talk("a.example.com", 0)?.finish()?;
    node.terminate()?;

    // The same with silence: nobody waits for a timeout.
    s2.plane.restart()?;
    s2.plane.answer(Answer::Silence);
    node.launch()?;
    s2.talk("a.example.com", 0)?.finish()?;
    node.terminate()?;
    s2.plane.stop();

    let mut config = s2.config();
    config["providers"]["platform"]["last_good"] = "off".into();
    node.write_config(config)?;
    node.spawn()?;
    wait_until(PATIENCE, "it is alive", || node.status().is_ok_and(|s| s["listeners"][0]["state"] == "listening"))?;
    let status = node.status()?;
    assert_eq!((&status["ready"], &status["providers"][0]["state"]), (&json!(false), &json!("waiting")), "{status}");
    let mut client = s2.lab.lab.clients[0].ns.connect(s2.lab.public())?;
    client.write_all(&client_hello(Some("a.example.com"))?)?;
    let alert = ingress_tests::wire::read_exactly(&mut client, 7)?;
    assert_eq!(alert[5..], [2, 80], "internal_error, not unrecognized_name");
    drop(client);
    wait_until(PATIENCE, "the refusal is counted with its cause", || {
        node.metric("ingress_connections_refused_total", &["cause=\"no_routes_yet\""]).is_ok_and(|n| n == 1.0)
    })?;

    s2.plane.answer(Answer::Good(routers(&s2.lab, &[("a.example.com", 0)])));
    s2.plane.restart()?;
    wait_until(PATIENCE, "it is ready", || node.status().is_ok_and(|s| s["ready"] == true))?;
    s2.talk("a.example.com", 0)?.finish()?;
    Ok(())
}

#[test]
fn connections_of_a_removed_route_end_as_on_remove_says() -> Result<()> {
    require!();
    let s2 = S2::start(|lab| Answer::Good(routers(lab, &[("a.example.com", 0), ("b.example.com", 1)])))?;
    let mut config = s2.config();
    config["providers"]["platform"]["on_remove"] = "cut".into();
    let node = s2.lab.node_with(config)?;
    let mut gone = s2.talk("a.example.com", 0)?;
    let stays = s2.talk("b.example.com", 1)?;
    node.wait_for_flow("a is spliced", |f| f["sni"] == "a.example.com" && f["state"] == "spliced")?;
    s2.plane.answer(Answer::Good(routers(&s2.lab, &[("b.example.com", 1)])));
    assert_eq!(ending(&mut gone.client, PATIENCE)?, Ending::Reset);
    assert_eq!(ending(&mut gone.backend, PATIENCE)?, Ending::Reset);
    let end = node.wait_for_log("the end of the connection", |l| l["message"] == "connection ended")?;
    assert_eq!(
        (&end["end_reason"], &end["route"]),
        (&json!("route_removed"), &json!("a.example.com@platform")),
        "{end}"
    );
    stays.finish()?;
    Ok(())
}
