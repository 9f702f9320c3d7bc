//! A pool follows its Redis primary through failovers, by hand and by Sentinel. At no moment does a client reach two.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::{Host, LabOptions};
use ingress_tests::node::Node;
use ingress_tests::redis::{Redis, cli, say};
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Ending, ending};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Where clients find Redis, and where it is.
const OPENED: u16 = 6379;
const SERVED: u16 = 6380;
const SENTINEL: u16 = 26379;
/// Elections and full resynchronisations take their time.
const ELECTION: Duration = Duration::from_secs(45);

/// A primary with two replicas, each of which knows its own name under the key `me`.
struct S4 {
    servers: Vec<Redis>,
    lab: S1,
}

impl S4 {
    fn start() -> Result<Self> {
        let lab = S1::without_backends(&LabOptions::default())?;
        let mut servers = Vec::new();
        for host in hosts(&lab) {
            // Scripts may say where they run; a replica must not be asked for that.
            servers.push(Redis::start(host, SERVED, &["repl-diskless-sync-delay 0", "save \"\""])?);
        }
        let s4 = Self { servers, lab };
        s4.servers[1].replicate(&s4.servers[0])?;
        s4.servers[2].replicate(&s4.servers[0])?;
        s4.servers[1..].iter().try_for_each(Redis::wait_for_link)?;
        Ok(s4)
    }

    fn address(&self, n: usize) -> String {
        self.servers[n].address.to_string()
    }

    fn pool(&self, redis: Value) -> Value {
        json!({
            "backends": (0..self.servers.len()).map(|n| json!({"address": self.address(n), "name": name(n)})).collect::<Vec<_>>(),
            "health": check(redis),
        })
    }

    fn node(&self, pool: Value) -> Result<Node> {
        self.lab.node_with(config(&self.lab, pool))
    }

    fn public(&self) -> SocketAddr {
        self.lab.lab.public(OPENED)
    }

    fn session(&self) -> Result<TcpStream> {
        Ok(self.lab.lab.clients[0].ns.connect(self.public())?)
    }

    /// A session of which the kernel carries the bytes, with the server that answers.
    fn spliced(&self, node: &Node) -> Result<(TcpStream, usize)> {
        let mut session = self.session()?;
        let server = self.who(&mut session)?;
        node.wait_for_flow("it is spliced", |f| f["state"] == "spliced")?;
        Ok((session, server))
    }

    /// Which server answers: each has a directory of its own.
    fn who(&self, session: &mut TcpStream) -> Result<usize> {
        ensure!(say(session, "CONFIG GET dir")? == "*2", "two words");
        for expected in ["$3", "dir"] {
            ensure!(read_line(session)? == expected, "the first is `dir`");
        }
        read_line(session)?;
        let dir = read_line(session)?;
        let is = |server: &Redis| server.dir().display().to_string() == dir;
        self.servers.iter().position(is).with_context(|| format!("no server in {dir}"))
    }

    /// What `redis-cli` says to a client of the proxy.
    fn cli(&self, words: &[&str]) -> Result<String> {
        cli(&self.lab.lab.clients[0].ns, self.public(), words)
    }
}

fn read_line(session: &mut TcpStream) -> Result<String> {
    use std::io::Read as _;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        session.read_exact(&mut byte)?;
        line.extend_from_slice(&byte);
    }
    Ok(String::from_utf8_lossy(&line).trim().to_owned())
}

/// Three that reach one another.
fn hosts(lab: &S1) -> [&Host; 3] {
    [0, 1, 3].map(|n| &lab.lab.backends[n])
}

fn name(n: usize) -> String {
    format!("redis-{}", n + 1)
}

fn check(redis: Value) -> Value {
    json!({ "type": "redis", "interval": "100ms", "timeout": "100ms", "rise": 2, "fall": 3, "redis": redis })
}

