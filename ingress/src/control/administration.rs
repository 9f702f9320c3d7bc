//! Keeps what operators say about backends, on disk and in force: drain, maintenance, weights.
//!
//! [`Administration::order`] is the one door, whoever asks. An order is on disk before it is answered, and holds until
//! another one: reloads, restarts and providers that take a backend away and bring it back do not end it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::last_good::LastGood;
use crate::balance::{AdminState, Backend, BackendOrder, Book, OrderError, Ordered};
use crate::flow::{FlowCommand, FlowFilter};
use crate::l4::outcome::EndReason;
use crate::route::PoolName;
use crate::snapshot::Snapshot;

/// One per daemon.
#[derive(Debug)]
pub struct Administration {
    kept: LastGood,
    /// Held while an order is written to disk: one after the other.
    ordering: Mutex<()>,
    book: Mutex<Book>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Something may have come into maintenance.
    maintained: Notify,
}

impl Administration {
    /// Takes up what an earlier daemon kept. A book that cannot be read is no reason not to serve.
    pub(super) fn start(state_dir: &Path, snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        let kept = LastGood::of_operators(state_dir);
        let text = kept.load().map_err(|error| error.to_string());
        let book = text.and_then(|stored| stored.map(|s| Book::from_text(&s.text)).transpose()).unwrap_or_else(|error| {
            let path = kept.path();
            tracing::warn!(path = %path.display(), error, "what operators said about backends is lost: all are ready");
            None
        });
        let (book, ordering) = (Mutex::new(book.unwrap_or_default()), Mutex::default());
        let this = Self { kept, ordering, book, snapshots, maintained: Notify::new() };
        let snapshot = this.snapshots.borrow().clone();
        this.apply(&snapshot);
        this
    }

    /// Carries the book to the backends of a snapshot.
    pub(super) fn apply(&self, snapshot: &Snapshot) {
        let book = self.book.lock();
        for (pool, backend, change) in book.iter() {
            if let Some(backend) = find(snapshot, pool, backend)
                && backend.admin().is_none_or(|before| *before != *change)
            {
                backend.administer(Arc::new(change.clone()), Instant::now());
                self.maintained.notify_one();
            }
        }
    }

    /// Writes an order to disk and brings it into force. Blocks for an fsync; `by` is who wants it.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn order(&self, pool: &str, backend: &str, order: BackendOrder, by: &str) -> Result<Ordered, OrderError> {
        if order == BackendOrder::default() {
            return Err(OrderError::Empty);
        }
        let _one_at_a_time = self.ordering.lock();
        let snapshot = self.snapshots.borrow().clone();
        if !snapshot.pools.contains_key(&PoolName::new(pool)) {
            return Err(OrderError::NoPool(pool.to_owned()));
        }
        let Some(found) = find(&snapshot, pool, backend) else {
            return Err(OrderError::NoBackend { pool: pool.to_owned(), backend: backend.to_owned() });
        };
        let in_flight = found.in_flight();
        let mut book = self.book.lock().clone();
        let (change, changed) = book.follow(pool, backend, order, by, SystemTime::now());
        let mut warning = None;
        if changed {
            book.write(pool, backend, change.clone(), |pool, backend| find(&snapshot, pool, backend).is_some())?;
            if let Err(error) = self.kept.store(&book.to_text(), SystemTime::now()) {
                tracing::warn!(%error, "an operator's order holds until the daemon ends only");
                warning = Some(format!("it holds until the daemon ends only: {error}"));
            }
            *self.book.lock() = book;
            // Not the one above: who publishes a snapshot looks into the book afterwards.
            let snapshot = self.snapshots.borrow().clone();
            self.apply(&snapshot);
            let weight = change.weight.map(|weight| weight.to_string());
            tracing::info!(pool, backend, state = %change.state, weight, by, "an operator changed a backend");
        }
        Ok(Ordered { pool: pool.to_owned(), backend: backend.to_owned(), change, changed, in_flight, warning })
    }

    /// Cuts the connections of backends in maintenance until none is left: those that are there, those that were on their way,
    /// and those that an earlier daemon left behind.
    pub async fn enforce(self: Arc<Self>, commands: mpsc::Sender<FlowCommand>, stop: CancellationToken) {
        let mut again = SOON;
        loop {
            let snapshot = self.snapshots.borrow().clone();
            let mut busy = false;
            for backend in maintained(&snapshot).filter(|backend| backend.in_flight() > 0) {
                busy = true;
                let filter = FlowFilter {
                    pool: Some(backend.pool.to_string()),
                    backend: Some(backend.name.clone()),
                    ..FlowFilter::default()
                };
                let command = FlowCommand::Cut { filter, reason: EndReason::Maintenance, done: None };
                if commands.send(command).await.is_err() {
                    return;
                }
            }
            again = if busy { again } else { LATER };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.maintained.notified() => again = SOON,
                () = tokio::time::sleep(again) => again = (again * 2).min(LATER),
            }
        }
    }
}

fn find<'a>(snapshot: &'a Snapshot, pool: &str, backend: &str) -> Option<&'a Arc<Backend>> {
    snapshot.pools.get(&PoolName::new(pool))?.find(backend)
}

