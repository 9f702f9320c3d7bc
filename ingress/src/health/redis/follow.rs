//! Whom a pool takes for its primary: `(state, input) -> actions`. No sockets, no tasks, no clock.
//!
//! ```text
//!            somebody is the primary, and may be believed
//!   Nobody -----------------------------------------------> Followed
//!      ^    it says that it is a replica (demoted), or        |
//!      |    does not answer `fall` times in a row (lost), or  |
//!      |    most Sentinels name another (outvoted), or        |
//!      '--- all replicas went over to another (superseded) ---'
//! ```
//!
//! **Never two.** There is one place for the followed server, and it is empty between one and the next.
//!
//! **Who is followed stays**, whatever others say of themselves: a replica that somebody made independent is no failover.
//!
//! **Who may be believed.** With Sentinels: who is named by more than half of those that are configured, and says so
//! itself. Without: who was a replica of ours since somebody else was chosen. A server that comes back from the dead as
//! the primary that it was is thus not believed until it has been a replica, however alone it stands. At a start, when
//! nothing is known yet, of several the one with the most replicas, then with the largest offset, then the first.

use std::cmp::Reverse;

use super::answer::Role;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// A server was asked.
    Answer(usize, Answer),
    /// All Sentinels were asked.
    Sentinels(Word),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Primary { offset: u64, replicas: usize },
    Replica,
    Failed,
}

/// What the Sentinels say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Word {
    /// No majority names the same server, or it was not heard yet. Changes nothing.
    #[default]
    None,
    Named(usize),
    /// A server that is not in the pool.
    Stranger,
}

/// What to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It takes no connections from now on.
    Leave(usize, Why),
    Follow(usize),
}

/// Why a primary is not followed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Demoted,
    Lost,
    Outvoted,
    Superseded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Answers in a row until a server is believed that was not followed before.
    pub(super) rise: u32,
    /// Failed answers in a row until the followed one is lost.
    pub(super) fall: u32,
    pub(super) has_sentinels: bool,
}

/// What the pool should show of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    NotAsked,
    Followed,
    Replica,
    /// It says that it is the primary, and is not followed.
    Rival,
    Failing,
}

#[derive(Debug)]
pub(super) struct Follow {
    rules: Rules,
    servers: Vec<Server>,
    followed: Option<usize>,
    /// Somebody was followed once: from now on nobody is believed at the first word.
    settled: bool,
    word: Word,
}

#[derive(Clone, Debug, Default)]
struct Server {
    answer: Option<Answer>,
    /// In a row.
    failed: u32,
    /// Times in a row that it said that it is the primary.
    claimed: u32,
    /// Times in a row that it had the replicas that the followed one lacked.
    ahead: u32,
    /// Not believed until it was a replica.
    deposed: bool,
}

impl Follow {
    /// `followed` and `deposed` are what was known before a reload.
    pub(super) fn new(rules: Rules, servers: usize, followed: Option<usize>, deposed: &[usize]) -> Self {
        let server = |n| Server { deposed: deposed.contains(&n), ..Server::default() };
        let servers = (0..servers).map(server).collect();
        let settled = followed.is_some() || !deposed.is_empty();
        Self { rules, servers, followed, settled, word: Word::None }
    }

    pub(super) fn handle(&mut self, input: Input) -> Vec<Action> {
        match input {
            Input::Sentinels(word) => self.word = word,
            Input::Answer(n, answer) => self.answered(n, answer),
        }
        let mut actions = Vec::new();
        if let Some(n) = self.followed
            && let Some(why) = self.why_leave(n)
        {
            self.followed = None;
            actions.push(Action::Leave(n, why));
        }
        if self.followed.is_none()
            && let Some(n) = self.choose()
        {
            self.followed = Some(n);
            self.settled = true;
            for (other, server) in self.servers.iter_mut().enumerate() {
                server.deposed |= other != n && server.answer != Some(Answer::Replica);
                server.ahead = 0;
            }
            actions.push(Action::Follow(n));
        }
        actions
    }

    pub(super) fn followed(&self) -> Option<usize> {
        self.followed
    }

    pub(super) fn word(&self) -> Word {
        self.word
    }

    pub(super) fn deposed(&self) -> impl Iterator<Item = usize> {
        self.servers.iter().enumerate().filter(|(_, server)| server.deposed).map(|(n, _)| n)
    }

