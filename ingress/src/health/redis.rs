//! Pools that follow a Redis primary: one task a pool asks all its servers and Sentinels, and says who takes connections.
//!
//! `follow` decides; this only moves data. The primary's place in [`Primary`] is emptied before its connections are cut,
//! and filled again only after that.

mod answer;
mod client;
mod follow;
mod resp;
mod sentinel;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use tracing::{debug, info, warn};

use super::probe::{Probe, ProbeError};
use super::{Plan, Shared, cut, tell};
use crate::balance::{Backend, Check, HealthState, Outlook, Primary, SentinelsView};
use crate::clock;
use crate::config::{HealthConfig, OnDown, ProbeConfig};
use crate::l4::outcome::EndReason;

pub use answer::Refusal;
pub(super) use answer::Role;
pub(super) use client::Client;
use follow::{Action, Answer, Follow, Input, Rules, Standing, Why, Word};
use sentinel::{Known, Said, Sentinels, tally};

/// Asks until it is dropped.
pub(super) async fn run(backends: Vec<Arc<Backend>>, primary: Arc<Primary>, plan: Plan, shared: Shared) {
    let mut pool = Following::new(backends, primary, plan, shared);
    let mut next = tokio::time::Instant::now();
    loop {
        tokio::time::sleep_until(next).await;
        next += pool.plan.health.interval;
        pool.round().await;
        // One that took longer than the interval is followed at once, and only once.
        next = next.max(tokio::time::Instant::now());
    }
}

struct Following {
    backends: Vec<Arc<Backend>>,
    probes: Vec<Probe>,
    sentinels: Option<Sentinels>,
    primary: Arc<Primary>,
    plan: Plan,
    shared: Shared,
    follow: Follow,
    /// What the Sentinels made of it, and the stranger that they name.
    heard: Option<(SentinelsView, Option<String>)>,
    /// The last problem that was logged.
    told: Option<String>,
    /// Primaries that were lost, and told of as down. Who is no primary is not told of.
    lost: BTreeSet<usize>,
}

enum Event {
    Server(usize, Result<(Role, Duration), String>),
    Sentinels(Said),
}

impl Following {
    fn new(backends: Vec<Arc<Backend>>, primary: Arc<Primary>, plan: Plan, shared: Shared) -> Self {
        let probe = |b: &Arc<Backend>| Probe::new(&plan.health, plan.proxy, &b.target, shared.tls.clone());
        let sentinels = match &plan.health.probe {
            ProbeConfig::Redis(redis) => {
                let client = Client::new(redis);
                redis.sentinel.as_ref().map(|config| Sentinels::new(&client, config, plan.health.timeout))
            }
            ProbeConfig::Tcp | ProbeConfig::Tls { .. } | ProbeConfig::Http(_) | ProbeConfig::Https { .. } => None,
        };
        let HealthConfig { rise, fall, .. } = plan.health;
        let rules = Rules { rise, fall, has_sentinels: sentinels.is_some() };
        let position = |wanted: &Arc<Backend>| backends.iter().position(|b| Arc::ptr_eq(b, wanted));
        let followed = primary.followed();
        let deposed = primary.deposed();
        let deposed: Vec<_> = (0..backends.len()).filter(|n| deposed.contains(&backends[*n].name)).collect();
        let kept = followed.as_ref().and_then(position);
        if kept.is_none() && followed.is_some() {
            // It has left the pool, and its connections are the reload's business.
            primary.follow(None, clock::now());
        }
        let follow = Follow::new(rules, backends.len(), kept, &deposed);
        let probes = backends.iter().map(probe).collect();
        Self {
            backends,
            probes,
            sentinels,
            primary,
            plan,
            shared,
            follow,
            heard: None,
            told: None,
            lost: BTreeSet::new(),
        }
    }

