//! What callers ask for, and the bodies that they get.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use tokio::sync::oneshot;

use super::book::{Upstream, Verdict};
use super::problem::Problem;
use super::request::Wish;
use crate::route::SniPattern;

/// What one caller asks for.
#[derive(Debug)]
pub(super) struct Order {
    /// The token's name.
    pub(super) actor: Arc<str>,
    pub(super) what: What,
    pub(super) answer: oneshot::Sender<Result<Answer, Problem>>,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Register(Wish),
    Deregister(SniPattern),
    Heartbeat(SniPattern),
    List,
    /// Whether registrations could be taken.
    Health,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Answer {
    Changed(Changed),
    List(List),
    Healthy,
}

/// The body of a 200.
#[derive(Debug, Serialize)]
pub(super) struct Changed {
    #[serde(serialize_with = "as_text")]
    pub(super) host: SniPattern,
    pub(super) result: Verdict,
    /// The generation that holds it.
    pub(super) generation: u64,
    #[serde(flatten)]
    pub(super) parts: ShownParts,
    pub(super) lease: Option<Lease>,
    /// What other nodes made of it.
    pub(super) peers: Vec<PeerAnswer>,
    /// Whether the shared store has it; `None`: there is none, or nothing to have.
    pub(super) store: Option<StoreAnswer>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct StoreAnswer {
    pub(super) state: StoreState,
    /// The write that brought it there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<i64>,
    /// Why it is not `stored`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StoreState {
    Stored,
    /// On this node's disk only.
    Pending,
}

impl StoreAnswer {
    pub(super) fn pending(detail: &'static str) -> Self {
        Self { state: StoreState::Pending, revision: None, detail: Some(detail) }
    }
}

/// What became of a change at another node.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PeerAnswer {
    pub(super) name: Arc<str>,
    pub(super) state: PeerState,
    /// Why it is not `stored`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PeerState {
    /// On its disk, and in force there.
    Stored,
    /// On its way.
    Pending,
    /// It will hear of it when it is there again.
    Unreachable,
}

#[derive(Debug, Serialize)]
pub(super) struct List {
    pub(super) generation: u64,
    pub(super) routes: Vec<Listed>,
}

#[derive(Debug, Serialize)]
pub(super) struct Listed {
    #[serde(serialize_with = "as_text")]
    pub(super) host: SniPattern,
    pub(super) owner: String,
    #[serde(flatten)]
    pub(super) target: Target,
    #[serde(flatten)]
    pub(super) parts: ShownParts,
    /// Why nothing of it is served.
    pub(super) problem: Option<String>,
    /// Unix seconds.
    pub(super) registered: u64,
    pub(super) lease: Option<Lease>,
}

/// Without secrets.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Target {
    Simple { backends: Vec<Upstream> },
    Template { template: String, address: IpAddr },
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ShownParts {
    /// Parts of it that are served.
    pub(super) served: usize,
    /// Parts that wait for HTTP.
    pub(super) needs_http: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Lease {
    /// Seconds.
    pub(super) ttl: u32,
    /// Seconds.
    pub(super) expires_in: u64,
}

impl What {
    pub(super) fn host(&self) -> Option<&SniPattern> {
        match self {
            Self::Register(wish) => Some(&wish.host),
            Self::Deregister(host) | Self::Heartbeat(host) => Some(host),
            Self::List | Self::Health => None,
        }
    }
}

impl Answer {
    /// Result and generation, for the audit log.
    pub(super) fn audit(&self) -> (&'static str, u64) {
        match self {
            Self::Changed(changed) => (changed.result.as_str(), changed.generation),
            Self::List(list) => ("listed", list.generation),
            Self::Healthy => ("healthy", 0),
        }
    }
}

fn as_text<S: Serializer>(host: &SniPattern, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(host)
}
