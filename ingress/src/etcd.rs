//! An etcd that a few nodes share: what each was told stands there, and who writes a key first is decided there.
//!
//! ```text
//!  user of a space --- Seat --- follower: one listing, then a watch ----+
//!                        \----- put: compare the revision, then write --+-- Client --- one of the endpoints
//!                     pulse: this node is alive ------------------------+
//! ```
//! Keys are `<prefix>/v1/<space>/<key>`. What a value says is its space's business; [`ledger`] is the pure part of keeping
//! a copy of a space. etcd's JSON gateway is spoken (`client`, `wire`), which is part of every etcd since 3.4.

pub mod ledger;
pub mod view;

mod client;
mod error;
mod follow;
mod lines;
mod pulse;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::EtcdConfig;
use client::Client;
use error::EtcdError;
use view::{EtcdStatus, unix};

/// This node's side of the store; without configuration, of none.
#[derive(Clone)]
pub struct Store(Option<Arc<Shared>>);

struct Shared {
    config: EtcdConfig,
    node: Arc<str>,
    client: Client,
    /// The lease under which removals fade, and when it was granted.
    fading: tokio::sync::Mutex<Option<(i64, Instant)>>,
    inner: Mutex<Inner>,
}

/// For the status.
#[derive(Default)]
struct Inner {
    /// Since when each space is followed; `None`: not now.
    spaces: BTreeMap<String, Option<Instant>>,
    /// Since when this node's pulse is felt.
    pulse: Option<Instant>,
    waiting: BTreeMap<String, usize>,
    /// Of the last answer.
    revision: i64,
    resyncs: u64,
    claims_lost: u64,
    /// Whose pulse there was.
    nodes: Vec<String>,
    /// What does not work now, by what it is about, and since when.
    troubles: BTreeMap<String, (SystemTime, String)>,
}

/// What a key is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Without prefix and space.
    pub key: Arc<str>,
    /// Which write of the whole store this was.
    pub revision: i64,
    /// `None`: there is no such key (any more).
    pub value: Option<Vec<u8>>,
}

/// What a space's user hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All that there is; from here on, changes are heard.
    Listing(Vec<Stored>),
    /// Nothing was missed since changes were heard last.
    Back,
    Changes(Vec<Stored>),
    /// Changes are not heard any more.
    Away,
}

/// A wish to write one key.
#[derive(Clone, Debug)]
pub struct Write {
    pub key: Arc<str>,
    /// Only if the key's revision is still this; 0: only if there is no such key.
    pub based_on: i64,
    pub value: Vec<u8>,
    /// Goes by itself, when no node can need it any more.
    pub fades: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Written {
        revision: i64,
    },
    /// Somebody else was there first; this is what they wrote.
    Refused(Stored),
    /// Nobody knows; the status says why.
    Away,
}

/// A place at a space. Dropping it gives it up.
pub struct Seat {
    shared: Arc<Shared>,
    space: String,
    events: mpsc::Receiver<Event>,
    again: Arc<Notify>,
    _follower: AbortOnDropHandle<()>,
}

impl Store {
    /// `None`: there is no etcd.
    pub fn new(config: Option<EtcdConfig>) -> Self {
        Self(config.map(|config| {
            let (node, client) = (config.node.as_str().into(), Client::new(config.clone()));
            Arc::new(Shared { config, node, client, fading: Default::default(), inner: Mutex::default() })
        }))
    }

    /// Says that this node is alive, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        match self.0 {
            Some(shared) => pulse::run(shared, stop).await,
            None => stop.cancelled().await,
        }
    }

    /// Takes a place at a space, and begins to follow it. `None`: there is no etcd.
    pub fn open(&self, space: String) -> Option<Seat> {
        let shared = self.0.clone()?;
        let (inbox, events) = mpsc::channel(EVENTS);
        let again = Arc::new(Notify::new());
        shared.inner.lock().spaces.insert(space.clone(), None);
        let follower = tokio::spawn(follow::run(shared.clone(), space.clone(), inbox, again.clone()));
        Some(Seat { shared, space, events, again, _follower: AbortOnDropHandle::new(follower) })
    }

    /// `None`: there is no etcd.
    pub fn status(&self) -> Option<EtcdStatus> {
        let shared = self.0.as_ref()?;
        let EtcdConfig { node, endpoints, prefix, .. } = &shared.config;
        let inner = shared.inner.lock();
        // As good as the space that is worst off.
        let connected = inner.spaces.values().copied().min().unwrap_or(inner.pulse);
        let troubles: Vec<_> = inner.troubles.values().map(|(_, trouble)| trouble.clone()).collect();
        Some(EtcdStatus {
            node: node.clone(),
            endpoints: endpoints.clone(),
            endpoint: connected.map(|_| shared.client.endpoint().to_owned()),
            prefix: prefix.clone(),
            connected: connected.map(|since| since.elapsed().as_secs_f64()),
            troubles: without_repeats(troubles),
            troubled_since: inner.troubles.values().map(|(since, _)| unix(*since)).reduce(f64::min),
            revision: inner.revision,
            waiting: inner.waiting.values().sum(),
            resyncs: inner.resyncs,
            claims_lost: inner.claims_lost,
            nodes: inner.nodes.clone(),
        })
    }
}

