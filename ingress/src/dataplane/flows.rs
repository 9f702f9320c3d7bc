//! Flow entries: both directions or none. The only writer of the pinned maps, except that a SYN on an ended connection removes
//! an entry in the kernel.

mod arming;
mod attaching;
mod ending;
mod following;
mod leftover;
mod report;
mod tracking;
mod way;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use aya::maps::{HashMap as BpfHashMap, MapData, PerCpuArray, RingBuf};
use ingress_ebpf::connection::{Connection, Endpoint, FIRST_FLIGHT_ACKED, State};
use ingress_ebpf::flow::{Direction, FlowEntry, FlowKey, ListenerKey, SynSeen};
use ingress_ebpf::names::map;

use parking_lot::Mutex;

use self::attaching::{Attached, Wanted};
use self::leftover::Leftovers;
use super::admission::Admission;
use super::conntrack::Conntrack;
use super::keepalive::Keepalive;
use super::labels::Labels;
use super::links::Links;
use super::loader::{self, Loaded};
use super::ports::{PortGuard, Ports};
use super::reaper::Reaper;
use super::reset::{Resetter, endpoint, socket_address};
use super::routes::Routing;
use super::slots::Slots;
use super::{EndSink, Held};
use crate::config::Config;
use crate::flow::Transferred;
use crate::l4::outcome::EndReason;

pub(crate) use self::arming::{Arming, Plan};
pub(super) use self::ending::Reset;
pub(crate) use self::way::{Leg, Server, Way};

/// The first flight must be acknowledged within this time.
pub(super) const ARMED_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) struct Flows {
    pub(super) slots: Slots,
    entries: Mutex<Entries>,
    notes: Mutex<BpfHashMap<MapData, FlowKey, SynSeen>>,
    listeners: Mutex<BpfHashMap<MapData, ListenerKey, u32>>,
    verdicts: PerCpuArray<MapData, u64>,
    labels: Mutex<Labels>,
    pub(super) ports: Arc<Ports>,
    loaded: Mutex<Loaded>,
    /// Held while devices are seen to, so that this happens once at a time.
    wanted: Mutex<Wanted>,
    interfaces: Mutex<Vec<Attached>>,
    /// Devices that connections may still want to leave by, and since when they are gone.
    gone: Mutex<HashMap<u32, Instant>>,
    /// Whether and since when routes have to be asked for.
    pub(super) routing: Routing,
    admission: Mutex<Admission>,
    pub(super) resetter: Resetter,
    pub(super) conntrack: Conntrack,
    leftovers: Mutex<Leftovers>,
    /// What each slot's connection holds, and its backend socket while the first flight is on its way.
    pub(super) live: Mutex<HashMap<u32, Live>>,
    pub(super) sink: Arc<dyn EndSink>,
    pub(super) stopping: AtomicBool,
    adopted: AtomicU64,
}

struct Entries {
    /// The map's descriptor, for what aya cannot do.
    fd: OwnedFd,
    map: BpfHashMap<MapData, FlowKey, FlowEntry>,
    /// Slots and directions whose key now belongs to a newer connection.
    overtaken: HashSet<(u32, u32)>,
}

pub(super) struct Live {
    pub(super) backend_socket: Option<OwnedFd>,
    pub(super) armed_at: Option<Instant>,
    /// Bytes that the sink has heard of.
    pub(super) told: Transferred,
    /// By direction: it leaves where the route to its end leads, and moves when that moves. `None`: nobody has looked yet.
    pub(super) follows: Option<[bool; 2]>,
    pub(super) _held: Held,
}

impl Live {
    fn adopted(held: Held, connection: &Connection) -> Self {
        let follows = following::written_down(connection);
        Self { backend_socket: None, armed_at: None, told: Transferred::default(), follows, _held: held }
    }
}