fn config(lab: &S1, pool: Value) -> Value {
    json!({
        "listeners": { "redis": {
            "bind": [lab.lab.public(OPENED).to_string()], "device": "pub0", "protocol": "tcp", "pool": "redis",
        } },
        "pools": { "redis": pool },
        "admin": { "http": {} },
        "kernel": {},
        "log": { "connections": "both" },
    })
}

fn primary(node: &Node) -> Option<Value> {
    let status = node.status().ok()?;
    let pool = status["pools"].as_array()?.iter().find(|pool| pool["primary"].is_object())?.clone();
    Some(pool["primary"].clone())
}

fn follows(node: &Node, n: usize) -> bool {
    primary(node).is_some_and(|primary| primary["backend"] == name(n))
}

#[test]
fn a_failover_by_hand_takes_every_client_along() -> Result<()> {
    require!("redis-server", "redis-cli", "redis-benchmark", "curl");
    let s4 = S4::start()?;
    let node = s4.node(s4.pool(json!({})))?;
    wait_until(PATIENCE, "the primary is found", || follows(&node, 0))?;
    assert_eq!(s4.cli(&["SET", "a", "1"])?.trim(), "OK");
    let port = OPENED.to_string();
    let host = s4.public().ip().to_string();
    let benchmark =
        ["60", "redis-benchmark", "-h", &host, "-p", &port, "-t", "set,get", "-n", "4000", "-c", "20", "-q"];
    s4.lab.lab.clients[0].ns.run("timeout", &benchmark)?;
    node.all_in_kernel()?;
    let (mut held, server) = s4.spliced(&node)?;
    assert_eq!(server, 0);

    wait_until(PATIENCE, "the replica has it", || s4.servers[1].cli(&["GET", "a"]).is_ok_and(|a| a.trim() == "1"))?;
    s4.servers[1].promote()?;
    s4.servers[2].replicate(&s4.servers[1])?;
    s4.servers[0].replicate(&s4.servers[1])?;
    assert_eq!(ending(&mut held, PATIENCE)?, Ending::Reset, "its server is no primary any more");
    let end = node.wait_for_log("its end", |l| l["message"] == "connection ended" && l["end_reason"] == "demoted")?;
    assert_eq!((&end["mode"], &end["backend"]), (&json!("kernel"), &json!(name(0))), "{end}");
    wait_until(PATIENCE, "the new primary is found", || follows(&node, 1))?;
    assert_eq!(s4.spliced(&node)?.1, 1);
    assert_eq!(s4.cli(&["SET", "b", "2"])?.trim(), "OK", "no replica refuses a write");
    assert_eq!(s4.servers[1].cli(&["GET", "a"])?.trim(), "1");

    assert_eq!(node.metric("ingress_pool_primary_changes_total", &["pool=\"redis\""])?, 2.0);
    assert_eq!(node.metric("ingress_pool_primary", &["backend=\"redis-2\""])?, 1.0);
    assert_eq!(node.metric("ingress_pool_primary", &[])?, 1.0, "one at most");
    let pools = node.verb(&["pools"])?;
    assert!(pools.contains("primary redis-2 for") && pools.contains("standby"), "{pools}");
    Ok(())
}

