//! Notices that files changed, however they were written: in place, by rename, or through a symbolic link.
//!
//! The kernel's notice is only a hint to look: what counts is whether the files are others than before. They are looked at
//! without a hint too, for file systems that give none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Watches the directories of some files, and those that the files link to.
#[derive(Debug)]
pub struct FileWatch {
    /// `None`: nothing is watched; the files are looked at all the same.
    watcher: Option<RecommendedWatcher>,
    directories: BTreeSet<PathBuf>,
    events: mpsc::Receiver<()>,
    writing: Option<Writing>,
}

/// Tells one state of files from another without reading them. Links are followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature(Vec<(PathBuf, Option<[i64; 5]>)>);

impl Signature {
    pub fn of(path: &Path) -> Self {
        Self::of_all([path])
    }

    pub fn of_all<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        use std::os::unix::fs::MetadataExt;
        let sign = |path: &Path| {
            let file = std::fs::metadata(path).ok();
            let sign = file.map(|f| [f.dev() as i64, f.ino() as i64, f.size() as i64, f.mtime(), f.mtime_nsec()]);
            (path.to_owned(), sign)
        };
        Self(paths.into_iter().map(sign).collect())
    }
}

#[derive(Clone, Copy, Debug)]
struct Writing {
    since: Instant,
    last: Instant,
}

impl FileWatch {
    /// Begins with one [`settled`](Self::settled): files may have changed since they were last read.
    pub fn start<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        // One waiting event says as much as many.
        let (notice, events) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| is_change(&event.kind)) {
                // Full: the reader has not yet seen the one before.
                let _ = notice.try_send(());
            }
        });
        let watcher = watcher.inspect_err(|error| tracing::warn!(%error, "cannot watch files; looking now and then"));
        let now = Instant::now();
        let writing = Some(Writing { since: now, last: now });
        let mut watch = Self { watcher: watcher.ok(), directories: BTreeSet::new(), events, writing };
        watch.follow(files);
        watch
    }

    /// Watches these files instead. A name that ends with a slash is a directory.
    pub fn follow<'a>(&mut self, files: impl IntoIterator<Item = &'a Path>) {
        let wanted: BTreeSet<PathBuf> = files.into_iter().flat_map(directories).collect();
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.directories.difference(&wanted) {
            // It may be gone from the disk as well.
            let _ = watcher.unwatch(gone);
        }
        self.directories.retain(|directory| wanted.contains(directory));
        for directory in wanted {
            if self.directories.contains(&directory) {
                continue;
            }
            match watcher.watch(&directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.directories.insert(directory);
                    // What came into it before this moment gave no hint.
                    let now = Instant::now();
                    self.writing.get_or_insert(Writing { since: now, last: now });
                }
                Err(error) => {
                    tracing::debug!(directory = %directory.display(), %error, "cannot watch; looking now and then");
                }
            }
        }
    }

    /// Returns when something happened and then nothing for a moment, or after a while without any hint: time to look.
    /// Cancel-safe.
    pub async fn settled(&mut self) {
        loop {
            let Some(writing) = self.writing else {
                let watched = self.watcher.is_some();
                let again = Instant::now() + LOOK_AGAIN;
                tokio::select! {
                    Some(()) = self.events.recv(), if watched => {}
                    () = tokio::time::sleep_until(again) => return,
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
                    return;
                }
            }
        }
    }
}

/// Reading the file is an event too, and we read it after each event.
fn is_change(kind: &EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write))
}

/// Where a change of the file shows: beside it, and beside what it links to.
fn directories(path: &Path) -> Vec<PathBuf> {
    let directory = match path.parent() {
        _ if path.as_os_str().as_encoded_bytes().ends_with(b"/") => path.to_owned(),
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    };
    let real = path.canonicalize().ok().and_then(|real| Some(real.parent()?.to_owned()));
    let real = real.filter(|real| directory.canonicalize().is_ok_and(|directory| directory != *real));
    std::iter::once(directory).chain(real).collect()
}

/// Editors and copies write in several steps.
const QUIET: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_secs(30);
