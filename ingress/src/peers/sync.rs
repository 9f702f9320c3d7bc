//! How nodes come to say the same: pure. Messages and time in, actions out; whoever calls does the I/O.
//!
//! Each key is a register that the last writer wins, by [`Stamp`]; a removal is a version too, and ends any other of the
//! same stamp. What a node is told by its callers it *puts* to every peer, and nobody puts on what came from a peer. What
//! a broken link lost is found by comparing digests of buckets of keys: on connecting, and every few seconds.
//!
//! ```text
//!   Put(n, entries)  -> on disk there ->  Stored(n)
//!   Digest(buckets)  -> where they differ: Have(bucket, versions)
//!   Have             -> Put of what is newer here, Want(keys) of what is newer there
//!   Want             -> Put
//! ```
//! A removal is forgotten after [`FORGET_REMOVED_MS`]. A pair that was apart for longer cannot tell by it any more: then
//! what one had before they were last the same, and the other does not know at all, was removed in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::stamp::{Clock, Stamp};

/// One version of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<V> {
    pub key: Arc<str>,
    pub stamp: Stamp,
    /// `None`: removed.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub value: Option<V>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message<V> {
    Put {
        number: u64,
        entries: Vec<Entry<V>>,
    },
    Stored {
        number: u64,
        /// Written too far in the future.
        #[serde(default)]
        refused: usize,
    },
    Digest(Vec<u64>),
    Have {
        bucket: u16,
        versions: Vec<(Arc<str>, Version)>,
    },
    Want(Vec<Arc<str>>),
}

/// Which of two is newer: the later one, and of one stamp the removal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    pub stamp: Stamp,
    pub removed: bool,
}

/// What is to be done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<V> {
    Send(Arc<str>, Message<V>),
    /// Newer than what is here: put it on disk, tell [`Replica::learn`], then [`Replica::stored`].
    Store {
        peer: Arc<str>,
        number: u64,
        entries: Vec<Entry<V>>,
        refused: usize,
    },
    /// The peer has what `Put` this number carried.
    Acknowledged {
        peer: Arc<str>,
        number: u64,
    },
    /// It was removed while the pair was apart, so long ago that the removal is forgotten.
    Forget(Arc<str>),
    /// Worth keeping on disk: the pair was the same at this time.
    Same {
        peer: Arc<str>,
        at: u64,
    },
}

/// The values, wherever they are.
pub trait Values<V> {
    fn value(&self, key: &str) -> Option<V>;
}

/// Versions of all keys, and how far each peer is.
#[derive(Clone, Debug)]
pub struct Replica {
    versions: BTreeMap<(u16, Arc<str>), Known>,
    digest: Vec<u64>,
    sessions: BTreeMap<Arc<str>, Session>,
    /// Unix milliseconds at which this node and a peer were last known to be the same.
    same: BTreeMap<Arc<str>, u64>,
}

#[derive(Clone, Debug)]
struct Known {
    version: Version,
    /// Unix milliseconds at which this node heard of it.
    learned: u64,
}

/// A peer that is connected.
#[derive(Clone, Debug)]
struct Session {
    next: u64,
    /// Entries of each put that the peer has not stored yet.
    waiting: BTreeMap<u64, usize>,
    digest_due: u64,
    /// Until a difference is looked at again; longer each time that nothing came of it.
    again: u64,
    /// When the pair was last the same, before this session.
    apart_since: Option<u64>,
    refused: usize,
}

impl Version {
    pub fn of<V>(entry: &Entry<V>) -> Self {
        Self { stamp: entry.stamp.clone(), removed: entry.value.is_none() }
    }
}

impl Default for Replica {
    fn default() -> Self {
        Self {
            versions: BTreeMap::new(),
            digest: vec![0; BUCKETS.into()],
            sessions: BTreeMap::new(),
            same: BTreeMap::new(),
        }
    }
}

impl Replica {
    /// As it stands on disk. `learned`: Unix milliseconds.
    pub fn learn(&mut self, key: &str, version: Version, learned: u64) {
        let key: Arc<str> = key.into();
        let at = (bucket_of(&key), key);
        self.digest[usize::from(at.0)] ^= hash(&at.1, &version);
        if let Some(before) = self.versions.get(&at) {
            self.digest[usize::from(at.0)] ^= hash(&at.1, &before.version);
        }
        self.versions.insert(at, Known { version, learned });
    }