#[test]
fn an_old_primary_that_comes_back_gets_no_client() -> Result<()> {
    require!("redis-server", "redis-cli", "curl");
    let mut s4 = S4::start()?;
    let node = s4.node(s4.pool(json!({})))?;
    wait_until(PATIENCE, "the primary is found", || follows(&node, 0))?;
    s4.servers[0].kill()?;
    s4.servers[1].promote()?;
    wait_until(PATIENCE, "the new primary is found", || follows(&node, 1))?;
    let reached = || node.metric("ingress_backend_connections_total", &["backend=\"redis-1\""]);
    let before = reached()?;

    // It comes back as what it was: two servers say that they are the primary.
    s4.servers[0].restart()?;
    assert_eq!(s4.servers[0].role()?, "master");
    wait_until(PATIENCE, "the rival is seen", || primary(&node).is_some_and(|p| p["rivals"] == json!([name(0)])))?;
    assert_eq!(node.metric("ingress_pool_primary_rivals", &[])?, 1.0);
    for _ in 0..50 {
        assert_eq!(s4.who(&mut s4.session()?)?, 1);
    }
    // Nor while the new one is away.
    s4.servers[1].signal(Signal::SIGSTOP)?;
    wait_until(PATIENCE, "nobody is followed", || primary(&node).is_some_and(|p| p["backend"].is_null()))?;
    let problem = primary(&node).context("a primary's state")?["problem"].to_string();
    assert!(
        problem.contains("redis-1: says that it is the primary, but was one before another took over"),
        "{problem}"
    );
    let mut refused = s4.session()?;
    assert!(matches!(ending(&mut refused, PATIENCE)?, Ending::Reset | Ending::Closed(_)), "there is no primary");
    s4.servers[1].signal(Signal::SIGCONT)?;
    wait_until(PATIENCE, "the new primary is back", || follows(&node, 1))?;
    assert_eq!(reached()?, before, "no client was given to the old primary");

    // Once it was a replica, it may be promoted again.
    s4.servers[0].replicate(&s4.servers[1])?;
    s4.servers[0].wait_for_link()?;
    wait_until(PATIENCE, "it stands by", || node.verb(&["pools"]).is_ok_and(|p| p.matches("standby").count() == 2))?;
    s4.servers[0].promote()?;
    s4.servers[1].replicate(&s4.servers[0])?;
    wait_until(PATIENCE, "it is followed again", || follows(&node, 0))?;
    assert_eq!(s4.who(&mut s4.session()?)?, 0);
    Ok(())
}

#[test]
fn sentinels_elect_and_no_client_reaches_the_old_primary() -> Result<()> {
    require!("redis-server", "redis-cli", "curl");
    let mut s4 = S4::start()?;
    let first = s4.servers[0].address;
    let sentinels = hosts(&s4.lab).map(|host| Redis::sentinel(host, SENTINEL, first));
    let sentinels = sentinels.into_iter().collect::<Result<Vec<_>>>()?;
    for sentinel in &sentinels {
        wait_until(ELECTION, "the Sentinels know one another and both replicas", || {
            let known = sentinel.cli(&["SENTINEL", "MASTER", "main"]).unwrap_or_default();
            let words: Vec<_> = known.lines().collect();
            let is = |key, value| words.windows(2).any(|pair| pair == [key, value]);
            is("num-slaves", "2") && is("num-other-sentinels", "2")
        })?;
    }
    let addresses: Vec<_> = sentinels.iter().map(|sentinel| sentinel.address.to_string()).collect();
    let node = s4.node(s4.pool(json!({ "sentinel": { "addresses": addresses, "service": "main" } })))?;
    wait_until(PATIENCE, "the primary is found", || follows(&node, 0))?;
    assert_eq!(node.metric("ingress_pool_sentinels_agree", &[])?, 1.0);
    let (mut held, _) = s4.spliced(&node)?;

    // A client that comes again and again, and notes who answers.
    let (stop, began) = (AtomicBool::new(false), AtomicBool::new(false));
    let (elected, order) = std::thread::scope(|scope| -> Result<_> {
        let (s4, stop, began) = (&s4, &stop, &began);
        let client = scope.spawn(move || {
            let mut order: Vec<usize> = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let answered = s4.session().and_then(|mut session| s4.who(&mut session));
                if let Ok(server) = answered
                    && order.last() != Some(&server)
                {
                    order.push(server);
                    began.store(true, Ordering::Relaxed);
                }
            }
            order
        });
        let play = || -> Result<usize> {
            wait_until(PATIENCE, "the client has an answer", || began.load(Ordering::Relaxed))?;
            // Hung, not dead: it does not know yet that it was replaced, when it goes on.
            s4.servers[0].signal(Signal::SIGSTOP)?;
            wait_until(ELECTION, "another one is elected and followed", || follows(&node, 1) || follows(&node, 2))?;
            let elected = if follows(&node, 1) { 1 } else { 2 };
            s4.servers[0].signal(Signal::SIGCONT)?;
            wait_until(ELECTION, "the Sentinels make the old one a replica", || {
                s4.servers[0].role().is_ok_and(|role| role == "slave")
            })?;
            Ok(elected)
        };
        let elected = play();
        stop.store(true, Ordering::Relaxed);
        let order = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
        Ok((elected?, order))
    })?;
    assert_eq!(ending(&mut held, PATIENCE)?, Ending::Reset);
    assert_eq!(order, [0, elected], "once the new primary has answered, the old one never does");

    // Dead for good, and started anew as a primary of its own.
    s4.servers[elected].kill()?;
    wait_until(ELECTION, "a third election", || {
        primary(&node).is_some_and(|p| !p["backend"].is_null() && p["backend"] != name(elected))
    })?;
    let now = (0..3).find(|n| follows(&node, *n)).context("somebody is followed")?;
    s4.servers[elected].restart()?;
    let mut answers = BTreeSet::new();
    wait_until(ELECTION, "the Sentinels make it a replica", || {
        let answered = s4.session().and_then(|mut session| s4.who(&mut session));
        answers.extend(answered.ok());
        s4.servers[elected].role().is_ok_and(|role| role == "slave")
    })?;
    assert!(answers.iter().all(|server| *server == now), "{now} is the primary, and {answers:?} answered");
    Ok(())
}

