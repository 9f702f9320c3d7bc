//! Merges the configuration file with what providers say, compiles it into a snapshot and publishes it.
//!
//! A file that is broken changes nothing but [`ConfigState::last_error`], a provider that fails nothing but its own
//! [`ProviderState`]; what did not change in meaning publishes nothing. [`Control::run`] is one task and the only publisher.

pub mod administration;
mod changes;
mod compile;
mod contributions;
pub mod last_good;
mod memory;
pub mod merge;
mod removal;
pub mod state;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as channel};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::{self, Config, LoadError, Loaded, Problems};
use crate::flow::{FlowCommand, FlowFilter};
use crate::l4::outcome::EndReason;
use crate::metrics::Metrics;
use crate::route::{Applied, ProviderUpdate, RouteName};
use crate::snapshot::{Generation, Snapshot};
use crate::watch::{FileWatch, Signature};

use administration::Administration;
pub use changes::preview;
pub use compile::compile;
use contributions::{Contributions, Taken};
use last_good::LastGood;
use merge::{Merged, Refused, merge};
use removal::Removals;
use state::{ConfigSource, ConfigState, ProviderState, ReloadRequest, Reloaded};

/// The one who publishes snapshots.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    /// Of the file that was read last.
    seen: Signature,
    metrics: Arc<Metrics>,
    /// As the file says it, without providers.
    file: Config,
    contributions: Contributions,
    refused: Refused,
    removals: Removals,
    /// Routes whose connections have to end.
    cut: Vec<RouteName>,
    administration: Arc<Administration>,
    snapshots: channel::Sender<Arc<Snapshot>>,
    state: channel::Sender<ConfigState>,
    providers: channel::Sender<Arc<Vec<ProviderState>>>,
}

/// What [`Control::run`] listens to and asks for.
#[derive(Debug)]
pub struct Doors {
    pub requests: mpsc::Receiver<ReloadRequest>,
    pub updates: mpsc::Receiver<ProviderUpdate>,
    pub commands: mpsc::Sender<FlowCommand>,
}

impl Control {
    /// Loads the first configuration: the file, or the last good one if the file is broken. Binds nothing.
    ///
    /// # Errors
    /// The file's problems, if there is no last good one either.
    pub fn start(path: &Path, metrics: Arc<Metrics>) -> Result<Self, LoadError> {
        let seen = Signature::of(path);
        let (file, text, source, last_error) = match config::load(path) {
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
        let mut contributions = Contributions::default();
        contributions.follow(&file);
        let began = Instant::now();
        let snapshot = Snapshot { awaited: contributions.awaited(), ..compile(file.clone(), None) };
        let snapshots = channel::Sender::new(Arc::new(snapshot));
        let administration = Arc::new(Administration::start(&file.state_dir, snapshots.subscribe()));
        let snapshot = snapshots.borrow().clone();
        metrics.publication(began.elapsed());
        metrics.generation(snapshot.generation.0);
        tracing::info!(path = %path.display(), generation = %snapshot.generation, "configuration in use");
        let loaded_at = snapshot.published;
        let state = ConfigState { path: path.to_owned(), source, loaded_at, last_error, text: text.into() };
        Ok(Self {
            path: path.to_owned(),
            seen,
            metrics,
            file,
            providers: channel::Sender::new(Arc::new(contributions.states())),
            contributions,
            refused: Refused::default(),
            removals: Removals::default(),
            cut: Vec::new(),
            administration,
            snapshots,
            state: channel::Sender::new(state),
        })
    }

    pub fn snapshots(&self) -> channel::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    /// Where operators say what they want of backends.
    pub fn administration(&self) -> Arc<Administration> {
        self.administration.clone()
    }

    pub fn state(&self) -> channel::Receiver<ConfigState> {
        self.state.subscribe()
    }

    pub fn providers(&self) -> channel::Receiver<Arc<Vec<ProviderState>>> {
        self.providers.subscribe()
    }

    /// Reloads whenever somebody asks for it, and takes what providers say, until `stop`.
    pub async fn run(mut self, doors: Doors, stop: CancellationToken) -> std::io::Result<()> {
        let Doors { mut requests, mut updates, commands } = doors;
        let mut hangups = signal(SignalKind::hangup())?;
        let mut file = FileWatch::start([self.path.as_path()]);
        let mut said = Vec::new();
        loop {
            let drained = self.removals.next();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(()) = hangups.recv() => drop(self.reload()),
                Some(request) = requests.recv() => {
                    // Who asked may have gone; the reload counts all the same.
                    let _ = request.done.send(self.reload());
                }
                () = file.settled() => self.look(&mut file),
                // What waits together is merged together.
                1.. = updates.recv_many(&mut said, UPDATES_AT_ONCE) => self.hear(said.drain(..)),
                () = clock::sleep_until(drained) => self.cut.extend(self.removals.due(clock::now())),
            }
            for route in self.cut.drain(..) {
                let filter = FlowFilter { route: Some(route.to_string()), ..FlowFilter::default() };
                let command = FlowCommand::Cut { filter, reason: EndReason::RouteRemoved, done: None };
                if commands.send(command).await.is_err() {
                    tracing::debug!(%route, "nobody is left to cut connections: the daemon stops");
                }
            }
        }
    }

