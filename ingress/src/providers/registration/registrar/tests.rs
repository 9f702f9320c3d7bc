//! The registrar with a control that only says "applied", and a real journal.

use std::path::Path;

use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::config::{self, ProviderConfig, ProviderSource};
use crate::providers::registration::order::What;
use crate::providers::registration::request;
use crate::route::{Applied, News, ProviderName, ProviderUpdate};

/// A registrar, and what control last heard of it.
struct Desk {
    registrar: Registrar,
    heard: watch::Receiver<Option<Arc<Contribution>>>,
    state: TempDir,
}

const CONFIG: &str = "
listeners: {tls: {bind: ':443'}}
providers:
  platform:
    registration:
      bind: 10.0.0.2:9876
      sources: 10.0.0.0/16
      upstreams: 10.0.0.0/16
      tokens: {one: {env: ONE}, two: {env: TWO}}
      max_registrations: 3
";

impl Desk {
    async fn open() -> Self {
        Self::at(tempfile::tempdir().expect("a directory")).await
    }

    async fn at(state: TempDir) -> Self {
        let config = config::parse(CONFIG, Path::new("ingress.yaml")).expect("a configuration");
        let name = ProviderName::new("platform");
        let provider: ProviderConfig = config.providers[&name].clone();
        let ProviderSource::Registration(api) = provider.source.clone() else { panic!("not a registration") };
        let snapshot = Arc::new(crate::control::compile(config, None));
        let (snapshots, watched) = watch::channel(snapshot);
        let (updates, mut news) = mpsc::channel::<ProviderUpdate>(8);
        let (told, heard) = watch::channel(None);
        tokio::spawn(async move {
            while let Some(update) = news.recv().await {
                if let News::Contribution(contribution) = update.news {
                    told.send_replace(Some(contribution));
                }
                let generation = snapshots.borrow().generation;
                update.done.map(|done| done.send(Applied { generation, refused: Arc::from([]) }));
            }
        });
        let outlet = Outlet::new(&name, &provider, state.path(), updates);
        let (journal, recovered) = Journal::open(state.path(), &name).expect("a journal");
        let settings = Settings::new(&provider, api);
        let journal = (journal, recovered.book);
        let seat = crate::peers::Mesh::new(None, state.path().into()).open("registrations/platform".into());
        let registrar =
            Registrar::start(settings, outlet, watched, Metrics::new(), journal, seat, None).await.expect("started");
        Self { registrar, heard, state }
    }

    /// The daemon is killed and started again.
    async fn restart(self) -> Self {
        let Self { registrar, state, .. } = self;
        drop(registrar);
        Self::at(state).await
    }

    async fn ask(&mut self, actor: &str, orders: Vec<What>) -> Vec<Result<serde_json::Value, u16>> {
        let (mut asked, mut answers) = (Vec::new(), Vec::new());
        for what in orders {
            let (answer, answered) = oneshot::channel();
            asked.push(Order { actor: actor.into(), what, answer });
            answers.push(answered);
        }
        self.registrar.take(asked).await.expect("control is there");
        let mut read = Vec::new();
        for answer in answers {
            let answer = answer.await.expect("every order is answered");
            let answer = answer.map(|answer| serde_json::to_value(answer).expect("JSON"));
            read.push(answer.map_err(|problem| problem.status().as_u16()));
        }
        read
    }

    async fn one(&mut self, actor: &str, what: What) -> Result<serde_json::Value, u16> {
        self.ask(actor, vec![what]).await.remove(0)
    }

    /// Names that control was told.
    fn served(&self) -> Vec<String> {
        let contribution = self.heard.borrow().clone().expect("control was told something");
        contribution.routes().iter().map(|route| route.name.to_string()).collect()
    }
}

fn register(host: &str, backend: &str) -> What {
    let body = serde_json::json!({ "host": host, "backend": backend });
    What::Register(request::register(body.to_string().as_bytes()).expect("a wish"))
}

fn leased(host: &str, ttl: u32) -> What {
    let body = serde_json::json!({ "host": host, "backend": "10.0.1.1:1", "ttl": ttl });
    What::Register(request::register(body.to_string().as_bytes()).expect("a wish"))
}

fn host(name: &str) -> SniPattern {
    SniPattern::parse(name).expect("a host")
}

#[tokio::test]
async fn what_is_acknowledged_is_served_and_survives_a_restart() {
    let mut desk = Desk::open().await;
    let answer = desk.one("one", register("a.example.com", "10.0.1.1:1")).await.expect("registered");
    assert_eq!((&answer["result"], &answer["served"]), (&"created".into(), &1.into()));
    assert_eq!(answer["peers"], serde_json::json!([]));
    assert_eq!(desk.served(), ["a.example.com@platform"]);
    desk.one("one", register("b.example.com", "10.0.1.1:1")).await.expect("registered");
    let removed = desk.one("one", What::Deregister(host("a.example.com"))).await.expect("removed");
    assert_eq!(removed["result"], "removed");
    let desk = desk.restart().await;
    assert_eq!(desk.served(), ["b.example.com@platform"]);
}

