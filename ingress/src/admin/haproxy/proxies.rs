//! Our listeners and pools as HAProxy's frontends and backends: numbers, states and checks in its terms.

use std::sync::Arc;
use std::time::Instant;

use crate::admin::{Admin, ListenerStatus};
use crate::balance::{AdminState, AdminWeight, Backend, BackendView, Pool};
use crate::config::{BackendAddress, HealthConfig, ProbeConfig};
use crate::snapshot::Snapshot;

/// One moment of everything. Numbers are HAProxy's: proxies from 2, listeners before pools, servers from 1.
pub(super) struct Proxies {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) listeners: Vec<ListenerStatus>,
    now: Instant,
}

/// One backend of one pool.
pub(super) struct Server<'a> {
    pub(super) sid: u32,
    pub(super) pool: &'a Pool,
    pub(super) backend: &'a Arc<Backend>,
    pub(super) view: BackendView,
    pub(super) is_fallback: bool,
}

/// HAProxy's words and numbers for a check's last verdict.
pub(super) struct Verdict {
    /// `L4OK`.
    pub(super) word: &'static str,
    /// `HCHK_STATUS_*`.
    pub(super) number: u32,
    pub(super) description: &'static str,
}

impl Proxies {
    pub(super) fn of(admin: &Admin) -> Self {
        let snapshot = admin.sources.snapshots.borrow().clone();
        Self { snapshot, listeners: admin.listeners(), now: Instant::now() }
    }

    /// With their numbers.
    pub(super) fn listeners(&self) -> impl Iterator<Item = (u32, &ListenerStatus)> {
        (FIRST..).zip(&self.listeners)
    }

    /// With their numbers.
    pub(super) fn pools(&self) -> impl Iterator<Item = (u32, &Pool)> {
        let first = self.listeners.last().map_or(FIRST, |_| FIRST + self.listeners.len() as u32);
        (first..).zip(self.snapshot.pools.values().map(Arc::as_ref))
    }

    pub(super) fn servers<'a>(&self, pool: &'a Pool) -> Vec<Server<'a>> {
        let seen = pool.view(self.now);
        let primaries = pool.backends.iter().zip(seen.backends).map(|both| (both, false));
        let fallback = pool.fallback.iter().zip(seen.fallback).map(|both| (both, true));
        let all = (1..).zip(primaries.chain(fallback));
        all.map(|(sid, ((backend, view), is_fallback))| Server { sid, pool, backend, view, is_fallback }).collect()
    }
}

impl Server<'_> {
    fn health(&self) -> Option<&HealthConfig> {
        self.pool.config.health.as_ref()
    }

    pub(super) fn is_resolved(&self) -> bool {
        self.view.state != "unresolved"
    }

    /// As far as its checks say; HAProxy's operational state.
    pub(super) fn is_running(&self) -> bool {
        self.view.state != "down" && self.is_resolved() && self.view.admin_state() != AdminState::Maint
    }

    /// Takes new connections.
    pub(super) fn is_usable(&self) -> bool {
        self.is_running() && self.view.admin_state() == AdminState::Ready && self.view.effective_weight > 0.0
    }

    pub(super) fn status(&self) -> &'static str {
        match (self.view.admin_state(), self.view.state.as_str()) {
            (AdminState::Maint, _) => "MAINT",
            (_, "unresolved") => "MAINT (resolution)",
            (_, "down") => "DOWN",
            (AdminState::Drain, _) => "DRAIN",
            (AdminState::Ready, _) if self.health().is_none() => "no check",
            (AdminState::Ready, _) => "UP",
        }
    }

    /// As shown: a share of a small weight is not 0 unless it is nothing.
    pub(super) fn weight(&self) -> u32 {
        self.view.effective_weight.ceil() as u32
    }

    /// By an operator or the configuration, without slow start.
    pub(super) fn user_weight(&self) -> u32 {
        user_weight(&self.view)
    }

    /// In percent, while it starts slowly.
    pub(super) fn throttle(&self) -> Option<u32> {
        let full = f64::from(self.user_weight());
        let part = self.view.effective_weight / full;
        (self.is_usable() && part < 0.995).then(|| (part * 100.0).ceil().max(1.0) as u32)
    }

    /// IP address, host name and port in HAProxy's three columns; `-` for what there is none of.
    pub(super) fn address(&self) -> (String, String, u16) {
        let resolved = self.backend.address().map_or_else(|| "-".to_owned(), |socket| socket.ip().to_string());
        match &self.backend.target {
            BackendAddress::Socket(socket) => (socket.ip().to_string(), "-".to_owned(), socket.port()),
            BackendAddress::Dns { host, port } => (resolved, host.to_string(), *port),
        }
    }

    /// `None`: the pool has no checks.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        let verdict = |word, number, description| Some(Verdict { word, number, description });
        let probe = &self.health()?.probe;
        let Some(check) = &self.view.last_check else { return verdict("INI", 1, "Initializing") };
        let error = check.error.as_deref().unwrap_or_default();
        if !check.ok && error.starts_with("connect to") {
            return match error.contains("no answer within") {
                true => verdict("L4TOUT", 7, "Layer4 timeout"),
                false => verdict("L4CON", 8, "Layer4 connection problem"),
            };
        }
        let late = error.contains("no answer within");
        match (probe, check.ok) {
            (ProbeConfig::Tcp, true) => verdict("L4OK", 6, "Layer4 check passed"),
            (ProbeConfig::Tcp, false) if late => verdict("L4TOUT", 7, "Layer4 timeout"),
            (ProbeConfig::Tcp, false) => verdict("L4CON", 8, "Layer4 connection problem"),
            (ProbeConfig::Tls { .. }, true) => verdict("L6OK", 9, "Layer6 check passed"),
            (ProbeConfig::Tls { .. }, false) if late => verdict("L6TOUT", 10, "Layer6 timeout"),
            (ProbeConfig::Tls { .. }, false) => verdict("L6RSP", 11, "Layer6 invalid response"),
            (ProbeConfig::Http(_) | ProbeConfig::Https { .. } | ProbeConfig::Redis(_), true) => {
                verdict("L7OK", 15, "Layer7 check passed")
            }
            (ProbeConfig::Http(_) | ProbeConfig::Https { .. } | ProbeConfig::Redis(_), false) if late => {
                verdict("L7TOUT", 12, "Layer7 timeout")
            }
            (ProbeConfig::Http(_) | ProbeConfig::Https { .. }, false) if error.starts_with("HTTP status") => {
                verdict("L7STS", 17, "Layer7 wrong status")
            }
            (ProbeConfig::Http(_) | ProbeConfig::Https { .. } | ProbeConfig::Redis(_), false) => {
                verdict("L7RSP", 13, "Layer7 invalid response")
            }
        }
    }
}

/// By an operator or the configuration. A share of a small weight is not 0 unless it is nothing.
pub(super) fn user_weight(view: &BackendView) -> u32 {
    match view.admin.as_ref().and_then(|change| change.weight) {
        None => view.weight,
        Some(AdminWeight::Absolute(weight)) => weight,
        Some(AdminWeight::Percent(percent)) => (view.weight * percent).div_ceil(100),
    }
}

/// 1 is HAProxy's own proxy of the socket.
const FIRST: u32 = 2;
