//! The registrar at a shared store: who has a host is decided there, before it is on disk here; and what could not be
//! asked is taken all the same, and written there later.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::round::Pending;
use super::sync::{Asked, entry, unix_ms, version_of};
use super::{Registrar, Stopping};
use crate::clock::now;
use crate::etcd::ledger::{Judgement, Ledger, Local, What, Word};
use crate::etcd::{Event, Outcome, Seat, Stored, Write};
use crate::peers::sync::{Entry, Version};
use crate::providers::registration::book::{Book, Registration};
use crate::providers::registration::order::{Order, StoreAnswer, StoreState};
use crate::providers::registration::problem::{Kind, Problem};
use crate::route::SniPattern;

/// A place at the store, and what is known of it.
pub(super) struct Shelf {
    seat: Seat,
    ledger: Ledger,
    /// When what is owed is tried again.
    pay_at: Instant,
    /// A write failed: until then, nobody waits for another one.
    silent_until: Instant,
    /// When the time at which both were the same is worth keeping again.
    tidy_at: Instant,
}

/// A registration as it stands there.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    format: u32,
    entry: Entry<Arc<Registration>>,
}

/// What [`Shelf::heard`] returns.
pub(in crate::providers::registration) enum Heard {
    Said(Event),
    /// Something is to be written.
    Owes,
}

impl Shelf {
    pub(super) fn new(seat: Seat, book: &Book) -> Self {
        let name = name_of(&seat);
        let same = book.same().find(|(peer, _)| ***peer == name).map(|(_, at)| at);
        Self { seat, ledger: Ledger::new(same), pay_at: now(), silent_until: now(), tidy_at: now() + TIDY_EVERY }
    }

    pub(super) async fn heard(&mut self) -> Heard {
        let owes = self.ledger.is_here() && self.ledger.owes_something();
        tokio::select! {
            event = self.seat.next() => Heard::Said(event),
            () = tokio::time::sleep_until(self.pay_at.into()), if owes => Heard::Owes,
        }
    }

    pub(super) fn tidy_at(&self) -> Instant {
        self.tidy_at
    }

    /// After a change of the book.
    pub(super) fn settle(&mut self, book: &Book, hosts: &[SniPattern]) {
        for host in hosts {
            self.ledger.settle(&host.to_string().into(), version_of(book, host).as_ref());
        }
        self.seat.report(self.ledger.count_owed());
    }

    /// Whether the store has what the book says of a host; `None`: it says nothing.
    pub(super) fn answer(&self, book: &Book, host: &SniPattern) -> Option<StoreAnswer> {
        version_of(book, host)?;
        let key = host.to_string();
        let base = self.ledger.base(&key);
        Some(match (self.ledger.owes(&key), base) {
            (_, None) => StoreAnswer::pending("what stands there is of a newer build; upgrade this node"),
            // Of a start at which etcd has not been heard yet.
            (false, Some(0)) => StoreAnswer::pending("etcd has not answered since this node was started"),
            (false, revision) => StoreAnswer { state: StoreState::Stored, revision, detail: None },
            (true, Some(_)) => StoreAnswer::pending("etcd did not take it; it is written there as soon as it does"),
        })
    }

    fn falls_silent(&mut self) {
        (self.silent_until, self.pay_at) = (now() + PAY_AGAIN, now() + PAY_AGAIN);
    }

    fn speaks(&mut self) {
        (self.silent_until, self.pay_at) = (now(), now());
    }

    fn write(&self, book: &Book, host: &SniPattern) -> Option<Write> {
        let entry = entry(book, host)?;
        let (key, fades) = (entry.key.clone(), entry.value.is_none());
        let value = serde_json::to_vec(&Kept { format: FORMAT, entry }).ok()?;
        Some(Write { based_on: self.ledger.base(&key)?, key, value, fades })
    }

    fn word(stored: &Stored) -> (Word, Option<Entry<Arc<Registration>>>) {
        let Stored { key, revision, value } = stored;
        let read = value.as_ref().map(|value| serde_json::from_slice::<Kept>(value));
        let (what, entry) = match read {
            None => (What::Gone, None),
            Some(Ok(Kept { format: FORMAT, entry })) if entry.key == *key && SniPattern::parse(key).is_ok() => {
                let holder = entry.value.as_ref().map(|said| said.owner.as_str().into());
                (What::Entry { version: Version::of(&entry), holder }, Some(entry))
            }
            Some(Ok(_) | Err(_)) => (What::Unreadable, None),
        };
        (Word { key: key.clone(), revision: *revision, what }, entry)
    }
}

