//! What admin sees of the traffic plane, in admin's words.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use crate::admin::{
    Administer, ConfigState, ConnectionsView, DnsRecords, HooksDoor, KernelView, ListenerStatus, ListenersView,
    PeersDoor, Preview, PreviewQuery, ProviderState,
};
use crate::control::administration::Administration;
use crate::dataplane::{Kernel, KernelStatus};
use crate::ddns::Records;
use crate::flow::FlowView;
use crate::hooks::Hooks;
use crate::l4::listener::{ListenerState, ListenerStates};
use crate::l4::relays::Relays;
use crate::metrics::ListenerCounts;
use crate::peers::Mesh;
use crate::route::ProviderName;
use crate::snapshot::Snapshot;
use crate::{control, providers};

/// What would change, by the code that would change it.
pub(super) fn preview(
    snapshots: watch::Receiver<Arc<Snapshot>>,
    config: watch::Receiver<ConfigState>,
    providers: watch::Receiver<Arc<Vec<ProviderState>>>,
) -> Preview {
    Box::new(move |PreviewQuery { provider, from }| {
        let (current, states) = (snapshots.borrow().clone(), providers.borrow().clone());
        let said = match (provider, from) {
            (Some(name), Some(from)) => {
                let name = ProviderName::new(name);
                let provider = current.config.providers.get(&name);
                let provider = provider.ok_or_else(|| format!("there is no provider {name} in use"))?;
                Some(providers::preview(&name, provider, &from)?)
            }
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err("`provider` and `from` belong together".to_owned()),
        };
        let path = config.borrow().path.clone();
        control::preview(&path, &current, &states, said)
    })
}

pub(super) fn administer(administration: Arc<Administration>) -> Administer {
    Box::new(move |pool, backend, order, by| administration.order(pool, backend, order, by))
}

pub(super) fn dns_records(records: Records) -> DnsRecords {
    Box::new(move || records.views())
}

pub(super) fn peers(mesh: Mesh) -> PeersDoor {
    let asked = mesh.clone();
    PeersDoor { status: Box::new(move || asked.status()), remove: Box::new(move |name| mesh.remove(name)) }
}

pub(super) fn hooks(hooks: Hooks) -> HooksDoor {
    let asked = hooks.clone();
    HooksDoor {
        status: Box::new(move || asked.status()),
        test: Box::new(move |name| Box::pin(hooks.clone().test(name))),
    }
}

impl KernelView for Kernel {
    fn status(&self) -> KernelStatus {
        Kernel::status(self)
    }

    fn flows(&self) -> Vec<FlowView> {
        Kernel::flows(self)
    }
}

impl ConnectionsView for Relays {
    fn flows(&self) -> Vec<FlowView> {
        Relays::flows(self)
    }
}

impl ListenersView for ListenerStates {
    /// A listener of several addresses is as good as its worst one.
    fn listeners(&self) -> Vec<ListenerStatus> {
        let mut by_name: BTreeMap<String, Vec<ListenerState>> = BTreeMap::new();
        for state in self.all() {
            by_name.entry(state.listener.clone()).or_default().push(state);
        }
        let now = Instant::now();
        by_name.into_iter().map(|(name, addresses)| listener(name, &addresses, now)).collect()
    }
}

fn listener(name: String, addresses: &[ListenerState], now: Instant) -> ListenerStatus {
    let error = |s: &ListenerState| s.error.as_ref().map(|error| format!("{}: {error}", s.address));
    let errors: Vec<String> = addresses.iter().filter_map(error).collect();
    let state = if errors.is_empty() { ListenerStatus::LISTENING } else { ListenerStatus::DEGRADED };
    let since = addresses.iter().filter(|s| errors.is_empty() || s.error.is_some()).map(|s| s.since).max();
    ListenerStatus {
        name,
        bind: addresses.iter().map(|s| s.address).collect(),
        state: state.to_owned(),
        error: (!errors.is_empty()).then(|| errors.join("; ")),
        since: since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64()),
        counts: ListenerCounts::default(),
    }
}
