//! One backend at a time out of the round and back, and the socket that speaks as HAProxy's: beside a real HAProxy, and
//! with the tools that read one.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use ingress_tests::node::{Node, haproxy_says};
use ingress_tests::process::Process;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::skip::find_program;
use ingress_tests::wait::{PATIENCE, amount_here, wait_until};
use serde_json::{Value, json};

const NAME: &str = "fiscalismia.com";

#[test]
fn a_drained_backend_keeps_its_download_and_a_maintained_one_loses_it() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let mut node = s1.node_with(two_backends(&s1))?;
    let sent = s1.backends[0].publish("big", amount_here(96 << 20))?;
    let download = download_from_one(&s1, &node)?;
    node.all_in_kernel()?;

    assert_eq!(node.haproxy_says("set server web/one state drain")?, "\n");
    assert_eq!(answered_by(&s1, 6)?, ["two"; 6]);
    assert_eq!(state(&node, "one")?["admin"]["state"], "drain");

    // It holds when the daemon is killed, and so does the download.
    node.kill9()?;
    node.launch()?;
    let admin = state(&node, "one")?["admin"].clone();
    assert_eq!(admin["state"], "drain", "{admin}");
    assert!(admin["by"].as_str().is_some_and(|by| by.starts_with("root")), "{admin}");
    assert_eq!(answered_by(&s1, 6)?, ["two"; 6]);
    let before = download.received();
    download.wait_for_bytes(before + amount_here(1 << 20), PATIENCE)?;
    assert_eq!(node.flows()?.len(), 1, "the download is the one that is left");

    let said = node.verb(&["pools", "maint", "web/one"])?;
    assert!(said.starts_with("web/one: maint: no new connections; 1 connection"), "{said}");
    assert!(download.finish(PATIENCE).is_err(), "{sent:?} arrived whole although the backend is in maintenance");
    let is_maintenance = |line: &Value| line["message"] == "connection ended" && line["end_reason"] == "maintenance";
    let end = node.wait_for_log("the end of the download", is_maintenance)?;
    assert_eq!((&end["backend"], &end["mode"]), (&json!("one"), &json!("kernel")), "{end}");

    node.verb(&["pools", "ready", "web/one"])?;
    let mut seen = answered_by(&s1, 6)?;
    seen.sort();
    assert_eq!(seen, ["one", "one", "one", "two", "two", "two"]);
    node.all_in_kernel()
}

#[test]
fn maintenance_whose_cut_a_kill_prevented_is_made_good_by_the_next_daemon() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let mut node = s1.node_with(two_backends(&s1))?;
    s1.backends[0].publish("big", amount_here(96 << 20))?;
    assert_eq!(node.haproxy_says("disable server web/one")?, "\n");
    let kept = node.state_dir().join("last-good/operators");
    let maintenance = std::fs::read(&kept)?;
    assert_eq!(node.haproxy_says("enable server web/one")?, "\n");
    let download = download_from_one(&s1, &node)?;
    node.all_in_kernel()?;
    node.kill9()?;
    // As if the kill had come between the word on disk and the cut.
    std::fs::write(&kept, maintenance)?;
    node.launch()?;
    assert!(download.finish(PATIENCE).is_err(), "the adopted connection goes on");
    assert_eq!(column(&node.haproxy_says("show stat web 4 1")?, "status")?, "MAINT");
    assert_eq!(answered_by(&s1, 4)?, ["two"; 4]);
    Ok(())
}