impl Registrar {
    pub(in crate::providers::registration) async fn hear_store(&mut self, heard: Heard) -> Result<(), Stopping> {
        match heard {
            Heard::Owes => self.pay().await,
            Heard::Said(Event::Listing(listing)) => self.compare_with_store(listing).await,
            Heard::Said(Event::Changes(changes)) => self.hear_changes(&changes).await,
            Heard::Said(Event::Back) => {
                if let Some(shelf) = &mut self.shelf {
                    shelf.ledger.here();
                    shelf.speaks();
                }
                Ok(())
            }
            Heard::Said(Event::Away) => {
                if let Some(shelf) = &mut self.shelf {
                    shelf.ledger.away(unix_ms());
                }
                Ok(())
            }
        }
    }

    /// Asks the store for what `pending` changes in `book`. What another has there meanwhile is returned, and the orders that
    /// met it go back to `waiting`.
    pub(super) async fn claim(
        &mut self,
        book: &mut Book,
        pending: Vec<Pending>,
        waiting: &mut VecDeque<Order>,
    ) -> (Vec<Pending>, Vec<Stored>) {
        let Some(shelf) = self.shelf.as_mut().filter(|shelf| shelf.ledger.is_here() && shelf.silent_until <= now())
        else {
            return (pending, Vec::new());
        };
        let changed = |pending: &Pending| book.get(&pending.host) != pending.before.as_ref();
        let hosts: Vec<_> = pending.iter().filter(|pending| changed(pending)).map(|pending| &pending.host).collect();
        let writes: Vec<_> = hosts.iter().filter_map(|host| shelf.write(book, host)).collect();
        if writes.is_empty() {
            return (pending, Vec::new());
        }
        let outcomes = shelf.seat.put(&writes).await;
        let mut refused = BTreeMap::new();
        for (Write { key, .. }, outcome) in writes.iter().zip(outcomes) {
            let Ok(host) = SniPattern::parse(key) else { continue };
            match outcome {
                Outcome::Written { revision } => {
                    if let Some(version) = version_of(book, &host) {
                        shelf.ledger.wrote(key, revision, version);
                    }
                }
                Outcome::Refused(stored) => drop(refused.insert(host, stored)),
                Outcome::Away => shelf.falls_silent(),
            }
        }
        let mut kept = Vec::new();
        for one in pending {
            match refused.contains_key(&one.host) {
                true => {
                    restore(book, &self.book, &one.host);
                    waiting.extend(one.again());
                }
                false => kept.push(one),
            }
        }
        (kept, refused.into_values().collect())
    }

