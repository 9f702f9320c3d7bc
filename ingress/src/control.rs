//! Reads the configuration, compiles it into a snapshot and publishes it: at start, on SIGHUP, on request, on file change.
//!
//! A file that is broken changes nothing but [`ConfigState::last_error`]; a file whose meaning did not change publishes
//! nothing. [`Control::run`] is one task and the only publisher.

mod compile;
pub mod last_good;
pub mod state;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as channel};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, LoadError, Loaded, Problems};
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;

pub use compile::compile;
use last_good::LastGood;
use state::{ConfigSource, ConfigState, ReloadRequest, Reloaded};
use watch::{FileWatch, Signature};

/// The one who publishes snapshots.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    /// Of the file that was read first.
    first: Signature,
    metrics: Arc<Metrics>,
    snapshots: channel::Sender<Arc<Snapshot>>,
    state: channel::Sender<ConfigState>,
}

impl Control {
    /// Loads the first configuration: the file, or the last good one if the file is broken. Binds nothing.
    ///
    /// # Errors
    /// The file's problems, if there is no last good one either.
    pub fn start(path: &Path, metrics: Arc<Metrics>) -> Result<Self, LoadError> {
        let first = Signature::of(path);
        let (config, text, source, last_error) = match config::load(path) {
            Ok(Loaded { config, warnings, text }) => {
                warn_of(&warnings);
                keep(&config, &text);
                (config, text, ConfigSource::File, None)
            }
            Err(problems) => {
                let Some((config, text)) = last_good(path) else { return Err(problems) };
                let problems = problems.to_string();
                tracing::error!(path = %path.display(), problems, "configuration refused; serving the last good one");
                (config, text, ConfigSource::LastGood, Some(problems))
            }
        };
        metrics.config_reload(last_error.is_none());
        let snapshot = compile(config, None);
        metrics.generation(snapshot.generation.0);
        tracing::info!(path = %path.display(), generation = %snapshot.generation, "configuration in use");
        let loaded_at = snapshot.published;
        let state = ConfigState { path: path.to_owned(), source, loaded_at, last_error, text: text.into() };
        let snapshots = channel::Sender::new(Arc::new(snapshot));
        Ok(Self { path: path.to_owned(), first, metrics, snapshots, state: channel::Sender::new(state) })
    }

    pub fn snapshots(&self) -> channel::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    pub fn state(&self) -> channel::Receiver<ConfigState> {
        self.state.subscribe()
    }

    /// Reloads whenever somebody asks for it, until `stop`.
    pub async fn run(
        self,
        mut requests: mpsc::Receiver<ReloadRequest>,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let mut hangups = signal(SignalKind::hangup())?;
        let mut file = FileWatch::start(&self.path, self.first);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(()) = hangups.recv() => drop(self.reload()),
                Some(request) = requests.recv() => {
                    // Who asked may have gone; the reload counts all the same.
                    let _ = request.done.send(self.reload());
                }
                () = file.settled() => drop(self.reload()),
            }
        }
    }

    /// Loads the file and publishes what changed. The error is what `ingress check` would print.
    pub fn reload(&self) -> Result<Reloaded, String> {
        let result = config::load(&self.path).map_err(|error| error.to_string());
        self.metrics.config_reload(result.is_ok());
        match result {
            Ok(loaded) => Ok(self.accept(loaded)),
            Err(problems) => {
                self.refuse(&problems);
                Err(problems)
            }
        }
    }

    fn accept(&self, loaded: Loaded) -> Reloaded {
        let Loaded { config, warnings, text } = loaded;
        let current = self.snapshots.borrow().clone();
        let mut generation = current.generation;
        if config != *current.config {
            warn_of(&warnings);
            keep(&config, &text);
            let snapshot = compile(config, Some(&current));
            generation = snapshot.generation;
            self.snapshots.send_replace(Arc::new(snapshot));
            self.metrics.generation(generation.0);
            tracing::info!(path = %self.path.display(), %generation, "configuration reloaded");
        } else {
            tracing::debug!(path = %self.path.display(), %generation, "configuration unchanged");
        }
        self.state.send_modify(|state| {
            state.source = ConfigSource::File;
            state.loaded_at = SystemTime::now();
            state.last_error = None;
            state.text = text.into();
        });
        Reloaded { generation: generation.0, warnings: warnings.iter().map(ToString::to_string).collect() }
    }

    fn refuse(&self, problems: &str) {
        // A file that is still as broken as before is no news.
        let news = self.state.borrow().last_error.as_deref() != Some(problems);
        if news {
            let generation = self.snapshots.borrow().generation;
            tracing::warn!(path = %self.path.display(), %generation, problems, "configuration refused; the old one stays");
            self.state.send_modify(|state| state.last_error = Some(problems.to_owned()));
        }
    }
}

fn warn_of(warnings: &Problems) {
    for warning in warnings.iter() {
        tracing::warn!(%warning, "configuration");
    }
}

/// A host that cannot write its state still serves; only a restart with a broken file would miss it.
fn keep(config: &Config, text: &str) {
    if let Err(error) = LastGood::new(&config.state_dir).store(text, SystemTime::now()) {
        tracing::warn!(%error, "cannot keep the last good configuration");
    }
}

fn last_good(path: &Path) -> Option<(Config, String)> {
    let kept = LastGood::new(&state_dir(path));
    let stored = kept.load().unwrap_or_else(|error| {
        tracing::warn!(%error, "no last good configuration");
        None
    })?;
    // Written by an older or newer version, it may not be good any more.
    match config::parse(&stored.text, &kept.path()) {
        Ok(config) => Some((config, stored.text)),
        Err(problems) => {
            tracing::warn!(%problems, "the last good configuration is refused too");
            None
        }
    }
}

/// Where the broken file says that state is kept, as far as it can still be read; else the default.
fn state_dir(path: &Path) -> PathBuf {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let value = text.lines().find_map(|line| line.strip_prefix("state_dir:"));
    let value = value.map(|value| value.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']));
    value.filter(|value| value.starts_with('/')).map_or_else(|| PathBuf::from(config::STATE_DIR), PathBuf::from)
}

#[cfg(test)]
mod tests;
