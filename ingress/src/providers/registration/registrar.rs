//! The one who keeps the book: takes what callers ask for, in turn, and answers when it is on disk *and* holds for new
//! connections.
//!
//! What waits together is written with one `fsync` and published once. Each round goes
//! wish -> book (pure) -> journal -> control -> answer; whatever fails, the book says what the journal says.

mod show;
mod store;
mod sync;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{oneshot, watch};

use super::book::{Book, Grave, Owners, Registration, Verdict};
use super::compile::Settings;
use super::journal::{Journal, JournalError, Record};
use super::leases::Leases;
use super::order::{Answer, Order, What};
use super::problem::{Kind, Problem};
use super::request::Wish;
use super::upstreams::Upstreams;
use crate::etcd;
use crate::metrics::Metrics;
use crate::peers::Seat;
use crate::peers::stamp::{Clock, Stamp};
use crate::peers::sync::Replica;
use crate::providers::outlet::Outlet;
use crate::providers::registry::local::LocalAddresses;
use crate::route::{Contribution, SniPattern};
use crate::snapshot::Snapshot;
use store::Shelf;
use sync::{Waiting, unix_ms};

pub(super) struct Registrar {
    settings: Settings,
    outlet: Outlet,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    metrics: Arc<Metrics>,
    book: Book,
    contribution: Contribution,
    leases: Leases,
    clock: Clock,
    /// What the book says, for comparing it with other nodes'.
    replica: Replica,
    seat: Seat,
    /// `None`: there is no shared store.
    shelf: Option<Shelf>,
    /// Callers that want to know whether a peer has it too.
    waiting: Waiting,
    /// Away only while it is being written.
    journal: Option<Journal>,
    /// What does not work now, by what it is about.
    troubles: BTreeMap<String, String>,
}

/// The daemon stops.
#[derive(Debug)]
pub(super) struct Stopping;

/// One order that changes something, on its way.
struct Pending {
    host: SniPattern,
    verdict: Verdict,
    /// What it takes the place of.
    before: Option<Arc<Registration>>,
    answer: oneshot::Sender<Result<Answer, Problem>>,
    actor: Arc<str>,
    /// To be asked again, where a store may refuse it.
    what: Option<What>,
}

impl Registrar {
    /// Says what the journal says; returns when that holds for new connections.
    pub(super) async fn start(
        settings: Settings,
        outlet: Outlet,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        metrics: Arc<Metrics>,
        (journal, mut book): (Journal, Book),
        seat: Seat,
        store: Option<etcd::Seat>,
    ) -> Result<Self, Stopping> {
        let clock = Clock::new(store.as_ref().map_or_else(|| seat.mesh().node(), etcd::Seat::node));
        // Registered before this node had peers: it is the one that was told.
        let early: Vec<_> = book.iter().filter(|early| early.stamp.node.is_empty()).cloned().collect();
        for registration in early {
            let ms = registration.stamp.ms.max(registration.registered);
            let stamp = Stamp { ms, count: registration.stamp.count, node: clock.node().clone() };
            book.put(Arc::new(Registration { stamp, ..Registration::clone(&registration) }));
        }
        let shelf = store.map(|store| Shelf::new(store, &book));
        let contribution = outlet.contribution();
        let journal = Some(journal);
        let mut registrar = Self {
            settings,
            outlet,
            snapshots,
            metrics,
            book,
            contribution,
            leases: Leases::default(),
            clock,
            replica: Replica::default(),
            seat,
            shelf,
            waiting: Waiting::new(),
            journal,
            troubles: BTreeMap::new(),
        };
        registrar.learn_all();
        let ours: Vec<_> = registrar.book.iter().filter(|kept| registrar.is_ours(&kept.stamp)).cloned().collect();
        for registration in ours {
            registrar.leases.set(&registration.host, registration.ttl, now());
        }
        registrar.contribution = registrar.compile_all();
        registrar.publish().await?;
        Ok(registrar)
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.leases.next()
    }

    /// Notes what does not work, or that it works again, for the log and the status.
    pub(super) async fn note(&mut self, what: &str, trouble: Option<String>) {
        let before = self.troubles.remove(what);
        let provider = self.outlet.provider();
        match (&before, &trouble) {
            (before, Some(trouble)) if before.as_ref() != Some(trouble) => {
                tracing::warn!(%provider, what, trouble, "registration")
            }
            (Some(_), None) => tracing::info!(%provider, what, "registration: this works again"),
            (Some(_) | None, _) => {}
        }
        if before == trouble && trouble.is_none() {
            return;
        }
        self.troubles.extend(trouble.map(|trouble| (what.to_owned(), trouble)));
        match self.troubles.is_empty() {
            true => self.outlet.unchanged().await,
            false => self.report().await,
        }
    }

