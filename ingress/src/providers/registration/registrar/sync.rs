//! The registrar among others: tells them what its callers changed, and takes what they were told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::store::{Heard, Shelf};
use super::{Registrar, Stopping, removal};
use crate::clock::now;
use crate::peers::stamp::Stamp;
use crate::peers::sync::{Action, Entry, Message, Values, Version};
use crate::peers::{Event, Lag, Reach};
use crate::providers::registration::book::{Book, Grave, Registration};
use crate::providers::registration::journal::Record;
use crate::providers::registration::order::{PeerAnswer, PeerState};
use crate::route::SniPattern;

/// A registration as it travels.
type Said = Arc<Registration>;

/// Whoever waits for a peer to have something.
pub(super) type Waiting = BTreeMap<(Arc<str>, u64), Vec<oneshot::Sender<()>>>;

/// What each peer will have made of a change, for somebody who can wait.
#[derive(Default)]
pub(super) struct Told(Vec<(Arc<str>, Expected)>);

enum Expected {
    Acknowledgement(oneshot::Receiver<()>),
    Nothing(PeerState, &'static str),
}

/// Something from outside.
pub(in crate::providers::registration) enum News {
    Peer(Event),
    Store(Heard),
}

/// What a batch of messages asks for.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) entries: Vec<Entry<Said>>,
    /// Whatever the book has.
    pub(super) dictated: Vec<Entry<Said>>,
    /// To be acknowledged when all is on disk.
    pub(super) stored: Vec<(Arc<str>, u64, usize)>,
    pub(super) forgotten: Vec<Arc<str>>,
    pub(super) same: Vec<(Arc<str>, u64)>,
}

impl Values<Said> for Book {
    fn value(&self, key: &str) -> Option<Said> {
        self.get(&SniPattern::parse(key).ok()?).cloned()
    }
}

