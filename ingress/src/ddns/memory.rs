//! What this node wrote last, on disk: so that after a restart too it knows its own record from one that somebody changed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::plan::Kind;

#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    written: BTreeMap<String, IpAddr>,
}

impl Memory {
    /// A file that is missing or broken is an empty one: then what is there is taken over as at the first time.
    pub(super) fn load(state_dir: &Path) -> Self {
        let path = state_dir.join("ddns.json");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let written = serde_json::from_str(&text).unwrap_or_default();
        Self { path, written }
    }

    pub(super) fn wrote(&self, name: &str, kind: Kind) -> Option<IpAddr> {
        self.written.get(&key(name, kind)).copied()
    }

    /// Once the provider has it: what it did not take is not ours.
    pub(super) fn write(&mut self, name: &str, kind: Kind, address: IpAddr) -> io::Result<()> {
        if self.wrote(name, kind) == Some(address) {
            return Ok(());
        }
        let mut written = self.written.clone();
        written.insert(key(name, kind), address);
        let new = self.path.with_extension("json.new");
        let mut file = File::create(&new)?;
        file.write_all(serde_json::to_string_pretty(&written)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(new, &self.path)?;
        self.written = written;
        Ok(())
    }
}

fn key(name: &str, kind: Kind) -> String {
    format!("{name} {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_known_after_a_restart_and_a_broken_file_is_an_empty_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let address = IpAddr::from([192, 0, 2, 7]);
        let mut memory = Memory::load(dir.path());
        memory.write("a.example.com", Kind::A, address).expect("a disk");
        let again = Memory::load(dir.path());
        assert_eq!(again.wrote("a.example.com", Kind::A), Some(address));
        assert_eq!(again.wrote("a.example.com", Kind::Aaaa), None);
        fs::write(dir.path().join("ddns.json"), "{\"a").expect("a disk");
        assert_eq!(Memory::load(dir.path()).wrote("a.example.com", Kind::A), None);
    }
}