#[test]
fn a_weight_by_hand_moves_connections() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let node = s1.node_with(two_backends(&s1))?;
    let count = |node: &Node, line: &str, of: &str| -> Result<usize> {
        assert_eq!(node.haproxy_says(line)?, "\n", "{line}");
        Ok(answered_by(&s1, 8)?.iter().filter(|name| *name == of).count())
    };
    assert_eq!(count(&node, "set server web/one weight 3", "one")?, 6);
    assert_eq!(count(&node, "set weight web/one 0", "one")?, 0);
    assert_eq!(node.haproxy_says("get weight web/one")?, "0 (initial 1)\n\n");
    assert_eq!(count(&node, "set server web/one weight 100%", "one")?, 4);
    let weight = |node: &Node| node.metric("ingress_backend_weight", &["backend=\"one\""]);
    node.verb(&["pools", "weight", "web/one", "50%"])?;
    assert_eq!(weight(&node)?, 0.5);
    assert_eq!(node.metric("ingress_backend_admin_state", &["backend=\"one\"", "state=\"ready\""])?, 1.0);
    node.haproxy_says("set server web/one state drain")?;
    assert_eq!(weight(&node)?, 0.0);
    assert_eq!(node.metric("ingress_backend_admin_state", &["backend=\"one\"", "state=\"drain\""])?, 1.0);
    Ok(())
}

/// What HAProxy says to it, byte for byte.
const SAME: [&str; 27] = [
    "set server",
    "set server web",
    "set server web/",
    "set server web/nobody state drain",
    "set server nothing/one state drain",
    "set server web/one state",
    "set server web/one state down",
    "set server web/one weight",
    "set server web/one weight 257",
    "set server web/one weight -1",
    "set server web/one weight 200%",
    "set server web/one state drain;set server web/one state ready",
    "set weight web/one 100%",
    "get weight web/one",
    "get weight web/nobody",
    "get weight web",
    "disable server web/nobody",
    "disable server web/one;enable server web/one",
    "shutdown sessions server web/one",
    "shutdown sessions server web/nobody",
    "shutdown session 0x55",
    "show backend",
    "show servers state nothing",
    "show stat nothing -1 -1",
    "show cli level;operator;show cli level;set server web/one state drain",
    "prompt\nset timeout cli 1h\nget weight web/one;get weight web\nquit",
    "quit",
];

#[test]
fn the_grammar_is_that_of_the_haproxy_beside_it() -> Result<()> {
    require!("haproxy", "nginx", "curl");
    let s1 = S1::start()?;
    let node = s1.node_with(two_backends(&s1))?;
    let theirs = Haproxy::start(&s1)?;
    for line in SAME {
        assert_eq!(node.haproxy_says(line)?, theirs.says(line)?, "{line}");
    }
    // Columns of theirs that follow are of their TLS and HTTP engines.
    let line = |answer: &str, at: usize| answer.lines().nth(at).unwrap_or_default().to_owned();
    let header = line(&node.haproxy_says("show stat")?, 0);
    assert!(header.ends_with(",agg_check_status,-,"), "{header}");
    assert!(line(&theirs.says("show stat")?, 0).starts_with(&header), "{header}");
    let (our_state, their_state) = (node.haproxy_says("show servers state")?, theirs.says("show servers state")?);
    assert_eq!((line(&our_state, 0), line(&our_state, 1)), (line(&their_state, 0), line(&their_state, 1)));
    // All fields but how long it has been so, and the count of a check that there is none of: theirs is 0 after a maintenance.
    let servers = |text: &str| -> Vec<Vec<String>> {
        let lines = text.lines().skip(2).filter(|line| line.contains(" web "));
        lines
            .map(|line| {
                line.split(' ').enumerate().filter(|(at, _)| ![9, 12].contains(at)).map(|(_, f)| f.into()).collect()
            })
            .collect()
    };
    assert_eq!(servers(&our_state), servers(&their_state));
    let names = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.split_once(": ")).map(|(name, _)| name.to_owned()).collect()
    };
    let (ours, theirs_all) = (names(&node.haproxy_says("show info")?), names(&theirs.says("show info")?));
    let known: Vec<_> = theirs_all.iter().filter(|name| ours.contains(name)).cloned().collect();
    assert_eq!(ours, known, "no line that HAProxy does not have, and in its order");
    for states in ["drain", "maint", "ready"] {
        let order = format!("set server web/one state {states}");
        let status = |stat: &str| column(stat, "status");
        assert_eq!(node.haproxy_says(&order)?, theirs.says(&order)?);
        let ask = "show stat web 6 -1";
        assert_eq!(status(&node.haproxy_says(ask)?)?, status(&theirs.says(ask)?)?, "{states}");
    }
    let unknown = node.haproxy_says("show nothing")?;
    assert_eq!(line(&unknown, 0), line(&theirs.says("show nothing")?, 0));
    Ok(())
}