impl Flows {
    pub(super) fn start(all: &Config, sink: Arc<dyn EndSink>) -> anyhow::Result<Arc<Self>> {
        let config = &all.kernel;
        let wanted = config.max_connections.unwrap_or_else(default_slots);
        let mut loaded = loader::load(&config.pin_dir, wanted)?;
        let slots = loaded.slots;
        let connections = loaded.take_map(map::CONNECTIONS)?;
        let aya::maps::Map::Array(data) = &connections else { anyhow::bail!("{} is not an array", map::CONNECTIONS) };
        let slots = Slots::map(data.fd(), slots, |slots| loaded.fill(slots));
        let slots = slots.context("mapping the connection table")?;
        let events = RingBuf::try_from(loaded.take_map(map::EVENTS)?)?;
        let program_log = loaded.log();
        let admission = Admission::open(&mut loaded)?;
        let entries = loaded.take_map(map::FLOWS)?;
        let aya::maps::Map::HashMap(data) = &entries else { anyhow::bail!("{} is not a hash", map::FLOWS) };
        let entries_fd = data.fd().as_fd().try_clone_to_owned().context("duplicating a map's descriptor")?;
        let flows = Arc::new(Self {
            slots,
            entries: Mutex::new(Entries {
                fd: entries_fd,
                map: BpfHashMap::try_from(entries)?,
                overtaken: HashSet::new(),
            }),
            notes: Mutex::new(BpfHashMap::try_from(loaded.take_map(map::NOTES)?)?),
            listeners: Mutex::new(BpfHashMap::try_from(loaded.take_map(map::LISTENERS)?)?),
            verdicts: PerCpuArray::try_from(loaded.take_map(map::VERDICTS)?)?,
            labels: Mutex::new(Labels::adopt(BpfHashMap::try_from(loaded.take_map(map::LABELS)?)?)),
            ports: Ports::new(config.port_range),
            wanted: Mutex::new(Wanted::new(all)),
            interfaces: Mutex::new(Vec::new()),
            gone: Mutex::new(HashMap::new()),
            routing: Routing::new(),
            admission: Mutex::new(admission),
            loaded: Mutex::new(loaded),
            resetter: Resetter::open().context("opening a raw socket")?,
            conntrack: Conntrack::new(),
            leftovers: Mutex::default(),
            live: Mutex::new(HashMap::new()),
            sink,
            stopping: AtomicBool::new(false),
            adopted: AtomicU64::new(0),
        });
        flows.loaded.lock().take_links()?;
        // First to listen, then to look: no device comes in between, and no route.
        let links = Links::open().context("listening for network devices and routes")?;
        flows.routing.changed();
        flows.attach().context("listing network devices")?;
        flows.loaded.lock().settle(&flows.slots, &flows.attached())?;
        flows.adopt();
        flows.strand().context("listing network devices")?;
        links.watch(Arc::clone(&flows)).context("starting to watch network devices")?;
        Reaper::spawn(Arc::clone(&flows), events, program_log, Keepalive::new(config.keepalive))
            .context("starting the reaper")?;
        Ok(flows)
    }

    /// What an earlier daemon left: spliced connections go on under our care, half-made ones end.
    fn adopt(&self) {
        let mut labels = self.labels.lock();
        let used: Vec<_> = self.slots.used().collect();
        for (_, connection) in &used {
            labels.use_again(connection.label);
        }
        labels.sweep();
        drop(labels);
        for (index, connection) in used {
            match self.slots.state(index) {
                State::Spliced => {
                    self.ports.adopt(socket_address(&connection.backend), port(&connection.source.port));
                    let held = self.sink.adopted(&self.info(&connection));
                    self.live.lock().insert(index, Live::adopted(held, &connection));
                    self.adopted.fetch_add(1, Ordering::Relaxed);
                }
                State::Armed | State::Moving => {
                    let held = self.sink.adopted(&self.info(&connection));
                    self.live.lock().insert(index, Live::adopted(held, &connection));
                    self.ports.adopt(socket_address(&connection.backend), port(&connection.source.port));
                    let acked = connection.from_backend.flags & FIRST_FLIGHT_ACKED != 0;
                    // One that still moves has lost its numbers with the table that it came from.
                    if acked && connection.state == State::Armed as u32 {
                        self.untrack(&connection);
                        self.slots.set_state(index, State::Spliced);
                        self.adopted.fetch_add(1, Ordering::Relaxed);
                    } else {
                        self.cut_slot(index, &connection, EndReason::DaemonStopped);
                    }
                }
                State::Cut | State::Draining => {
                    self.find_overtaken(index, &connection);
                    self.leftovers.lock().adopt(index, Instant::now());
                }
                State::Free => {}
            }
        }
    }

