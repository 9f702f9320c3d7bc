//! The live relays: what `ingress flows` lists and `ingress flows kill` reaches in userspace.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use super::outcome::{ConnectionEnd, ConnectionInfo, EndReason, Mode, RelayReason};
use crate::dataplane::EndSink;
use crate::flow::{FlowFilter, FlowView, Transferred};

/// All relays of the daemon. Sharded by connection id, so that workers do not wait for one another.
#[derive(Debug, Default)]
pub struct Relays {
    shards: [Mutex<HashMap<u64, Arc<Relayed>>>; SHARDS],
}

/// One relay: what it is, how much it moved, and the way to end it from outside.
#[derive(Debug)]
pub struct Relayed {
    pub info: ConnectionInfo,
    pub reason: RelayReason,
    /// Our own address towards the backend.
    pub source: SocketAddr,
    pub to_backend: AtomicU64,
    pub to_client: AtomicU64,
    pub started: Instant,
    /// Milliseconds after `started`.
    active: AtomicU64,
    cut: AtomicU8,
    /// Bytes that the books have heard of; nothing once it is over.
    told: Mutex<Option<Transferred>>,
    pub(super) waker: AtomicWaker,
}

/// Keeps a relay listed while it runs.
#[derive(Debug)]
pub struct Listed<'a> {
    relays: &'a Relays,
    relay: Arc<Relayed>,
}

impl Relays {
    /// Lists a relay until the answer is dropped.
    pub fn list(&self, info: ConnectionInfo, reason: RelayReason, source: SocketAddr, started: Instant) -> Listed<'_> {
        let relay = Arc::new(Relayed {
            info,
            reason,
            source,
            to_backend: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            started,
            active: AtomicU64::new(0),
            cut: AtomicU8::new(0),
            told: Mutex::new(Some(Transferred::default())),
            waker: AtomicWaker::new(),
        });
        relay.touch(Instant::now());
        self.shard(relay.info.id).lock().insert(relay.info.id, relay.clone());
        Listed { relays: self, relay }
    }

    pub fn flows(&self) -> Vec<FlowView> {
        let now = Instant::now();
        self.all().iter().map(|relay| relay.view(now)).collect()
    }

    /// Ends every relay that matches, with RST to both ends. Returns how many.
    pub fn cut(&self, filter: &FlowFilter, reason: EndReason) -> usize {
        let now = Instant::now();
        let matching = self.all().into_iter().filter(|relay| filter.matches(&relay.view(now)));
        matching.map(|relay| relay.cut(reason)).count()
    }

    /// Tells `sink` what live relays have moved since it last heard of them.
    pub fn tell_progress(&self, sink: &dyn EndSink) {
        for relay in self.all() {
            let mut told = relay.told.lock();
            let Some(before) = told.as_mut() else { continue };
            let now = relay.transferred();
            let moved = now.since(*before);
            if moved != Transferred::default() {
                *before = now;
                sink.moved(&relay.info.listener, &relay.info.pool, &relay.info.backend, moved);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn all(&self) -> Vec<Arc<Relayed>> {
        self.shards.iter().flat_map(|shard| shard.lock().values().cloned().collect::<Vec<_>>()).collect()
    }

    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Arc<Relayed>>> {
        &self.shards[id as usize % SHARDS]
    }
}

impl Relayed {
    /// Bytes moved just now.
    pub(super) fn touch(&self, now: Instant) {
        self.active.store(now.duration_since(self.started).as_millis() as u64, Ordering::Relaxed);
    }

    pub(super) fn last_active(&self) -> Instant {
        self.started + Duration::from_millis(self.active.load(Ordering::Relaxed))
    }

    fn cut(&self, reason: EndReason) {
        let at = EndReason::ALL.iter().position(|r| *r == reason).unwrap_or_default();
        self.cut.store(at as u8 + 1, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn cut_reason(&self) -> Option<EndReason> {
        let at = self.cut.load(Ordering::Acquire).checked_sub(1)?;
        EndReason::ALL.get(usize::from(at)).copied()
    }

    pub(super) fn transferred(&self) -> Transferred {
        Transferred {
            to_backend: self.to_backend.load(Ordering::Relaxed),
            to_client: self.to_client.load(Ordering::Relaxed),
        }
    }

    /// What the relay has carried, and how much of it the books have heard of; from now on they hear no more from here.
    pub(super) fn leave(&self) -> (Transferred, Transferred) {
        (self.transferred(), self.told.lock().take().unwrap_or_default())
    }

    /// The account of a relay that is over, and how much of it the books have already heard of.
    pub(super) fn ended(&self, reason: EndReason) -> (ConnectionEnd, Transferred) {
        let (Transferred { to_backend, to_client }, told) = self.leave();
        let end = ConnectionEnd {
            info: self.info.clone(),
            mode: Mode::Relay(self.reason),
            reason,
            bytes_to_backend: to_backend,
            bytes_to_client: to_client,
            duration: self.started.elapsed(),
        };
        (end, told)
    }

    fn view(&self, now: Instant) -> FlowView {
        let info = &self.info;
        FlowView {
            id: info.id,
            mode: Mode::Relay(self.reason).as_str().to_owned(),
            reason: Some(self.reason.as_str().to_owned()),
            state: "relay".to_owned(),
            client: info.client,
            local: info.local,
            source: self.source,
            backend_address: info.backend_address,
            listener: info.listener.to_string(),
            sni: info.sni.as_ref().map(ToString::to_string),
            alpn: info.alpn.clone(),
            route: info.route.as_ref().map(ToString::to_string),
            pool: info.pool.to_string(),
            backend: info.backend.clone(),
            bytes_to_backend: self.to_backend.load(Ordering::Relaxed),
            bytes_to_client: self.to_client.load(Ordering::Relaxed),
            packets_to_backend: 0,
            packets_to_client: 0,
            age: now.saturating_duration_since(self.started).as_secs_f64(),
            idle: now.saturating_duration_since(self.last_active()).as_secs_f64(),
        }
    }
}

impl Listed<'_> {
    /// It is no relay any more.
    pub(super) fn unlist(self) -> Arc<Relayed> {
        Arc::clone(&self.relay)
    }
}

impl std::ops::Deref for Listed<'_> {
    type Target = Relayed;

    fn deref(&self) -> &Relayed {
        &self.relay
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.relays.shard(self.relay.info.id).lock().remove(&self.relay.info.id);
    }
}

const SHARDS: usize = 16;
