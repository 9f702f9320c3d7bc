//! Follows a space: a listing, then every change from there on, over whatever breaks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

use super::error::EtcdError;
use super::wire::{EventType, KeyValue, RangeAnswer, WatchAnswer};
use super::{Event, Shared, Stored, wire};

/// Up to where everything was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    cluster: u64,
    revision: i64,
}

/// Why following stopped.
enum Ended {
    Failed(EtcdError),
    /// What came in between is gone: all has to be read.
    Lost(&'static str),
    /// Its user wants to hear everything anew.
    Asked,
    /// Its user is gone.
    Unheard,
}

impl From<EtcdError> for Ended {
    fn from(error: EtcdError) -> Self {
        Self::Failed(error)
    }
}

/// Until nobody listens any more.
pub(super) async fn run(shared: Arc<Shared>, space: String, events: mpsc::Sender<Event>, again: Arc<Notify>) {
    let follower = Follower { prefix: shared.space_key(&space), shared, space, events, again };
    let (mut position, mut pause) = (None, SHORTEST_PAUSE);
    loop {
        let began = Instant::now();
        let ended = follower.follow(&mut position).await;
        let was_here = follower.set_here(false);
        match ended {
            Ended::Unheard => return,
            Ended::Asked => position = None,
            Ended::Lost(why) => {
                tracing::info!(space = follower.space, why, "etcd: everything is read anew");
                follower.shared.inner.lock().resyncs += 1;
                position = None;
            }
            Ended::Failed(error) => follower.shared.note(&follower.space, Some(error.to_string())),
        }
        if was_here && follower.events.send(Event::Away).await.is_err() {
            return;
        }
        if began.elapsed() > LONGEST_PAUSE {
            pause = SHORTEST_PAUSE;
        }
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

struct Follower {
    shared: Arc<Shared>,
    space: String,
    prefix: String,
    events: mpsc::Sender<Event>,
    again: Arc<Notify>,
}

impl Follower {
    async fn follow(&self, position: &mut Option<Position>) -> Ended {
        let followed = async {
            let (mut at, is_back) = match *position {
                Some(at) => (at, true),
                None => {
                    let (at, listing) = self.list().await?;
                    self.say(Event::Listing(listing)).await?;
                    (*position.insert(at), false)
                }
            };
            self.watch(&mut at, position, is_back).await
        };
        tokio::select! {
            ended = followed => match ended {
                Ok(never) => match never {},
                Err(ended) => ended,
            },
            () = self.again.notified() => Ended::Asked,
        }
    }

    /// All that is there, as it was at one moment.
    async fn list(&self) -> Result<(Position, Vec<Stored>), Ended> {
        let (mut from, mut revision) = (self.prefix.clone().into_bytes(), 0);
        let (mut cluster, mut listing) = (0, Vec::new());
        loop {
            let question = wire::range(&self.prefix, &from, revision, PAGE);
            let answer: RangeAnswer = match self.shared.client.call("kv/range", &question).await {
                Err(error) if error.is_compacted() => return Err(Ended::Lost("it was compacted while it was read")),
                answer => answer?,
            };
            if revision == 0 {
                (revision, cluster) = (answer.header.revision, answer.header.cluster_id);
                self.shared.saw(revision);
            }
            if let Some(last) = answer.kvs.last() {
                from = [&last.key[..], b"\0"].concat();
            }
            let is_last = !answer.more || answer.kvs.is_empty();
            listing.extend(answer.kvs.into_iter().filter_map(|kv| self.stored(kv, true)));
            if listing.len() > MOST {
                return Err(Ended::Failed(EtcdError::TooLarge));
            }
            if is_last {
                return Ok((Position { cluster, revision }, listing));
            }
        }
    }

    async fn watch(
        &self,
        at: &mut Position,
        position: &mut Option<Position>,
        is_back: bool,
    ) -> Result<std::convert::Infallible, Ended> {
        let question = wire::watch(&self.prefix, at.revision + 1);
        let mut stream = self.shared.client.stream("watch", &question).await?;
        loop {
            let answer: WatchAnswer = match stream.next().await {
                Err(error) => {
                    if error.is_of_endpoint() {
                        self.shared.client.give_up_endpoint(&stream.endpoint);
                    }
                    return Err(error.into());
                }
                Ok(answer) => answer,
            };
            let WatchAnswer { header, created, canceled, compact_revision, cancel_reason, events } = answer;
            if canceled && compact_revision > 0 {
                return Err(Ended::Lost("changes that were missed are compacted"));
            }
            if canceled {
                // A login that is not good any more, or a permission that was taken: reading says which.
                *position = None;
                let message = format!("the watch was cancelled: {cancel_reason}");
                return Err(EtcdError::Refused { endpoint: stream.endpoint, code: 0, message }.into());
            }
            if created {
                if header.cluster_id != at.cluster {
                    return Err(Ended::Lost("this is another cluster"));
                }
                if header.revision < at.revision {
                    return Err(Ended::Lost("the store went back: it was made anew, or restored"));
                }
                self.set_here(true);
                self.shared.note(&self.space, None);
                if is_back {
                    self.say(Event::Back).await?;
                }
            }
            if !events.is_empty() {
                // Not the header's: a watch that catches up gets old changes under a new header.
                let last = events.iter().map(|event| event.kv.mod_revision).max().unwrap_or_default();
                let changes = events.into_iter().filter_map(|event| {
                    let is_there = event.r#type == EventType::Put;
                    self.stored(event.kv, is_there)
                });
                self.say(Event::Changes(changes.collect())).await?;
                at.revision = at.revision.max(last);
                *position = Some(*at);
                self.shared.saw(header.revision);
            }
        }
    }

    fn stored(&self, kv: KeyValue, is_there: bool) -> Option<Stored> {
        let KeyValue { key, value, mod_revision } = kv;
        let key = std::str::from_utf8(&key).ok()?.strip_prefix(&self.prefix)?;
        Some(Stored { key: key.into(), revision: mod_revision, value: is_there.then_some(value) })
    }

    async fn say(&self, event: Event) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended::Unheard)
    }

    /// What it was before.
    fn set_here(&self, is_here: bool) -> bool {
        let mut inner = self.shared.inner.lock();
        let since = is_here.then(Instant::now);
        inner.spaces.insert(self.space.clone(), since).flatten().is_some()
    }
}

/// Between half and one and a half times as long, so that nodes do not come back all at once.
pub(super) fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    let _ = aws_lc_rs::rand::fill(&mut byte);
    pause / 2 + pause * u32::from(byte[0]) / 256
}

pub(super) const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Keys in one answer.
const PAGE: usize = 500;
/// Keys of a space.
const MOST: usize = 2_000_000;
