//! Running other programs: announced, from the repository's root, with their failure as the task's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).into()
}

/// `cargo` with these words, at the root.
pub(crate) fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(root());
    command
}

/// Prints what is done next.
pub(crate) fn announce(what: &str) {
    eprintln!("\n== {what}");
}

/// Runs it to the end with the caller's terminal; anything but success is an error.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<()> {
    announce(what);
    let status = command.status().with_context(|| format!("starting {:?}", command.get_program()))?;
    ensure!(status.success(), "{what} failed ({status})");
    Ok(())
}
