//! All of it, with a receiver on loopback that does as it is told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::balance::fixture;
use crate::clock;
use crate::config::{Config, HookTarget, WebhookBody, WebhookConfig, WebhookUrl};
use crate::events::{EventFilter, Events};
use crate::route::RouteName;

/// One request; our client writes names of headers in lower case.
#[derive(Debug)]
struct Request {
    head: String,
    raw: String,
    body: Value,
}

/// Answers with these status lines in turn, and then with 200.
struct Receiver {
    address: SocketAddr,
    requests: mpsc::UnboundedReceiver<Request>,
}

impl Receiver {
    async fn start(answers: &[&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (say, requests) = mpsc::unbounded_channel();
        let mut answers: VecDeque<&str> = answers.iter().copied().collect();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answers.pop_front().unwrap_or("200 OK");
                let Some(request) = serve(stream, answer).await else { continue };
                if say.send(request).is_err() {
                    return;
                }
            }
        });
        Self { address, requests }
    }

    async fn next(&mut self) -> Request {
        let next = tokio::time::timeout(Duration::from_secs(20), self.requests.recv()).await;
        next.expect("a message in time").expect("it runs")
    }

    /// Nothing but what was taken has come.
    fn is_silent(&mut self) -> bool {
        self.requests.try_recv().is_err()
    }
}

async fn serve(mut stream: TcpStream, answer: &str) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.ok()?;
    let raw = String::from_utf8(body).ok()?;
    Some(Request { head, body: serde_json::from_str(&raw).ok()?, raw })
}

impl Request {
    fn header(&self, name: &str) -> &str {
        let prefix = format!("{name}: ");
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .unwrap_or_else(|| panic!("{name} in {}", self.head))
    }
}

fn webhook(address: SocketAddr) -> HookConfig {
    HookConfig {
        target: HookTarget::Webhook(WebhookConfig {
            url: WebhookUrl::Plain(format!("http://{address}/hook")),
            secret: None,
            token_file: None,
            ca_file: None,
            timeout: Duration::from_secs(10),
            body: WebhookBody::Event,
        }),
        filter: EventFilter::default(),
        gather: Duration::from_millis(20),
        retry_for: Duration::from_secs(600),
        queue: 100,
    }
}

/// Running hooks, and all that moves them.
struct Lab {
    hooks: Hooks,
    events: Events,
    publish: watch::Sender<Arc<Snapshot>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Lab {
    fn start<const N: usize>(hooks: [(&str, HookConfig); N]) -> Self {
        let (publish, snapshots) = watch::channel(snapshot(hooks));
        let (stop, events) = (CancellationToken::new(), Events::new());
        let hooks = Hooks::new(snapshots, stop.clone());
        let task = tokio::spawn(hooks.clone().run(events.listen()));
        Self { hooks, events, publish, stop, task }
    }

    fn added(&self, route: &str) {
        self.events.emit(EventKind::RouteAdded, [Item::Route { route: RouteName::new(route) }]);
    }

    fn status(&self, name: &str) -> HookStatus {
        self.hooks.status().into_iter().find(|hook| hook.name == name).expect("it is there")
    }

    async fn wait(&self, name: &str, what: &str, condition: impl Fn(&HookStatus) -> bool) {
        let holds = || self.hooks.status().iter().any(|hook| hook.name == name && condition(hook));
        assert!(clock::comes_true(async || holds()).await, "{what}: {:?}", self.hooks.status());
    }
}

fn snapshot<const N: usize>(hooks: [(&str, HookConfig); N]) -> Arc<Snapshot> {
    let Snapshot { generation, published, config, routes, pools, awaited } =
        Arc::into_inner(fixture::snapshot([])).expect("the only one");
    let hooks = hooks.into_iter().map(|(name, hook)| (name.to_owned(), hook)).collect();
    let config = Arc::new(Config { hooks, ..Config::clone(&config) });
    Arc::new(Snapshot { generation, published, config, routes, pools, awaited })
}

#[tokio::test]
async fn a_message_that_fails_comes_again_under_its_own_id_and_the_next_one_after_it() {
    let mut receiver = Receiver::start(&["503 Service Unavailable", "429 Too Many Requests"]).await;
    let lab = Lab::start([("chat", webhook(receiver.address))]);
    lab.added("a.example.com");
    let first = receiver.next().await;
    lab.wait("chat", "the failure shows", |hook| hook.last_error.is_some()).await;
    assert_eq!(lab.status("chat").last_error.as_deref(), Some("answered 503 Service Unavailable"));
    lab.events.emit(EventKind::DaemonStopping, [Item::Daemon { version: "1" }]);
    let (second, third, fourth) = (receiver.next().await, receiver.next().await, receiver.next().await);
    let id = first.header("webhook-id");
    assert_eq!([second.header("webhook-id"), third.header("webhook-id")], [id, id]);
    assert_eq!((&first.body["id"], &first.body["event"]), (&json!(id), &json!("route_added")));
    assert_eq!(first.body["items"], json!([{ "route": "a.example.com" }]));
    assert_eq!(first.body, third.body, "the same in each attempt");
    assert_eq!(fourth.body["event"], "daemon_stopping");
    lab.wait("chat", "all is well", |hook| hook.delivered_total == 2 && hook.waiting == 0).await;
    let HookStatus { retried_total, failed_total, last_error, state, .. } = lab.status("chat");
    assert_eq!((retried_total, failed_total, last_error, state.as_str()), (2, 0, None, HookStatus::GOOD));
}

#[tokio::test]
async fn a_signature_can_be_checked_and_an_unread_secret_sends_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("secret");
    let mut receiver = Receiver::start(&[]).await;
    let mut config = webhook(receiver.address);
    let HookTarget::Webhook(target) = &mut config.target else { panic!("a webhook") };
    target.secret = Some(crate::config::TokenSource::File(file.clone()));
    let lab = Lab::start([("chat", config)]);
    let missing = lab.hooks.clone().test("chat".into()).await.expect_err("there is no secret");
    assert!(missing.contains("No such file") && missing.contains("secret"), "{missing}");
    assert!(receiver.is_silent());
    std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("its mode");
    let open = lab.hooks.clone().test("chat".into()).await.expect_err("everybody can read it");
    assert!(open.contains("can be read by everybody") && open.contains("chmod o-rwx"), "{open}");
    assert!(receiver.is_silent());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    let tested = lab.hooks.clone().test("chat".into()).await.expect("delivered");
    let request = receiver.next().await;
    assert_eq!((request.header("webhook-id"), &request.body["event"]), (tested.id.as_str(), &json!("test")));
    let timestamp: u64 = request.header("webhook-timestamp").parse().expect("a number");
    let secrets = signature::secrets("0123456789abcdef0123456789abcdef").expect("good");
    let expected = |timestamp| signature::sign(&secrets, &tested.id, timestamp, &request.raw);
    assert_eq!(request.header("webhook-signature"), expected(timestamp));
    assert_ne!(request.header("webhook-signature"), expected(timestamp + 1), "the time is signed as well");
    assert_eq!(lab.status("chat").delivered_total, 0, "a test counts nowhere");
}

