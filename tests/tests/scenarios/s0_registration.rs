//! Backends register themselves: what is acknowledged is routable at once and survives everything, what is not allowed
//! changes nothing, and nobody else's connection notices.

mod bystanders;
mod kills;

use std::fs::Permissions;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ingress_tests::backend::Backend;
use ingress_tests::lab::LabOptions;
use ingress_tests::node::Node;
use ingress_tests::registration::{Answer, Caller};
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::{PATIENCE, wait_until};
use ingress_tests::wire::{Ending, UNRECOGNIZED_NAME, client_hello, ending};
use serde_json::{Value, json};
use tempfile::TempDir;

/// S1's network, whose backends register: the first of them with a server, and a token for each kind of caller.
struct S0 {
    lab: S1,
    tokens: TempDir,
}

const PLATFORM: &str = "platform-token-0123456789abcdef";
const SERVERS: &str = "servers-token-0123456789abcdef";
const API_PORT: u16 = 9876;

impl S0 {
    fn start() -> Result<Self> {
        let tokens = tempfile::Builder::new().prefix("ing-s0-").tempdir()?;
        for (name, token) in [("platform", PLATFORM), ("servers", SERVERS)] {
            ingress_tests::secret::write(&tokens.path().join(name), token)?;
        }
        Ok(Self { lab: S1::without_backends(&LabOptions { clients: 2, ..LabOptions::default() })?, tokens })
    }

    /// Where the API listens: the proxy's address in the backends' network.
    fn api(&self) -> SocketAddr {
        (self.lab.lab.private_address(&self.lab.lab.backends[0]), API_PORT).into()
    }

    fn config(&self) -> Value {
        let mut config = self.lab.config();
        config["routes"] = json!([{ "sni": "file.example.com", "pool": "fixed" }]);
        config["pools"] = json!({ "fixed": { "backends": ["172.24.0.200:443"] } });
        let token = |name: &str| self.tokens.path().join(name).display().to_string();
        config["providers"] = json!({ "self": { "registration": {
            "bind": format!(":{API_PORT}"),
            "device": "priv0",
            "sources": "172.24.0.0/29",
            "upstreams": ["172.24.0.0/16", "172.20.0.0/16"],
            "tokens": {
                "platform": { "file": token("platform") },
                "servers": { "file": token("servers"), "hosts": ["*.servers.example.com"] },
            },
            "templates": { "full": {
                "routes": [
                    { "path": "/auth/*", "port": 3000 },
                    { "path": "/api/*", "port": 18789 },
                    { "path": "/ws", "port": 18789 },
                    { "port": 8888 },
                ],
                "forward_auth": { "port": 3000 },
                "headers": { "X-Gateway-Token": "gateway" },
            } },
        } } });
        config
    }

    fn node(&self) -> Result<Node> {
        let node = self.lab.node_with(self.config())?;
        self.open()?;
        Ok(node)
    }

    /// Waits until the API can be reached.
    fn open(&self) -> Result<()> {
        let caller = self.platform();
        wait_until(PATIENCE, "the API answers", || caller.get("/health").is_ok_and(|answer| answer.status == 200))
    }

    /// The first backend, with the token for every host.
    fn platform(&self) -> Caller {
        let ns = self.lab.lab.backends[0].ns.clone();
        Caller { ns, api: self.api(), token: Some(PLATFORM.to_owned()) }
    }

    /// How a client that asks for `host` is met.
    fn meet(&self, host: &str) -> Result<Ending> {
        let mut client = self.lab.lab.clients[0].ns.connect(self.lab.public())?;
        client.write_all(&client_hello(Some(host))?)?;
        ending(&mut client, PATIENCE)
    }
}

fn simple(host: &str, backend: &str) -> Value {
    json!({ "host": host, "backend": backend })
}

fn refused(answer: &Answer, status: u16, field: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.content_type, "application/problem+json", "{answer:?}");
    assert_eq!(answer.body["status"], status, "{answer:?}");
    assert_eq!(answer.body.get("field").and_then(Value::as_str).unwrap_or_default(), field, "{answer:?}");
}