    async fn report(&self) {
        let troubles: Vec<_> = self.troubles.iter().map(|(what, trouble)| format!("{what}: {trouble}")).collect();
        self.outlet.failed(troubles.join("; ")).await;
    }

    /// Takes orders in turn. Those that meet at one host go one after the other.
    pub(super) async fn take(&mut self, orders: impl IntoIterator<Item = Order>) -> Result<(), Stopping> {
        let mut waiting: VecDeque<_> = orders.into_iter().collect();
        let mut refusals = 0;
        while !waiting.is_empty() {
            let refused = self.round(&mut waiting).await?;
            refusals += usize::from(refused > 0);
            if refusals >= MOST_REFUSALS {
                let contended = waiting.drain(waiting.len() - refused..);
                contended.for_each(|order| drop(order.answer.send(Err(store::contended()))));
            }
        }
        Ok(())
    }

    /// Ends leases that were not renewed.
    pub(super) async fn expire(&mut self) -> Result<(), Stopping> {
        let due = self.leases.due(now());
        if due.is_empty() {
            return Ok(());
        }
        let mut book = self.book.clone();
        for host in &due {
            // Its end is no later than its beginning: whoever renewed it elsewhere has the last word.
            let stamp = book.get(host).map(|registration| registration.stamp.clone()).unwrap_or_default();
            book.bury(host, stamp);
        }
        let records: Vec<_> = due.iter().map(|host| removal(&book, host)).collect();
        if self.write(records, &book).await.is_err() {
            // Nothing ends that would come back at the next start.
            due.iter().for_each(|host| self.leases.set(host, Some(RETRY_EXPIRY), now()));
            return Ok(());
        }
        for host in &due {
            let owner = self.book.get(host).map(|registration| registration.owner.clone()).unwrap_or_default();
            tracing::info!(provider = %self.outlet.provider(), %host, owner, operation = "expire", "registration");
        }
        self.metrics.registrations_expired(self.outlet.provider(), due.len() as u64);
        self.commit(book, &due);
        self.tell(&due);
        self.publish().await
    }

    /// How many orders were put back at the end of `waiting`, because another had their host in the store.
    async fn round(&mut self, waiting: &mut VecDeque<Order>) -> Result<usize, Stopping> {
        let upstreams = self.upstreams();
        let (mut book, mut pending) = (self.book.clone(), Vec::<Pending>::new());
        let mut touched = HashSet::new();
        while let Some(order) = waiting.pop_front() {
            if order.what.host().is_some_and(|host| touched.contains(host)) {
                waiting.push_front(order);
                break;
            }
            let Order { actor, what, answer } = order;
            let again = self.shelf.is_some().then(|| what.clone());
            let (host, verdict) = match what {
                What::Register(wish) => {
                    let host = wish.host.clone();
                    let stamp = self.clock.tick(unix_ms());
                    (host, self.register(&mut book, wish, &actor, &upstreams, stamp))
                }
                What::Deregister(host) => {
                    let stamp = self.clock.tick(unix_ms());
                    let verdict = book.deregister(&host, &actor, &self.owners(), stamp);
                    (host, verdict)
                }
                What::Heartbeat(host) => match self.heartbeat(&mut book, &host, &actor) {
                    Ok(true) => (host, Ok(Verdict::Unchanged)),
                    Ok(false) => {
                        let _ = answer.send(Ok(Answer::Changed(self.changed(host, Verdict::Unchanged))));
                        continue;
                    }
                    Err(problem) => (host, Err(problem)),
                },
                What::List => {
                    let _ = answer.send(Ok(Answer::List(self.list())));
                    continue;
                }
                What::Health => {
                    let healthy = !self.troubles.contains_key(JOURNAL);
                    let _ = answer.send(if healthy { Ok(Answer::Healthy) } else { Err(disk_refuses()) });
                    continue;
                }
            };
            let before = self.book.get(&host).cloned();
            match verdict {
                Err(problem) => drop(answer.send(Err(problem))),
                Ok(verdict) => {
                    touched.insert(host.clone());
                    pending.push(Pending { host, verdict, before, answer, actor, what: again });
                }
            }
        }
        let (pending, refused) = self.claim(&mut book, pending, waiting).await;
        let changed = pending.iter().filter(|pending| book.get(&pending.host) != pending.before.as_ref());
        let records = changed.map(|pending| record(&book, &pending.host)).collect();
        self.carry_out(book, records, pending).await?;
        self.hear_changes(&refused).await?;
        Ok(refused.len())
    }

