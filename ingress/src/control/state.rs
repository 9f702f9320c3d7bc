//! What control says about itself, and how it is asked to reload. Plain data; admin shows it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

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

impl ConfigSource {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::LastGood => "last-good",
        }
    }
}