#[test]
fn registered_host_is_routable_at_once_and_a_deregistered_one_is_refused() -> Result<()> {
    require!("nginx", "curl");
    let s0 = S0::start()?;
    let leaf = s0.lab.leaf("web")?;
    let _web = Backend::nginx("web", &s0.lab.lab.backends[0], &leaf)?;
    let node = s0.node()?;
    let platform = s0.platform();
    let alert = Ending::Alert(UNRECOGNIZED_NAME);
    assert_eq!(s0.meet("fiscalismia.com")?, alert);

    let wish = json!({ "host": "fiscalismia.com", "backends": ["172.24.0.3:443"], "proxy_protocol": "v2" });
    for round in 0..20 {
        let answer = platform.post("/register", &wish)?;
        assert_eq!((answer.status, &answer.body["result"]), (200, &json!("created")), "{answer:?}");
        assert_eq!((&answer.body["served"], &answer.body["peers"]), (&json!(1), &json!([])), "{answer:?}");
        assert_eq!(s0.lab.curl("fiscalismia.com").get_json("/whoami")?["backend"], "web", "round {round}");
        assert_eq!(platform.post("/register", &wish)?.body["result"], "unchanged");
        let answer = platform.post("/deregister", &json!({ "host": "fiscalismia.com" }))?;
        assert_eq!((answer.status, &answer.body["result"]), (200, &json!("removed")), "{answer:?}");
        assert_eq!(s0.meet("fiscalismia.com")?, alert, "round {round}");
    }
    assert_eq!(platform.post("/deregister", &json!({ "host": "fiscalismia.com" }))?.body["result"], "absent");
    assert_eq!(
        node.metric("ingress_registration_requests_total", &["operation=\"register\"", "status=\"200\""])?,
        40.0
    );
    let audit = node
        .wait_for_log("who registered what", |line| line["result"] == "created" && line["host"] == "fiscalismia.com")?;
    assert_eq!((&audit["actor"], &audit["operation"]), (&json!("platform"), &json!("register")), "{audit}");
    assert!(!node.log().lines().iter().any(|line| line.to_string().contains(PLATFORM)), "a token is in the log");
    Ok(())
}

#[test]
fn what_is_not_allowed_is_named_by_its_field_and_changes_nothing() -> Result<()> {
    require!("curl");
    let s0 = S0::start()?;
    let node = s0.node()?;
    let platform = s0.platform();
    let servers = platform.with_token(SERVERS);
    let register = |caller: &Caller, host: &str, backend: &str| caller.post("/register", &simple(host, backend));
    assert_eq!(register(&platform, "a.servers.example.com", "172.24.0.3:443")?.status, 200);
    let before = (platform.get("/routes")?, node.status()?["config"]["generation"].clone());

    let nobody = Caller { token: None, ..platform.clone() };
    for caller in [&nobody, &platform.with_token("wrong-token-0123456789"), &platform.with_token("")] {
        refused(&register(caller, "b.example.com", "172.24.0.3:443")?, 401, "");
        refused(&caller.get("/routes")?, 401, "");
    }
    refused(&register(&servers, "b.example.com", "172.24.0.3:443")?, 403, "host");
    refused(&register(&servers, "a.servers.example.com", "172.24.0.3:444")?, 409, "host");
    refused(&servers.post("/deregister", &json!({ "host": "a.servers.example.com" }))?, 409, "host");
    refused(&register(&platform, "file.example.com", "172.24.0.3:443")?, 409, "host");
    let forbidden = [
        "127.0.0.1:8404",
        "169.254.169.254:80",
        "10.0.0.1:443",
        "172.24.0.1:9876",
        "172.24.0.1:443",
        "[::ffff:127.0.0.1]:22",
    ];
    for backend in forbidden {
        let answer = register(&platform, "b.example.com", backend)?;
        refused(&answer, 422, "backends[0]");
        assert_eq!(answer.body["code"], "forbidden_upstream", "{answer:?}");
    }
    refused(&register(&platform, "b.example.com", "app.internal:443")?, 422, "backend");
    refused(&platform.post("/register", &json!({ "host": "b.example.com" }))?, 422, "backends");
    refused(&platform.post("/heartbeat", &json!({ "host": "b.example.com" }))?, 404, "host");
    refused(&platform.curl("/register", &["--data", "no JSON"])?, 400, "");
    refused(&platform.curl("/register", &["--data", &"x".repeat(70_000)])?, 413, "");
    refused(&platform.get("/register")?, 405, "");
    refused(&platform.get("/nothing")?, 404, "");

    let after = (platform.get("/routes")?.body["routes"].clone(), node.status()?["config"]["generation"].clone());
    assert_eq!(after.0, before.0.body["routes"]);
    // The name of the file's route was asked for and taken back.
    assert_eq!(platform.get("/routes")?.body["routes"].as_array().map(Vec::len), Some(1));
    assert_eq!(servers.get("/routes")?.body["routes"].as_array().map(Vec::len), Some(1));

    // A token that is exchanged is good, and the old one is not, without a reload.
    let renewed = "platform-token-fedcba9876543210";
    std::fs::write(s0.tokens.path().join("platform"), renewed)?;
    wait_until(PATIENCE, "the new token is good", || {
        platform.with_token(renewed).get("/routes").is_ok_and(|answer| answer.status == 200)
    })?;
    refused(&platform.get("/routes")?, 401, "");

    // One that cannot be read lets nobody in, and is told.
    let (file, secret) = (s0.tokens.path().join("servers"), format!("{SERVERS}\n"));
    std::fs::remove_file(&file)?;
    let error = || node.status().map(|status| status["providers"][0]["last_error"].clone()).unwrap_or_default();
    wait_until(PATIENCE, "the missing token is told", || {
        error().as_str().is_some_and(|e| e.contains("token servers"))
    })?;
    refused(&servers.get("/routes")?, 401, "");

    // Nor does one that everybody on the host can read.
    std::fs::write(&file, secret)?;
    std::fs::set_permissions(&file, Permissions::from_mode(0o644))?;
    wait_until(PATIENCE, "the open token is told", || {
        error().as_str().is_some_and(|e| e.contains("run: chmod o-rwx"))
    })?;
    refused(&servers.get("/routes")?, 401, "");
    std::fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    wait_until(PATIENCE, "all is well again", || {
        error().is_null() && servers.get("/routes").is_ok_and(|a| a.status == 200)
    })
}