#[test]
fn a_server_that_loads_asks_for_a_password_or_hangs_says_so_and_gets_no_client() -> Result<()> {
    require!("redis-server", "redis-cli");
    let lab = S1::without_backends(&LabOptions::default())?;
    let host = hosts(&lab)[0];
    let rules = ["user default off", "user checks on >hunter2hunter2 +role +ping +auth"];
    let server = Redis::start(host, SERVED, &rules)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("password");
    let write = |text: &str| -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(&file, text)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        Ok(())
    };
    write("wrong")?;
    let backend = server.address.to_string();
    let pool = |redis: Value| json!({ "backends": [{ "address": backend, "name": name(0) }], "health": check(redis) });
    let node = lab.node_with(config(&lab, pool(json!({}))))?;
    let error = |words: &str| {
        let error = || Some(node.json(&["pools"]).ok()?[0]["backends"][0]["last_check"]["error"].as_str()?.to_owned());
        wait_until(PATIENCE, words, || error().is_some_and(|error| error.contains(words)))
    };
    error("it asks for a password")?;
    node.reload(config(&lab, pool(json!({ "username": "checks", "password_file": file }))))?;
    error("it does not accept the user and password")?;
    write("hunter2hunter2")?;
    wait_until(PATIENCE, "the right password is taken without a reload", || follows(&node, 0))?;
    server.signal(Signal::SIGSTOP)?;
    error("no answer within 100ms")?;
    wait_until(PATIENCE, "a server that hangs is lost", || !follows(&node, 0))?;
    server.signal(Signal::SIGCONT)?;
    wait_until(PATIENCE, "it is back", || follows(&node, 0))?;
    let config_text = std::fs::read_to_string(node.config_path())?;
    assert!(!config_text.contains("hunter2"));
    Ok(())
}

