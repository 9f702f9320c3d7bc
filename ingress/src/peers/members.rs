//! Who belongs to the mesh. Each node is one register, and the last writer wins; a node that was removed stays so until it
//! joins anew.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::identity::{IdentityError, directory, write};
use super::stamp::{Clock, Stamp};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    // First: members are compared by it.
    pub stamp: Stamp,
    pub removed: bool,
    pub name: Arc<str>,
    pub address: SocketAddr,
    /// Of its certificate.
    pub fingerprint: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Members(BTreeMap<Arc<str>, Member>);

/// Why a node is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAMember {
    #[error("{0} was removed from the mesh; remove its state directory's `peers` and let it join again")]
    Removed(Arc<str>),
    #[error("{0} shows another certificate than the one that it joined with")]
    Replaced(Arc<str>),
}

impl Members {
    /// Nobody, if nothing is there yet.
    pub fn load(state_dir: &Path) -> Result<Self, IdentityError> {
        let path = directory(state_dir).join(FILE);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read.map_err(super::identity::failed("reading", &path))?,
        };
        let members: Vec<Member> = serde_json::from_slice(&bytes)
            .map_err(|error| IdentityError::Unusable { path, what: error.to_string() })?;
        Ok(Self(members.into_iter().map(|member| (member.name.clone(), member)).collect()))
    }

    pub fn store(&self, state_dir: &Path) -> Result<(), IdentityError> {
        let members: Vec<_> = self.0.values().collect();
        write(&directory(state_dir), FILE, &serde_json::to_string_pretty(&members).unwrap_or_default())
    }

    /// Whether anything was news.
    pub fn merge(&mut self, others: impl IntoIterator<Item = Member>, now: u64) -> bool {
        let mut changed = false;
        for member in others {
            let is_news = self.0.get(&member.name).is_none_or(|known| *known < member);
            if is_news && Clock::judge(&member.stamp, now).is_ok() {
                self.0.insert(member.name.clone(), member);
                changed = true;
            }
        }
        changed
    }

    /// A stamp that is later than all that is known here.
    pub fn stamp(&self, node: &Arc<str>, now: u64) -> Stamp {
        let mut clock = Clock::new(node.clone());
        self.0.values().for_each(|member| clock.saw(&member.stamp));
        clock.tick(now)
    }

    /// False: there is no such member.
    pub fn remove(&mut self, name: &str, by: &Arc<str>, now: u64) -> bool {
        let stamp = self.stamp(by, now);
        match self.0.get_mut(name).filter(|member| !member.removed) {
            Some(member) => {
                (member.stamp, member.removed) = (stamp, true);
                true
            }
            None => false,
        }
    }

    pub(super) fn admit(&self, name: &Arc<str>, fingerprint: &str) -> Result<(), NotAMember> {
        match self.0.get(name) {
            // It joined by another node, and brings its own record.
            None => Ok(()),
            Some(member) if member.removed => Err(NotAMember::Removed(name.clone())),
            Some(member) if member.fingerprint != fingerprint => Err(NotAMember::Replaced(name.clone())),
            Some(_) => Ok(()),
        }
    }

    pub fn get(&self, name: &str) -> Option<&Member> {
        self.0.get(name).filter(|member| !member.removed)
    }

    /// Also those that were removed.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.0.values()
    }

    /// Those that belong to the mesh now, but `own`.
    pub fn others<'a>(&'a self, own: &'a str) -> impl Iterator<Item = &'a Member> {
        self.0.values().filter(move |member| !member.removed && &*member.name != own)
    }
}

const FILE: &str = "members.json";

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, ms: u64, fingerprint: &str) -> Member {
        let stamp = Stamp { ms, count: 0, node: "a".into() };
        let address = "10.0.0.1:9877".parse().expect("an address");
        Member { stamp, removed: false, name: name.into(), address, fingerprint: fingerprint.into() }
    }

    #[test]
    fn a_removed_node_is_not_let_in_until_it_joins_anew() {
        let mut members = Members::default();
        let name: Arc<str> = "b".into();
        assert!(members.merge([member("b", 1, "old")], 10));
        assert_eq!(members.admit(&name, "old"), Ok(()));
        assert_eq!(members.admit(&name, "forged"), Err(NotAMember::Replaced(name.clone())));
        assert!(members.remove("b", &"a".into(), 10));
        // Its own word about itself is older than that.
        assert!(!members.merge([member("b", 1, "old")], 10));
        assert_eq!(members.admit(&name, "old"), Err(NotAMember::Removed(name.clone())));
        assert!(members.merge([member("b", 11, "new")], 11));
        assert_eq!(members.admit(&name, "old"), Err(NotAMember::Replaced(name.clone())));
        assert_eq!(members.admit(&name, "new"), Ok(()));
    }
}
