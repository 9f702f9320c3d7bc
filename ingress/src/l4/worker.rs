//! Worker threads: each accepts on its own sockets and carries what it accepted, on one thread, until it ends.
//!
//! A connection never changes threads, so nothing on its way is contended. Accept loops and connections belong to their
//! worker's runtime; the worker ends when the listeners are gone and its last connection has ended.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Plane;
use super::accept;
use crate::route::ListenerName;

/// The daemon's hold on its worker threads.
#[derive(Debug)]
pub struct Workers {
    /// Until [`Listeners`](super::listener::Listeners) takes them: a worker ends when nobody can give it sockets any more.
    pub(super) commands: Vec<mpsc::Sender<Listen>>,
    ends: mpsc::Receiver<WorkerEnd>,
    threads: Vec<JoinHandle<()>>,
}

/// A worker ended.
#[derive(Clone, Copy, Debug)]
pub struct WorkerEnd {
    pub panicked: bool,
}

/// Accept on this socket until `stop`.
#[derive(Debug)]
pub(super) struct Listen {
    pub(super) listener: ListenerName,
    pub(super) socket: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) stop: CancellationToken,
    /// Dropped when the socket is closed.
    pub(super) open: TaskTrackerToken,
}

impl Workers {
    /// Starts `count` threads.
    pub fn start(plane: &Arc<Plane>, count: usize) -> io::Result<Self> {
        let (ended, ends) = mpsc::channel(count);
        let mut workers = Self { commands: Vec::new(), ends, threads: Vec::new() };
        for at in 0..count {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (commands, listens) = mpsc::channel(COMMANDS);
            let (plane, ended) = (plane.clone(), EndNotice(ended.clone()));
            let thread = std::thread::Builder::new().name(format!("worker-{at}")).spawn(move || {
                let _ended = ended;
                runtime.block_on(work(plane, listens));
            })?;
            workers.commands.push(commands);
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// The next worker that ends. `None`: all did.
    pub async fn next_end(&mut self) -> Option<WorkerEnd> {
        self.ends.recv().await
    }
}

async fn work(plane: Arc<Plane>, mut listens: mpsc::Receiver<Listen>) {
    let connections = TaskTracker::new();
    let mut accepting = JoinSet::new();
    loop {
        tokio::select! {
            listen = listens.recv() => match listen {
                Some(listen) => drop(accepting.spawn(accept::run(plane.clone(), connections.clone(), listen))),
                None => break,
            },
            Some(ended) = accepting.join_next() => surface(ended),
        }
    }
    while let Some(ended) = accepting.join_next().await {
        surface(ended);
    }
    connections.close();
    connections.wait().await;
}

/// A worker that cannot accept any more must not look alive.
fn surface(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

/// Tells of the end of its thread, however that ends.
struct EndNotice(mpsc::Sender<WorkerEnd>);

impl Drop for EndNotice {
    fn drop(&mut self) {
        // There is room for one notice of each worker.
        let _ = self.0.try_send(WorkerEnd { panicked: std::thread::panicking() });
    }
}

/// Listeners change rarely; a few of them wait while a worker is busy.
const COMMANDS: usize = 16;