    /// As if it had never been.
    pub fn forget(&mut self, key: &str) {
        let at = (bucket_of(key), Arc::from(key));
        if let Some(before) = self.versions.remove(&at) {
            self.digest[usize::from(at.0)] ^= hash(&at.1, &before.version);
        }
    }

    /// When a pair was last the same, as it stands on disk.
    pub fn was_same(&mut self, peer: &Arc<str>, at: u64) {
        self.same.insert(peer.clone(), at);
    }

    /// Removals that nobody needs any more.
    pub fn outdated(&self, now: u64) -> Vec<Arc<str>> {
        let old = |known: &Known| known.version.removed && is_forgotten(&known.version.stamp, now);
        self.versions.iter().filter(|(_, known)| old(known)).map(|((_, key), _)| key.clone()).collect()
    }

    /// A link to `peer` is there.
    pub fn connected<V>(&mut self, peer: &Arc<str>, now: u64) -> Vec<Action<V>> {
        let apart_since = self.same.get(peer).copied();
        let session = Session {
            next: 0,
            waiting: BTreeMap::new(),
            digest_due: now + DIGEST_EVERY_MS,
            again: DIGEST_AGAIN_MS,
            apart_since,
            refused: 0,
        };
        self.sessions.insert(peer.clone(), session);
        vec![self.say_digest(peer)]
    }

    /// A put that was not sent after all.
    pub fn unsent(&mut self, peer: &str, number: u64) {
        if let Some(session) = self.sessions.get_mut(peer) {
            session.waiting.remove(&number);
        }
    }

    pub fn disconnected(&mut self, peer: &str) {
        self.sessions.remove(peer);
    }

    /// Entries on their way to `peer`; `None`: it is not connected.
    pub fn lag(&self, peer: &str) -> Option<usize> {
        self.sessions.get(peer).map(|session| session.waiting.values().sum())
    }

    /// Entries that `peer` refused in this session, or that were refused of it, because its clock differs too much.
    pub fn refused(&self, peer: &str) -> usize {
        self.sessions.get(peer).map_or(0, |session| session.refused)
    }

    /// Tells every connected peer; the numbers that their acknowledgements will have.
    pub fn put<V: Clone>(&mut self, entries: &[Entry<V>]) -> Vec<(Arc<str>, u64, Message<V>)> {
        let peers: Vec<_> = self.sessions.keys().cloned().collect();
        let put =
            |peer: Arc<str>| self.put_to(&peer, entries.to_vec()).map(|(number, message)| (peer, number, message));
        peers.into_iter().filter_map(put).collect()
    }

