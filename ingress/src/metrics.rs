//! Counters of the connection path and everything else that `/metrics` shows. docs/metrics.md says what each one means.
//!
//! The connection path holds an [`Arc<ListenerMetrics>`] and pays one atomic add per call. Pools, backends, the kernel
//! path and the process are read when somebody scrapes ([`scrape`]). Labels are configuration names and enum words only:
//! nothing that a client sends ever becomes a label.

pub mod process;
pub mod scrape;

mod listener;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::route::{ListenerName, ProviderName};

pub use listener::{ListenerCounts, ListenerMetrics, Transferred};
pub use scrape::Scrape;

/// What `/metrics` answers with; Prometheus reads it since 2.5.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One per daemon; shared by everyone who counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    connections: ConnectionFamilies,
    config: ConfigFamilies,
    registration: RegistrationFamilies,
    listeners: RwLock<BTreeMap<ListenerName, Arc<ListenerMetrics>>>,
    /// Unix seconds.
    started: f64,
}

type Labels<const N: usize> = [(&'static str, String); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Gauges<const N: usize> = Family<Labels<N>, Gauge>;

#[derive(Debug)]
struct ConnectionFamilies {
    accepted: Counters<1>,
    open: Gauges<2>,
    refused: Counters<2>,
    handoffs: Counters<1>,
    later: Counters<1>,
    adopted: Counters<1>,
    relays: Counters<2>,
    ended: Counters<2>,
    bytes: Counters<3>,
    duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
}

#[derive(Debug)]
struct ConfigFamilies {
    generation: Gauge<u64, AtomicU64>,
    publication: Gauge<f64, AtomicU64>,
    reloads: Counters<1>,
    last_ok: Gauge,
    last_success: Gauge<f64, AtomicU64>,
}

#[derive(Debug)]
struct RegistrationFamilies {
    requests: Counters<3>,
    expired: Counters<1>,
    strangers: Counters<1>,
}

impl Metrics {
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::default();
        let ours = registry.sub_registry_with_prefix("ingress");
        let metrics =
            (ConnectionFamilies::register(ours), ConfigFamilies::register(ours), RegistrationFamilies::register(ours));
        let build = Info::new([("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)]);
        ours.register("build", "The running build", build);
        let (connections, config, registration) = metrics;
        let listeners = RwLock::default();
        let started = unix_seconds(SystemTime::now());
        Arc::new(Self { registry, connections, config, registration, listeners, started })
    }

    /// The handle that a listener's connections count with. The same name gives the same handle, over reloads too.
    pub fn listener(&self, name: &ListenerName) -> Arc<ListenerMetrics> {
        if let Some(known) = self.listeners.read().get(name) {
            return known.clone();
        }
        let mut listeners = self.listeners.write();
        let new = || Arc::new(ListenerMetrics::new(name, &self.connections));
        listeners.entry(name.clone()).or_insert_with(new).clone()
    }

    /// Every reload counts, whoever asked for it (signal, verb, file change) and however it ended.
    pub fn config_reload(&self, ok: bool) {
        let result = if ok { "ok" } else { "error" };
        self.config.reloads.get_or_create(&[("result", result.to_owned())]).inc();
        self.config.last_ok.set(ok.into());
        if ok {
            self.config.last_success.set(unix_seconds(SystemTime::now()));
        }
    }

    /// The generation that was just published.
    pub fn generation(&self, generation: u64) {
        self.config.generation.set(generation);
    }

    /// What it took to merge, compile and publish it.
    pub fn publication(&self, took: Duration) {
        self.config.publication.set(took.as_secs_f64());
    }

    /// A call to a registration API was answered. `operation`: one of the API's own words.
    pub fn registration_request(&self, provider: &ProviderName, operation: &'static str, status: u16) {
        let labels =
            [("provider", provider.to_string()), ("operation", operation.to_owned()), ("status", status.to_string())];
        self.registration.requests.get_or_create(&labels).inc();
    }

    /// Leases ended without a heartbeat.
    pub fn registrations_expired(&self, provider: &ProviderName, count: u64) {
        self.registration.expired.get_or_create(&[("provider", provider.to_string())]).inc_by(count);
    }

    /// A connection to a registration API came from outside its networks.
    pub fn registration_stranger(&self, provider: &ProviderName) {
        self.registration.strangers.get_or_create(&[("provider", provider.to_string())]).inc();
    }

    /// When this daemon started, Unix seconds.
    pub fn started(&self) -> f64 {
        self.started
    }

    /// Everything in OpenMetrics text ([`CONTENT_TYPE`]).
    pub fn encode(&self, scrape: Scrape) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        encode_registry(&mut text, &self.registry)?;
        let mut at_scrape = Registry::default();
        at_scrape.register_collector(Box::new(scrape));
        encode_registry(&mut text, &at_scrape)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

impl ConnectionFamilies {
    fn register(registry: &mut Registry) -> Self {
        let duration: fn() -> Histogram = || Histogram::new(DURATION_BUCKETS);
        let families = Self {
            accepted: Family::default(),
            open: Family::default(),
            refused: Family::default(),
            handoffs: Family::default(),
            later: Family::default(),
            adopted: Family::default(),
            relays: Family::default(),
            ended: Family::default(),
            bytes: Family::default(),
            duration: Family::new_with_constructor(duration),
        };
        let Self { accepted, open, refused, handoffs, later, adopted, relays, ended, bytes, duration } = &families;
        registry.register("connections", "Accepted connections", accepted.clone());
        registry.register("connections_open", "Connections now, by where their bytes run", open.clone());
        registry.register("connections_refused", "Connections closed before they reached a backend", refused.clone());
        registry.register("handoffs", "Connections handed off to the kernel", handoffs.clone());
        registry.register("late_handoffs", "Of those, relayed until they were quiet", later.clone());
        registry.register(
            "connections_adopted",
            "Kernel connections taken over from an earlier daemon",
            adopted.clone(),
        );
        registry.register("relays", "Connections relayed in userspace", relays.clone());
        registry.register("connections_ended", "Connections that reached a backend and ended", ended.clone());
        registry.register("bytes", "Payload bytes carried", bytes.clone());
        registry.register("connection_duration_seconds", "From accept to end", duration.clone());
        families
    }
}

impl RegistrationFamilies {
    fn register(registry: &mut Registry) -> Self {
        let families = Self { requests: Family::default(), expired: Family::default(), strangers: Family::default() };
        let Self { requests, expired, strangers } = &families;
        registry.register("registration_requests", "Calls of the registration API", requests.clone());
        registry.register("registration_expired", "Registrations whose lease ended", expired.clone());
        let help = "Connections to the registration API from outside its networks";
        registry.register("registration_strangers", help, strangers.clone());
        families
    }
}

impl ConfigFamilies {
    fn register(registry: &mut Registry) -> Self {
        let families = Self {
            generation: Gauge::default(),
            publication: Gauge::default(),
            reloads: Family::default(),
            last_ok: Gauge::default(),
            last_success: Gauge::default(),
        };
        let Self { generation, publication, reloads, last_ok, last_success } = &families;
        for result in ["ok", "error"] {
            drop(reloads.get_or_create(&[("result", result.to_owned())]));
        }
        registry.register("config_generation", "Generation of the configuration in use", generation.clone());
        registry.register(
            "config_publication_seconds",
            "What it took to merge, compile and publish the configuration in use",
            publication.clone(),
        );
        registry.register("config_reloads", "Attempts to load the configuration", reloads.clone());
        registry.register("config_last_reload_successful", "1: the last attempt was good", last_ok.clone());
        let help = "When a configuration was last loaded, Unix time";
        registry.register("config_last_reload_success_timestamp_seconds", help, last_success.clone());
        families
    }
}

fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// From a probe that only connects to a WebSocket that lives for days.
const DURATION_BUCKETS: [f64; 10] = [0.01, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3_600.0, 21_600.0, 86_400.0];

#[cfg(test)]
mod tests;
