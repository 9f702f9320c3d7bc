//! What is kept for the next start, and for how long.

use super::*;
use crate::config::{OnDown, ProviderSource, RegistryConfig};

fn config(last_good: Option<Duration>) -> ProviderConfig {
    ProviderConfig {
        source: ProviderSource::Registry(RegistryConfig {
            path: "/r.yaml".into(),
            bind: Vec::new(),
            checks: std::collections::BTreeMap::new(),
        }),
        priority: 0,
        last_good,
        stale_after: Duration::from_secs(30),
        on_remove: OnRemove::L4,
        on_down: OnDown::Keep,
        health: None,
    }
}

struct Lab {
    state: tempfile::TempDir,
    name: ProviderName,
    place: LastGood,
}

impl Lab {
    fn new() -> Self {
        let (state, name) = (tempfile::tempdir().expect("a directory"), ProviderName::new("p"));
        let place = LastGood::of_provider(state.path(), &name);
        Self { state, name, place }
    }

    fn outlet(&self, last_good: Option<Duration>) -> (Outlet, mpsc::Receiver<ProviderUpdate>) {
        let (updates, heard) = mpsc::channel(8);
        (Outlet::new(&self.name, &config(last_good), self.state.path(), updates), heard)
    }

    /// As if a daemon had accepted `text` so long ago.
    fn kept(&self, text: &str, age: Duration) {
        self.place.store(text, SystemTime::now() - age).expect("stored");
    }
}

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn what_a_provider_says_is_there_at_the_next_start() {
    let lab = Lab::new();
    let (mut outlet, _heard) = lab.outlet(Some(DAY));
    outlet.says(outlet.contribution(), "one").await;
    let (outlet, mut heard) = lab.outlet(Some(DAY));
    let parse = |text: &str| match text {
        "one" => Ok(Contribution::new(&lab.name, OnRemove::L4)),
        other => Err(other.to_owned()),
    };
    assert!(outlet.last_good(parse).await);
    assert!(matches!(heard.recv().await.map(|update| update.news), Some(News::LastGood { .. })));
}

#[tokio::test]
async fn a_copy_that_is_too_old_or_no_longer_understood_is_not_used() {
    let lab = Lab::new();
    lab.kept("text", DAY + Duration::from_secs(60));
    let good = |_: &str| Ok(Contribution::new(&ProviderName::new("p"), OnRemove::L4));
    assert!(!lab.outlet(Some(DAY)).0.last_good(good).await, "older than max_age");
    lab.kept("text", Duration::from_secs(60));
    assert!(!lab.outlet(Some(DAY)).0.last_good(|_: &str| Err("what?".to_owned())).await);
    assert!(lab.outlet(Some(DAY)).0.last_good(good).await);
}

#[tokio::test]
async fn off_keeps_nothing_and_removes_what_was_kept() {
    let lab = Lab::new();
    lab.kept("text", Duration::ZERO);
    let (mut outlet, _heard) = lab.outlet(None);
    assert_eq!(lab.place.load().expect("readable"), None);
    outlet.says(outlet.contribution(), "one").await;
    outlet.unchanged().await;
    assert_eq!(lab.place.load().expect("readable"), None);
}

#[tokio::test]
async fn an_unchanged_source_confirms_the_copy_before_it_gets_old() {
    let lab = Lab::new();
    let (mut outlet, _heard) = lab.outlet(Some(DAY));
    outlet.says(outlet.contribution(), "one").await;
    lab.kept("one", DAY / 2);
    outlet.unchanged().await;
    let accepted = |lab: &Lab| lab.place.load().expect("readable").expect("kept").accepted;
    assert!(accepted(&lab).elapsed().expect("the past") > DAY / 4, "young enough: the disk is left alone");
    outlet.kept.as_mut().expect("on").now = Some((ConfigHash::of("one"), SystemTime::now() - DAY / 2));
    outlet.unchanged().await;
    assert!(accepted(&lab).elapsed().expect("the past") < DAY / 4);
}
