//! The one who keeps the book: takes what callers ask for, in turn, and answers when it is on disk *and* holds for new
//! connections.
//!
//! What waits together is written with one `fsync` and published once. Each round goes
//! wish -> book (pure) -> journal -> control -> answer; whatever fails, the book says what the journal says.

mod round;
mod show;
mod store;
mod sync;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::book::{Book, Grave, Owners, Registration};
use super::compile::Settings;
use super::journal::{Journal, JournalError, Record};
use super::leases::Leases;
use super::order::Order;
use super::problem::{Kind, Problem};
use super::upstreams::Upstreams;
use crate::clock::now;
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
use sync::Waiting;

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

const JOURNAL: &str = "journal";
/// Times that the store may have something else than this node, at one go.
const MOST_REFUSALS: usize = 8;
/// Seconds until an expiry is tried again that the disk did not take.
const RETRY_EXPIRY: u32 = 5;

#[cfg(test)]
mod tests;