    /// Disk, then control, then the answers.
    async fn carry_out(&mut self, book: Book, records: Vec<Record>, pending: Vec<Pending>) -> Result<(), Stopping> {
        if !records.is_empty() {
            if let Err(problem) = self.write(records, &book).await {
                pending.into_iter().for_each(|pending| drop(pending.answer.send(Err(problem.clone()))));
                self.lose_track();
                return Ok(());
            }
            let hosts: Vec<_> = pending.iter().map(|pending| pending.host.clone()).collect();
            self.commit(book, &hosts);
            self.publish().await?;
        }
        let (lost, kept): (Vec<_>, Vec<_>) = pending.into_iter().partition(|pending| self.is_lost(pending));
        self.take_back(lost).await?;
        let hosts: Vec<_> = kept.iter().map(|pending| pending.host.clone()).collect();
        let told = self.tell(&hosts);
        let deadline = tokio::time::Instant::now() + self.seat.mesh().ack_timeout();
        for (Pending { host, verdict, answer, .. }, told) in kept.into_iter().zip(told) {
            let ttl = self.book.get(&host).and_then(|registration| registration.ttl);
            self.leases.set(&host, ttl, now());
            let mut changed = self.changed(host, verdict);
            if told.is_empty() {
                let _ = answer.send(Ok(Answer::Changed(changed)));
                continue;
            }
            // A slow peer holds up its caller only.
            tokio::spawn(async move {
                changed.peers = told.answers(deadline).await;
                let _ = answer.send(Ok(Answer::Changed(changed)));
            });
        }
        Ok(())
    }

    fn register(
        &self,
        book: &mut Book,
        Wish { host, ttl, shape }: Wish,
        actor: &str,
        upstreams: &Upstreams,
        stamp: Stamp,
    ) -> Result<Verdict, Problem> {
        self.settings.judge(&shape, upstreams)?;
        let most = self.settings.api.max_registrations;
        if book.len() >= most && book.get(&host).is_none() {
            return Err(Problem::new(
                Kind::Full,
                format!("there are {most} registrations; that is `max_registrations`"),
            ));
        }
        let (registered, owner) = (unix_ms(), actor.to_owned());
        let wanted = Registration { host, owner, registered, ttl, shape, stamp, learned: registered };
        book.register(wanted, &self.owners())
    }

    /// True: it changes the book, because another node judged the lease until now.
    fn heartbeat(&mut self, book: &mut Book, host: &SniPattern, actor: &str) -> Result<bool, Problem> {
        let Some(registration) = self.book.get(host).cloned() else {
            let detail = format!("{host} is not registered (any more); register it again");
            return Err(Problem::at(Kind::NoSuchRegistration, "host", detail));
        };
        self.owners().check(&registration, actor)?;
        if registration.ttl.is_some() && !self.is_ours(&registration.stamp) {
            let time = unix_ms();
            let stamp = self.clock.tick(time);
            book.put(Arc::new(Registration { stamp, learned: time, ..Registration::clone(&registration) }));
            return Ok(true);
        }
        self.leases.set(host, registration.ttl, now());
        Ok(false)
    }

    /// Whether somebody of higher precedence has the name that was asked for.
    fn is_lost(&self, pending: &Pending) -> bool {
        match pending.verdict {
            Verdict::Created | Verdict::Replaced | Verdict::Unchanged => self.conflict(&pending.host).is_some(),
            Verdict::Removed | Verdict::Absent => false,
        }
    }

    /// What cannot be had is not kept: what stood there before stands there again.
    async fn take_back(&mut self, lost: Vec<Pending>) -> Result<(), Stopping> {
        if lost.is_empty() {
            return Ok(());
        }
        let (mut book, mut records) = (self.book.clone(), Vec::new());
        let hosts: Vec<_> = lost.iter().map(|pending| pending.host.clone()).collect();
        for Pending { host, verdict, before, answer, .. } in lost {
            let first = self.conflict(&host).map_or_else(|| "somebody".to_owned(), |first| format!("route {first}"));
            let detail = format!("{host} belongs to {first}, which goes before registrations");
            match (verdict, before) {
                (Verdict::Unchanged | Verdict::Removed | Verdict::Absent, _) => {}
                (Verdict::Created | Verdict::Replaced, Some(before)) => {
                    records.push(Record::Put(Registration::clone(&before)));
                    book.put(before);
                }
                (Verdict::Created | Verdict::Replaced, None) => {
                    book.bury(&host, self.clock.tick(unix_ms()));
                    records.push(removal(&book, &host));
                }
            }
            let _ = answer.send(Err(Problem::at(Kind::HostTaken, "host", detail)));
        }
        // If the disk refuses, it stays in the book as one that is not served, and can be removed.
        if !records.is_empty() && self.write(records, &book).await.is_ok() {
            self.commit(book, &hosts);
            self.publish().await?;
        }
        Ok(())
    }

