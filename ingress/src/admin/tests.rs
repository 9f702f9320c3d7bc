//! Through real sockets, as operators and scrapers come in.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

use super::fixture::{Daemon, snapshot};
use super::status::Status;
use super::*;
use crate::clock;
use crate::config::{AdminHttpConfig, BasicAuthEnv};

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

async fn exchange(mut io: impl AsyncRead + AsyncWrite + Unpin, head: &str, body: &str) -> Answer {
    let request = format!(
        "{head}\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    io.write_all(request.as_bytes()).await.expect("send");
    let mut raw = Vec::new();
    timeout(DEADLINE, io.read_to_end(&mut raw)).await.expect("an answer in time").expect("receive");
    let text = String::from_utf8(raw).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").expect("a whole head");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

async fn unix(daemon: &Daemon, request: &str, body: &str) -> Answer {
    let io = UnixStream::connect(&daemon.socket).await.expect("connect");
    exchange(io, &format!("{request} HTTP/1.1"), body).await
}

async fn tcp(at: SocketAddr, request: &str, headers: &str) -> Answer {
    let io = TcpStream::connect(at).await.expect("connect");
    exchange(io, &format!("{request} HTTP/1.1{headers}"), "").await
}

/// A free port; the kernel does not give it away again soon.
fn free_address() -> SocketAddr {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    probe.local_addr().expect("address")
}

async fn http_daemon(auth: Option<BasicAuthEnv>) -> (Daemon, SocketAddr) {
    let at = free_address();
    let daemon = Daemon::start(Some(AdminHttpConfig { bind: vec![at], basic_auth: auth }));
    wait_until("the address answers", async || TcpStream::connect(at).await.is_ok()).await;
    (daemon, at)
}

async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    assert!(clock::comes_true(condition).await, "still waiting for: {what}");
}

#[tokio::test]
async fn status_says_what_counts_and_reads_back_as_it_was_written() {
    let daemon = Daemon::start(None);
    daemon.config.send_modify(|config| config.last_error = Some("line 3: unknown key".into()));
    let status: Status = serde_json::from_value(unix(&daemon, "GET /v1/status", "").await.json()).expect("a Status");
    assert!(status.ready);
    assert_eq!(status.config.last_error.as_deref(), Some("line 3: unknown key"));
    assert_eq!((status.connections.open_kernel, status.connections.open_relay), (1, 2));
    assert_eq!(status.connections.share_handed_off_of_eligible, Some(0.5));
    assert_eq!(status.listeners[0].counts.refused["unknown_sni"], 1);
    assert_eq!(status.listeners[1].error.as_deref(), Some("192.0.2.1:8443: address in use"));
    assert_eq!((status.pools[0].name.as_str(), status.pools[0].backends), ("app", 1));
}

#[tokio::test]
async fn flows_come_from_kernel_and_relay_youngest_first_and_filtered() {
    let daemon = Daemon::start(None);
    let ids = async |path: &str| -> Vec<u64> {
        let answer = unix(&daemon, &format!("GET {path}"), "").await.json();
        let flows = answer["flows"].as_array().expect("a list").clone();
        flows.iter().filter_map(|flow| flow["id"].as_u64()).collect()
    };
    assert_eq!(ids("/v1/flows").await, [3, 2, 1]);
    assert_eq!(ids("/v1/flows?sni=app.example.com").await, [3, 1]);
    assert_eq!(ids("/v1/flows?sni=app.example.com&mode=kernel").await, [1]);
    assert_eq!(ids("/v1/flows?limit=1").await, [3]);
    assert_eq!(ids("/v1/flows?client=192.0.2.101").await, [0u64; 0]);
}

#[tokio::test]
async fn a_misspelt_filter_is_refused_instead_of_matching_everything() {
    let mut daemon = Daemon::start(None);
    let list = unix(&daemon, "GET /v1/flows?listner=public", "").await;
    assert_eq!(list.status, 400);
    assert!(list.json()["error"].as_str().is_some_and(|e| e.contains("listner")), "{}", list.body);
    let kill = unix(&daemon, "POST /v1/flows/kill", r#"{"bakcend": "a"}"#).await;
    assert_eq!(kill.status, 422, "{}", kill.body);
    assert!(daemon.commands.try_recv().is_err(), "nothing was cut");
}

#[tokio::test]
async fn an_empty_kill_needs_all() {
    let mut daemon = Daemon::start(None);
    let refused = unix(&daemon, "POST /v1/flows/kill", "{}").await;
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("all=true"), "{}", refused.body);
    assert!(daemon.commands.try_recv().is_err(), "nothing was cut");
}

#[tokio::test]
async fn a_kill_cuts_what_its_filter_says_and_answers_how_many() {
    let mut daemon = Daemon::start(None);
    let socket = UnixStream::connect(&daemon.socket).await.expect("connect");
    let kill = tokio::spawn(exchange(socket, "POST /v1/flows/kill HTTP/1.1", r#"{"pool": "app"}"#));
    let FlowCommand::Cut { filter, reason, done } = daemon.commands.recv().await.expect("a command");
    assert_eq!((filter.pool.as_deref(), filter.mode), (Some("app"), None));
    assert_eq!(reason, crate::l4::outcome::EndReason::Killed);
    done.expect("somebody waits").send(3).expect("still waits");
    assert_eq!(kill.await.expect("no panic").json(), json!({ "killed": 3 }));
}

#[tokio::test]
async fn a_refused_reload_says_why() {
    let mut daemon = Daemon::start(None);
    let socket = UnixStream::connect(&daemon.socket).await.expect("connect");
    let reload = tokio::spawn(exchange(socket, "POST /v1/reload HTTP/1.1", "{}"));
    let ReloadRequest { done } = daemon.reloads.recv().await.expect("a request");
    done.send(Err("ingress.yaml:3:1: unknown key".into())).expect("still waits");
    let answer = reload.await.expect("no panic");
    assert_eq!((answer.status, answer.json()), (422, json!({ "error": "ingress.yaml:3:1: unknown key" })));
}

#[tokio::test]
async fn the_configuration_in_use_can_be_read_back() {
    let daemon = Daemon::start(None);
    assert_eq!(unix(&daemon, "GET /v1/config", "").await.body, "listeners: {}\n");
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused() {
    let daemon = Daemon::start(None);
    let body = format!(r#"{{"pool": "{}"}}"#, "x".repeat(1024 * 1024));
    assert_eq!(unix(&daemon, "POST /v1/flows/kill", &body).await.status, 413);
}

#[tokio::test]
async fn headers_above_the_limit_are_refused() {
    let (_daemon, at) = http_daemon(None).await;
    let answer = tcp(at, "GET /healthz", &format!("\r\nX-Long: {}", "x".repeat(20_000))).await;
    assert_eq!(answer.status, 431);
}

#[tokio::test]
async fn metrics_are_open_and_whole() {
    let (_daemon, at) = http_daemon(Some(unset_variables())).await;
    let answer = tcp(at, "GET /metrics", "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: application/openmetrics-text"), "{}", answer.head);
    for line in [
        r#"ingress_connections_total{listener="public"} 4"#,
        r#"ingress_relays_total{listener="public",reason="window"} 1"#,
        r#"ingress_listener_up{listener="spare"} 0"#,
        r#"ingress_backend_up{pool="app",backend="192.0.2.7:443"} 1"#,
        "ingress_kernel_active 1",
        "# EOF",
    ] {
        assert!(answer.body.lines().any(|l| l == line), "{line} is missing in\n{}", answer.body);
    }
}

#[tokio::test]
async fn the_dashboard_without_its_password_variables_is_closed_and_says_which() {
    let (_daemon, at) = http_daemon(Some(unset_variables())).await;
    for path in ["/dashboard", "/dashboard/api/overview", "/dashboard/app.js"] {
        let answer = tcp(at, &format!("GET {path}"), "\r\nAuthorization: Basic Og==").await;
        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.body.contains("INGRESS_TEST_UNSET_PASSWORD"), "{}", answer.body);
    }
}

#[tokio::test]
async fn the_dashboard_asks_for_the_password_and_knows_who_came() {
    let (variables, login) = set_variables();
    let (_daemon, at) = http_daemon(Some(variables)).await;
    for path in ["/dashboard", "/dashboard/api/overview", "/dashboard/api/flows"] {
        let refused = tcp(at, &format!("GET {path}"), "").await;
        assert_eq!(refused.status, 401, "{path}");
        assert!(refused.head.contains("www-authenticate: basic realm="), "{}", refused.head);
    }
    let overview = tcp(at, "GET /dashboard/api/overview", &login).await;
    assert_eq!(overview.status, 200);
    let overview = overview.json();
    assert_eq!(overview["session"]["user"], env!("CARGO_PKG_NAME"));
    assert_eq!(overview["connections"]["open_relay"], 2);
    let flows = tcp(at, "GET /dashboard/api/flows?mode=relay", &login).await.json();
    assert_eq!((&flows["matching"], &flows["all"], &flows["rows"][0]["id"]), (&json!(1), &json!(3), &json!(3)));
}

#[tokio::test]
async fn without_a_password_nobody_sees_who_is_connected() {
    let (_daemon, at) = http_daemon(None).await;
    let flows = tcp(at, "GET /dashboard/api/flows", "").await;
    assert_eq!(flows.status, 403);
    assert!(flows.body.contains("admin.http.basic_auth"), "{}", flows.body);
    assert!(!flows.body.contains("192.0.2.100"), "{}", flows.body);
    assert_eq!(tcp(at, "GET /dashboard/api/overview", "").await.json()["session"]["user"], Value::Null);
}

#[tokio::test]
async fn lists_are_searched_here_and_come_in_pages() {
    let (_daemon, at) = http_daemon(None).await;
    let pools = tcp(at, "GET /dashboard/api/pools?q=192.0.2.7", "").await.json();
    assert_eq!((&pools["matching"], &pools["rows"][0]["name"]), (&json!(1), &json!("app")));
    assert_eq!(tcp(at, "GET /dashboard/api/pools?q=nowhere", "").await.json()["rows"], json!([]));
    let routes = tcp(at, "GET /dashboard/api/routes?state=unserved&page=7", "").await.json();
    assert_eq!((&routes["page"], &routes["pages"]), (&json!(0), &json!(1)));
    for typo in ["routes?sate=down", "pools?state=dwon", "flows?oder=newest"] {
        let refused = tcp(at, &format!("GET /dashboard/api/{typo}"), "").await;
        assert_eq!(refused.status, 400, "{typo}: {}", refused.body);
    }
}

#[tokio::test]
async fn an_order_needs_the_password_our_own_page_and_its_token() {
    let (variables, login) = set_variables();
    let (_daemon, at) = http_daemon(Some(variables)).await;
    let token = tcp(at, "GET /dashboard/api/overview", &login).await.json()["session"]["token"].clone();
    let token = format!("\r\nX-Ingress-Token: {}", token.as_str().expect("a token"));
    let drain = async |backend: &str, headers: &str| {
        let io = TcpStream::connect(at).await.expect("connect");
        let path = format!("POST /dashboard/api/pools/app/backends/{backend} HTTP/1.1{headers}");
        exchange(io, &path, r#"{"state": "drain"}"#).await
    };
    let backend = "192.0.2.7%3A443";
    // `exchange` calls itself `test`.
    let own = "\r\nOrigin: http://test";
    let done = drain(backend, &format!("{login}{token}{own}")).await;
    assert_eq!(done.status, 200, "{}", done.body);
    let by = concat!(env!("CARGO_PKG_NAME"), " (127.0.0.1, dashboard)");
    assert_eq!(done.json()["change"]["by"], by, "{}", done.body);
    assert_eq!(drain("nobody", &format!("{login}{token}{own}")).await.status, 404);
    assert_eq!(drain(backend, &format!("{token}{own}")).await.status, 401);
    assert_eq!(drain(backend, &format!("{login}{own}")).await.status, 403);
    assert_eq!(drain(backend, &format!("{login}{token}")).await.status, 403);
    assert_eq!(drain(backend, &format!("{login}{token}\r\nOrigin: http://evil.example.com")).await.status, 403);
}

#[tokio::test]
async fn without_a_password_nothing_can_be_ordered() {
    let (_daemon, at) = http_daemon(None).await;
    assert_eq!(tcp(at, "GET /dashboard/api/overview", "").await.json()["session"]["token"], Value::Null);
    let headers = "\r\nOrigin: http://test\r\nX-Ingress-Token: ";
    let refused = tcp(at, "POST /dashboard/api/pools/app/backends/192.0.2.7%3A443", headers).await;
    assert_eq!(refused.status, 403);
    assert!(refused.body.contains("read-only"), "{}", refused.body);
}

#[tokio::test]
async fn old_addresses_lead_to_the_dashboard() {
    let (_daemon, at) = http_daemon(None).await;
    for path in ["/", "/stats"] {
        let moved = tcp(at, &format!("GET {path}"), "").await;
        assert!(moved.head.contains("location: dashboard"), "{path}: {}", moved.head);
    }
}

#[tokio::test]
async fn the_page_may_run_its_own_files_only_and_needs_no_inline_code() {
    let (_daemon, at) = http_daemon(None).await;
    let page = tcp(at, "GET /dashboard", "").await;
    assert!(page.head.contains("content-security-policy: default-src 'none'"), "{}", page.head);
    assert!(!page.head.contains("unsafe"), "{}", page.head);
    for inline in ["<script>", "<style", " style=", " onclick=", " onload="] {
        assert!(!page.body.contains(inline), "{inline} in the page");
    }
    let linked = page.body.split(['"', '\'']).filter(|part| part.starts_with("dashboard/"));
    let linked: Vec<&str> = linked.collect();
    assert!(linked.len() >= 5, "styles, script and icon: {linked:?}");
    for path in linked {
        assert_eq!(tcp(at, &format!("GET /{path}"), "").await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn nothing_on_tcp_changes_the_daemon() {
    let (_daemon, at) = http_daemon(None).await;
    for request in ["POST /v1/reload", "POST /v1/flows/kill", "GET /v1/status", "GET /v1/config"] {
        assert_eq!(tcp(at, request, "").await.status, 404, "{request}");
    }
}

#[tokio::test]
async fn readiness_ends_with_draining_and_liveness_does_not() {
    let (daemon, at) = http_daemon(None).await;
    assert_eq!(tcp(at, "GET /readyz", "").await.status, 200);
    daemon.draining.cancel();
    let draining = tcp(at, "GET /readyz", "").await;
    assert_eq!(draining.status, 503);
    assert!(draining.body.contains("draining"), "{}", draining.body);
    assert_eq!(tcp(at, "GET /healthz", "").await.status, 200);
}

#[tokio::test]
async fn a_reload_moves_the_http_address() {
    let (daemon, old) = http_daemon(None).await;
    let new = free_address();
    daemon.snapshots.send_replace(snapshot(Some(AdminHttpConfig { bind: vec![new], basic_auth: None })));
    wait_until("the new address answers", async || TcpStream::connect(new).await.is_ok()).await;
    let refused = TcpStream::connect(old).await.expect_err("the old address is closed");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_taken_http_address_is_shown_and_the_socket_goes_on() {
    let holder = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let at = holder.local_addr().expect("address");
    let daemon = Daemon::start(Some(AdminHttpConfig { bind: vec![at], basic_auth: None }));
    let admin = daemon.admin.clone();
    wait_until("the error shows", async || admin.status().http.iter().any(|http| http.error.is_some())).await;
    assert_eq!(unix(&daemon, "GET /v1/status", "").await.status, 200);
}

#[tokio::test]
async fn a_crowd_on_tcp_does_not_keep_an_operator_out() {
    let (daemon, at) = http_daemon(None).await;
    let mut crowd = Vec::new();
    for _ in 0..80 {
        crowd.push(TcpStream::connect(at).await.expect("connect"));
    }
    assert_eq!(unix(&daemon, "GET /v1/status", "").await.status, 200);
    drop(crowd);
    assert_eq!(tcp(at, "GET /healthz", "").await.status, 200);
}

#[tokio::test]
async fn shutdown_closes_the_doors_and_removes_the_socket() {
    let (daemon, at) = http_daemon(None).await;
    daemon.shutdown.cancel();
    wait_until("the socket's file is gone", async || !daemon.socket.exists()).await;
    wait_until("the port is closed", async || TcpStream::connect(at).await.is_err()).await;
}

/// Variables that every test run has, and the header of who knows their values.
fn set_variables() -> (BasicAuthEnv, String) {
    use base64::Engine;
    let [(user, name), (password, secret)] = ["CARGO_PKG_NAME", "CARGO_PKG_VERSION"]
        .map(|variable| (variable.to_owned(), std::env::var(variable).expect("cargo sets it")));
    let login = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{secret}"));
    let variables = BasicAuthEnv { username_env: user, password_env: password };
    (variables, format!("\r\nAuthorization: Basic {login}"))
}

fn unset_variables() -> BasicAuthEnv {
    let variable = |what: &str| format!("INGRESS_TEST_UNSET_{what}");
    BasicAuthEnv { username_env: variable("USER"), password_env: variable("PASSWORD") }
}

const DEADLINE: Duration = Duration::from_secs(10);