impl Told {
    /// Waits for the peers until `deadline`, no longer.
    pub(super) async fn answers(self, deadline: Instant) -> Vec<PeerAnswer> {
        let mut answers = Vec::new();
        for (name, expected) in self.0 {
            let (state, detail) = match expected {
                Expected::Nothing(state, detail) => (state, Some(detail)),
                Expected::Acknowledgement(stored) => match timeout_at(deadline, stored).await {
                    Ok(Ok(())) => (PeerState::Stored, None),
                    Ok(Err(_)) => (PeerState::Unreachable, Some("the link to it broke meanwhile")),
                    Err(_) => (PeerState::Pending, Some("it has not answered yet")),
                },
            };
            answers.push(PeerAnswer { name, state, detail });
        }
        answers
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Registrar {
    /// What a peer or the store says; waits for it.
    pub(in crate::providers::registration) async fn heard(&mut self) -> News {
        let Self { seat, shelf, .. } = self;
        let store = async {
            match shelf {
                Some(shelf) => shelf.heard().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = seat.next() => News::Peer(event),
            heard = store => News::Store(heard),
        }
    }

    /// When [`compare`](Self::compare) is due.
    pub(in crate::providers::registration) fn next_compare(&self) -> Option<std::time::Instant> {
        let tick = self.replica.next_tick().map(|due| now() + Duration::from_millis(due.saturating_sub(unix_ms())));
        let tidy = self.shelf.as_ref().map(Shelf::tidy_at);
        tick.into_iter().chain(tidy).min()
    }

    /// Compares books with the peers, and forgets removals that nobody needs any more.
    pub(in crate::providers::registration) async fn compare(&mut self) -> Result<(), Stopping> {
        let time = unix_ms();
        let actions = self.replica.tick(time);
        let mut asked = Asked { forgotten: self.replica.outdated(time), ..Asked::default() };
        self.carry_out_actions(actions, &mut asked);
        self.take_in(asked).await?;
        self.tidy().await
    }

    /// Takes news in.
    pub(in crate::providers::registration) async fn hear(&mut self, news: News) -> Result<(), Stopping> {
        match news {
            News::Peer(event) => self.hear_peers(event).await,
            News::Store(heard) => self.hear_store(heard).await,
        }
    }

    /// Takes an event and what waits behind it, with one `fsync`.
    async fn hear_peers(&mut self, first: Event) -> Result<(), Stopping> {
        let (mut asked, mut next) = (Asked::default(), Some(first));
        let mut left = AT_ONCE;
        while let Some(event) = next {
            let time = unix_ms();
            let actions = match event {
                Event::Up(peer) => self.replica.connected(&peer, time),
                Event::Down(peer) => {
                    self.replica.disconnected(&peer);
                    self.waiting.retain(|(waited_for, _), _| *waited_for != peer);
                    self.seat.report(&peer, Lag::default());
                    Vec::new()
                }
                Event::Message(peer, bytes) => match serde_json::from_slice::<Message<Said>>(&bytes) {
                    Ok(message) => self.replica.receive(&peer, message, &self.book, time),
                    Err(error) => {
                        // Not the error itself: it may quote a secret.
                        let (column, kind) = (error.column(), error.classify());
                        tracing::warn!(provider = %self.outlet.provider(), %peer, column, ?kind, "a peer's message means nothing");
                        Vec::new()
                    }
                },
            };
            self.carry_out_actions(actions, &mut asked);
            left -= 1;
            next = if left > 0 { self.seat.more() } else { None };
        }
        self.take_in(asked).await.map(drop)
    }

    fn carry_out_actions(&mut self, actions: Vec<Action<Said>>, asked: &mut Asked) {
        for action in actions {
            match action {
                Action::Send(peer, message) => {
                    self.say(&peer, &message);
                }
                Action::Store { peer, number, entries, refused } => {
                    if refused > 0 {
                        tracing::warn!(provider = %self.outlet.provider(), %peer, refused, "registrations from the future: the clocks differ");
                    }
                    asked.entries.extend(entries);
                    asked.stored.push((peer, number, refused));
                }
                Action::Acknowledged { peer, number } => {
                    for waiter in self.waiting.remove(&(peer, number)).into_iter().flatten() {
                        // Its caller may not have waited.
                        let _ = waiter.send(());
                    }
                }
                Action::Forget(key) => asked.forgotten.push(key),
                Action::Same { peer, at } => asked.same.push((peer, at)),
            }
        }
        self.report_lags();
    }

    /// Disk, then control, then the acknowledgements. False: the disk did not take it.
    pub(super) async fn take_in(&mut self, asked: Asked) -> Result<bool, Stopping> {
        let Asked { entries, dictated, stored, forgotten, same } = asked;
        let (mut book, mut records, mut hosts) = (self.book.clone(), Vec::new(), Vec::new());
        let time = unix_ms();
        let said = entries.into_iter().map(|entry| (entry, false));
        for (Entry { key, stamp, value }, is_dictated) in said.chain(dictated.into_iter().map(|entry| (entry, true))) {
            let Ok(host) = SniPattern::parse(&key) else { continue };
            let version = Version { stamp: stamp.clone(), removed: value.is_none() };
            if !is_dictated && version_of(&book, &host).is_some_and(|known| known >= version) {
                continue;
            }
            self.clock.saw(&stamp);
            match value {
                Some(said) => {
                    let registration =
                        Registration { host: host.clone(), stamp, learned: time, ..Registration::clone(&said) };
                    records.push(Record::Put(registration.clone()));
                    book.put(Arc::new(registration));
                }
                None => {
                    book.bury(&host, stamp);
                    records.push(removal(&book, &host));
                }
            }
            hosts.push(host);
        }
        for key in &forgotten {
            let Ok(host) = SniPattern::parse(key) else { continue };
            records.push(Record::Remove(key.to_string()));
            book.remove(&host);
            hosts.push(host);
        }
        for (peer, at) in same {
            records.push(Record::Same { peer: peer.clone(), at });
            book.note_same(peer, at);
        }
        if !records.is_empty() {
            if self.write(records, &book).await.is_err() {
                // Not acknowledged: the peer says it again when it compares.
                return Ok(false);
            }
            let before = self.book.clone();
            self.commit(book, &hosts);
            self.judge_returned(&hosts);
            if hosts.iter().any(|host| before.get(host) != self.book.get(host)) {
                self.publish().await?;
            }
            hosts.iter().for_each(|host| self.audit(host, &before));
        }
        for (peer, number, refused) in stored {
            self.say(&peer, &Message::Stored { number, refused });
        }
        Ok(true)
    }

    /// What this node had told others, and then lost with its disk.
    fn judge_returned(&mut self, hosts: &[SniPattern]) {
        let returned = hosts.iter().filter_map(|host| self.book.get(host));
        let ours: Vec<_> = returned.filter(|registration| self.is_ours(&registration.stamp)).cloned().collect();
        for registration in ours {
            self.leases.set(&registration.host, registration.ttl, now());
        }
    }

    fn audit(&self, host: &SniPattern, before: &Book) {
        let provider = self.outlet.provider();
        match (before.get(host).map(AsRef::as_ref), self.book.get(host).map(AsRef::as_ref)) {
            (_, Some(Registration { owner, stamp, .. })) => {
                tracing::info!(%provider, %host, owner, node = %stamp.node, operation = "register", "registration of a peer");
            }
            (Some(Registration { owner, .. }), None) => {
                let node = self.book.grave(host).map(|grave| grave.stamp.node.to_string()).unwrap_or_default();
                tracing::info!(%provider, %host, owner, node, operation = "deregister", "registration of a peer");
            }
            (None, None) => {}
        }
    }

    /// Tells all peers what the book says of `hosts`.
    pub(super) fn tell(&mut self, hosts: &[SniPattern]) -> Vec<Told> {
        let entries: Vec<_> = hosts.iter().filter_map(|host| entry(&self.book, host)).collect();
        let mut sent = BTreeMap::new();
        if !entries.is_empty() {
            for (peer, number, message) in self.replica.put(&entries) {
                match self.say(&peer, &message) {
                    true => drop(sent.insert(peer, number)),
                    false => self.replica.unsent(&peer, number),
                }
            }
        }
        self.report_lags();
        let peers = self.seat.peers();
        let told = hosts.iter().map(|host| {
            if entry(&self.book, host).is_none() {
                return Told::default();
            }
            let expected = peers.iter().map(|(peer, reach)| {
                let expected = match (reach, sent.get(peer)) {
                    (_, Some(number)) => {
                        let (stored, acknowledgement) = oneshot::channel();
                        self.waiting.entry((peer.clone(), *number)).or_default().push(stored);
                        Expected::Acknowledgement(acknowledgement)
                    }
                    (Reach::Here, None) => {
                        Expected::Nothing(PeerState::Pending, "the link to it has too much to carry")
                    }
                    (Reach::NoStream, None) => Expected::Nothing(PeerState::Unreachable, "it has no such provider"),
                    (Reach::Away, None) => Expected::Nothing(PeerState::Unreachable, "there is no link to it"),
                };
                (peer.clone(), expected)
            });
            Told(expected.collect())
        });
        told.collect()
    }

    /// Of what is in the book, at a start.
    pub(super) fn learn_all(&mut self) {
        for registration in self.book.iter() {
            let Registration { host, stamp, learned, .. } = registration.as_ref();
            self.clock.saw(stamp);
            self.replica.learn(&host.to_string(), Version { stamp: stamp.clone(), removed: false }, *learned);
        }
        for (host, Grave { stamp, .. }) in self.book.graves() {
            self.clock.saw(stamp);
            self.replica.learn(&host.to_string(), Version { stamp: stamp.clone(), removed: true }, 0);
        }
        for (peer, at) in self.book.same() {
            self.replica.was_same(peer, at);
        }
    }

    /// Of hosts that may have changed.
    pub(super) fn learn(&mut self, hosts: &[SniPattern]) {
        for host in hosts {
            let learned = self.book.get(host).map_or(0, |registration| registration.learned);
            match version_of(&self.book, host) {
                Some(version) => self.replica.learn(&host.to_string(), version, learned),
                None => self.replica.forget(&host.to_string()),
            }
        }
    }

    /// Whether this node judges the lease.
    pub(super) fn is_ours(&self, stamp: &Stamp) -> bool {
        let own = self.clock.node();
        own.is_empty() || stamp.node.is_empty() || stamp.node == *own
    }

    fn say(&mut self, peer: &str, message: &Message<Said>) -> bool {
        let sent = serde_json::to_vec(message).is_ok_and(|bytes| self.seat.send(peer, bytes));
        if !sent && let Message::Put { number, .. } = message {
            self.replica.unsent(peer, *number);
        }
        sent
    }

    fn report_lags(&self) {
        for peer in self.replica.peers() {
            let waiting = self.replica.lag(&peer).unwrap_or_default();
            self.seat.report(&peer, Lag { waiting, refused: self.replica.refused(&peer) });
        }
    }
}

pub(super) fn version_of(book: &Book, host: &SniPattern) -> Option<Version> {
    let live = book.get(host).map(|registration| Version { stamp: registration.stamp.clone(), removed: false });
    live.or_else(|| book.grave(host).map(|grave| Version { stamp: grave.stamp.clone(), removed: true }))
}

pub(super) fn entry(book: &Book, host: &SniPattern) -> Option<Entry<Said>> {
    let Version { stamp, removed: _ } = version_of(book, host)?;
    Some(Entry { key: host.to_string().into(), stamp, value: book.get(host).cloned() })
}

/// The wall clock.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Messages that are taken with one `fsync`.
const AT_ONCE: usize = 256;