#[tokio::test]
async fn orders_for_one_host_keep_their_order_and_all_are_answered() {
    let mut desk = Desk::open().await;
    let orders = vec![
        register("a.example.com", "10.0.1.1:1"),
        register("b.example.com", "10.0.1.1:1"),
        register("a.example.com", "10.0.1.1:2"),
        What::Deregister(host("b.example.com")),
        What::Deregister(host("a.example.com")),
        register("a.example.com", "10.0.1.1:3"),
        register("a.example.com", "10.0.1.1:3"),
    ];
    let answers = desk.ask("one", orders).await;
    let results: Vec<_> =
        answers.iter().map(|a| a.as_ref().expect("good")["result"].as_str().expect("a word")).collect();
    assert_eq!(results, ["created", "created", "replaced", "removed", "removed", "created", "unchanged"]);
    assert_eq!(desk.served(), ["a.example.com@platform"]);
    let list = desk.one("one", What::List).await.expect("listed");
    assert_eq!(list["routes"][0]["backends"][0]["address"], "10.0.1.1:3");
}

#[tokio::test]
async fn another_token_a_forbidden_backend_and_a_full_book_change_nothing() {
    let mut desk = Desk::open().await;
    for name in ["a", "b", "c"] {
        desk.one("one", register(&format!("{name}.example.com"), "10.0.1.1:1")).await.expect("registered");
    }
    assert_eq!(desk.one("two", register("a.example.com", "10.0.1.1:2")).await, Err(409));
    assert_eq!(desk.one("two", What::Deregister(host("a.example.com"))).await, Err(409));
    assert_eq!(desk.one("two", What::Heartbeat(host("a.example.com"))).await, Err(409));
    assert_eq!(desk.one("one", register("a.example.com", "169.254.169.254:80")).await, Err(422));
    assert_eq!(desk.one("one", register("d.example.com", "10.0.1.1:2")).await, Err(507));
    assert_eq!(desk.one("one", What::Heartbeat(host("d.example.com"))).await, Err(404));
    let before = desk.one("one", What::List).await.expect("listed");
    let mut desk = desk.restart().await;
    assert_eq!(desk.one("one", What::List).await.expect("listed")["routes"], before["routes"]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_without_heartbeats_and_not_because_of_a_restart() {
    let mut desk = Desk::open().await;
    desk.one("one", leased("a.example.com", 10)).await.expect("registered");
    desk.one("one", leased("b.example.com", 10)).await.expect("registered");
    tokio::time::advance(std::time::Duration::from_secs(9)).await;
    let beat = desk.one("one", What::Heartbeat(host("a.example.com"))).await.expect("renewed");
    assert_eq!(beat["lease"]["expires_in"], 10);
    // A restart gives every lease its whole time again.
    let mut desk = desk.restart().await;
    tokio::time::advance(std::time::Duration::from_secs(9)).await;
    desk.registrar.expire().await.expect("control is there");
    assert_eq!(desk.served().len(), 2);
    desk.one("one", What::Heartbeat(host("a.example.com"))).await.expect("renewed");
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    desk.registrar.expire().await.expect("control is there");
    assert_eq!(desk.served(), ["a.example.com@platform"]);
    let desk = desk.restart().await;
    assert_eq!(desk.served(), ["a.example.com@platform"], "what has ended does not come back");
}

#[tokio::test]
async fn what_the_disk_does_not_take_is_not_acknowledged_and_not_served() {
    let mut desk = Desk::open().await;
    desk.one("one", register("a.example.com", "10.0.1.1:1")).await.expect("registered");
    let directory = desk.state.path().join("registrations");
    let aside = desk.state.path().join("aside");
    std::fs::rename(&directory, &aside).expect("moved");
    std::fs::remove_file(aside.join("platform.journal")).expect("removed");
    std::fs::write(&directory, "in the way").expect("an obstacle");
    assert_eq!(desk.one("one", register("b.example.com", "10.0.1.1:1")).await, Err(503));
    assert_eq!(desk.one("one", What::Deregister(host("a.example.com"))).await, Err(503));
    assert_eq!(desk.one("one", What::Health).await, Err(503));
    assert_eq!(desk.served(), ["a.example.com@platform"]);

    std::fs::remove_file(&directory).expect("removed");
    std::fs::rename(&aside, &directory).expect("moved back");
    desk.one("one", register("b.example.com", "10.0.1.1:1")).await.expect("the disk takes it again");
    desk.one("one", What::Health).await.expect("all is well again");
    let desk = desk.restart().await;
    assert_eq!(desk.served(), ["a.example.com@platform", "b.example.com@platform"]);
}