impl Shared {
    /// Notes what does not work, or that it works again: once, and not at each of many attempts.
    fn note(&self, what: &str, trouble: Option<String>) {
        let mut inner = self.inner.lock();
        let before = inner.troubles.remove(what);
        let since = before.as_ref().map_or_else(SystemTime::now, |(since, _)| *since);
        if let Some(trouble) = &trouble {
            inner.troubles.insert(what.to_owned(), (since, trouble.clone()));
        }
        drop(inner);
        match (before, trouble) {
            (before, Some(error)) if before.as_ref().is_none_or(|(_, before)| *before != error) => {
                tracing::warn!(what, error, "etcd");
            }
            (Some(_), None) => tracing::info!(what, "etcd: this works again"),
            (Some(_) | None, _) => {}
        }
    }

    fn saw(&self, revision: i64) {
        let mut inner = self.inner.lock();
        inner.revision = inner.revision.max(revision);
    }

    fn space_key(&self, space: &str) -> String {
        format!("{}/v1/{space}/", self.config.prefix)
    }

    /// Writes one key, if it is still as it was.
    async fn put(&self, space: &str, write: &Write) -> Result<Outcome, EtcdError> {
        let key = format!("{}{}", self.space_key(space), write.key);
        let mut retried = false;
        loop {
            let lease = if write.fades { self.fading_lease().await? } else { 0 };
            let question = wire::compare_and_put(&key, write.based_on, &write.value, lease);
            let answer: wire::TxnAnswer = match self.client.call("kv/txn", &question).await {
                Err(error) if error.is_no_lease() && lease != 0 && !retried => {
                    (*self.fading.lock().await, retried) = (None, true);
                    continue;
                }
                answer => answer?,
            };
            let revision = answer.header.revision;
            self.saw(revision);
            if answer.succeeded {
                return Ok(Outcome::Written { revision });
            }
            let there = answer.found();
            // An answer that was lost on its way, and the question asked again.
            let is_ours = there.as_ref().is_some_and(|there| there.value == write.value);
            return Ok(match there {
                Some(there) if is_ours => Outcome::Written { revision: there.mod_revision },
                Some(there) => Outcome::Refused(Stored {
                    key: write.key.clone(),
                    revision: there.mod_revision,
                    value: Some(there.value),
                }),
                None => Outcome::Refused(Stored { key: write.key.clone(), revision, value: None }),
            });
        }
    }

    async fn fading_lease(&self) -> Result<i64, EtcdError> {
        let mut fading = self.fading.lock().await;
        if let Some((lease, _)) = fading.filter(|(_, granted)| granted.elapsed() < SHARE_LEASE) {
            return Ok(lease);
        }
        let answer: wire::LeaseAnswer = self.client.call("lease/grant", &wire::grant(FADES_AFTER)).await?;
        *fading = Some((answer.id, Instant::now()));
        Ok(answer.id)
    }
}

impl Seat {
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    pub fn node(&self) -> Arc<str> {
        self.shared.node.clone()
    }

    pub fn prefix(&self) -> &str {
        &self.shared.config.prefix
    }

    /// Asks for everything anew, for somebody who could not take what was heard.
    pub fn list_again(&self) {
        self.again.notify_one();
    }

    /// Writes several keys, each by itself; the answers are in their order.
    pub async fn put(&self, writes: &[Write]) -> Vec<Outcome> {
        let puts: Vec<_> = writes.iter().map(|write| self.put_one(write)).collect();
        let answers: Vec<_> = futures_util::stream::iter(puts).buffered(AT_ONCE).collect().await;
        let trouble = answers.iter().find_map(|answer| answer.as_ref().err().map(ToString::to_string));
        self.shared.note(WRITING, trouble);
        answers.into_iter().map(|answer| answer.unwrap_or(Outcome::Away)).collect()
    }

    async fn put_one(&self, write: &Write) -> Result<Outcome, EtcdError> {
        let patience = self.shared.config.timeout * 2;
        let put = tokio::time::timeout(patience, self.shared.put(&self.space, write)).await;
        put.unwrap_or(Err(EtcdError::Patience(patience)))
    }

    /// How many keys are still to be written, for the status.
    pub fn report(&self, waiting: usize) {
        self.shared.inner.lock().waiting.insert(self.space.clone(), waiting);
        if waiting == 0 {
            self.shared.note(WRITING, None);
        }
    }

    /// What was taken while the store was away is another's there.
    pub fn count_lost_claim(&self) {
        self.shared.inner.lock().claims_lost += 1;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.shared.inner.lock();
        inner.waiting.remove(&self.space);
        inner.spaces.remove(&self.space);
    }
}

fn without_repeats(mut troubles: Vec<String>) -> Vec<String> {
    troubles.sort();
    troubles.dedup();
    troubles
}

const WRITING: &str = "writing";
/// Events that may wait for a space's user; then the watch stands still.
const EVENTS: usize = 64;
/// Questions at one time.
const AT_ONCE: usize = 32;
/// A day longer than removals have to be known.
const FADES_AFTER: Duration = Duration::from_secs(8 * 24 * 3600);
/// Removals of a day share one lease.
const SHARE_LEASE: Duration = Duration::from_secs(24 * 3600);
