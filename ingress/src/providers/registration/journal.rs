//! What was registered, on disk before it is acknowledged: an append-only file, one line a change.
//!
//! ```text
//! <XXH3 of the rest, 16 hex digits> <JSON><line end>
//! ```
//! Whatever moment the power fails or the daemon is killed at, every line that was synced is read again; a tail that was
//! never acknowledged is dropped. A file that has grown far beyond what it says is written anew beside, synced and renamed.
//! After an error of the disk nothing is appended to the file any more (what a failed `fsync` leaves is unknown): the next
//! change writes it anew.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::book::{Book, Grave, Registration};
use crate::peers::stamp::Stamp;
use crate::route::{ProviderName, SniPattern};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// The first line of each file.
    Version(u32),
    Put(Registration),
    /// Without a trace.
    Remove(String),
    /// So that other nodes hear of it.
    Bury {
        host: String,
        stamp: Stamp,
        /// Whose it was.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
    },
    /// Another node had the same book then, Unix milliseconds.
    Same {
        peer: Arc<str>,
        at: u64,
    },
}

/// The file, open for one writer.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Option<File>,
    records: usize,
    _lock: Flock<File>,
}

/// What a journal came to when it was read.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Recovered {
    pub(super) book: Book,
    records: usize,
    /// Bytes up to the end of the last good line.
    good: usize,
    /// Lines before that which are not what was written: a dying disk, an editor.
    pub(super) damaged: usize,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// Permissions, a full disk.
    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("another daemon uses {}; give each its own state_dir", path.display())]
    InUse { path: PathBuf },
    #[error("{} was written by a newer version (format {version})", path.display())]
    Newer { path: PathBuf, version: u32 },
}

impl Journal {
    /// Reads what stands there and prepares it for appending. Blocks; waits a moment for an earlier writer to finish.
    pub(super) fn open(state_dir: &Path, provider: &ProviderName) -> Result<(Self, Recovered), JournalError> {
        let directory = state_dir.join("registrations");
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed("creating", &directory))?;
        let lock = lock(&directory.join(format!("{provider}.lock")))?;
        let path = directory.join(format!("{provider}.journal"));
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(read.map_err(failed("reading", &path))?),
        };
        let recovered = recover(bytes.as_deref().unwrap_or_default())
            .map_err(|version| JournalError::Newer { path: path.clone(), version })?;
        let mut journal = Self { path, file: None, records: recovered.records, _lock: lock };
        if recovered.damaged > 0 {
            let aside = journal.path.with_extension("damaged");
            fs::copy(&journal.path, &aside).map_err(failed("copying aside", &journal.path))?;
            tracing::error!(
                path = %journal.path.display(), lines = recovered.damaged, copy = %aside.display(),
                "lines of the registration journal are damaged; they are left out"
            );
        }
        let is_clean =
            recovered.damaged == 0 && bytes.is_some_and(|bytes| bytes.len() == recovered.good && !bytes.is_empty());
        match is_clean {
            true => journal.reopen()?,
            false => journal.rewrite(&recovered.book)?,
        }
        Ok((journal, recovered))
    }

    /// Puts `records` on disk; `after` is what the whole journal says with them. When this returns, they are there.
    ///
    /// # Errors
    /// I/O; the records may or may not be there after the next start.
    pub(super) fn append(&mut self, records: &[Record], after: &Book) -> Result<(), JournalError> {
        let too_many = self.records + records.len() > COMPACT_ABOVE + (after.len() + after.graves().len()) * 2;
        // The file is back in its place only if all goes well. One that somebody removed would take records and lose them.
        let is_there = |file: &File| file.metadata().is_ok_and(|file| file.nlink() > 0);
        let Some(mut file) = self.file.take().filter(|file| !too_many && is_there(file)) else {
            return self.rewrite(after);
        };
        let lines: Vec<u8> = records.iter().flat_map(line).collect();
        file.write_all(&lines).and_then(|()| file.sync_data()).map_err(failed("writing", &self.path))?;
        self.file = Some(file);
        self.records += records.len();
        Ok(())
    }

    fn rewrite(&mut self, book: &Book) -> Result<(), JournalError> {
        let temporary = self.path.with_extension("journal.new");
        let mut text = line(&Record::Version(VERSION));
        for registration in book.iter() {
            text.extend(line(&Record::Put(Registration::clone(registration))));
        }
        for (host, Grave { stamp, owner }) in book.graves() {
            let (stamp, owner) = (stamp.clone(), owner.clone());
            text.extend(line(&Record::Bury { host: host.to_string(), stamp, owner }));
        }
        for (peer, at) in book.same() {
            text.extend(line(&Record::Same { peer: peer.clone(), at }));
        }
        // A file that a killed daemon left may have another mode.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("removing", &temporary)(error)),
            Ok(()) | Err(_) => {}
        }
        let written =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            });
        written.map_err(failed("writing", &temporary))?;
        fs::rename(&temporary, &self.path).map_err(failed("replacing", &self.path))?;
        // The new name is on disk only when the directory is.
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("syncing", directory))?;
        self.records = book.len() + book.graves().len();
        self.reopen()
    }

    fn reopen(&mut self) -> Result<(), JournalError> {
        let file = OpenOptions::new().append(true).open(&self.path).map_err(failed("opening", &self.path))?;
        self.file = Some(file);
        Ok(())
    }
}