    /// What is due by now.
    pub fn tick<V>(&mut self, now: u64) -> Vec<Action<V>> {
        let due: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.digest_due <= now)
            .map(|(peer, _)| peer.clone())
            .collect();
        for peer in &due {
            if let Some(session) = self.sessions.get_mut(peer) {
                session.digest_due = now + DIGEST_EVERY_MS;
            }
        }
        due.iter().map(|peer| self.say_digest(peer)).collect()
    }

    /// When [`tick`](Self::tick) has something to do, in Unix milliseconds.
    pub fn next_tick(&self) -> Option<u64> {
        self.sessions.values().map(|session| session.digest_due).min()
    }

    /// A message of `peer`. Whoever is not connected says nothing.
    pub fn receive<V>(
        &mut self,
        peer: &Arc<str>,
        message: Message<V>,
        values: &impl Values<V>,
        now: u64,
    ) -> Vec<Action<V>> {
        if !self.sessions.contains_key(peer) {
            return Vec::new();
        }
        match message {
            Message::Put { number, entries } => vec![self.judge(peer, number, entries, now)],
            Message::Stored { number, refused } => self.acknowledged(peer, number, refused),
            Message::Digest(theirs) => self.compare(peer, &theirs, now),
            Message::Have { bucket, versions } => self.exchange(peer, bucket, versions, values, now),
            Message::Want(keys) => self.give(peer, keys, values, now),
        }
    }

    /// The answer to a [`Action::Store`] that is on disk.
    pub fn stored<V>(peer: &Arc<str>, number: u64, refused: usize) -> Action<V> {
        Action::Send(peer.clone(), Message::Stored { number, refused })
    }

    fn judge<V>(&mut self, peer: &Arc<str>, number: u64, entries: Vec<Entry<V>>, now: u64) -> Action<V> {
        let all = entries.len();
        let credible: Vec<_> = entries.into_iter().filter(|entry| Clock::judge(&entry.stamp, now).is_ok()).collect();
        let refused = all - credible.len();
        if let Some(session) = self.sessions.get_mut(peer) {
            session.refused += refused;
        }
        let news = |entry: &Entry<V>| {
            let forgotten = entry.value.is_none() && is_forgotten(&entry.stamp, now);
            let known = self.known(&entry.key).is_some_and(|known| known.version >= Version::of(entry));
            !(known || forgotten)
        };
        Action::Store { peer: peer.clone(), number, entries: credible.into_iter().filter(news).collect(), refused }
    }

    fn acknowledged<V>(&mut self, peer: &Arc<str>, number: u64, refused: usize) -> Vec<Action<V>> {
        let Some(session) = self.sessions.get_mut(peer) else { return Vec::new() };
        session.refused += refused;
        match session.waiting.remove(&number) {
            Some(_) if refused == 0 => {
                session.again = DIGEST_AGAIN_MS;
                vec![Action::Acknowledged { peer: peer.clone(), number }]
            }
            Some(_) | None => Vec::new(),
        }
    }

    fn compare<V>(&mut self, peer: &Arc<str>, theirs: &[u64], now: u64) -> Vec<Action<V>> {
        let differing: Vec<_> =
            (0..BUCKETS).filter(|&n| theirs.get(usize::from(n)) != self.digest.get(usize::from(n))).collect();
        let Some(session) = self.sessions.get_mut(peer) else { return Vec::new() };
        if differing.is_empty() {
            session.apart_since = None;
            session.again = DIGEST_AGAIN_MS;
            session.refused = 0;
            let before = self.same.insert(peer.clone(), now).unwrap_or_default();
            // What is kept on disk may lag behind by this much; the time itself is always true.
            let worth = before == 0 || now / KEEP_SAME_EVERY_MS != before / KEEP_SAME_EVERY_MS;
            return worth.then(|| Action::Same { peer: peer.clone(), at: now }).into_iter().collect();
        }
        // Not all at once; and look again soon, at what is left.
        session.digest_due = session.digest_due.min(now + session.again);
        session.again = (session.again * 2).min(DIGEST_EVERY_MS);
        let have = |bucket| Action::Send(peer.clone(), Message::Have { bucket, versions: self.bucket(bucket) });
        differing.into_iter().take(BUCKETS_AT_ONCE).map(have).collect()
    }

    fn exchange<V>(
        &mut self,
        peer: &Arc<str>,
        bucket: u16,
        theirs: Vec<(Arc<str>, Version)>,
        values: &impl Values<V>,
        now: u64,
    ) -> Vec<Action<V>> {
        if bucket >= BUCKETS {
            return Vec::new();
        }
        let credible = |version: &Version| Clock::judge(&version.stamp, now).is_ok();
        let theirs: BTreeMap<_, _> = theirs.into_iter().filter(|(key, _)| bucket_of(key) == bucket).collect();
        let newer_there = theirs.iter().filter(|(key, version)| {
            let forgotten = version.removed && is_forgotten(&version.stamp, now);
            !forgotten && credible(version) && self.known(key).is_none_or(|known| known.version < **version)
        });
        let wanted: Vec<_> = newer_there.map(|(key, _)| key.clone()).collect();
        let incredible = theirs.values().filter(|version| !credible(version)).count();
        let ours = self.versions.range((bucket, Arc::from(""))..(bucket + 1, Arc::from("")));
        let newer_here =
            ours.filter(|((_, key), known)| theirs.get(key).is_none_or(|version| *version < known.version));
        let offered: Vec<_> = newer_here.map(|((_, key), _)| (key.clone(), theirs.contains_key(key))).collect();
        if let Some(session) = self.sessions.get_mut(peer) {
            session.refused += incredible;
        }
        let (mut actions, mut entries) = (Vec::new(), Vec::new());
        for (key, is_known_there) in offered {
            match self.entry(&key, values, now) {
                Some(_) if !is_known_there && self.was_removed_there(peer, &key, now) => {
                    actions.push(Action::Forget(key))
                }
                Some(entry) => entries.push(entry),
                None => {}
            }
        }
        actions.extend(self.put_in_parts(peer, entries));
        actions.extend((!wanted.is_empty()).then(|| Action::Send(peer.clone(), Message::Want(wanted))));
        actions
    }

    fn give<V>(&mut self, peer: &Arc<str>, keys: Vec<Arc<str>>, values: &impl Values<V>, now: u64) -> Vec<Action<V>> {
        // Only somebody who lacks it, or has an older one, asks; the peer that removed it long ago lacks it.
        let (forgotten, given): (Vec<_>, Vec<_>) =
            keys.into_iter().partition(|key| self.was_removed_there(peer, key, now));
        let entries: Vec<_> = given.iter().filter_map(|key| self.entry(key, values, now)).collect();
        let put = self.put_in_parts(peer, entries);
        forgotten.into_iter().map(Action::Forget).chain(put).collect()
    }

    fn put_in_parts<V>(&mut self, peer: &Arc<str>, mut entries: Vec<Entry<V>>) -> Vec<Action<V>> {
        let mut actions = Vec::new();
        while !entries.is_empty() {
            let rest = entries.split_off(entries.len().min(ENTRIES_AT_ONCE));
            actions.extend(self.put_to(peer, entries).map(|(_, message)| Action::Send(peer.clone(), message)));
            entries = rest;
        }
        actions
    }

    /// Of a key that the peer does not know: whether it must have known it once.
    fn was_removed_there(&self, peer: &str, key: &str, now: u64) -> bool {
        let apart_since = self.sessions.get(peer).and_then(|session| session.apart_since);
        apart_since.is_some_and(|same| {
            let too_long = now.saturating_sub(same) > FORGET_REMOVED_MS - MARGIN_MS;
            too_long && self.known(key).is_some_and(|known| !known.version.removed && known.learned < same)
        })
    }

    fn entry<V>(&self, key: &Arc<str>, values: &impl Values<V>, now: u64) -> Option<Entry<V>> {
        let Known { version: Version { stamp, removed }, .. } = self.known(key)?;
        if *removed {
            return (!is_forgotten(stamp, now)).then(|| Entry { key: key.clone(), stamp: stamp.clone(), value: None });
        }
        Some(Entry { key: key.clone(), stamp: stamp.clone(), value: Some(values.value(key)?) })
    }

    fn put_to<V>(&mut self, peer: &str, entries: Vec<Entry<V>>) -> Option<(u64, Message<V>)> {
        let session = self.sessions.get_mut(peer).filter(|_| !entries.is_empty())?;
        let number = session.next;
        session.next += 1;
        session.waiting.insert(number, entries.len());
        Some((number, Message::Put { number, entries }))
    }

    fn say_digest<V>(&self, peer: &Arc<str>) -> Action<V> {
        Action::Send(peer.clone(), Message::Digest(self.digest.clone()))
    }

    fn bucket(&self, bucket: u16) -> Vec<(Arc<str>, Version)> {
        let range = self.versions.range((bucket, Arc::from(""))..(bucket + 1, Arc::from("")));
        range.map(|((_, key), known)| (key.clone(), known.version.clone())).collect()
    }

    fn known(&self, key: &str) -> Option<&Known> {
        self.versions.get(&(bucket_of(key), Arc::from(key)))
    }

    /// The peers that are connected.
    pub fn peers(&self) -> BTreeSet<Arc<str>> {
        self.sessions.keys().cloned().collect()
    }
}