#[tokio::test]
async fn a_receiver_that_is_dead_costs_its_own_queue_and_nobody_else_s() {
    let mut good = Receiver::start(&[]).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let silent = dead.local_addr().expect("bound");
    let mut never = webhook(silent);
    never.queue = 2;
    let lab = Lab::start([("dead", never), ("good", webhook(good.address))]);
    for n in 0..6 {
        let kind = if n % 2 == 0 { EventKind::RouteAdded } else { EventKind::RouteRemoved };
        lab.events.emit(kind, [Item::Route { route: RouteName::new(format!("r{n}")) }]);
    }
    for n in 0..6 {
        assert_eq!(good.next().await.body["items"][0]["route"], format!("r{n}"));
    }
    lab.wait("dead", "its queue is full", |hook| hook.dropped_total == 4 && hook.waiting == 2).await;
    assert_eq!(lab.status("good").dropped_total, 0);
}

#[tokio::test]
async fn a_reload_keeps_what_waits_and_sends_it_to_the_new_place() {
    let mut receiver = Receiver::start(&[]).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound");
    let lab = Lab::start([("chat", webhook(nobody))]);
    lab.added("a.example.com");
    lab.wait("chat", "the place is dead", |hook| hook.retried_total == 1).await;
    lab.publish.send_replace(snapshot([("chat", webhook(receiver.address))]));
    assert_eq!(receiver.next().await.body["items"][0]["route"], "a.example.com");
    lab.publish.send_replace(snapshot([]));
    lab.events.emit(EventKind::DaemonStarted, [Item::Daemon { version: "1" }]);
    assert!(clock::comes_true(async || lab.hooks.status().is_empty()).await, "it is gone from the status");
    assert!(receiver.is_silent(), "a hook that is gone is told nothing");
}

#[tokio::test]
async fn a_stopping_daemon_says_its_last_words_and_waits_for_no_dead_receiver() {
    let mut good = Receiver::start(&[]).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let silent = dead.local_addr().expect("bound");
    let mut slow = webhook(good.address);
    slow.gather = Duration::from_secs(3600);
    let lab = Lab::start([("dead", webhook(silent)), ("good", slow)]);
    lab.events.emit(EventKind::DaemonStopping, [Item::Daemon { version: "1" }]);
    lab.stop.cancel();
    let stopped = tokio::time::timeout(Duration::from_secs(20), lab.task).await;
    stopped.expect("within its time").expect("no panic");
    assert_eq!(good.next().await.body["event"], "daemon_stopping");
}