#[test]
fn checks_speak_tls_and_show_a_certificate_where_redis_asks_for_one() -> Result<()> {
    require!("redis-server", "openssl");
    let lab = S1::without_backends(&LabOptions::default())?;
    let leaf = lab.leaf("web")?;
    let server = Redis::start_tls(hosts(&lab)[0], SERVED, &leaf, &lab.ca(), &[])?;
    let backend = server.address.to_string();
    let pool = |tls: Value| json!({ "backends": [{ "address": backend, "name": name(0) }], "health": check(json!({ "tls": tls })) });
    let ca = lab.ca();
    let good =
        json!({ "ca_file": ca, "cert_file": leaf.certificate, "key_file": leaf.key, "server_name": "fiscalismia.com" });
    let node = lab.node_with(config(&lab, pool(good.clone())))?;
    wait_until(PATIENCE, "the primary is found", || follows(&node, 0))?;
    let error = |words: &str| {
        let error = || Some(node.json(&["pools"]).ok()?[0]["backends"][0]["last_check"]["error"].as_str()?.to_owned());
        wait_until(PATIENCE, words, || error().is_some_and(|error| error.contains(words)))
    };
    let mut other = good;
    other["server_name"] = "other.example.com".into();
    node.reload(config(&lab, pool(other)))?;
    error("not valid for name")?;
    let plain = json!({ "backends": [{ "address": backend, "name": name(0) }], "health": check(json!({})) });
    node.reload(config(&lab, plain))?;
    error("Redis at")?;
    Ok(())
}

#[test]
fn a_standby_takes_over_only_while_the_primary_is_down_where_the_order_is_written() -> Result<()> {
    require!("redis-server", "redis-cli");
    let lab = S1::without_backends(&LabOptions::default())?;
    let mut servers = Vec::new();
    for host in &hosts(&lab)[..2] {
        servers.push(Redis::start(host, SERVED, &["save \"\""])?);
    }
    let mut s4 = S4 { servers, lab };
    let pool = json!({
        "backends": [s4.address(0)],
        "fallback": [s4.address(1)],
        "on_down": "cut",
        "health": check(json!({ "role": "any" })),
    });
    let node = s4.node(pool)?;
    let (mut held, server) = s4.spliced(&node)?;
    assert_eq!(server, 0);
    s4.servers[0].kill()?;
    let up = |node: &Node, n: u64| node.status().is_ok_and(|status| status["pools"][0]["up"] == n);
    wait_until(PATIENCE, "the primary is down", || up(&node, 0))?;
    assert!(matches!(ending(&mut held, PATIENCE)?, Ending::Reset | Ending::Closed(_)));
    assert_eq!(s4.spliced(&node)?.1, 1, "the standby serves");
    s4.servers[0].restart()?;
    wait_until(PATIENCE, "the primary is back", || up(&node, 1))?;
    assert_eq!(s4.who(&mut s4.session()?)?, 0);
    Ok(())
}

#[test]
fn a_service_of_the_registry_follows_its_primary() -> Result<()> {
    require!("redis-server", "redis-cli");
    let s4 = S4::start()?;
    let dir = tempfile::tempdir()?;
    let registry = dir.path().join("registry.yaml");
    let backends: Vec<_> =
        s4.servers.iter().map(|s| format!("{{host: {}, port: {}}}", s.address.ip(), s.address.port())).collect();
    let text =
        format!("version: 1\ntcp:\n  redis-main:\n    port: {OPENED}\n    backends: [{}]\n", backends.join(", "));
    std::fs::write(&registry, text)?;
    let mut config = s4.lab.config();
    config["routes"] = json!([]);
    config["pools"] = json!({});
    config["providers"] =
        json!({ "nodes": { "registry": { "path": registry, "checks": { "redis-main": check(json!({})) } } } });
    let node = s4.lab.node_with(config)?;
    let follows = |n: usize| primary(&node).is_some_and(|primary| primary["backend"] == s4.address(n));
    wait_until(PATIENCE, "the primary is found", || follows(0))?;
    let (mut held, server) = s4.spliced(&node)?;
    assert_eq!(server, 0);
    s4.servers[1].promote()?;
    s4.servers[0].replicate(&s4.servers[1])?;
    assert_eq!(ending(&mut held, PATIENCE)?, Ending::Reset);
    wait_until(PATIENCE, "the new primary is found", || follows(1))?;
    assert_eq!(s4.who(&mut s4.session()?)?, 1);
    Ok(())
}
