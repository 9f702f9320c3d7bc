//! Secrets that stand in files of their own: read when they are needed, never shown.
//!
//! Read again at each use, so that a secret that is exchanged needs no reload.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A password or token, or several in lines.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why there is none. Names the file, never what stands in it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("reading {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{0} can be read by everybody on this host (mode {mode:04o}); run: chmod o-rwx {0}", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("{}: {why}", path.display())]
    Unusable { path: PathBuf, why: &'static str },
}

impl Secret {
    /// # Errors
    /// The file cannot be read, everybody can read it, or it is not one line of printable characters.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        Self::read_unless(path, char::is_control, "a secret is one line of printable characters")
    }

    /// Several, one a line, while one takes the place of another.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn read_lines(path: &Path) -> Result<Self, SecretError> {
        let is_bad = |c: char| c.is_control() && !matches!(c, '\r' | '\n');
        Self::read_unless(path, is_bad, "secrets are lines of printable characters")
    }

    fn read_unless(path: &Path, is_bad: impl Fn(char) -> bool, why: &'static str) -> Result<Self, SecretError> {
        let read = |source| SecretError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let mode = file.metadata().map_err(read)?.permissions().mode() & 0o7777;
        if mode & 0o007 != 0 {
            return Err(SecretError::Open { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(LONGEST + 1).read_to_string(&mut text).map_err(read)?;
        let unusable = |why| SecretError::Unusable { path: path.to_owned(), why };
        let text = text.trim();
        match text.len() {
            0 => Err(unusable("it is empty; write the secret into it")),
            length if length as u64 > LONGEST => Err(unusable("it is too long for a secret")),
            _ if text.chars().any(is_bad) => Err(unusable(why)),
            _ => Ok(Self(text.to_owned())),
        }
    }

    /// For the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// Bytes.
const LONGEST: u64 = 4096;

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    fn read(text: &str, mode: u32) -> Result<Secret, String> {
        read_by(Secret::read, text, mode)
    }

    fn read_by(read: impl Fn(&Path) -> Result<Secret, SecretError>, text: &str, mode: u32) -> Result<Secret, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        std::fs::write(&path, text).expect("a file");
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("its mode");
        read(&path).map_err(|error| error.to_string().replace(&path.display().to_string(), "token"))
    }

    #[test]
    fn a_secret_is_one_line_and_is_never_shown() {
        let secret = read(" hunter2\n", 0o640).expect("a secret");
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(format!("{secret:?}"), "<secret>");
        for bad in ["", "\n", "hunter2\nhunter3\n", &"hunter2".repeat(1000)] {
            let error = read(bad, 0o600).expect_err("no secret");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn several_secrets_stand_in_lines() {
        let lines = |text, mode| read_by(Secret::read_lines, text, mode);
        assert_eq!(lines("hunter2\nhunter3\n", 0o600).expect("two").expose(), "hunter2\nhunter3");
        for (bad, mode) in [("\n\n", 0o600), ("hunter2\0\nhunter3\n", 0o600), ("hunter2\nhunter3\n", 0o644)] {
            let error = lines(bad, mode).expect_err("no secrets");
            assert!(!error.contains("hunter"), "{error}");
        }
    }

    #[test]
    fn a_secret_that_everybody_can_read_is_refused_with_the_remedy() {
        for mode in [0o644, 0o604, 0o602] {
            let error = read("hunter2", mode).expect_err("everybody can read it");
            let expected =
                format!("token can be read by everybody on this host (mode {mode:04o}); run: chmod o-rwx token");
            assert_eq!(error, expected);
        }
    }
}