#[test]
fn only_the_private_device_and_its_networks_reach_the_api() -> Result<()> {
    require!("curl");
    let s0 = S0::start()?;
    let mut config = s0.config();
    config["interfaces"] = json!({ "pub0": { "side": "public" } });
    config["admission"] = json!({ "private_ports": [API_PORT] });
    let node = s0.lab.node_with(config)?;
    s0.open()?;
    let public = SocketAddr::from((s0.lab.lab.proxy.address, API_PORT));
    let outside = Caller { ns: s0.lab.lab.clients[0].ns.clone(), ..s0.platform() };
    outside.ns.ip_batch(&format!("route add 172.24.0.0/24 via {}\n", s0.lab.lab.proxy.address))?;
    for api in [public, s0.api()] {
        // Dropped, not refused: nobody learns that there is such a port.
        let connect = || TcpStream::connect_timeout(&api, Duration::from_millis(900));
        let met = outside.ns.exec(connect).err().map(|error| error.kind());
        assert_eq!(met, Some(std::io::ErrorKind::TimedOut), "{api} from the public side");
    }
    // Another private network than the device's.
    let other = &s0.lab.lab.backends[2];
    let api = (s0.lab.lab.private_address(other), API_PORT).into();
    assert!(Caller { ns: other.ns.clone(), api, ..outside.clone() }.get("/health").is_err(), "another device answers");
    // On the device, but not in `sources`.
    let stranger = &s0.lab.lab.backends[1];
    stranger.ns.ip_batch("addr add 172.24.0.99/24 dev eth0\n")?;
    let caller = Caller { ns: stranger.ns.clone(), ..s0.platform() };
    let from = |address: &str| caller.curl("/health", &["--interface", address]);
    assert!(from("172.24.0.99").is_err(), "a stranger was answered");
    assert_eq!(from("172.24.0.4")?.status, 200);
    assert_eq!(node.metric("ingress_registration_strangers_total", &[])?, 1.0);
    Ok(())
}