    /// Puts `records` on disk, where a slow one disturbs nobody.
    async fn write(&mut self, records: Vec<Record>, after: &Book) -> Result<(), Problem> {
        let Some(mut journal) = self.journal.take() else { return Err(Problem::stopping()) };
        let after = after.clone();
        let written = tokio::task::spawn_blocking(move || {
            let written = journal.append(&records, &after);
            (journal, written)
        });
        let written: Result<(), JournalError> = match written.await {
            Ok((journal, written)) => {
                self.journal = Some(journal);
                written
            }
            Err(_) => return Err(Problem::stopping()),
        };
        match written {
            Ok(()) => {
                self.note(JOURNAL, None).await;
                Ok(())
            }
            Err(error) => {
                self.note(JOURNAL, Some(error.to_string())).await;
                Err(disk_refuses())
            }
        }
    }

    /// Makes `book` the book, and the contribution what it says of `hosts`.
    fn commit(&mut self, book: Book, hosts: &[SniPattern]) {
        let before = std::mem::replace(&mut self.book, book);
        if !self.contribution.unserved_items().is_empty() {
            // One that is not allowed any more may be among them; that is rare enough to look at all.
            self.contribution = self.compile_all();
        } else if hosts.iter().any(|host| self.is_foreign(host)) && !self.all_allowed(hosts) {
            self.contribution = self.compile_all();
        } else {
            for host in hosts.iter().filter(|host| before.get(host) != self.book.get(host)) {
                if let Some(old) = before.get(host) {
                    self.settings.remove(old, &mut self.contribution);
                }
                if let Some(new) = self.book.get(host) {
                    self.settings.add(new, &mut self.contribution);
                }
            }
        }
        for host in hosts {
            let judged_here = self.book.get(host).is_some_and(|registration| self.is_ours(&registration.stamp));
            if !judged_here {
                self.leases.forget(host);
            }
        }
        self.learn(hosts);
        if let Some(shelf) = &mut self.shelf {
            shelf.settle(&self.book, hosts);
        }
    }

    /// Whether another node took it in, where other things may be allowed.
    fn is_foreign(&self, host: &SniPattern) -> bool {
        self.book.get(host).is_some_and(|registration| !self.is_ours(&registration.stamp))
    }

    fn all_allowed(&self, hosts: &[SniPattern]) -> bool {
        let upstreams = self.upstreams();
        let registrations = hosts.iter().filter_map(|host| self.book.get(host));
        registrations.into_iter().all(|registration| self.settings.judge(&registration.shape, &upstreams).is_ok())
    }

    /// Returns when the contribution holds for new connections.
    async fn publish(&mut self) -> Result<(), Stopping> {
        let contribution = Arc::new(self.contribution.clone());
        self.outlet.applied(contribution).await.ok_or(Stopping)?;
        if !self.troubles.is_empty() {
            // To control, a contribution is a good word.
            self.report().await;
        }
        Ok(())
    }

    fn compile_all(&self) -> Contribution {
        let upstreams = self.upstreams();
        self.settings.all(self.book.iter().map(AsRef::as_ref), &upstreams, self.outlet.contribution())
    }

    fn upstreams(&self) -> Upstreams {
        let config = self.snapshots.borrow().config.clone();
        Upstreams::new(&self.settings.api.upstreams, &config, LocalAddresses::of_this_host())
    }

    fn owners(&self) -> Owners<'_> {
        Owners(&self.settings.api.tokens)
    }
}

impl Pending {
    /// As it was asked; `None`: nothing could have refused it.
    fn again(self) -> Option<Order> {
        let Self { actor, what, answer, .. } = self;
        what.map(|what| Order { actor, what, answer })
    }
}

/// What the journal is to say of a host.
fn record(book: &Book, host: &SniPattern) -> Record {
    book.get(host).map_or_else(|| removal(book, host), |kept| Record::Put(Registration::clone(kept)))
}

fn removal(book: &Book, host: &SniPattern) -> Record {
    let host_text = host.to_string();
    match book.grave(host) {
        Some(Grave { stamp, owner }) => Record::Bury { host: host_text, stamp: stamp.clone(), owner: owner.clone() },
        None => Record::Remove(host_text),
    }
}

fn disk_refuses() -> Problem {
    Problem::new(Kind::Unavailable, "registrations cannot be kept on disk; the daemon's log says why")
}

/// tokio's clock, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

const JOURNAL: &str = "journal";
/// Times that the store may have something else than this node, at one go.
const MOST_REFUSALS: usize = 8;
/// Seconds until an expiry is tried again that the disk did not take.
const RETRY_EXPIRY: u32 = 5;

#[cfg(test)]
mod tests;