    pub(super) fn standing(&self, n: usize) -> Standing {
        let Some(server) = self.servers.get(n) else { return Standing::NotAsked };
        match server.answer {
            _ if self.followed == Some(n) => Standing::Followed,
            None => Standing::NotAsked,
            Some(Answer::Primary { .. }) => Standing::Rival,
            Some(Answer::Replica) => Standing::Replica,
            Some(Answer::Failed) => Standing::Failing,
        }
    }

    /// Whether a server may have no connection at all: it is known to be a replica, or somebody else is followed. One that
    /// is only out of reach may come back as what it was.
    pub(super) fn must_be_empty(&self, n: usize) -> bool {
        match self.standing(n) {
            Standing::Followed | Standing::NotAsked => false,
            Standing::Replica => true,
            Standing::Rival | Standing::Failing => self.followed.is_some(),
        }
    }

    fn answered(&mut self, n: usize, answer: Answer) {
        let followed = self.followed.and_then(|n| self.servers.get(n)).and_then(|server| server.answer);
        let is_followed = self.followed == Some(n);
        let Some(server) = self.servers.get_mut(n) else { return };
        server.answer = Some(answer);
        server.failed = if answer == Answer::Failed { server.failed.saturating_add(1) } else { 0 };
        server.deposed &= answer != Answer::Replica;
        let Answer::Primary { offset, replicas } = answer else {
            (server.claimed, server.ahead) = (0, 0);
            return;
        };
        server.claimed = server.claimed.saturating_add(1);
        let has_all_replicas = match followed {
            Some(Answer::Primary { offset: ours, replicas: 0 }) => replicas > 0 && offset >= ours,
            Some(Answer::Primary { .. } | Answer::Replica | Answer::Failed) | None => false,
        };
        server.ahead = if has_all_replicas && !is_followed { server.ahead.saturating_add(1) } else { 0 };
    }

    fn why_leave(&self, followed: usize) -> Option<Why> {
        let server = self.servers.get(followed)?;
        let outvoted = match self.word {
            Word::None => false,
            Word::Named(n) => n != followed,
            Word::Stranger => true,
        };
        let superseded = !self.rules.has_sentinels && self.servers.iter().any(|s| s.ahead >= self.rules.rise.max(2));
        match server.answer {
            Some(Answer::Replica) => Some(Why::Demoted),
            _ if outvoted => Some(Why::Outvoted),
            Some(Answer::Failed) if server.failed >= self.rules.fall => Some(Why::Lost),
            _ if superseded => Some(Why::Superseded),
            Some(Answer::Failed | Answer::Primary { .. }) | None => None,
        }
    }

    fn choose(&self) -> Option<usize> {
        if self.servers.iter().any(|server| server.answer.is_none()) {
            return None;
        }
        let needed = if self.settled { self.rules.rise } else { 1 };
        let claims = self.servers.iter().enumerate().filter_map(|(n, server)| match server.answer {
            Some(Answer::Primary { offset, replicas }) if server.claimed >= needed && self.may_be_believed(n) => {
                Some((server.ahead >= self.rules.rise.max(2), replicas, offset, Reverse(n)))
            }
            Some(Answer::Primary { .. } | Answer::Replica | Answer::Failed) | None => None,
        });
        claims.max().map(|(.., Reverse(n))| n)
    }

    fn may_be_believed(&self, n: usize) -> bool {
        match self.rules.has_sentinels {
            true => self.word == Word::Named(n),
            // The only one there is can be mistaken for nobody; one that has all the replicas has proven itself.
            false => self
                .servers
                .get(n)
                .is_some_and(|s| !s.deposed || self.servers.len() == 1 || s.ahead >= self.rules.rise.max(2)),
        }
    }
}

impl From<&Role> for Answer {
    fn from(role: &Role) -> Self {
        match role {
            Role::Primary { offset, replicas } => Self::Primary { offset: *offset, replicas: *replicas },
            Role::Replica { of: _, link: _ } => Self::Replica,
        }
    }
}

impl Why {
    /// For the log.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Demoted => "it is a replica now",
            Self::Lost => "it does not answer",
            Self::Outvoted => "most Sentinels name another server",
            Self::Superseded => "its replicas went over to another server",
        }
    }
}

#[cfg(test)]
mod tests;
