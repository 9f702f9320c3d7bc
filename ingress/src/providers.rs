//! Where routes come from beside the configuration file.
//!
//! One task per provider, owned by [`run`]: a snapshot that leaves a provider's configuration unchanged leaves its task
//! running. A task moves data: its source is read, a pure function makes a
//! [`Contribution`] of it, and its [`Outlet`] carries that to control. A new provider is one
//! file here and one variant of [`ProviderSource`].

pub mod file;
mod http_poll;
pub mod outlet;
mod registration;
mod registry;
pub mod traefik;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{ProviderConfig, ProviderSource};
use crate::etcd::Store;
use crate::metrics::Metrics;
use crate::peers::Mesh;
use crate::route::{Contribution, ProviderName, ProviderUpdate};
use crate::snapshot::Snapshot;

use outlet::Outlet;

/// Runs until `shutdown`, or until nobody publishes snapshots any more. Dropping it ends every provider.
pub async fn run(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    metrics: Arc<Metrics>,
    updates: mpsc::Sender<ProviderUpdate>,
    mesh: Mesh,
    store: Store,
    shutdown: CancellationToken,
) {
    let mut running: BTreeMap<ProviderName, (ProviderConfig, AbortOnDropHandle<()>)> = BTreeMap::new();
    loop {
        let config = Arc::clone(&snapshots.borrow_and_update().config);
        let stale = running.extract_if(.., |name, (with, _)| config.providers.get(name) != Some(with));
        let stale: Vec<_> = stale.map(|(_, (_, task))| task).collect();
        stale.iter().for_each(AbortOnDropHandle::abort);
        for task in stale {
            // Else an old task's last word could come after a new task's first one.
            let _ = task.await;
        }
        for (name, provider) in &config.providers {
            running.entry(name.clone()).or_insert_with(|| {
                let outlet = Outlet::new(name, provider, &config.state_dir, updates.clone());
                let task =
                    provide(provider.clone(), outlet, snapshots.clone(), metrics.clone(), mesh.clone(), store.clone());
                let task = tokio::spawn(task);
                (provider.clone(), AbortOnDropHandle::new(task))
            });
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            changed = snapshots.changed() => if changed.is_err() { break },
        }
    }
}

async fn provide(
    config: ProviderConfig,
    outlet: Outlet,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    metrics: Arc<Metrics>,
    mesh: Mesh,
    store: Store,
) {
    match config.source.clone() {
        ProviderSource::Registry(source) => registry::run(config, source, outlet).await,
        ProviderSource::File(source) => file::run(config, source, outlet).await,
        ProviderSource::HttpPoll(source) => http_poll::run(config, source, outlet).await,
        ProviderSource::Registration(source) => {
            registration::run(config, source, outlet, snapshots, metrics, mesh, store).await
        }
    }
}

/// What a provider would say if its source were what stands at `path`. Reads files, and blocks meanwhile.
///
/// # Errors
/// What is wrong with it, as the provider would report it.
pub fn preview(name: &ProviderName, config: &ProviderConfig, path: &Path) -> Result<Contribution, String> {
    let contribution = Contribution::new(name, config.on_remove);
    match &config.source {
        ProviderSource::Registry(source) => registry::preview(config, source, path, contribution),
        ProviderSource::File(source) => file::preview(config, &source.entry_points, path, contribution),
        ProviderSource::HttpPoll(source) => file::preview(config, &source.entry_points, path, contribution),
        ProviderSource::Registration(_) => {
            Err(format!("provider {name} is told its routes over HTTP; it reads no file"))
        }
    }
}

/// Updates that may wait for control.
pub const UPDATES: usize = 64;