fn bucket_of(key: &str) -> u16 {
    // The hash is part of the protocol, as is the number of buckets.
    u16::try_from(xxh3_64(key.as_bytes()) % u64::from(BUCKETS)).unwrap_or_default()
}

fn hash(key: &str, Version { stamp: Stamp { ms, count, node }, removed }: &Version) -> u64 {
    xxh3_64(format!("{key}\0{ms}\0{count}\0{node}\0{removed}").as_bytes())
}

fn is_forgotten(stamp: &Stamp, now: u64) -> bool {
    now.saturating_sub(stamp.ms) > FORGET_REMOVED_MS
}

const BUCKETS: u16 = 512;
/// Of a hundred thousand entries, some six thousand.
const BUCKETS_AT_ONCE: usize = 32;
/// In one message.
const ENTRIES_AT_ONCE: usize = 32;
const DIGEST_EVERY_MS: u64 = 10_000;
const DIGEST_AGAIN_MS: u64 = 250;
const KEEP_SAME_EVERY_MS: u64 = 10 * 60 * 1000;
/// 7 days.
pub const FORGET_REMOVED_MS: u64 = 7 * 24 * 3600 * 1000;
/// Clocks differ, and so does the moment at which two nodes forget.
const MARGIN_MS: u64 = 3600 * 1000;

#[cfg(test)]
mod tests;