    /// An ended connection whose tuple a newer one has taken must not take that one's entry with it.
    fn find_overtaken(&self, index: u32, connection: &Connection) {
        let mut entries = self.entries.lock();
        for (key, direction) in keys(connection) {
            if entries.map.get(&key, 0).is_ok_and(|e| (e.slot, e.generation) != (index, connection.generation)) {
                entries.overtaken.insert((index, direction as u32));
            }
        }
    }

    pub(super) fn listen_on(&self, addresses: &[SocketAddr]) {
        let wanted: Vec<ListenerKey> = addresses
            .iter()
            .map(|address| {
                let endpoint = endpoint(*address);
                let address = if address.ip().is_unspecified() { [0; 16] } else { endpoint.address };
                ListenerKey { address, port: endpoint.port, reserved: [0; 2] }
            })
            .collect();
        let mut listeners = self.listeners.lock();
        let present: Vec<ListenerKey> = listeners.keys().flatten().collect();
        for gone in present.iter().filter(|key| !wanted.contains(key)) {
            let _ = listeners.remove(gone);
        }
        for key in wanted {
            if let Err(error) = listeners.insert(key, 1, 0) {
                tracing::warn!(%error, "listener not known to the kernel path: its connections are relayed");
            }
        }
    }

    /// What the handshake of the host `from` with our socket `to` said when it crossed our programs. Entries carry the
    /// sockets' own addresses: that there is one proves that no NAT stands between.
    pub(crate) fn handshake(&self, from: SocketAddr, to: SocketAddr) -> Option<SynSeen> {
        self.notes.lock().get(&key(from, to), 0).ok()
    }

    pub(crate) fn take_port(&self, backend: SocketAddr) -> Option<PortGuard> {
        self.ports.take(backend, Instant::now())
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }
}

/// A connection's keys, each with the way that its packets go.
pub(super) fn keys(connection: &Connection) -> [(FlowKey, Direction); 2] {
    let key = |from: &Endpoint, to: &Endpoint| FlowKey {
        source: from.address,
        destination: to.address,
        source_port: from.port,
        destination_port: to.port,
    };
    [
        (key(&connection.client, &connection.local), Direction::ToBackend),
        (key(&connection.backend, &connection.source), Direction::ToClient),
    ]
}

pub(super) fn is_live(connection: &Connection) -> bool {
    matches!(State::from_u32(connection.state), Some(State::Armed | State::Spliced))
}

/// Since the last proven packet of either end.
pub(super) fn idle(connection: &Connection, now: u64) -> Duration {
    let last = connection.from_client.last_seen.max(connection.from_backend.last_seen);
    Duration::from_nanos(now.saturating_sub(last))
}

/// CLOCK_MONOTONIC, as the programs read it.
pub(super) fn monotonic() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(|t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
        .unwrap_or(0)
}

fn key(from: SocketAddr, to: SocketAddr) -> FlowKey {
    let (from, to) = (endpoint(from), endpoint(to));
    FlowKey { source: from.address, destination: to.address, source_port: from.port, destination_port: to.port }
}

fn port(bytes: &[u8; 2]) -> u16 {
    u16::from_be_bytes(*bytes)
}

/// One slot for each 32 KiB of memory: 16,384 on a 512 MiB host (4 MiB of table), at most 262,144.
fn default_slots() -> u32 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok())
        .unwrap_or(512 * 1024);
    u32::try_from((kib / 32).clamp(4_096, 262_144)).unwrap_or(4_096)
}