    /// Reloads if the file is another than the one that was read last.
    fn look(&mut self, file: &mut FileWatch) {
        if Signature::of(&self.path) != self.seen {
            // Where the link leads may be another directory now.
            file.follow([self.path.as_path()]);
            drop(self.reload());
        }
    }

    /// Loads the file and publishes what changed. The error is what `ingress check` would print.
    pub fn reload(&mut self) -> Result<Reloaded, String> {
        self.seen = Signature::of(&self.path);
        let result = config::load(&self.path).map_err(|error| error.to_string());
        self.metrics.config_reload(result.is_ok());
        match result {
            Ok(loaded) => {
                let reloaded = self.accept(loaded);
                memory::give_back();
                Ok(reloaded)
            }
            Err(problems) => {
                self.refuse(&problems);
                Err(problems)
            }
        }
    }

    /// Takes what providers say, and publishes what came of it.
    pub fn hear(&mut self, updates: impl IntoIterator<Item = ProviderUpdate>) {
        let (mut changed, mut waiting) = (false, Vec::new());
        for ProviderUpdate { provider, news, done } in updates {
            match self.contributions.take(&provider, news, SystemTime::now()) {
                Taken::Changed => changed = true,
                Taken::Noted => {}
                Taken::Unknown => tracing::debug!(%provider, "update of a provider that is not there any more"),
            }
            waiting.extend(done.map(|done| (provider, done)));
        }
        let generation = if changed { self.publish() } else { self.snapshots.borrow().generation };
        self.show_providers();
        for (provider, done) in waiting {
            // Who asked may have gone; the update holds all the same.
            let _ = done.send(Applied { generation, refused: self.refused.of(&provider) });
        }
    }

    fn accept(&mut self, loaded: Loaded) -> Reloaded {
        let Loaded { config, warnings, text } = loaded;
        let before = self.snapshots.borrow().generation;
        if config != self.file {
            warn_of(&warnings);
            keep(&config, &text);
            self.contributions.follow(&config);
            self.file = config;
            self.publish();
            self.show_providers();
        }
        let generation = self.snapshots.borrow().generation;
        if generation == before {
            tracing::debug!(path = %self.path.display(), %generation, "configuration unchanged");
        } else {
            tracing::info!(path = %self.path.display(), %generation, "configuration reloaded");
        }
        self.state.send_modify(|state| {
            state.source = ConfigSource::File;
            state.loaded_at = SystemTime::now();
            state.last_error = None;
            state.text = text.into();
        });
        Reloaded { generation: generation.0, warnings: warnings.iter().map(ToString::to_string).collect() }
    }

    /// Merges and compiles, and publishes if that is another configuration than the one in use.
    fn publish(&mut self) -> Generation {
        let began = Instant::now();
        let Merged { config, mut refused } = merge(&self.file, &self.contributions.current());
        let awaited = self.contributions.awaited();
        let current = self.snapshots.borrow().clone();
        if config == *current.config && awaited == current.awaited {
            refused.names(current.routes.conflicts());
            self.note(refused);
            return current.generation;
        }
        let snapshot = Arc::new(Snapshot { awaited, ..compile(config, Some(&current)) });
        refused.names(snapshot.routes.conflicts());
        self.note(refused);
        self.cut.extend(self.removals.changed(&current.config.routes, &snapshot.config.routes, clock::now()));
        let generation = snapshot.generation;
        // Before: no connection is to meet a drained backend whose address is new. After: an order may have come meanwhile.
        self.administration.apply(&snapshot);
        self.snapshots.send_replace(snapshot.clone());
        self.administration.apply(&snapshot);
        self.metrics.publication(began.elapsed());
        self.metrics.generation(generation.0);
        generation
    }

    fn note(&mut self, refused: Refused) {
        self.contributions.refused(&refused);
        self.refused = refused;
    }

    fn show_providers(&self) {
        self.providers.send_replace(Arc::new(self.contributions.states()));
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

/// Bounds how long a reload has to wait for its turn.
const UPDATES_AT_ONCE: usize = 256;

#[cfg(test)]
mod tests;
