//! What was accepted last, kept on disk: a daemon that starts with a broken file, or whose provider does not answer, serves
//! this.
//!
//! One file for each, `<state_dir>/last-good/config.yaml`, `provider-<name>` and `operators`: a comment line with the checksum, then the
//! text as it was accepted. So `ingress check` reads the former too. A file is replaced whole or not at all: written beside,
//! synced, renamed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use xxhash_rust::xxh3::xxh3_64;

use crate::route::ProviderName;

const MAGIC: &str = "# ingress last-good 1";
/// What is larger was not written here; configurations end at 16 MiB.
const MAX_BYTES: u64 = 32 << 20;

/// Where one last good text is kept. One daemon per directory.
#[derive(Clone, Debug)]
pub struct LastGood {
    directory: PathBuf,
    file: String,
}

/// A text that was accepted once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// As its author wrote it.
    pub text: String,
    pub hash: ConfigHash,
    /// When it was accepted, to the second.
    pub accepted: SystemTime,
}

/// Tells configurations apart in logs and status; no protection against forgery (XXH3, 64 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConfigHash(u64);

#[derive(Debug, thiserror::Error)]
pub enum LastGoodError {
    /// The directory or file cannot be used: permissions, a full disk.
    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// Somebody or a dying disk changed it since it was written.
    #[error("the last good copy {} is damaged: {reason}; remove it", path.display())]
    Damaged { path: PathBuf, reason: &'static str },
}

impl ConfigHash {
    pub fn of(text: &str) -> Self {
        Self(xxh3_64(text.as_bytes()))
    }
}

impl std::fmt::Display for ConfigHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl LastGood {
    /// Of the configuration file.
    pub fn new(state_dir: &Path) -> Self {
        Self { directory: state_dir.join("last-good"), file: "config.yaml".to_owned() }
    }

    /// Of what a provider said.
    pub fn of_provider(state_dir: &Path, provider: &ProviderName) -> Self {
        Self { directory: state_dir.join("last-good"), file: format!("provider-{provider}") }
    }

    /// Of what operators said about backends.
    pub fn of_operators(state_dir: &Path) -> Self {
        Self { directory: state_dir.join("last-good"), file: "operators".to_owned() }
    }

    /// The file that [`store`](Self::store) writes.
    pub fn path(&self) -> PathBuf {
        self.directory.join(&self.file)
    }

    /// Puts `text` in the place of what was kept before. When this returns, it is on disk.
    ///
    /// # Errors
    /// I/O; what was kept before is still there.
    pub fn store(&self, text: &str, accepted: SystemTime) -> Result<Stored, LastGoodError> {
        let seconds = accepted.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let stored = Stored {
            text: text.to_owned(),
            hash: ConfigHash::of(text),
            accepted: UNIX_EPOCH + Duration::from_secs(seconds),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(failed("creating", &self.directory))?;
        let temporary = self.directory.join(format!("{}.new", self.file));
        let header = format!("{MAGIC} xxh3={} bytes={} accepted={seconds}\n", stored.hash, text.len());
        write_synced(&temporary, &[header.as_bytes(), text.as_bytes()]).map_err(failed("writing", &temporary))?;
        fs::rename(&temporary, self.path()).map_err(failed("replacing", &self.path()))?;
        // The new name is on disk only when the directory is.
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("syncing", &self.directory))?;
        Ok(stored)
    }

    /// Forgets what was kept: it must not come back.
    ///
    /// # Errors
    /// I/O; it may still be there.
    pub fn remove(&self) -> Result<(), LastGoodError> {
        match fs::remove_file(self.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", &self.path())(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What was kept; `None` if nothing ever was.
    ///
    /// # Errors
    /// The file cannot be read, or is not what was written.
    pub fn load(&self) -> Result<Option<Stored>, LastGoodError> {
        let path = self.path();
        let size = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("reading", &path)(error)),
        };
        if size > MAX_BYTES {
            return Err(LastGoodError::Damaged { path, reason: "it is larger than any configuration" });
        }
        let bytes = fs::read(&path).map_err(failed("reading", &path))?;
        decode(&bytes).map(Some).map_err(|reason| LastGoodError::Damaged { path, reason })
    }
}

fn write_synced(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    // A file that a killed daemon left is of no use and may have another mode.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()
}

/// The error says what is wrong with the file.
fn decode(bytes: &[u8]) -> Result<Stored, &'static str> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it ends within its first line")?;
    let (header, text) = (&bytes[..end], &bytes[end + 1..]);
    let header = std::str::from_utf8(header).ok().and_then(|header| header.strip_prefix(MAGIC));
    let fields = header.ok_or("its first line is not the one that ingress writes")?;
    let field = |name: &str| {
        let values = fields.split_ascii_whitespace().filter_map(|field| field.split_once('='));
        values.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
    };
    let (Some(hash), Some(bytes), Some(accepted)) = (
        field("xxh3").and_then(|hash| u64::from_str_radix(hash, 16).ok()),
        field("bytes").and_then(|bytes| bytes.parse::<usize>().ok()),
        field("accepted").and_then(|seconds| seconds.parse().ok()),
    ) else {
        return Err("its first line is not the one that ingress writes");
    };
    if text.len() < bytes {
        return Err("its end is missing");
    }
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8")?;
    if text.len() != bytes || ConfigHash::of(text) != ConfigHash(hash) {
        return Err("its checksum does not fit its text");
    }
    let accepted = UNIX_EPOCH.checked_add(Duration::from_secs(accepted)).ok_or("its time is out of range")?;
    Ok(Stored { text: text.to_owned(), hash: ConfigHash(hash), accepted })
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LastGoodError {
    move |source| LastGoodError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "listeners: {https: {bind: ':443'}}\n# grüße\n";

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("a file").permissions().mode() & 0o777
    }