    /// What was found in the way of a write, or heard.
    pub(super) async fn hear_changes(&mut self, changes: &[Stored]) -> Result<(), Stopping> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut asked = Asked::default();
        self.judge(changes, false, &mut asked);
        self.take_from_store(asked).await
    }

    async fn compare_with_store(&mut self, listing: Vec<Stored>) -> Result<(), Stopping> {
        let (mut asked, time) = (Asked::default(), unix_ms());
        self.judge(&listing, true, &mut asked);
        let listed: BTreeSet<_> = listing.iter().map(|stored| &*stored.key).collect();
        let live = self.book.iter().map(|kept| (&kept.host, &kept.stamp, false, kept.learned));
        let graves = self.book.graves().map(|(host, grave)| (host, &grave.stamp, true, 0));
        let Some(shelf) = &mut self.shelf else { return Ok(()) };
        for (host, stamp, removed, learned) in live.chain(graves) {
            let key: Arc<str> = host.to_string().into();
            let version = Version { stamp: stamp.clone(), removed };
            if !listed.contains(&*key) && shelf.ledger.absent(&key, &version, learned, time) {
                asked.forgotten.push(key);
            }
        }
        shelf.ledger.listed();
        shelf.speaks();
        tracing::info!(
            provider = %self.outlet.provider(), there = listed.len(), owed = shelf.ledger.count_owed(),
            "registrations compared with etcd"
        );
        self.take_from_store(asked).await?;
        self.note_same().await
    }

    fn judge(&mut self, words: &[Stored], is_listing: bool, asked: &mut Asked) {
        let tokens = &self.settings.api.tokens;
        let guards = |theirs: &str, ours: &str| theirs != ours && tokens.contains_key(theirs);
        let Some(shelf) = &mut self.shelf else { return };
        let time = unix_ms();
        for stored in words {
            let (word, entry) = Shelf::word(stored);
            let local = SniPattern::parse(&stored.key).ok().and_then(|host| local(&self.book, &host));
            if word.what == What::Unreadable {
                tracing::warn!(
                    provider = %self.outlet.provider(), key = %stored.key, revision = stored.revision,
                    "etcd has what this build cannot read; it is left alone"
                );
            }
            let judgement = match is_listing {
                true => shelf.ledger.list(&word, local.as_ref(), &guards, time),
                false => shelf.ledger.hear(&word, local.as_ref(), &guards, time),
            };
            match judgement {
                Judgement::Nothing | Judgement::Owe => {}
                Judgement::Take { lost } => {
                    if lost {
                        shelf.seat.count_lost_claim();
                        tracing::warn!(
                            provider = %self.outlet.provider(), host = %stored.key,
                            "registered here while etcd was away, and claimed there by another: given up"
                        );
                    }
                    asked.dictated.extend(entry);
                }
            }
        }
        shelf.seat.report(shelf.ledger.count_owed());
    }

    async fn take_from_store(&mut self, asked: Asked) -> Result<(), Stopping> {
        match self.take_in(asked).await? {
            true => {}
            // The disk refuses: what the store says is asked for again, when it takes things again.
            false => self.lose_track(),
        }
        Ok(())
    }

    /// The book does not say what the store was heard to say: until it is compared anew, nothing is claimed.
    pub(super) fn lose_track(&mut self) {
        if let Some(shelf) = &mut self.shelf {
            shelf.ledger.lose_track();
            shelf.seat.list_again();
        }
    }

    /// Writes some of what the store lacks.
    async fn pay(&mut self) -> Result<(), Stopping> {
        let Some(shelf) = &mut self.shelf else { return Ok(()) };
        let hosts = shelf.ledger.owed(PAY_AT_ONCE).into_iter().filter_map(|key| SniPattern::parse(&key).ok());
        let writes: Vec<_> = hosts.filter_map(|host| shelf.write(&self.book, &host)).collect();
        let outcomes = shelf.seat.put(&writes).await;
        let (mut refused, mut written) = (Vec::new(), Vec::new());
        shelf.pay_at = now() + PAY_NEXT;
        for (Write { key, .. }, outcome) in writes.iter().zip(outcomes) {
            let Ok(host) = SniPattern::parse(key) else { continue };
            match outcome {
                Outcome::Written { revision } => {
                    if let Some(version) = version_of(&self.book, &host) {
                        shelf.ledger.wrote(key, revision, version);
                    }
                    written.push(host);
                }
                Outcome::Refused(stored) => refused.push(stored),
                Outcome::Away => shelf.falls_silent(),
            }
        }
        shelf.settle(&self.book, &written);
        self.hear_changes(&refused).await?;
        self.note_same().await
    }

    /// Every now and then: keeps when both were the same, and forgets removals that nobody needs any more.
    pub(super) async fn tidy(&mut self) -> Result<(), Stopping> {
        let Some(shelf) = self.shelf.as_mut().filter(|shelf| shelf.tidy_at <= now()) else { return Ok(()) };
        shelf.tidy_at = now() + TIDY_EVERY;
        let forgotten = self.replica.outdated(unix_ms());
        self.take_in(Asked { forgotten, ..Asked::default() }).await?;
        self.note_same().await
    }

    async fn note_same(&mut self) -> Result<(), Stopping> {
        let Some(shelf) = self.shelf.as_ref().filter(|shelf| shelf.ledger.is_same()) else { return Ok(()) };
        let (name, time) = (name_of(&shelf.seat), unix_ms());
        let before = self.book.same().find(|(peer, _)| ***peer == name).map_or(0, |(_, at)| at);
        if time.saturating_sub(before) < u64::try_from(TIDY_EVERY.as_millis()).unwrap_or(u64::MAX) / 2 {
            return Ok(());
        }
        self.take_in(Asked { same: vec![(name.into(), time)], ..Asked::default() }).await.map(drop)
    }
}

/// To a caller whose host changes in the store faster than this node can ask.
pub(super) fn contended() -> Problem {
    Problem::new(Kind::Unavailable, "others change this host in etcd at this moment; try again")
}

fn local(book: &Book, host: &SniPattern) -> Option<Local> {
    let version = version_of(book, host)?;
    let owner = book.get(host).map(|kept| kept.owner.as_str());
    let owner = owner.or_else(|| book.grave(host)?.owner.as_deref());
    Some(Local { version, holder: owner.map(Arc::from) })
}

/// Makes `book` say of `host` what `before` says.
fn restore(book: &mut Book, before: &Book, host: &SniPattern) {
    match (before.get(host), before.grave(host)) {
        (Some(kept), _) => book.put(kept.clone()),
        (None, Some(grave)) => book.put_grave(host, grave.clone()),
        (None, None) => book.remove(host),
    }
}

/// Under which the journal keeps when both were the same. No peer is called so.
fn name_of(seat: &Seat) -> String {
    format!("etcd:{}", seat.prefix())
}

/// Of a value.
const FORMAT: u32 = 1;
/// Hosts that are written between two looks at callers.
const PAY_AT_ONCE: usize = 64;
const PAY_NEXT: Duration = Duration::from_millis(5);
/// After a write that failed.
const PAY_AGAIN: Duration = Duration::from_secs(2);
const TIDY_EVERY: Duration = Duration::from_secs(10 * 60);
