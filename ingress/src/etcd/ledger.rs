//! A copy of a space that goes on without the store: what the store has, what this node has instead, and whose word counts.
//! Pure: whoever calls keeps the copy itself, and does the I/O.
//!
//! The store's word counts, except for keys that this node *owes* it: those were written here while it was away. When both
//! have written a key, the later [`Version`] counts, as among peers; but a key that is claimed there by another stays so. A
//! key that is gone from the store without a removal is put back: a store may be lost, and be filled again by its nodes.
//!
//! Removals are kept in the store for a while ([`FORGET_REMOVED_MS`]). A node that was away for longer cannot tell by
//! them: what it had before, and the store does not know at all, was removed in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::peers::sync::{FORGET_REMOVED_MS, Version};

/// What the store says of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub key: Arc<str>,
    /// Which write of the whole store it is.
    pub revision: i64,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Entry {
        version: Version,
        /// Whose it is; `None`: it is removed.
        holder: Option<Arc<str>>,
    },
    /// There is no such key.
    Gone,
    /// Of a newer build, or nonsense. Nobody here may overwrite it.
    Unreadable,
}

/// What this node has of the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    pub version: Version,
    /// Whose it is; of a removal, whose it was.
    pub holder: Option<Arc<str>>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Nothing,
    /// The store's word takes the place of this node's; `lost`: which had a claim that nobody granted.
    Take {
        lost: bool,
    },
    /// This node's word is to be written there.
    Owe,
}

/// Whether what is claimed there, by the first, may not be taken by the second.
pub type Guards<'a> = &'a dyn Fn(&str, &str) -> bool;

#[derive(Debug, Default)]
pub struct Ledger {
    there: BTreeMap<Arc<str>, There>,
    owed: BTreeSet<Arc<str>>,
    is_here: bool,
    /// Unix milliseconds at which both were last known to be the same, before what is heard now.
    apart_since: Option<u64>,
}

#[derive(Clone, Debug)]
struct There {
    revision: i64,
    /// `None`: unreadable.
    version: Option<Version>,
}

impl Ledger {
    /// `same`: Unix milliseconds at which both were last known to be the same.
    pub fn new(same: Option<u64>) -> Self {
        Self { apart_since: same, ..Self::default() }
    }

    /// The store answers, and its changes are heard.
    pub fn is_here(&self) -> bool {
        self.is_here
    }

    pub fn here(&mut self) {
        self.is_here = true;
    }

    /// Changes are not heard any more. `now`: Unix milliseconds.
    pub fn away(&mut self, now: u64) {
        if self.is_same() {
            self.apart_since = Some(now);
        }
        self.is_here = false;
    }

    /// What was heard is not what this node has: it has to compare all anew.
    pub fn lose_track(&mut self) {
        self.is_here = false;
    }

    /// Both have the same, as far as anybody can know.
    pub fn is_same(&self) -> bool {
        self.is_here && self.owed.is_empty()
    }

    /// A change that was heard, or what was found in the way of a write.
    pub fn hear(&mut self, word: &Word, local: Option<&Local>, guards: Guards<'_>, now: u64) -> Judgement {
        let before = self.there.get(&word.key).cloned();
        if before.as_ref().is_some_and(|before| before.revision >= word.revision) {
            // This node's own, or older than what it was told already.
            return Judgement::Nothing;
        }
        let is_owed = self.owed.contains(&word.key);
        self.judge(word, before, local, guards, now, is_owed)
    }

    /// All that the store has. What it lacks comes after its own words: those are in [`absent`](Self::absent).
    pub fn list(&mut self, word: &Word, local: Option<&Local>, guards: Guards<'_>, now: u64) -> Judgement {
        // The store may have been restored: its word counts for no more than this node's.
        let before = self.there.remove(&word.key);
        self.judge(word, before, local, guards, now, true)
    }