#[test]
fn the_tools_that_read_haproxy_read_this_one() -> Result<()> {
    require!("nginx", "curl", "socat", "hatop", "script", "prometheus-haproxy-exporter");
    let s1 = S1::start()?;
    let node = s1.node_with(two_backends(&s1))?;
    let socket = node.haproxy_socket().display().to_string();
    assert_eq!(answered_by(&s1, 4)?.len(), 4);
    let proxy = &s1.lab.proxy.ns;
    let socat = proxy.run("sh", &["-c", &format!("echo 'set server web/two state drain' | socat stdio {socket}")])?;
    assert_eq!(socat, "\n");

    let mut exporter = proxy.command("prometheus-haproxy-exporter");
    exporter.arg(format!("--haproxy.scrape-uri=unix:{socket}")).arg("--web.listen-address=127.0.0.1:9101");
    let _exporter =
        Process::spawn("exporter", exporter.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))?;
    let scrape = || proxy.run("curl", &["--silent", "--fail", "http://127.0.0.1:9101/metrics"]);
    wait_until(PATIENCE, "the exporter exports", || scrape().is_ok_and(|text| text.contains("haproxy_up 1")))?;
    let text = scrape()?;
    for line in [
        r#"haproxy_server_sessions_total{backend="web",server="one"} 2"#,
        r#"haproxy_server_sessions_total{backend="web",server="two"} 2"#,
        r#"haproxy_frontend_sessions_total{frontend="tls"} 4"#,
        r#"haproxy_backend_current_server{backend="web"} 1"#,
        "haproxy_exporter_csv_parse_failures_total 0",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }

    // It wants a terminal, and talks in prompt mode.
    let dir = tempfile::Builder::new().prefix("ing-hatop-").tempdir()?;
    let drawn = dir.path().join("screen");
    let mut hatop = proxy.command("script");
    let inside = format!("stty rows 40 cols 140; exec hatop -s {socket}");
    hatop.args(["-qec", inside.as_str(), "/dev/null"]).env("TERM", "xterm");
    hatop.stdin(Stdio::piped()).stdout(std::fs::File::create(&drawn)?);
    let mut hatop = Process::spawn("hatop", &mut hatop)?;
    let screen = || String::from_utf8_lossy(&std::fs::read(&drawn).unwrap_or_default()).into_owned();
    for words in ["HATop version", "FRONTEND", "DRAIN", "BACKEND"] {
        wait_until(PATIENCE, words, || screen().contains(words)).with_context(screen)?;
    }
    hatop.child().stdin.take().context("a keyboard")?.write_all(b"q")?;
    let ended = hatop.wait(PATIENCE)?;
    assert!(ended.success(), "HATop ended with {ended}: {}", screen());
    Ok(())
}

#[test]
fn a_path_that_is_taken_is_named_and_tried_again() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let mut node = Node::prepare(&s1.lab.proxy.ns)?;
    std::fs::write(node.haproxy_socket(), "precious")?;
    node.write_config(two_backends(&s1))?;
    node.launch()?;
    let problem = || node.status().ok()?["haproxy_socket"]["error"].as_str().map(str::to_owned);
    wait_until(PATIENCE, "the status says so", || problem().is_some())?;
    let error = problem().unwrap_or_default();
    assert!(
        error.ends_with("exists and is not a socket; remove it, or set admin.haproxy_socket.path to another path"),
        "{error}"
    );
    assert_eq!(answered_by(&s1, 2)?.len(), 2, "traffic does not wait for it");
    std::fs::remove_file(node.haproxy_socket())?;
    wait_until(PATIENCE, "it is there", || node.haproxy_says("show version").is_ok())
}

