//! Says that this node is alive, by a key under a lease of a few seconds; and notices an endpoint that went silent, since a
//! watch on which nothing happens looks the same with and without one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::error::EtcdError;
use super::follow::{LONGEST_PAUSE, SHORTEST_PAUSE, jittered};
use super::wire::{Header, LeaseAnswer, Line, RangeAnswer};
use super::{Shared, wire};

/// What a node says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Alive {
    version: String,
    /// Of this start of the daemon: tells two that have one name apart.
    start: String,
}

/// Any answer that nobody looks into.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    header: Header,
}

pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut start = [0; 8];
    let _ = aws_lc_rs::rand::fill(&mut start);
    let start = u64::from_ne_bytes(start).to_string();
    let (mut lease, mut pause) = (None, SHORTEST_PAUSE);
    loop {
        let beat = beat(&shared, &mut lease, &start).await;
        pause = if beat.is_ok() { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        let next = if beat.is_ok() { EVERY } else { jittered(pause) };
        {
            let mut inner = shared.inner.lock();
            inner.pulse = beat.is_ok().then(|| inner.pulse.unwrap_or_else(Instant::now));
        }
        shared.note("nodes", beat.unwrap_or_else(|error| Some(error.to_string())));
        if stop.run_until_cancelled(tokio::time::sleep(next)).await.is_none() {
            break;
        }
    }
    if let Some(lease) = lease {
        // Others need not wait for its end. Not worth a slow stop.
        let question = wire::lease(lease);
        let revoking = shared.client.call::<Said>("lease/revoke", &question);
        let _ = tokio::time::timeout(FAREWELL, revoking).await;
    }
}

/// What is wrong with the nodes, if anything is.
async fn beat(shared: &Shared, lease: &mut Option<i64>, start: &str) -> Result<Option<String>, EtcdError> {
    if let Some(id) = *lease {
        let answer: Line<LeaseAnswer> = shared.client.call("lease/keepalive", &wire::lease(id)).await?;
        *lease = answer.result.filter(|kept| kept.ttl > 0).map(|kept| kept.id);
    }
    let prefix = shared.space_key("nodes");
    let range = || wire::range(&prefix, prefix.as_bytes(), 0, MOST_NODES);
    if lease.is_none() {
        let granted: LeaseAnswer = shared.client.call("lease/grant", &wire::grant(LIFE)).await?;
        say(shared, &prefix, granted.id, start).await?;
        *lease = Some(granted.id);
    }
    let answer: RangeAnswer = shared.client.call("kv/range", &range()).await?;
    let own = format!("{prefix}{}", shared.node);
    let ours = answer.kvs.iter().find(|kv| kv.key == own.as_bytes());
    let ours = ours.and_then(|kv| serde_json::from_slice::<Alive>(&kv.value).ok());
    let names = answer.kvs.iter().filter_map(|kv| std::str::from_utf8(&kv.key).ok()?.strip_prefix(&prefix));
    shared.inner.lock().nodes = names.map(str::to_owned).collect();
    shared.saw(answer.header.revision);
    if ours.is_some_and(|ours| ours.start == start) {
        return Ok(None);
    }
    // So that the other one notices as well.
    say(shared, &prefix, lease.unwrap_or_default(), start).await?;
    Ok(Some(format!("another daemon calls itself {}; give each node an `etcd.node` of its own", shared.node)))
}

async fn say(shared: &Shared, prefix: &str, lease: i64, start: &str) -> Result<(), EtcdError> {
    let alive = json!(Alive { version: env!("CARGO_PKG_VERSION").to_owned(), start: start.to_owned() });
    let key = format!("{prefix}{}", shared.node);
    let said: Said = shared.client.call("kv/put", &wire::put(&key, alive.to_string().as_bytes(), lease)).await?;
    shared.saw(said.header.revision);
    Ok(())
}

/// Without a beat for this long, a node is not shown any more. Nothing else depends on it.
const LIFE: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_secs(5);
const FAREWELL: Duration = Duration::from_millis(500);
/// That are shown.
const MOST_NODES: usize = 1000;