fn maintained(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<Backend>> {
    let all = snapshot.pools.values().flat_map(|pool| pool.all());
    all.filter(|backend| !backend.is_ready() && backend.admin_state() == AdminState::Maint)
}

/// Between the first two looks at what is left to cut; then twice that, and so on.
const SOON: Duration = Duration::from_millis(500);
/// When nobody was there at the last look; a connect that was under way then ends within some seconds.
const LATER: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::fixture::{backend, pool_config, snapshot};
    use crate::balance::{AdminWeight, Pool};

    fn pools(names: &[&str]) -> Arc<Snapshot> {
        let backends: Vec<_> = names.iter().map(|name| backend(name, 1)).collect();
        snapshot([Pool::new(PoolName::new("web"), pool_config(backends, []), None)])
    }

    fn drain() -> BackendOrder {
        BackendOrder { state: Some(AdminState::Drain), weight: None }
    }

    fn state(snapshot: &Snapshot, backend: &str) -> AdminState {
        find(snapshot, "web", backend).expect("a backend").admin_state()
    }

    #[test]
    fn an_order_holds_at_once_and_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = watch::Sender::new(pools(&["a", "b"]));
        let administration = Administration::start(dir.path(), first.subscribe());
        let half = BackendOrder { weight: Some(AdminWeight::Percent(50)), ..drain() };
        let done = administration.order("web", "a", half, "alice").expect("an order");
        assert!(done.changed && done.warning.is_none(), "{done:?}");
        assert_eq!((state(&first.borrow(), "a"), state(&first.borrow(), "b")), (AdminState::Drain, AdminState::Ready));
        let again = administration.order("web", "a", drain(), "bob").expect("an order");
        assert_eq!((again.changed, again.change.by.as_str()), (false, "alice"));

        let next = watch::Sender::new(pools(&["a", "b"]));
        let _next = Administration::start(dir.path(), next.subscribe());
        let word = find(&next.borrow(), "web", "a").and_then(|a| a.admin()).expect("a word");
        assert_eq!(*word, done.change);
    }

    #[test]
    fn a_backend_that_goes_and_comes_back_is_drained_still() {
        let dir = tempfile::tempdir().expect("a directory");
        let snapshots = watch::Sender::new(pools(&["a", "b"]));
        let administration = Administration::start(dir.path(), snapshots.subscribe());
        administration.order("web", "a", drain(), "alice").expect("an order");
        let without = pools(&["b"]);
        administration.apply(&without);
        let again = pools(&["a", "b"]);
        administration.apply(&again);
        assert_eq!(state(&again, "a"), AdminState::Drain);
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let snapshots = watch::Sender::new(pools(&["a"]));
        let administration = Administration::start(dir.path(), snapshots.subscribe());
        assert_eq!(administration.order("wbe", "a", drain(), "alice"), Err(OrderError::NoPool("wbe".into())));
        let error = administration.order("web", "z", drain(), "alice").expect_err("no such backend");
        assert_eq!(error.to_string(), "pool web has no backend z; `ingress pools` lists them");
        assert_eq!(administration.order("web", "a", BackendOrder::default(), "alice"), Err(OrderError::Empty));
        assert!(!administration.kept.path().exists(), "nothing was said");
    }

    #[test]
    fn a_broken_book_makes_everything_ready_and_the_next_order_replaces_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let snapshots = watch::Sender::new(pools(&["a"]));
        let path = LastGood::of_operators(dir.path()).path();
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directory");
        std::fs::write(&path, "not a book").expect("write");
        let administration = Administration::start(dir.path(), snapshots.subscribe());
        assert_eq!(state(&snapshots.borrow(), "a"), AdminState::Ready);
        administration.order("web", "a", drain(), "alice").expect("an order");
        let _next = Administration::start(dir.path(), snapshots.subscribe());
        assert_eq!(administration.kept.load().expect("readable").expect("kept").text.lines().count(), 1);
    }

    #[test]
    fn a_disk_that_cannot_be_written_keeps_no_operator_from_draining() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("last-good"), "in the way").expect("write");
        let snapshots = watch::Sender::new(pools(&["a"]));
        let administration = Administration::start(dir.path(), snapshots.subscribe());
        let done = administration.order("web", "a", drain(), "alice").expect("an order");
        assert!(done.warning.is_some_and(|w| w.starts_with("it holds until the daemon ends only: ")));
        assert_eq!(state(&snapshots.borrow(), "a"), AdminState::Drain);
    }

    #[tokio::test(start_paused = true)]
    async fn maintenance_cuts_until_nobody_is_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let snapshots = watch::Sender::new(pools(&["a", "b"]));
        let administration = Arc::new(Administration::start(dir.path(), snapshots.subscribe()));
        let backend = |name| Arc::clone(find(&snapshots.borrow(), "web", name).expect("a backend"));
        let (a, b) = (backend("a"), backend("b"));
        a.connection_started();
        b.connection_started();
        let (commands, mut orders) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let enforcing = tokio::spawn(administration.clone().enforce(commands, stop.clone()));
        let maint = BackendOrder { state: Some(AdminState::Maint), weight: None };
        administration.order("web", "a", maint, "alice").expect("an order");
        for _ in 0..2 {
            let Some(FlowCommand::Cut { filter, reason, .. }) = orders.recv().await else { panic!("a cut") };
            assert_eq!((filter.backend.as_deref(), reason), (Some("a"), EndReason::Maintenance));
        }
        a.connection_ended(0, 0);
        while tokio::time::timeout(LATER, orders.recv()).await.is_ok() {}
        a.connection_started();
        assert!(orders.recv().await.is_some(), "one that came late is cut too");
        stop.cancel();
        enforcing.await.expect("it stops");
    }
}