    /// A key that this node has and a listing does not. True: it was removed there, so long ago that nobody knows any more.
    /// `learned`: Unix milliseconds.
    pub fn absent(&mut self, key: &Arc<str>, version: &Version, learned: u64, now: u64) -> bool {
        self.there.remove(key);
        let was_removed = self.apart_since.is_some_and(|same| {
            let too_long = now.saturating_sub(same) > FORGET_REMOVED_MS - MARGIN_MS;
            too_long && !version.removed && learned < same
        });
        match was_removed || is_forgotten(version, now) {
            true => drop(self.owed.remove(key)),
            false => drop(self.owed.insert(key.clone())),
        }
        was_removed
    }

    /// A listing was gone through, and what it asked for is done: from here on the two are compared by changes.
    pub fn listed(&mut self) {
        self.is_here = true;
        self.apart_since = None;
    }

    fn judge(
        &mut self,
        Word { key, revision, what }: &Word,
        before: Option<There>,
        local: Option<&Local>,
        guards: Guards<'_>,
        now: u64,
        both_count: bool,
    ) -> Judgement {
        let (version, holder) = match what {
            What::Gone => {
                self.there.remove(key);
                if local.is_none_or(|local| is_forgotten(&local.version, now)) {
                    self.owed.remove(key);
                    return Judgement::Nothing;
                }
                return self.owe(key);
            }
            What::Unreadable => {
                self.there.insert(key.clone(), There { revision: *revision, version: None });
                return Judgement::Nothing;
            }
            What::Entry { version, holder } => (version, holder),
        };
        let there = There { revision: *revision, version: Some(version.clone()) };
        self.there.insert(key.clone(), there);
        let Some(local) = local else {
            self.owed.remove(key);
            return Judgement::Take { lost: false };
        };
        if local.version == *version {
            self.owed.remove(key);
            return Judgement::Nothing;
        }
        // What was said here with that in view was rightly said.
        let is_news = before.is_none_or(|before| before.version.as_ref() != Some(version));
        let claims = holder.as_ref().zip(local.holder.as_ref());
        let is_guarded = is_news && claims.is_some_and(|(theirs, ours)| guards(theirs, ours));
        if both_count && local.version > *version && !is_guarded {
            return self.owe(key);
        }
        self.owed.remove(key);
        Judgement::Take { lost: both_count && is_guarded && !local.version.removed }
    }

    fn owe(&mut self, key: &Arc<str>) -> Judgement {
        self.owed.insert(key.clone());
        Judgement::Owe
    }

    /// This node has written it there.
    pub fn wrote(&mut self, key: &Arc<str>, revision: i64, version: Version) {
        if self.there.get(key).is_none_or(|there| there.revision < revision) {
            self.there.insert(key.clone(), There { revision, version: Some(version) });
        }
    }

    /// This node's own copy of a key has changed: it is owed unless the store is known to have the same.
    pub fn settle(&mut self, key: &Arc<str>, local: Option<&Version>) {
        let known = self.there.get(key).and_then(|there| there.version.as_ref());
        match local {
            Some(local) if known != Some(local) => drop(self.owed.insert(key.clone())),
            Some(_) | None => drop(self.owed.remove(key)),
        }
    }

    /// What a write of this key has to be based on; `None`: it may not be written.
    pub fn base(&self, key: &str) -> Option<i64> {
        match self.there.get(key) {
            Some(There { version: None, revision: _ }) => None,
            Some(There { revision, version: Some(_) }) => Some(*revision),
            None => Some(0),
        }
    }

    /// Some of what is to be written.
    pub fn owed(&self, most: usize) -> Vec<Arc<str>> {
        self.owed.iter().filter(|key| self.base(key).is_some()).take(most).cloned().collect()
    }

    pub fn owes_something(&self) -> bool {
        self.owed.iter().any(|key| self.base(key).is_some())
    }

    pub fn owes(&self, key: &str) -> bool {
        self.owed.contains(key)
    }

    pub fn count_owed(&self) -> usize {
        self.owed.len()
    }
}

fn is_forgotten(version: &Version, now: u64) -> bool {
    version.removed && now.saturating_sub(version.stamp.ms) > FORGET_REMOVED_MS
}

/// Clocks differ, and so does the moment at which a removal fades.
const MARGIN_MS: u64 = 3600 * 1000;

#[cfg(test)]
mod tests;