    /// Asks everybody once, and acts on each answer as it comes.
    async fn round(&mut self) {
        let mut answers: FuturesUnordered<BoxFuture<'static, Event>> = FuturesUnordered::new();
        for (n, (backend, probe)) in self.backends.iter().zip(&self.probes).enumerate() {
            let (backend, probe, slots) = (backend.clone(), probe.clone(), self.shared.slots.clone());
            answers.push(Box::pin(async move {
                let _slot = slots.acquire().await;
                Event::Server(n, ask(&backend, &probe).await)
            }));
        }
        if let Some(sentinels) = self.sentinels.clone() {
            answers.push(Box::pin(async move { Event::Sentinels(sentinels.ask().await) }));
        }
        while let Some(event) = answers.next().await {
            let input = match event {
                Event::Server(n, answer) => self.answered(n, answer),
                Event::Sentinels(said) => self.heard(said),
            };
            for action in self.follow.handle(input) {
                self.act(action).await;
            }
            self.show();
        }
        self.empty_others().await;
    }

    fn answered(&mut self, n: usize, answer: Result<(Role, Duration), String>) -> Input {
        let now = clock::now();
        let (answer, check) = match answer {
            Ok((role, latency)) => (Answer::from(&role), Check::good(latency, now)),
            Err(error) => (Answer::Failed, Check::failed(error, now)),
        };
        self.backends[n].answered(check);
        Input::Answer(n, answer)
    }

    fn heard(&mut self, said: Said) -> Input {
        let said: Vec<_> = said
            .into_iter()
            .map(|said| said.inspect_err(|error| debug!(pool = %self.pool(), %error, "asking a Sentinel")).ok())
            .collect();
        let port = self.plan.health.port;
        let servers: Vec<_> = self.backends.iter().map(|backend| Known::of(backend, port)).collect();
        let (word, view, stranger) = tally(&said, &servers);
        self.heard = Some((view, stranger));
        Input::Sentinels(word)
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Leave(n, why) => {
                let backend = self.backends[n].clone();
                self.primary.follow(None, clock::now());
                warn!(pool = %backend.pool, backend = backend.name, why = why.as_str(), "the primary takes no connections any more");
                if why == Why::Lost && self.lost.insert(n) {
                    tell(&backend, HealthState::Up, HealthState::Down, &self.shared.events);
                }
                match (why, self.plan.on_down) {
                    (Why::Demoted | Why::Outvoted | Why::Superseded, _) => self.cut(&backend, EndReason::Demoted).await,
                    (Why::Lost, OnDown::Cut) => self.cut(&backend, EndReason::BackendDown).await,
                    (Why::Lost, OnDown::Keep) => {}
                }
            }
            Action::Follow(n) => {
                self.empty_others().await;
                let backend = self.backends[n].clone();
                backend.enter(HealthState::Up, clock::now());
                info!(pool = %backend.pool, backend = backend.name, "this is the primary now");
                self.primary.follow(Some(backend), clock::now());
            }
        }
        let name = |n: usize| self.backends[n].name.clone();
        self.primary.depose(self.follow.deposed().map(name).collect());
    }

    /// A connection may have been on its way while its server ceased to be the primary, or be left from before a restart.
    async fn empty_others(&self) {
        for (n, backend) in self.backends.iter().enumerate() {
            if self.follow.must_be_empty(n) && backend.in_flight() > 0 {
                self.cut(backend, EndReason::Demoted).await;
            }
        }
    }

    async fn cut(&self, backend: &Backend, reason: EndReason) {
        cut(backend, reason, &self.shared.commands).await;
    }

    /// Puts into words how things stand.
    fn show(&mut self) {
        let now = clock::now();
        let mut rivals = Vec::new();
        for (n, backend) in self.backends.iter().enumerate() {
            let state = match self.follow.standing(n) {
                Standing::NotAsked => continue,
                Standing::Followed => HealthState::Up,
                Standing::Replica => HealthState::Standby,
                Standing::Rival => {
                    rivals.push(backend.name.clone());
                    HealthState::Down
                }
                Standing::Failing => HealthState::Down,
            };
            backend.enter(state, now);
            if state != HealthState::Down && self.lost.remove(&n) {
                tell(backend, HealthState::Down, state, &self.shared.events);
            }
        }
        let problem = self.problem(&rivals);
        if problem != self.told {
            if let Some(problem) = &problem {
                warn!(pool = %self.pool(), problem, "the pool's primary");
            }
            self.told.clone_from(&problem);
        }
        let sentinels = self.heard.as_ref().map(|(view, _)| *view);
        self.primary.tell(Outlook { rivals, sentinels, problem });
    }

    fn problem(&self, rivals: &[String]) -> Option<String> {
        let is_asking = (0..self.backends.len()).any(|n| self.follow.standing(n) == Standing::NotAsked);
        if is_asking {
            return None;
        }
        let followed = self.follow.followed().map(|n| self.backends[n].name.as_str());
        let word = self.sentinels.is_some().then(|| self.follow.word());
        let stranger = self.heard.as_ref().and_then(|(_, stranger)| stranger.as_deref()).unwrap_or_default();
        let names = rivals.join(", ");
        Some(match (followed, rivals, word) {
            (_, _, Some(Word::Stranger)) => format!("the Sentinels name {stranger}, which is not in this pool"),
            (Some(_), [], Some(Word::None)) => "no majority of the Sentinels names a primary".to_owned(),
            (Some(_), [], _) => return None,
            (Some(followed), _, _) => format!("{names} too: says that it is the primary; {followed} stays"),
            (None, [], _) => "no server says that it is the primary".to_owned(),
            (None, _, Some(Word::None)) => {
                format!("{names}: says that it is the primary, and no majority of the Sentinels does")
            }
            (None, _, Some(Word::Named(n))) => {
                let named = self.backends[n].name.as_str();
                format!("{names}: says that it is the primary; the Sentinels name {named}")
            }
            (None, [only], None) if self.follow.deposed().any(|n| self.backends[n].name == *only) => format!(
                "{only}: says that it is the primary, but was one before another took over; it is believed once it was a replica, or \
                 when no other server is in the pool"
            ),
            (None, _, None) => format!("{names}: says that it is the primary; waiting until that is certain"),
        })
    }

    fn pool(&self) -> &str {
        self.backends.first().map_or("", |backend| backend.pool.as_str())
    }
}

