//! Notices that the configuration file changed, however it was written: in place, by rename, or through a symbolic link.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Watches the directory of the file, and the one that it links to.
#[derive(Debug)]
pub(super) struct FileWatch {
    /// `None`: the file is not watched; SIGHUP and `ingress reload` still work.
    _watcher: Option<RecommendedWatcher>,
    events: mpsc::Receiver<()>,
    writing: Option<Writing>,
    path: PathBuf,
    seen: Signature,
}

/// Tells one state of the file from another without reading it. Links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signature(Option<[i64; 5]>);

impl Signature {
    pub(super) fn of(path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let file = std::fs::metadata(path).ok();
        Self(file.map(|f| [f.dev() as i64, f.ino() as i64, f.size() as i64, f.mtime(), f.mtime_nsec()]))
    }
}

#[derive(Clone, Copy, Debug)]
struct Writing {
    since: Instant,
    last: Instant,
}

impl FileWatch {
    /// `seen` is from before the file was last read.
    pub(super) fn start(path: &Path, seen: Signature) -> Self {
        // One waiting event says as much as many.
        let (notice, events) = mpsc::channel(1);
        let watcher = watch(path, notice).inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, "cannot watch the configuration file; use `ingress reload`");
        });
        let now = Instant::now();
        // It may have changed between that reading and this watch.
        let writing = Some(Writing { since: now, last: now });
        Self { _watcher: watcher.ok(), events, writing, path: path.to_owned(), seen }
    }

    /// Returns when the file changed and then nothing beside it for a moment. Cancel-safe.
    pub(super) async fn settled(&mut self) {
        loop {
            let Some(writing) = self.writing else {
                if self.events.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
                let now = Instant::now();
                self.writing = Some(Writing { since: now, last: now });
                continue;
            };
            let quiet = (writing.last + QUIET).min(writing.since + LONGEST_WAIT);
            tokio::select! {
                Some(()) = self.events.recv() => {
                    self.writing = Some(Writing { last: Instant::now(), ..writing });
                }
                () = tokio::time::sleep_until(quiet) => {
                    self.writing = None;
                    let now = Signature::of(&self.path);
                    if std::mem::replace(&mut self.seen, now) != now {
                        return;
                    }
                }
            }
        }
    }
}

fn watch(path: &Path, notice: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| is_change(&event.kind)) {
            // Full: the reader has not yet seen the one before.
            let _ = notice.try_send(());
        }
    })?;
    let directory = directory(path);
    watcher.watch(&directory, RecursiveMode::NonRecursive)?;
    if let Ok(real) = path.canonicalize()
        && let real = self::directory(&real)
        && directory.canonicalize().is_ok_and(|directory| directory != real)
    {
        watcher.watch(&real, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// Reading the file is an event too, and we read it after each event.
fn is_change(kind: &EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write))
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

/// Editors and copies write in several steps.
const QUIET: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
