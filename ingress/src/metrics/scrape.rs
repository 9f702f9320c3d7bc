//! What is read at the moment of a scrape: backends, kernel path, listeners, process. Nothing here is counted twice.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, NoLabelSet,
};
use prometheus_client::metrics::MetricType;

use super::process::ProcessUse;
use crate::balance::{AdminState, BackendView, PoolView, PrimaryView, SentinelsView};
use crate::dataplane::view::KernelStatus;
use crate::ddns::view::DnsRecordView;
use crate::hooks::view::HookStatus;

/// One moment of everything that keeps its own numbers. Whoever serves `/metrics` fills it.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    pub pools: Vec<PoolView>,
    pub kernel: KernelStatus,
    pub listeners: Vec<ListenerGauge>,
    pub providers: Vec<ProviderGauge>,
    pub peers: Vec<PeerGauge>,
    pub dns_records: Vec<DnsRecordView>,
    /// `None`: there is no shared store.
    pub etcd: Option<EtcdGauge>,
    pub hooks: Vec<HookStatus>,
    pub process: ProcessUse,
    /// Unix seconds.
    pub started: f64,
}

#[derive(Clone, Debug)]
pub struct ListenerGauge {
    pub name: String,
    pub up: bool,
    /// Its `max_connections`.
    pub connections_limit: u64,
}

