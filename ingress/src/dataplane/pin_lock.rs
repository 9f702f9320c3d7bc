//! A pin directory belongs to one daemon at a time. Two would take each other's listeners out of the maps, read each other's
//! events, and cut what the other is about to hand off.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::loader::LoadError;

/// Held until it is dropped, and at the latest until the process ends, however that happens (flock(2)).
#[derive(Debug)]
pub(super) struct PinLock {
    _directory: Flock<File>,
}

impl PinLock {
    /// Locks a directory that is there. Waits for nobody.
    pub(super) fn take(directory: &Path) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Io { what: format!("locking {}", directory.display()), source };
        let file = File::open(directory).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => Ok(Self { _directory: locked }),
            Err((_, Errno::EWOULDBLOCK)) => Err(LoadError::InUse { path: directory.to_owned() }),
            Err((_, error)) => Err(failed(io::Error::from(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_given_to_one_and_to_the_next_when_that_one_is_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = PinLock::take(directory.path()).expect("nobody has it");
        let refused = PinLock::take(directory.path()).expect_err("it is taken");
        assert!(matches!(refused, LoadError::InUse { .. }), "{refused}");
        drop(first);
        PinLock::take(directory.path()).expect("it is free again");
    }
}
