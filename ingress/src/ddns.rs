//! Keeps this node's own DNS records: its addresses, under the names that it is given, at the provider of each zone.
//!
//! The plan is pure (`plan`, `api`); `zone` knows when who may be asked; only `client`, `hook` and `address` do
//! I/O. Nothing is sent while nothing changes, but a question at the start and then every `verify`.

mod address;
mod api;
mod client;
mod hook;
mod memory;
mod plan;
pub mod view;
mod zone;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::DdnsConfig;
use crate::snapshot::Snapshot;

use memory::Memory;
use plan::Kind;
use view::DnsRecordView;
use zone::{Addresses, Zone};

/// What is known of the records, for operators. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Records(Arc<Mutex<Vec<DnsRecordView>>>);

impl Records {
    pub fn views(&self) -> Vec<DnsRecordView> {
        self.0.lock().clone()
    }
}

/// Runs until `stop`, and begins anew with each configuration that says something else.
pub async fn run(mut snapshots: watch::Receiver<Arc<Snapshot>>, records: Records, stop: CancellationToken) {
    loop {
        let config = snapshots.borrow_and_update().config.clone();
        let same = |snapshot: &Arc<Snapshot>| snapshot.config.ddns == config.ddns;
        records.0.lock().clear();
        tokio::select! {
            () = stop.cancelled() => return,
            () = keep(config.ddns.as_ref(), &config.state_dir, &records) => return,
            changed = snapshots.wait_for(|snapshot| !same(snapshot)) => if changed.is_err() { return },
        }
    }
}

/// Endless.
async fn keep(config: Option<&DdnsConfig>, state_dir: &Path, records: &Records) {
    let Some(config) = config else { return std::future::pending().await };
    let memory = Mutex::new(Memory::load(state_dir));
    let mut zones: Vec<_> = config.zones.iter().map(|(name, zone)| Zone::new(name, zone, config)).collect();
    loop {
        let addresses = find_addresses(config).await;
        join_all(zones.iter_mut().map(|zone| zone.tend(&addresses, &memory))).await;
        *records.0.lock() = zones.iter().flat_map(Zone::views).collect();
        tokio::time::sleep(config.interval).await;
    }
}

/// What a daemon with this configuration would do now: a line for each record, and whether it is well. Changes nothing.
pub fn preview(config: &DdnsConfig, state_dir: &Path) -> Vec<(String, bool)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return vec![(format!("! {error}"), false)],
    };
    runtime.block_on(async {
        let memory = Mutex::new(Memory::load(state_dir));
        let addresses = find_addresses(config).await;
        let mut lines = Vec::new();
        for (name, zone) in &config.zones {
            lines.extend(Zone::new(name, zone, config).preview(&addresses, &memory).await);
        }
        lines
    })
}

async fn find_addresses(config: &DdnsConfig) -> Addresses {
    let mut addresses = Addresses::new();
    for (kind, source) in [(Kind::A, &config.ipv4), (Kind::Aaaa, &config.ipv6)] {
        if let Some(source) = source {
            let found = tokio::time::timeout(PATIENCE, address::find(source, kind, config.allow_private)).await;
            let found = found.unwrap_or_else(|_| Err("this node's address was not found in time".to_owned()));
            addresses.insert(kind, found);
        }
    }
    addresses
}

/// Longer than each source may take.
const PATIENCE: Duration = Duration::from_secs(30);