/// Reads as much as was written. Pure.
///
/// # Errors
/// The version, if it is newer than ours.
fn recover(bytes: &[u8]) -> Result<Recovered, u32> {
    let mut recovered = Recovered::default();
    let (mut at, mut bad) = (0, 0);
    while let Some(length) = bytes[at..].iter().position(|byte| *byte == b'\n') {
        let text = &bytes[at..at + length];
        at += length + 1;
        match parse(text) {
            None => bad += 1,
            Some(record) => {
                match record {
                    Record::Version(version) if version > VERSION => return Err(version),
                    Record::Version(_) => {}
                    Record::Put(registration) => recovered.book.put(registration.into()),
                    Record::Remove(host) => {
                        if let Ok(host) = SniPattern::parse(&host) {
                            recovered.book.remove(&host);
                        }
                    }
                    Record::Bury { host, stamp, owner } => {
                        if let Ok(host) = SniPattern::parse(&host) {
                            recovered.book.put_grave(&host, Grave { stamp, owner });
                        }
                    }
                    Record::Same { peer, at } => recovered.book.note_same(peer, at),
                }
                recovered.records += 1;
                recovered.good = at;
                // Bad lines with a good one behind them are damage; at the end they are what a power failure left.
                recovered.damaged += std::mem::take(&mut bad);
            }
        }
    }
    Ok(recovered)
}

fn parse(line: &[u8]) -> Option<Record> {
    let (sum, json) = line.split_at_checked(17)?;
    let sum = u64::from_str_radix(std::str::from_utf8(sum).ok()?.strip_suffix(' ')?, 16).ok()?;
    (sum == xxh3_64(json)).then(|| serde_json::from_slice(json).ok())?
}

fn line(record: &Record) -> Vec<u8> {
    // Strings and numbers in a JSON object: there is nothing that could fail.
    let json = serde_json::to_string(record).unwrap_or_default();
    format!("{:016x} {json}\n", xxh3_64(json.as_bytes())).into_bytes()
}

/// An earlier task of the same daemon may be in its last write.
fn lock(path: &Path) -> Result<Flock<File>, JournalError> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("opening", path))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((same, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = same,
            Err((_, Errno::EWOULDBLOCK)) => return Err(JournalError::InUse { path: path.to_owned() }),
            Err((_, error)) => return Err(failed("locking", path)(error.into())),
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::Io { action, path: path.to_owned(), source }
}

/// 2: stamps, and hosts that were removed.
const VERSION: u32 = 2;
/// Records beyond twice the live ones.
const COMPACT_ABOVE: usize = 4096;
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
