//! What operators and metrics see of the connections in the kernel.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ingress_ebpf::connection::{Connection, FIRST_FLIGHT_ACKED, State};
use ingress_ebpf::verdict::Verdict;

use super::attaching::Attached;
use super::{Flows, idle, monotonic};
use crate::dataplane::reset::socket_address;
use crate::dataplane::view::{InterfaceStatus, KernelStatus};
use crate::flow::{FlowView, Transferred};
use crate::l4::outcome::ConnectionInfo;

impl Flows {
    pub(in crate::dataplane) fn views(&self) -> Vec<FlowView> {
        let now = monotonic();
        self.slots.live().map(|(_, connection)| self.view(&connection, now)).collect()
    }

    pub(in crate::dataplane) fn status(&self) -> KernelStatus {
        let verdicts = Verdict::ALL
            .iter()
            .map(|verdict| {
                let packets = self.verdicts.get(&(*verdict as u32), 0).map(|cpus| cpus.iter().sum()).unwrap_or(0);
                (verdict.as_str().to_owned(), packets)
            })
            .collect();
        let attached = self.interfaces.lock().clone();
        let drawbacks: Vec<String> = attached.iter().filter_map(Attached::drawback).collect();
        let mut interfaces: Vec<InterfaceStatus> = attached.into_iter().map(|attached| attached.status).collect();
        let admission = self.admission.lock();
        for interface in &mut interfaces {
            if let Some(status) = &mut interface.admission {
                status.dropped = admission.dropped(interface.ifindex);
            }
        }
        let trouble =
            admission.trouble.as_ref().map(|error| format!("not all rules of admission are in the kernel: {error}"));
        drop(admission);
        let loaded = self.loaded.lock();
        let missing = interfaces
            .iter()
            .filter(|i| i.attached == "none")
            .map(|i| format!("{}: {}", i.name, i.why.as_deref().unwrap_or("not attached")))
            .chain(interfaces.iter().filter_map(InterfaceStatus::opening))
            .chain(drawbacks)
            .chain(trouble)
            .chain(interfaces.iter().flat_map(|interface| loaded.precursors(interface)))
            .chain(self.ports.shared_with_host())
            .chain(loaded.strangers.iter().cloned())
            .collect();
        KernelStatus {
            mode: "kernel".to_owned(),
            missing,
            interfaces,
            pin_dir: loaded.pin_dir().display().to_string(),
            connections: self.slots.live().count() as u64,
            max_connections: u64::from(self.slots.len()),
            adopted: self.adopted.load(Ordering::Relaxed),
            ports: Some(self.ports.status()),
            verdicts,
        }
    }

    /// Tells the sink what live connections have moved since it last heard of them.
    pub(in crate::dataplane) fn tell_progress(&self, connections: &[(u32, u32, Transferred)]) {
        let mut by_label: HashMap<u32, Transferred> = HashMap::new();
        let mut live = self.live.lock();
        for (index, label, bytes) in connections {
            let Some(live) = live.get_mut(index) else { continue };
            let moved = bytes.since(live.told);
            if moved != Transferred::default() {
                live.told = *bytes;
                by_label.entry(*label).or_default().add(moved);
            }
        }
        drop(live);
        for (label, moved) in by_label {
            let words = self.labels.lock().words(label);
            self.sink.moved(&words.listener, &words.pool, &words.backend, moved);
        }
    }

    pub(in crate::dataplane) fn info(&self, connection: &Connection) -> ConnectionInfo {
        let words = self.labels.lock().words(connection.label);
        let wire_client = socket_address(&connection.client);
        ConnectionInfo {
            id: connection.id,
            listener: words.listener.clone(),
            client: words.client.unwrap_or(wire_client),
            local: socket_address(&connection.local),
            started: UNIX_EPOCH + Duration::from_millis(connection.started),
            sni: words.sni.clone(),
            alpn: words.alpn.clone(),
            route: words.route.clone(),
            pool: words.pool.clone(),
            backend: words.backend.clone(),
            backend_address: socket_address(&connection.backend),
        }
    }

    pub(in crate::dataplane) fn view(&self, connection: &Connection, now: u64) -> FlowView {
        let info = self.info(connection);
        let state = match State::from_u32(connection.state) {
            Some(State::Armed) if connection.from_backend.flags & FIRST_FLIGHT_ACKED == 0 => "armed",
            Some(State::Armed | State::Spliced) => "spliced",
            Some(State::Cut) => "cut",
            Some(State::Draining) => "draining",
            Some(State::Moving) => "moving",
            Some(State::Free) | None => "free",
        };
        FlowView {
            id: info.id,
            mode: "kernel".to_owned(),
            reason: None,
            state: state.to_owned(),
            client: info.client,
            local: info.local,
            source: socket_address(&connection.source),
            backend_address: info.backend_address,
            listener: info.listener.to_string(),
            sni: info.sni.map(|sni| sni.to_string()),
            alpn: info.alpn,
            route: info.route.map(|route| route.to_string()),
            pool: info.pool.to_string(),
            backend: info.backend,
            bytes_to_backend: connection.bytes_to_backend(),
            bytes_to_client: connection.bytes_to_client(),
            packets_to_backend: connection.from_client.packets,
            packets_to_client: connection.from_backend.packets,
            age: SystemTime::now().duration_since(info.started).unwrap_or_default().as_secs_f64(),
            idle: idle(connection, now).as_secs_f64(),
        }
    }
}