    #[test]
    fn what_was_stored_comes_back() {
        let state = tempfile::tempdir().expect("a directory");
        let kept = LastGood::new(&state.path().join("ingress"));
        assert_eq!(kept.load().expect("no file is no error"), None);
        let stored = kept.store(TEXT, at(1_700_000_000) + Duration::from_millis(7)).expect("stored");
        assert_eq!(stored, Stored { text: TEXT.into(), hash: ConfigHash::of(TEXT), accepted: at(1_700_000_000) });
        assert_eq!(kept.load().expect("loaded"), Some(stored));
        let newer = kept.store("other: text\n", at(2)).expect("stored");
        assert_eq!(kept.load().expect("loaded"), Some(newer));
    }

    #[test]
    fn only_the_owner_can_read_it() {
        let state = tempfile::tempdir().expect("a directory");
        let kept = LastGood::new(state.path());
        kept.store(TEXT, at(1)).expect("stored");
        assert_eq!((mode(&kept.path()), mode(&kept.directory)), (0o600, 0o700));
    }

    #[test]
    fn a_kill_while_writing_leaves_the_old_one() {
        let state = tempfile::tempdir().expect("a directory");
        let kept = LastGood::new(state.path());
        let old = kept.store(TEXT, at(1)).expect("stored");
        let temporary = kept.directory.join("config.yaml.new");
        fs::write(&temporary, "# ingress last-good 1 xxh3=").expect("a half-written file");
        assert_eq!(kept.load().expect("loaded"), Some(old));
        let new = kept.store("new: text\n", at(2)).expect("the left-over file is no obstacle");
        assert_eq!(kept.load().expect("loaded"), Some(new));
        assert_eq!(mode(&kept.path()), 0o600);
        assert!(!temporary.exists());
    }

    #[test]
    fn a_failed_store_leaves_the_old_one() {
        let state = tempfile::tempdir().expect("a directory");
        let kept = LastGood::new(state.path());
        let old = kept.store(TEXT, at(1)).expect("stored");
        fs::create_dir(kept.directory.join("config.yaml.new")).expect("an obstacle");
        let error = kept.store("new: text\n", at(2)).expect_err("the obstacle is in the way");
        assert!(error.to_string().starts_with("writing "), "{error}");
        assert_eq!(kept.load().expect("loaded"), Some(old));
    }

    #[test]
    fn a_truncated_file_is_told_so_at_every_length() {
        let state = tempfile::tempdir().expect("a directory");
        let kept = LastGood::new(state.path());
        kept.store(TEXT, at(1)).expect("stored");
        let whole = fs::read(kept.path()).expect("the file");
        for length in 0..whole.len() {
            fs::write(kept.path(), &whole[..length]).expect("a shorter file");
            let error = kept.load().expect_err("a shorter file is damaged");
            assert!(matches!(error, LastGoodError::Damaged { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn a_changed_byte_is_told_so() {
        let state = tempfile::tempdir().expect("a directory");
        let kept = LastGood::new(state.path());
        kept.store(TEXT, at(1)).expect("stored");
        let edited = fs::read_to_string(kept.path()).expect("the file").replace("443", "444");
        fs::write(kept.path(), edited).expect("an edited file");
        let error = kept.load().expect_err("an edited file is damaged").to_string();
        assert!(error.ends_with("is damaged: its checksum does not fit its text; remove it"), "{error}");
    }

    #[test]
    fn the_file_is_itself_a_configuration() {
        let state = tempfile::tempdir().expect("a directory");
        let kept = LastGood::new(state.path());
        kept.store(TEXT, at(1)).expect("stored");
        let loaded = crate::config::load(&kept.path()).expect("a configuration");
        assert_eq!(loaded.config.listeners.len(), 1);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn no_header_makes_it_panic(fields in "[a-z0-9= ]{0,60}", text in ".{0,10}") {
            let _ = decode(format!("{MAGIC} {fields}\n{text}").as_bytes());
        }
    }
}
