//! What control says about itself, and how it is asked to reload. Plain data; admin shows it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::route::{Contribution, ProviderName, Unserved};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// Which configuration is in use, and what became of the last attempt to load another one.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigState {
    pub path: PathBuf,
    pub source: ConfigSource,
    pub loaded_at: SystemTime,
    /// Why the file as it is now is not in use. `None`: it is.
    pub last_error: Option<String>,
    /// The YAML that is in use.
    pub text: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    File,
    /// The file was broken at start; the last good one was taken from the state directory.
    LastGood,
}

/// Asks control to read the configuration again. The error is the text that `ingress check` would print.
#[derive(Debug)]
pub struct ReloadRequest {
    pub done: oneshot::Sender<Result<Reloaded, String>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    pub generation: u64,
    pub warnings: Vec<String>,
}

/// What would change, were the configuration another one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    pub changes: Vec<Change>,
    /// What would not be served, and why.
    pub unserved: Vec<String>,
    pub warnings: Vec<String>,
}

/// One thing that comes, goes or changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// `route`, `listener`, `pool`, or a section of the configuration.
    pub what: String,
    /// Empty for a section.
    pub name: String,
    /// `None`: it is new.
    pub before: Option<String>,
    /// `None`: it goes. Equal to `before` where only settings change that have no word here.
    pub after: Option<String>,
}

/// What one provider said last, and how it is doing.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderState {
    pub name: ProviderName,
    /// Its key in the configuration, such as `registry`.
    pub kind: &'static str,
    /// Where it reads: a path, a URL.
    pub place: String,
    pub priority: u32,
    /// `None`: it has not said anything yet.
    pub contribution: Option<Arc<Contribution>>,
    /// What is in use was kept on disk; the source said so then, and has not answered since the daemon started.
    pub from_disk: Option<SystemTime>,
    /// When the source last answered, with news or without.
    pub last_success: Option<SystemTime>,
    /// `None`: the last attempt was good.
    pub last_error: Option<String>,
    /// Since when every attempt failed.
    pub failing_since: Option<SystemTime>,
    /// Contributions that differed from the one before.
    pub changes: u64,
    pub failures: u64,
    /// What somebody of higher precedence has.
    pub refused: Arc<[Unserved]>,
}

impl ConfigSource {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::LastGood => "last-good",
        }
    }
}