#[test]
fn full_shape_is_kept_for_http_and_shown_with_its_owner() -> Result<()> {
    require!("curl");
    let s0 = S0::start()?;
    let mut node = s0.node()?;
    let platform = s0.platform();
    let full = json!({
        "host": "s1.example.com", "template": "full", "address": "172.24.0.3", "secrets": { "gateway": "s3cret-gateway" },
    });
    let answer = platform.post("/register", &full)?;
    assert_eq!((answer.status, &answer.body["served"], &answer.body["needs_http"]), (200, &json!(0), &json!(4)));
    let leased = json!({ "host": "s2.example.com", "backend": "172.24.0.3:443", "ttl": 600 });
    assert_eq!(platform.post("/register", &leased)?.body["lease"]["ttl"], 600);

    for restarted in [false, true] {
        if restarted {
            node.terminate()?;
            node.launch()?;
            s0.open()?;
        }
        let status = node.status()?;
        assert_eq!(status["providers"][0]["needs_http"], 4, "{}", status["providers"]);
        let listed = platform.get("/routes")?.body["routes"].clone();
        assert_eq!((&listed[0]["template"], &listed[0]["owner"]), (&json!("full"), &json!("platform")), "{listed}");
        let routes = node.json(&["routes"])?;
        let of = |name: &str| routes.as_array().and_then(|all| all.iter().find(|r| r["route"] == name)).cloned();
        let leased = of("s2.example.com@self").context("the route is listed")?;
        assert_eq!((&leased["owner"], &leased["lease"]), (&json!("platform"), &json!(600)), "{leased}");
        let ws = of("s1.example.com@self/2").or_else(|| of("s1.example.com/2@self")).context("the part is listed")?;
        assert_eq!((&ws["state"], &ws["owner"]), (&json!("needs_http"), &json!("platform")), "{ws}");
        let shown = format!("{status}{listed}{routes}{}", node.verb(&["routes"])?);
        assert!(!shown.contains("s3cret-gateway"), "a secret is shown");
        assert!(shown.contains("self: platform, lease 600s"), "{shown}");
    }
    assert!(
        !node.log().lines().iter().any(|line| line.to_string().contains("s3cret-gateway")),
        "a secret is in the log"
    );
    Ok(())
}

#[test]
fn lease_without_heartbeat_ends_and_one_with_heartbeats_does_not() -> Result<()> {
    require!("curl");
    let s0 = S0::start()?;
    let node = s0.node()?;
    let platform = s0.platform();
    for host in ["quiet.example.com", "alive.example.com"] {
        let wish = json!({ "host": host, "backend": "172.24.0.3:443", "ttl": 2 });
        assert_eq!(platform.post("/register", &wish)?.status, 200);
    }
    let beat = json!({ "host": "alive.example.com" });
    let mut alive = platform.connect()?;
    let start = Instant::now();
    wait_until(PATIENCE, "the quiet one is refused", || {
        let beaten = alive.post("/heartbeat", &beat).is_ok_and(|answer| answer.status == 200);
        assert!(beaten, "the lease ended although it was renewed");
        s0.meet("quiet.example.com").is_ok_and(|end| end == Ending::Alert(UNRECOGNIZED_NAME))
    })?;
    assert!(start.elapsed() > Duration::from_millis(1500), "it ended after {:?}", start.elapsed());
    let listed = platform.get("/routes")?.body["routes"].clone();
    assert_eq!((listed[0]["host"].as_str(), listed.as_array().map(Vec::len)), (Some("alive.example.com"), Some(1)));
    assert_eq!(node.metric("ingress_registration_expired_total", &[])?, 1.0);
    Ok(())
}

#[test]
fn server_does_what_its_openapi_document_says() -> Result<()> {
    require!("curl", "schemathesis");
    let s0 = S0::start()?;
    let mut config = s0.config();
    // As much as can be of what it makes up shall be taken.
    config["providers"]["self"]["registration"]["upstreams"] = json!(["0.0.0.0/0", "::/0"]);
    let node = s0.lab.node_with(config)?;
    s0.open()?;
    let mut command = s0.lab.lab.backends[0].ns.command("schemathesis");
    command.args(["run", &format!("http://{}/openapi.json", s0.api())]);
    command.args(["--header", &format!("Authorization: Bearer {PLATFORM}"), "--seed", "1", "--max-examples", "50"]);
    // What is well-formed may still be refused: a backend outside of the allowed networks, another's host.
    command.args(["--exclude-checks", "positive_data_acceptance", "--no-color", "--generation-database", "none"]);
    command.args(["--phases", "examples,coverage,fuzzing", "--continue-on-failure"]);
    let output = command.current_dir(s0.tokens.path()).output().context("starting schemathesis")?;
    let words = String::from_utf8_lossy(&output.stdout);
    eprintln!("{words}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(node.status()?["ready"], true);
    Ok(())
}
