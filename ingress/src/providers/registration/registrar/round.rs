//! One round: what waits together is judged, claimed in the store, written, published and answered.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::sync::unix_ms;
use super::{JOURNAL, Registrar, Stopping, disk_refuses, removal};
use crate::clock::now;
use crate::peers::stamp::Stamp;
use crate::providers::registration::book::{Book, Registration, Verdict};
use crate::providers::registration::journal::Record;
use crate::providers::registration::order::{Answer, Order, What};
use crate::providers::registration::problem::{Kind, Problem};
use crate::providers::registration::request::Wish;
use crate::providers::registration::upstreams::Upstreams;
use crate::route::SniPattern;

/// One order that changes something, on its way.
pub(super) struct Pending {
    pub(super) host: SniPattern,
    verdict: Verdict,
    /// What it takes the place of.
    pub(super) before: Option<Arc<Registration>>,
    answer: oneshot::Sender<Result<Answer, Problem>>,
    actor: Arc<str>,
    /// To be asked again, where a store may refuse it.
    what: Option<What>,
}

impl Registrar {
    /// How many orders were put back at the end of `waiting`, because another had their host in the store.
    pub(super) async fn round(&mut self, waiting: &mut VecDeque<Order>) -> Result<usize, Stopping> {
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
}

impl Pending {
    /// As it was asked; `None`: nothing could have refused it.
    pub(super) fn again(self) -> Option<Order> {
        let Self { actor, what, answer, .. } = self;
        what.map(|what| Order { actor, what, answer })
    }
}

/// What the journal is to say of a host.
fn record(book: &Book, host: &SniPattern) -> Record {
    book.get(host).map_or_else(|| removal(book, host), |kept| Record::Put(Registration::clone(kept)))
}