/// Asks every address of a backend; all of them together are one server.
async fn ask(backend: &Backend, probe: &Probe) -> Result<(Role, Duration), String> {
    let addresses = backend.addresses();
    if addresses.is_empty() {
        return Err("its name has no address yet".to_owned());
    }
    let asked =
        join_all(addresses.iter().map(|&address| async move { (address, probe.ask_role(address).await) })).await;
    let is_primary = |asked: &Result<(Role, Duration), ProbeError>| matches!(asked, Ok((Role::Primary { .. }, _)));
    let primaries = asked.iter().filter(|(_, asked)| is_primary(asked)).count();
    for (address, asked) in &asked {
        backend.address_checked(*address, if primaries > 0 { is_primary(asked) } else { asked.is_ok() });
    }
    if primaries > 1 {
        let name = &backend.name;
        return Err(format!(
            "several addresses of {name} say that they are the primary; list each as a backend of its own"
        ));
    }
    let mut error = None;
    let mut replica = None;
    for (_, asked) in asked {
        match asked {
            Ok((role @ Role::Primary { .. }, latency)) => return Ok((role, latency)),
            Ok((role @ Role::Replica { .. }, latency)) => replica = replica.or(Some((role, latency))),
            Err(probe) => {
                debug!(pool = %backend.pool, backend = backend.name, error = %probe, "probe failed");
                error = error.or(Some(probe.to_string()));
            }
        }
    }
    replica.ok_or_else(|| error.unwrap_or_default())
}

#[cfg(test)]
mod tests;