/// A HAProxy with the same proxies as the node of [`two_backends`], and its socket.
struct Haproxy {
    _process: Process,
    dir: tempfile::TempDir,
}

impl Haproxy {
    fn start(s1: &S1) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ing-haproxy-").tempdir()?;
        let (one, two) = (s1.lab.backends[0].socket(443), s1.lab.backends[1].socket(443));
        let socket = Self::socket(dir.path());
        let config = format!(
            "global\n stats socket {} mode 600 level admin\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n timeout \
             server 1m\nfrontend tls\n bind 127.0.0.1:8443\n default_backend web\nbackend web\n server one {one}\n server two \
             {two}\n",
            socket.display()
        );
        std::fs::write(dir.path().join("haproxy.cfg"), config)?;
        let program = find_program("haproxy").context("haproxy is not installed")?;
        let mut command = s1.lab.proxy.ns.command(program);
        command.arg("-db").arg("-f").arg(dir.path().join("haproxy.cfg"));
        let process = Process::spawn_logged("haproxy", &mut command, &dir.path().join("log"))?;
        wait_until(PATIENCE, "HAProxy answers", || haproxy_says(&socket, "show version").is_ok())?;
        Ok(Self { _process: process, dir })
    }

    fn socket(dir: &Path) -> PathBuf {
        dir.join("haproxy.sock")
    }

    fn says(&self, line: &str) -> Result<String> {
        haproxy_says(&Self::socket(self.dir.path()), line)
    }
}

/// S1 with one pool of two, and HAProxy's socket.
fn two_backends(s1: &S1) -> Value {
    let mut config = s1.config_without_checks();
    let backend =
        |at: usize, name: &str| json!({ "address": s1.lab.backends[at].socket(443).to_string(), "name": name });
    config["pools"] = json!({ "web": { "backends": [backend(0, "one"), backend(1, "two")], "proxy_protocol": "v2" } });
    config["routes"] = json!([{ "sni": [NAME], "pool": "web" }]);
    config["admin"]["haproxy_socket"] = json!({});
    config
}

/// Who answers each of so many requests, in their order.
fn answered_by(s1: &S1, requests: usize) -> Result<Vec<String>> {
    let ask = |_| {
        let seen = s1.curl(NAME).arg("--insecure").get_json("/whoami")?;
        Ok(if seen["backend"] == "web" { "one" } else { "two" }.to_owned())
    };
    (0..requests).map(ask).collect()
}

/// A download under way at the first backend, and nothing else open.
fn download_from_one(s1: &S1, node: &Node) -> Result<ingress_tests::client::Download> {
    node.verb(&["pools", "drain", "web/two"])?;
    let slow = s1.curl(NAME).limit_rate(amount_here(4 << 20));
    let download = slow.download("/files/big")?;
    download.wait_for_bytes(amount_here(1 << 20), PATIENCE)?;
    node.verb(&["pools", "ready", "web/two"])?;
    Ok(download)
}

fn state(node: &Node, backend: &str) -> Result<Value> {
    let pools = node.json(&["pools"])?;
    let backends = pools[0]["backends"].as_array().context("a pool has backends")?;
    backends.iter().find(|b| b["name"] == backend).cloned().with_context(|| format!("no {backend} in {pools}"))
}

/// A column of the first row behind the header.
fn column(stat: &str, name: &str) -> Result<String> {
    let mut lines = stat.lines();
    let header = lines.next().and_then(|line| line.strip_prefix("# ")).context("a header")?;
    let at = header.split(',').position(|column| column == name).with_context(|| format!("no column {name}"))?;
    let row = lines.next().with_context(|| format!("no row in {stat}"))?;
    row.split(',').nth(at).map(str::to_owned).context("a field for each column")
}
