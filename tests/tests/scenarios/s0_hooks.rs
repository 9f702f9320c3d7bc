//! Somebody is told what happens, and hears it whatever happens to him.

use std::path::PathBuf;

use anyhow::Result;
use ingress_tests::control_plane::{Answer, ControlPlane};
use ingress_tests::node::Node;
use ingress_tests::receiver::Receiver;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::secret;
use ingress_tests::wait::{PATIENCE, wait_for, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

const SECRET: &str = "0123456789abcdef-of-this-lab";

/// The network with its nginx backends, a receiver beside the last of them, and a place for files.
struct Told {
    receiver: Receiver,
    lab: S1,
    dir: TempDir,
}

impl Told {
    fn start() -> Result<Self> {
        let lab = S1::start()?;
        let host = &lab.lab.backends[3];
        let leaf = lab.certificate(&[&host.address.to_string()])?;
        let receiver = Receiver::start(host, leaf, SECRET)?;
        let dir = tempfile::Builder::new().prefix("ing-told-").tempdir()?;
        secret::write(&dir.path().join("secret"), SECRET)?;
        Ok(Self { receiver, lab, dir })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn webhook(&self, path: &str) -> Value {
        json!({
            "url": self.receiver.url(path), "ca_file": self.lab.ca().display().to_string(), "timeout": "400ms",
            "secret": { "file": self.file("secret").display().to_string() },
        })
    }

    /// S1's, with quick checks of `web` and these hooks.
    fn config(&self, hooks: Value) -> Value {
        let mut config = self.lab.config();
        let check = json!({ "type": "tcp", "interval": "100ms", "timeout": "100ms", "rise": 2, "fall": 2 });
        config["pools"]["web"]["health"] = check;
        config["hooks"] = hooks;
        // Nobody connects here, and a start with kernel programs takes a second until they are verified.
        config["kernel"]["enabled"] = false.into();
        config
    }
}

fn hook(node: &Node, name: &str) -> Result<Value> {
    let hooks = node.json(&["hooks"])?;
    let found = hooks.as_array().into_iter().flatten().find(|hook| hook["name"] == name);
    found.cloned().ok_or_else(|| anyhow::anyhow!("no hook {name} in {hooks}"))
}

fn is(event: &'static str) -> impl Fn(&Value) -> bool {
    move |request| request["body"]["event"] == event
}

fn is_answered(event: &'static str, answer: &'static str) -> impl Fn(&Value) -> bool {
    move |request| request["body"]["event"] == event && request["answer"] == answer
}

#[test]
fn a_backend_that_dies_and_returns_is_told_signed_and_in_order_whatever_becomes_of_the_receiver() -> Result<()> {
    require!("nginx", "python3");
    let mut told = Told::start()?;
    let events = json!(["backend_down", "backend_up"]);
    let template = "{\"channel\": \"ops\", \"text\": {{ (node ~ \": \" ~ text)|tojson }}}";
    let mut chat = told.webhook("/chat");
    chat["template"] = template.into();
    let stdin = told.file("stdin");
    let script =
        format!("cat >> {}; echo \"$INGRESS_EVENT $INGRESS_POOL\" >> {}.env", stdin.display(), stdin.display());
    let config = told.config(json!({
        "incidents": { "webhook": told.webhook("/incidents"), "events": events, "gather": "50ms" },
        "chat": { "webhook": chat, "events": ["backend_down"], "pools": ["w*"], "gather": "50ms" },
        "others": { "webhook": told.webhook("/others"), "events": events, "pools": ["api"], "gather": "50ms" },
        "page": { "command": { "argv": ["/bin/sh", "-c", script] }, "events": events, "gather": "50ms" },
    }));
    let node = told.lab.node_with(config)?;

    told.lab.backend("web")?.stop();
    let down = told.receiver.wait_for("/incidents", "the backend's end is told", is("backend_down"))?;
    assert_eq!((&down["signed"], &down["body"]["id"]), (&json!(true), &down["id"]), "{down}");
    assert!(down["age"].as_f64().is_some_and(|age| age < 60.0), "{down}");
    let item = &down["body"]["items"][0];
    let backend = told.lab.lab.backends[0].socket(443).to_string();
    assert_eq!((&item["pool"], &item["backend"]), (&json!("web"), &json!(backend)), "{down}");
    assert!(item["error"].as_str().is_some_and(|error| error.contains("refused")), "{down}");
    let chat = told.receiver.wait_for("/chat", "so it is in the chat", |_| true)?;
    let text = chat["body"]["text"].as_str().unwrap_or_default();
    assert!(
        chat["body"]["channel"] == "ops" && text.contains(&format!("backend {backend} of pool web is down")),
        "{chat}"
    );

    // Overloaded, then busy, then silent, then dead: the same message, until it is taken.
    told.receiver.answer("503")?;
    told.lab.backend("web")?.restart()?;
    told.receiver.wait_for("/incidents", "an attempt", is_answered("backend_up", "503"))?;
    told.receiver.answer("429 1")?;
    told.receiver.wait_for("/incidents", "another", is_answered("backend_up", "429"))?;
    told.receiver.answer("hang")?;
    told.receiver.wait_for("/incidents", "a third", is_answered("backend_up", "hang"))?;
    wait_until(PATIENCE, "it is not waited for", || {
        hook(&node, "incidents").is_ok_and(|hook| hook["last_error"] == "no answer within 400ms")
    })?;
    told.receiver.stop();
    let refused = |hook: Value| hook["last_error"].as_str().is_some_and(|error| error.contains("refused"));
    wait_until(PATIENCE, "its end shows", || hook(&node, "incidents").is_ok_and(refused))?;
    assert_eq!(hook(&node, "incidents")?["waiting"], 1);
    told.receiver.answer("200")?;
    told.receiver.restart()?;
    let up = told.receiver.wait_for("/incidents", "it arrives", is_answered("backend_up", "200"))?;
    let all = told.receiver.requests("/incidents");
    assert!(all.iter().all(|request| request["signed"] == true), "{all:#?}");
    assert!(all[1..].iter().all(|request| request["id"] == up["id"] && request["body"] == up["body"]), "{all:#?}");
    wait_until(PATIENCE, "the hook is well again", || {
        hook(&node, "incidents").is_ok_and(|hook| hook["delivered_total"] == 2 && hook["state"] == "good")
    })?;
    assert!(told.receiver.requests("/others").is_empty(), "that was about another pool");
    assert_eq!(told.receiver.requests("/chat").len(), 1, "that it is up is not for the chat");

    let lines = wait_for(PATIENCE, "the program has run for both", || {
        let lines = std::fs::read_to_string(format!("{}.env", stdin.display())).ok()?;
        (lines.lines().count() == 2).then_some(lines)
    })?;
    assert_eq!(lines, "backend_down web\nbackend_up web\n");
    let first: Value = serde_json::from_str(std::fs::read_to_string(&stdin)?.lines().next().unwrap_or_default())?;
    assert_eq!(first["items"], down["body"]["items"]);
    let labels = ["hook=\"incidents\"", "result=\"delivered\""];
    assert_eq!(node.metric("ingress_hook_messages_total", &labels)?, 2.0);
    assert!(node.metric("ingress_hook_retries_total", &["hook=\"incidents\""])? >= 4.0);
    let said = format!("{:?} {}", node.log().lines(), node.status()?);
    assert!(!said.contains(SECRET), "the secret is told to nobody");
    Ok(())
}

#[test]
fn ten_thousand_routes_are_one_message_and_a_refused_file_is_told_until_it_is_mended() -> Result<()> {
    require!("nginx", "python3");
    let told = Told::start()?;
    let hooks = json!({ "all": { "webhook": told.webhook("/all"), "gather": "100ms" } });
    let config = told.config(hooks);
    let mut node = told.lab.node_with(config.clone())?;
    told.receiver.wait_for("/all", "the start is told", is("daemon_started"))?;
    assert_eq!(told.receiver.requests("/all").len(), 1, "and nothing else: {:#?}", told.receiver.requests("/all"));

    let mut many = config.clone();
    let routes = many["routes"].as_array_mut().into_iter();
    routes
        .for_each(|all| all.extend((0..10_000).map(|n| json!({ "sni": format!("n{n}.example.com"), "pool": "web" }))));
    node.reload(many)?;
    let added = told.receiver.wait_for("/all", "the routes are told", is("route_added"))?;
    let body = &added["body"];
    assert_eq!((&body["count"], body["items"].as_array().map(Vec::len)), (&json!(10_000), Some(20)), "{added}");
    assert!(body["text"].as_str().is_some_and(|text| text.starts_with("10000 routes were added: ")), "{added}");
    node.reload(config.clone())?;
    let removed = told.receiver.wait_for("/all", "and that they are gone", is("route_removed"))?;
    assert_eq!(removed["body"]["count"], 10_000);
    for event in ["route_added", "route_removed"] {
        let all = told.receiver.requests("/all");
        assert_eq!(all.iter().filter(|request| request["body"]["event"] == event).count(), 1, "{event}: {all:#?}");
    }

    node.write_config_text("listeners: {}\nnonsense: 1\n")?;
    let refused = told.receiver.wait_for("/all", "the broken file is told", is("config_refused"))?;
    let problems = refused["body"]["items"][0]["problems"].as_str().unwrap_or_default();
    assert!(problems.contains("ingress.yaml:2:1: error: nonsense: unknown key"), "{refused}");
    let before = told.receiver.requests("/all").len();
    node.reload(config)?;
    let all = wait_for(PATIENCE, "that it is mended", || {
        let all = told.receiver.requests("/all");
        (all.len() > before).then_some(all)
    })?;
    assert_eq!(all[before]["body"]["event"], "config_accepted", "{all:#?}");

    node.terminate()?;
    let last = told.receiver.requests("/all").pop().unwrap_or_default();
    assert_eq!(last["body"]["event"], "daemon_stopping", "the last words arrive before the end");
    Ok(())
}

#[test]
fn a_provider_is_told_of_when_it_is_stale_and_when_it_is_back() -> Result<()> {
    require!("nginx", "python3");
    let told = Told::start()?;
    let document = json!({ "tcp": { "routers": {}, "services": {} } });
    let plane = ControlPlane::start(&told.lab.lab.backends[2], 8081, Answer::Good(document.clone()))?;
    let events = json!(["provider_stale", "provider_recovered"]);
    let mut config = told.config(json!({ "p": { "webhook": told.webhook("/p"), "events": events, "gather": "50ms" } }));
    let poll = json!({ "url": plane.url(), "interval": "150ms", "timeout": "300ms" });
    config["providers"] = json!({ "platform": { "http_poll": poll, "stale_after": "600ms" } });
    let _node = told.lab.node_with(config)?;
    plane.answer(Answer::Status("500 Internal Server Error"));
    let stale = told.receiver.wait_for("/p", "it is stale", is("provider_stale"))?;
    let item = json!({ "provider": "platform", "error": "answered 500 Internal Server Error" });
    assert_eq!(stale["body"]["items"], json!([item]));
    plane.answer(Answer::Good(document));
    told.receiver.wait_for("/p", "it is back", is("provider_recovered"))?;
    assert_eq!(told.receiver.requests("/p").len(), 2, "each once");
    Ok(())
}

#[test]
fn an_operator_can_try_a_hook_and_is_told_what_is_wrong_with_it() -> Result<()> {
    require!("nginx", "python3");
    let told = Told::start()?;
    let mut strange = told.webhook("/strange");
    strange["ca_file"] = told.lab.leaf("api")?.certificate.display().to_string().into();
    let mut lost = told.webhook("/lost");
    lost["secret"] = json!({ "file": "/nonexistent/secret" });
    let failing = json!({ "argv": ["/bin/sh", "-c", "echo the pager is off; exit 7"] });
    let node = told.lab.node_with(told.config(json!({
        "good": { "webhook": told.webhook("/good"), "events": ["backend_down"] },
        "strange": { "webhook": strange },
        "lost": { "webhook": lost },
        "page": { "command": failing },
    })))?;
    let tested = node.json(&["hooks", "test", "good"])?;
    let came = told.receiver.wait_for("/good", "the test arrives", is("test"))?;
    assert_eq!((&came["id"], &came["signed"]), (&tested["id"], &json!(true)), "{came}");
    for (name, words) in [
        ("strange", "certificate"),
        ("lost", "reading /nonexistent/secret: No such file"),
        ("page", "/bin/sh ended with exit code 7: the pager is off (this would be tried again)"),
        ("other", "there is no hook other in use; `hooks` names good, lost, page, strange"),
    ] {
        let error = node.verb(&["hooks", "test", name]).expect_err(name).to_string();
        assert!(error.contains(words), "{name}: {error}");
    }
    told.receiver.answer("404")?;
    let error = node.verb(&["hooks", "test", "good"]).expect_err("a wrong path").to_string();
    assert!(error.contains("answered 404 Not Found; is the URL right?"), "{error}");
    assert!(told.receiver.requests("/strange").is_empty(), "nothing goes to whom nobody trusts");
    Ok(())
}