#[derive(Clone, Debug)]
pub struct ProviderGauge {
    pub name: String,
    pub failing: bool,
    /// Unix seconds; `None`: it has never answered.
    pub last_success: Option<f64>,
    pub changes: u64,
    pub failures: u64,
    /// How many things it names, by what became of them.
    pub items: [(&'static str, u64); 4],
}

#[derive(Clone, Debug)]
pub struct PeerGauge {
    pub name: String,
    pub connected: bool,
    /// Entries on their way.
    pub waiting: u64,
    /// Entries that were not taken for their clock.
    pub refused: u64,
    /// Seconds; `None`: not connected.
    pub clock_skew: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
pub struct EtcdGauge {
    pub connected: bool,
    pub revision: u64,
    /// Entries that are not there yet.
    pub waiting: u64,
    pub resyncs: u64,
    pub claims_lost: u64,
    pub nodes: u64,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(encoder);
        self.listeners(&mut out)?;
        self.backends(&mut out)?;
        self.primaries(&mut out)?;
        self.providers(&mut out)?;
        self.peers(&mut out)?;
        self.dns_records(&mut out)?;
        self.etcd(&mut out)?;
        self.hooks(&mut out)?;
        self.kernel(&mut out)?;
        self.process(&mut out)
    }
}

impl Scrape {
    fn listeners(&self, out: &mut Out<'_>) -> fmt::Result {
        let each = |value: fn(&ListenerGauge) -> u64| {
            self.listeners.iter().map(move |l| ([("listener", l.name.as_str())], value(l)))
        };
        out.gauges("ingress_listener_up", "1: bound and accepting", each(|l| l.up.into()))?;
        let help = "Connections that the listener takes at once";
        out.gauges("ingress_listener_connections_limit", help, each(|l| l.connections_limit))
    }

    fn backends(&self, out: &mut Out<'_>) -> fmt::Result {
        let backends = self.unique_backends();
        let each = |value: fn(&BackendView) -> u64| backends.iter().map(move |(labels, b)| (*labels, value(b)));
        let both = backends.iter().flat_map(|([pool, backend], b)| {
            [("to_backend", b.bytes_to_backend), ("to_client", b.bytes_to_client)]
                .map(|(direction, bytes)| ([*pool, *backend, ("direction", direction)], bytes))
        });
        let checks = backends.iter().filter_map(|(labels, b)| Some((*labels, b.last_check.as_ref()?)));
        let durations = checks.filter_map(|(labels, check)| Some((labels, check.latency_ms? / 1_000.0)));
        let takes = |b: &BackendView| is_up(b) && b.admin_state() == AdminState::Ready;
        let weights = backends.iter().map(|(labels, b)| (*labels, if takes(b) { b.effective_weight } else { 0.0 }));
        let states = backends.iter().flat_map(|([pool, backend], b)| {
            let is = b.admin_state();
            AdminState::ALL.map(|state| ([*pool, *backend, ("state", state.as_str())], u64::from(is == state)))
        });

        let help = "1: its checks are good, or it has none";
        out.gauges("ingress_backend_up", help, each(|b| is_up(b).into()))?;
        let help = "1: operators want the backend to be so";
        out.gauges("ingress_backend_admin_state", help, states)?;
        let help = "Weight now: ramps up in slow start, 0 while down, drained or in maintenance";
        out.gauges("ingress_backend_weight", help, weights)?;
        out.gauges("ingress_backend_connections_open", "Connections now, kernel and relay", each(|b| b.in_flight))?;
        out.counters("ingress_backend_connections", "Connections made", each(|b| b.connections_total))?;
        let help = "Connects that were refused or timed out";
        out.counters("ingress_backend_connect_failures", help, each(|b| b.connect_failures))?;
        out.counters("ingress_backend_bytes", "Payload bytes carried", both)?;
        out.counters("ingress_backend_check_failures", "Failed health checks", each(|b| b.checks_failed_total))?;
        out.gauges("ingress_backend_check_duration_seconds", "How long the last health check took", durations)
    }

    fn primaries(&self, out: &mut Out<'_>) -> fmt::Result {
        let pools = || self.pools.iter().filter_map(|pool| Some((pool, pool.primary.as_ref()?)));
        let followed = pools().flat_map(|(pool, primary)| {
            let is_followed = |b: &BackendView| u64::from(primary.backend.as_deref() == Some(b.name.as_str()));
            let backends = pool.backends.iter().chain(&pool.fallback);
            backends.map(move |b| ([("pool", pool.name.as_str()), ("backend", b.name.as_str())], is_followed(b)))
        });
        let followed: BTreeMap<_, _> = followed.collect();
        let each = |value: fn(&PrimaryView) -> u64| {
            pools().map(move |(pool, primary)| ([("pool", pool.name.as_str())], value(primary)))
        };
        let agreed = pools().filter_map(|(pool, primary)| {
            let SentinelsView { asked, answered: _, agreed } = primary.sentinels?;
            Some(([("pool", pool.name.as_str())], u64::from(agreed * 2 > asked)))
        });
        out.gauges("ingress_pool_primary", "1: the one backend that takes connections", followed.into_iter())?;
        let help = "Further servers that say that they are the primary";
        out.gauges("ingress_pool_primary_rivals", help, each(|primary| primary.rivals.len() as u64))?;
        let help = "Times that a primary was found";
        out.counters("ingress_pool_primary_changes", help, each(|primary| primary.changes_total))?;
        out.gauges("ingress_pool_sentinels_agree", "1: most Sentinels name the same server", agreed)
    }

    fn providers(&self, out: &mut Out<'_>) -> fmt::Result {
        let each = |value: fn(&ProviderGauge) -> u64| {
            self.providers.iter().map(move |p| ([("provider", p.name.as_str())], value(p)))
        };
        let answered = self.providers.iter().filter_map(|p| Some(([("provider", p.name.as_str())], p.last_success?)));
        let items = self.providers.iter().flat_map(|p| {
            p.items.iter().map(|(state, items)| ([("provider", p.name.as_str()), ("state", *state)], *items))
        });
        out.gauges("ingress_provider_failing", "1: the last attempt failed", each(|p| p.failing.into()))?;
        let help = "When the source last answered, Unix time";
        out.gauges("ingress_provider_last_success_timestamp_seconds", help, answered)?;
        out.counters("ingress_provider_changes", "Times that it said something new", each(|p| p.changes))?;
        out.counters("ingress_provider_failures", "Attempts that failed", each(|p| p.failures))?;
        out.gauges("ingress_provider_items", "What it names, by what became of it", items)
    }

    fn peers(&self, out: &mut Out<'_>) -> fmt::Result {
        let each =
            |value: fn(&PeerGauge) -> u64| self.peers.iter().map(move |p| ([("peer", p.name.as_str())], value(p)));
        let skews = self.peers.iter().filter_map(|p| Some(([("peer", p.name.as_str())], p.clock_skew?)));
        out.gauges("ingress_peer_connected", "1: the link to it is up", each(|p| p.connected.into()))?;
        let help = "Entries on their way that it has not stored yet";
        out.gauges("ingress_peer_entries_waiting", help, each(|p| p.waiting))?;
        let help = "Entries that were not taken because the clocks differ";
        out.gauges("ingress_peer_entries_refused", help, each(|p| p.refused))?;
        out.gauges("ingress_peer_clock_skew_seconds", "By which its clock is ahead of this node's", skews)
    }

    fn dns_records(&self, out: &mut Out<'_>) -> fmt::Result {
        fn labels(record: &DnsRecordView) -> [(&'static str, &str); 2] {
            [("name", record.name.as_str()), ("type", record.kind.as_str())]
        }
        let each = |value: fn(&DnsRecordView) -> u64| self.dns_records.iter().map(move |r| (labels(r), value(r)));
        let confirmed = self.dns_records.iter().filter_map(|r| Some((labels(r), r.confirmed?)));
        out.gauges("ingress_dns_record_current", "1: it says this node's address", each(|r| r.is_current().into()))?;
        let help = "When the provider last confirmed it, Unix time";
        out.gauges("ingress_dns_record_confirmed_timestamp_seconds", help, confirmed)?;
        out.counters("ingress_dns_record_changes", "Times that it was made or changed", each(|r| r.changes_total))?;
        out.counters("ingress_dns_record_failures", "Attempts that failed", each(|r| r.failures_total))
    }

    fn etcd(&self, out: &mut Out<'_>) -> fmt::Result {
        let value = |value: fn(EtcdGauge) -> u64| self.etcd.iter().map(move |etcd| ([], value(*etcd)));
        out.gauges("ingress_etcd_connected", "1: changes there are heard", value(|etcd| etcd.connected.into()))?;
        out.gauges("ingress_etcd_revision", "Of its last answer", value(|etcd| etcd.revision))?;
        let help = "Entries of this node that are not there yet";
        out.gauges("ingress_etcd_entries_waiting", help, value(|etcd| etcd.waiting))?;
        out.gauges("ingress_etcd_nodes", "Nodes that are connected to it", value(|etcd| etcd.nodes))?;
        let help = "Times that all was read anew, since changes were missed";
        out.counters("ingress_etcd_resyncs", help, value(|etcd| etcd.resyncs))?;
        let help = "Registrations that were taken without it, and given up for another's";
        out.counters("ingress_etcd_claims_lost", help, value(|etcd| etcd.claims_lost))
    }

    fn hooks(&self, out: &mut Out<'_>) -> fmt::Result {
        let results = self.hooks.iter().flat_map(|h| {
            [("delivered", h.delivered_total), ("failed", h.failed_total), ("dropped", h.dropped_total)]
                .map(|(result, messages)| ([("hook", h.name.as_str()), ("result", result)], messages))
        });
        let each =
            |value: fn(&HookStatus) -> u64| self.hooks.iter().map(move |h| ([("hook", h.name.as_str())], value(h)));
        let good = self.hooks.iter().filter_map(|h| Some(([("hook", h.name.as_str())], h.last_success?)));
        out.counters("ingress_hook_messages", "Messages by what became of them", results)?;
        let help = "Attempts that failed and were to be made again";
        out.counters("ingress_hook_retries", help, each(|h| h.retried_total))?;
        out.gauges("ingress_hook_queue", "Messages that are not delivered yet", each(|h| h.waiting))?;
        let failing = each(|h| u64::from(h.state == HookStatus::FAILING));
        out.gauges("ingress_hook_failing", "1: the last attempt failed", failing)?;
        let help = "When a message was last delivered, Unix time";
        out.gauges("ingress_hook_last_success_timestamp_seconds", help, good)
    }

    /// A backend that stands in a pool's `backends` and its `fallback` is one series.
    fn unique_backends(&self) -> Vec<([(&'static str, &str); 2], &BackendView)> {
        let mut seen = HashSet::new();
        let all = self.pools.iter().flat_map(|pool| pool.backends.iter().chain(&pool.fallback).map(move |b| (pool, b)));
        all.map(|(pool, b)| ([("pool", pool.name.as_str()), ("backend", b.name.as_str())], b))
            .filter(|(labels, _)| seen.insert(*labels))
            .collect()
    }

    fn kernel(&self, out: &mut Out<'_>) -> fmt::Result {
        let k = &self.kernel;
        out.gauge("ingress_kernel_active", "1: connections can be handed off", u64::from(k.mode == "kernel"))?;
        out.gauge("ingress_kernel_connections", "Connections in the kernel now", k.connections)?;
        out.gauge("ingress_kernel_connections_limit", "Connections that fit into the kernel", k.max_connections)?;
        let verdicts = k.verdicts.iter().map(|(verdict, packets)| ([("verdict", verdict.as_str())], *packets));
        out.counters("ingress_kernel_packets", "Packets by verdict since the maps were made", verdicts)?;
        let attached = k.interfaces.iter().map(|i| {
            let labels = [("interface", i.name.as_str()), ("hook", i.attached.as_str())];
            (labels, u64::from(i.attached != "none"))
        });
        out.gauges("ingress_kernel_interface_attached", "1: the device carries the programs", attached)?;
        self.admission(out)
    }

    fn admission(&self, out: &mut Out<'_>) -> fmt::Result {
        let judged = self.kernel.interfaces.iter().filter_map(|i| Some((i.name.as_str(), i.admission.as_ref()?)));
        let guarded = judged.clone().map(|(interface, admission)| {
            ([("interface", interface), ("mode", admission.mode.as_str())], u64::from(!admission.is_open()))
        });
        out.gauges("ingress_admission_active", "0: nothing that comes by this device is judged", guarded)?;
        let dropped = judged.flat_map(|(interface, admission)| {
            let labels = move |verdict| [("interface", interface), ("verdict", verdict)];
            admission.dropped.iter().map(move |(verdict, packets)| (labels(verdict.as_str()), *packets))
        });
        out.counters("ingress_admission_dropped_packets", "Packets that were not admitted", dropped)
    }

    fn process(&self, out: &mut Out<'_>) -> fmt::Result {
        let ProcessUse { cpu_seconds, resident_bytes, virtual_bytes, threads, open_fds, max_fds } = self.process;
        out.counters("process_cpu_seconds", "User and system CPU time", cpu_seconds.map(|v| ([], v)).into_iter())?;
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory", resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory", virtual_bytes),
            ("process_threads", "Threads", threads),
            ("process_open_fds", "Open file descriptors", open_fds),
            ("process_max_fds", "Limit of open file descriptors", max_fds),
        ];
        for (name, help, value) in gauges {
            out.gauges(name, help, value.map(|v| ([], v)).into_iter())?;
        }
        out.gauge("process_start_time_seconds", "When the daemon started, Unix time", self.started)
    }
}

/// Could take new connections: its checks are good, or it has none, and its name is resolved. Operators are not asked.
pub fn is_up(backend: &BackendView) -> bool {
    matches!(backend.state.as_str(), "up" | "unchecked")
}

/// Writes families of numbers with string labels.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.gauges(name, help, std::iter::once(([], value)))
    }

    fn gauges<'v, const N: usize, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = ([(&'static str, &'v str); N], V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            match labels.is_empty() {
                true => family.encode_gauge(&value)?,
                false => family.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    fn counters<'v, const N: usize, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = ([(&'static str, &'v str); N], V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            match labels.is_empty() {
                true => family.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                false => encode_labelled(&mut family, &labels, &value)?,
            }
        }
        Ok(())
    }
}

fn encode_labelled(
    family: &mut prometheus_client::encoding::MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: &impl EncodeCounterValue,
) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(value, None)
}
