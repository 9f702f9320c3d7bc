//! Flow entries: both directions or none. The only writer of the pinned maps, except that a SYN on an ended connection removes
//! an entry in the kernel.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use aya::maps::{HashMap as BpfHashMap, MapData, MapError, PerCpuArray, RingBuf};
use ingress_ebpf::connection::{
    Connection, Endpoint, FIN_FIRST, FIRST_FLIGHT_ACKED, Half, REUSED, RST_SENT, State, WindowScales,
};
use ingress_ebpf::flow::{Direction, FlowEntry, FlowKey, ListenerKey, SynSeen};
use ingress_ebpf::names::map;
use ingress_ebpf::verdict::Verdict;
use parking_lot::Mutex;

use super::admission::{Admission, Post};
use super::batch;
use super::conntrack::Conntrack;
use super::devices::{self, Device};
use super::labels::{Labels, Words};
use super::loader::{self, Loaded};
use super::path::{Path, Paths};
use super::ports::{PortGuard, Ports};
use super::reaper::Reaper;
use super::reset::{Resetter, endpoint, socket_address};
use super::slots::{SlotId, Slots};
use super::view::{AdmissionStatus, InterfaceStatus, KernelStatus};
use super::xdp;
use super::{EndSink, Held};
use crate::config::{AdmissionConfig, Config, InterfaceConfig, Side};
use crate::flow::{FlowFilter, FlowView, Transferred};
use crate::l4::outcome::{ConnectionEnd, ConnectionInfo, EndReason, Mode, RelayReason};

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;
/// How long an ended connection's entries stay for stragglers: a lost last ACK and its answers.
pub(super) const DRAIN: Duration = Duration::from_secs(3);
/// Connections whose entries go with one system call. Workers wait for the lock meanwhile, so not too many.
const REAP_AT_ONCE: usize = 64;
/// The first flight must be acknowledged within this time.
pub(super) const ARMED_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) struct Flows {
    pub(super) slots: Slots,
    entries: Mutex<Entries>,
    syns: Mutex<BpfHashMap<MapData, FlowKey, SynSeen>>,
    listeners: Mutex<BpfHashMap<MapData, ListenerKey, u32>>,
    verdicts: PerCpuArray<MapData, u64>,
    labels: Mutex<Labels>,
    pub(super) ports: Arc<Ports>,
    loaded: Mutex<Loaded>,
    interfaces: Mutex<Vec<InterfaceStatus>>,
    admission: Mutex<Admission>,
    resetter: Resetter,
    pub(super) conntrack: Conntrack,
    /// Ended connections, with when to look whether stragglers still come.
    draining: Mutex<VecDeque<(Instant, u32)>>,
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
    pub(super) _held: Held,
}

/// Everything about a connection that the sockets and the route decision know.
pub(crate) struct Plan<'a> {
    pub(crate) info: &'a ConnectionInfo,
    /// Wire addresses.
    pub(crate) client: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) source: SocketAddr,
    pub(crate) backend: SocketAddr,
    /// Client-side: the next byte that we would read from the client.
    pub(crate) client_read: u32,
    /// Client-side: the first payload byte of the client's stream that goes to the backend.
    pub(crate) client_start: u32,
    /// Client-side: the next byte that we would send to the client.
    pub(crate) client_write: u32,
    /// Backend-side: the next byte that we would read from the backend.
    pub(crate) backend_read: u32,
    /// Backend-side: the end of the first flight.
    pub(crate) first_flight_end: u32,
    /// What must be acknowledged before anything is spliced to the client; equals `first_flight_end` unless held back.
    pub(crate) min_ack: u32,
    pub(crate) scale: WindowScales,
    pub(crate) to_backend_device: u32,
    pub(crate) to_client_device: u32,
    pub(crate) idle_timeout: Duration,
}

/// Entries that stand while the first flight is still to be sent. Dropping it without [`Arming::done`] takes them away.
pub(crate) struct Arming {
    flows: Arc<Flows>,
    pub(crate) slot: SlotId,
    keys: [FlowKey; 2],
    label: u32,
    done: bool,
}

impl Flows {
    pub(super) fn start(all: &Config, sink: Arc<dyn EndSink>) -> anyhow::Result<Arc<Self>> {
        let config = &all.kernel;
        let wanted = config.max_connections.unwrap_or_else(default_slots);
        let mut loaded = loader::load(&config.pin_dir, wanted)?;
        let slots = loaded.slots;
        let connections = loaded.take_map(map::CONNECTIONS)?;
        let aya::maps::Map::Array(data) = &connections else { anyhow::bail!("{} is not an array", map::CONNECTIONS) };
        let slots = Slots::map(data.fd(), slots).context("mapping the connection table")?;
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
            syns: Mutex::new(BpfHashMap::try_from(loaded.take_map(map::SYNS)?)?),
            listeners: Mutex::new(BpfHashMap::try_from(loaded.take_map(map::LISTENERS)?)?),
            verdicts: PerCpuArray::try_from(loaded.take_map(map::VERDICTS)?)?,
            labels: Mutex::new(Labels::adopt(BpfHashMap::try_from(loaded.take_map(map::LABELS)?)?)),
            ports: Ports::new(config.port_range),
            interfaces: Mutex::new(Vec::new()),
            admission: Mutex::new(admission),
            loaded: Mutex::new(loaded),
            resetter: Resetter::open().context("opening a raw socket")?,
            conntrack: Conntrack::new(),
            draining: Mutex::new(VecDeque::new()),
            live: Mutex::new(HashMap::new()),
            sink,
            stopping: AtomicBool::new(false),
            adopted: AtomicU64::new(0),
        });
        flows.adopt();
        flows.attach(&config.interfaces, &all.interfaces)?;
        flows.admit(&all.interfaces, &all.admission);
        Reaper::spawn(Arc::clone(&flows), events, program_log).context("starting the reaper")?;
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
                    let live = Live { backend_socket: None, armed_at: None, told: Transferred::default(), _held: held };
                    self.live.lock().insert(index, live);
                    self.adopted.fetch_add(1, Ordering::Relaxed);
                }
                State::Armed => {
                    let held = self.sink.adopted(&self.info(&connection));
                    let live = Live { backend_socket: None, armed_at: None, told: Transferred::default(), _held: held };
                    self.live.lock().insert(index, live);
                    self.ports.adopt(socket_address(&connection.backend), port(&connection.source.port));
                    if connection.from_backend.flags & FIRST_FLIGHT_ACKED != 0 {
                        self.slots.set_state(index, State::Spliced);
                        self.adopted.fetch_add(1, Ordering::Relaxed);
                    } else {
                        self.cut_slot(index, &connection, EndReason::DaemonStopped);
                    }
                }
                State::Cut | State::Draining => {
                    self.find_overtaken(index, &connection);
                    self.draining.lock().push_back((Instant::now(), index));
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

    /// `wanted`: all that can carry the programs, if empty. Public devices get them in any case.
    fn attach(&self, wanted: &[String], interfaces: &BTreeMap<String, InterfaceConfig>) -> anyhow::Result<()> {
        let all = devices::all().context("listing network devices")?;
        let is_wanted = |device: &&Device| match wanted {
            [] => device.unfit.is_none(),
            names => names.contains(&device.name),
        };
        let mut devices: Vec<Device> = all.iter().filter(is_wanted).cloned().collect();
        for name in wanted.iter().chain(public(interfaces)) {
            if !devices.iter().any(|device| device.name == *name) {
                devices.push(devices::named(&all, name));
            }
        }
        let mut loaded = self.loaded.lock();
        let statuses: Vec<_> = devices.iter().map(|device| loaded.attach(device)).collect();
        for status in &statuses {
            if status.attached == "none" {
                let why = status.why.as_deref().unwrap_or_default();
                tracing::warn!(interface = status.name, why, "programs not attached: connections over it are relayed");
            }
        }
        *self.interfaces.lock() = statuses;
        Ok(())
    }

    /// Makes admission what the configuration says, without a gap. What cannot be done stands in [`Flows::status`].
    pub(super) fn admit(&self, interfaces: &BTreeMap<String, InterfaceConfig>, config: &AdmissionConfig) {
        let all = match devices::all() {
            Ok(all) => all,
            Err(error) => return tracing::error!(%error, "cannot list network devices: admission stays as it was"),
        };
        let mut admission = self.admission.lock();
        admission.trouble = admission.set_rules(config).err().map(|error| error.to_string());
        if let Some(error) = &admission.trouble {
            tracing::error!(error, "not all rules of admission are in the kernel");
        }
        let mut loaded = self.loaded.lock();
        // A copy: nobody who hands off a connection waits for programs to be attached.
        let mut statuses = self.interfaces.lock().clone();
        for name in public(interfaces) {
            if !statuses.iter().any(|status| status.name == *name) {
                statuses.push(loaded.attach(&devices::named(&all, name)));
            }
        }
        for status in &mut statuses {
            let device = devices::named(&all, &status.name);
            if device.index != status.ifindex {
                // Made anew, or only now.
                *status = loaded.attach(&device);
            }
            let by_tc = status.attached != "none";
            let post =
                Post { device: &device, by_tc, config: interfaces.get(&status.name), judging: !config.is_empty() };
            status.admission = match admission.guard(&mut loaded, &post) {
                Ok(guarded) => guarded,
                Err(error) => Some(AdmissionStatus::open(interfaces.get(&status.name), error.to_string())),
            };
            tell_guard(status);
        }
        let present: Vec<u32> = statuses.iter().map(|status| status.ifindex).collect();
        *self.interfaces.lock() = statuses;
        xdp::detach_all_but(loaded.pin_dir(), &present);
        if let Err(error) = admission.forget_all_but(&present) {
            tracing::warn!(%error, "entries of devices that are gone stay in the tables of admission");
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

    /// True if packets that leave by `device` cross our programs.
    pub(crate) fn carries(&self, device: u32) -> bool {
        self.interfaces.lock().iter().any(|i| i.ifindex == device && i.attached != "none")
    }

    /// What the handshake of the host `from` with our socket `to` said when it crossed our programs. Entries carry the
    /// sockets' own addresses: that there is one proves that no NAT stands between.
    pub(crate) fn handshake(&self, from: SocketAddr, to: SocketAddr) -> Option<SynSeen> {
        self.syns.lock().get(&key(from, to), 0).ok()
    }

    pub(crate) fn take_port(&self, backend: SocketAddr) -> Option<PortGuard> {
        self.ports.take(backend, Instant::now())
    }

    /// Where the next packet towards `destination` leaves.
    pub(crate) fn device(
        &self,
        paths: &mut Paths,
        source: IpAddr,
        destination: IpAddr,
        now: Instant,
    ) -> Result<u32, RelayReason> {
        match paths.ask(source, destination, now) {
            Ok(Path::Out(device)) if self.carries(device) => Ok(device),
            Ok(Path::Out(_)) => Err(RelayReason::Device),
            Ok(Path::NotForwardable) => Err(RelayReason::Local),
            Err(_) => Err(RelayReason::Error),
        }
    }

    /// Installs both entries, the backend's first: from here on the client's packets go to the backend.
    pub(crate) fn arm(self: &Arc<Self>, plan: &Plan) -> Result<Arming, RelayReason> {
        let words = Words::of(plan.info, plan.client);
        let label = self.labels.lock().intern(words).ok_or(RelayReason::Full)?;
        let Some(slot) = self.slots.take() else {
            self.labels.lock().release(label);
            return Err(RelayReason::Full);
        };
        self.slots.write(slot, &plan.connection(label), State::Armed);
        let keys = [key(plan.backend, plan.source), key(plan.client, plan.local)];
        let mut arming = Arming { flows: Arc::clone(self), slot, keys, label, done: false };
        for (key, direction) in arming.keys.into_iter().zip([Direction::ToClient, Direction::ToBackend]) {
            if let Err(reason) = self.insert(key, slot, direction) {
                arming.take_back();
                return Err(reason);
            }
        }
        Ok(arming)
    }

    fn insert(&self, key: FlowKey, slot: SlotId, direction: Direction) -> Result<(), RelayReason> {
        let entry =
            FlowEntry { slot: slot.index, generation: slot.generation, direction: direction as u32, reserved: 0 };
        let mut entries = self.entries.lock();
        match entries.map.insert(key, entry, NO_EXIST) {
            Ok(()) => return Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
                return Err(RelayReason::Full);
            }
            Err(error) => {
                tracing::warn!(%error, "flow entry refused");
                return Err(RelayReason::Error);
            }
        }
        // The tuple of a connection that has ended and still waits for stragglers may be taken over.
        let standing = entries.map.get(&key, 0).map_err(|_| RelayReason::Error)?;
        match self.slots.state(standing.slot) {
            State::Draining | State::Free | State::Cut => {
                entries.map.insert(key, entry, 0).map_err(|_| RelayReason::Error)?;
                entries.overtaken.insert((standing.slot, standing.direction));
                Ok(())
            }
            State::Armed | State::Spliced => {
                tracing::warn!(slot = standing.slot, "a live flow stands on this tuple");
                Err(RelayReason::Error)
            }
        }
    }

    /// Removes the entries of a connection that was never completed, as far as they are its own.
    fn remove_entries(&self, index: u32, connection: &Connection) {
        let mut entries = self.entries.lock();
        for (key, _) in keys(connection) {
            let ours = entries
                .map
                .get(&key, 0)
                .is_ok_and(|entry| entry.slot == index && entry.generation == connection.generation);
            if ours {
                let _ = entries.map.remove(&key);
            }
        }
    }

    /// Takes away connections that have been silent for [`DRAIN`] since they ended. A few at a time: a worker that hands off
    /// waits for the same lock.
    pub(super) fn reap_due(&self) {
        let (now, at) = (monotonic(), Instant::now());
        let mut silent = Vec::new();
        loop {
            let mut draining = self.draining.lock();
            let Some((due, index)) = draining.front().copied().filter(|(due, _)| *due <= at) else { break };
            draining.pop_front();
            match DRAIN.checked_sub(idle(&self.slots.read(index), now)) {
                Some(rest) if !rest.is_zero() => draining.push_back((due + rest, index)),
                Some(_) | None => silent.push(index),
            }
        }
        self.reap(&silent);
    }

    /// Removes ended connections and gives their slots back.
    fn reap(&self, slots: &[u32]) {
        let mut doomed = Vec::with_capacity(slots.len() * 2);
        for chunk in slots.chunks(REAP_AT_ONCE) {
            doomed.clear();
            // Under the lock nobody can install a newer connection on a key between the look and the delete.
            let mut entries = self.entries.lock();
            for index in chunk {
                let connection = self.slots.read(*index);
                for (key, direction) in keys(&connection) {
                    let half = match direction {
                        Direction::ToBackend => &connection.from_client,
                        Direction::ToClient => &connection.from_backend,
                    };
                    let overtaken = entries.overtaken.remove(&(*index, direction as u32));
                    if !overtaken && half.flags & REUSED == 0 {
                        doomed.push(key);
                    }
                }
            }
            if let Err(error) = batch::delete(entries.fd.as_fd(), &doomed) {
                tracing::warn!(%error, "flow entries not removed; trying again");
                let again = Instant::now() + DRAIN;
                self.draining.lock().extend(chunk.iter().map(|index| (again, *index)));
                continue;
            }
            drop(entries);
            let mut labels = self.labels.lock();
            for index in chunk {
                labels.release(self.slots.read(*index).label);
                self.slots.release(*index);
            }
        }
    }

    /// The connection is over: log it, free its port, keep its entries for stragglers. One whose handoff is not finished is
    /// ended by that, and a second end is none.
    pub(super) fn end(&self, index: u32, connection: &Connection, reason: EndReason, state: State) {
        let Some(live) = self.live.lock().remove(&index) else { return };
        self.slots.set_state(index, state);
        let rests = connection.from_backend.flags & FIN_FIRST != 0
            && (connection.from_client.flags | connection.from_backend.flags) & RST_SENT == 0;
        let backend = socket_address(&connection.backend);
        self.ports.free(backend, port(&connection.source.port), rests, Instant::now());
        let info = self.info(connection);
        let duration = SystemTime::now().duration_since(info.started).unwrap_or_default();
        let end = ConnectionEnd {
            info,
            mode: Mode::Kernel,
            reason,
            bytes_to_backend: connection.bytes_to_backend(),
            bytes_to_client: connection.bytes_to_client(),
            duration,
        };
        self.sink.ended(end, live.told);
        self.draining.lock().push_back((Instant::now() + DRAIN, index));
    }

    /// Tells the sink what live connections have moved since it last heard of them.
    pub(super) fn tell_progress(&self, connections: &[(u32, u32, Transferred)]) {
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

    /// Resets both ends now; whatever still arrives is answered with an RST in the kernel.
    pub(super) fn cut_slot(&self, index: u32, connection: &Connection, reason: EndReason) {
        self.slots.set_state(index, State::Cut);
        if let Err(error) = self.resetter.reset(connection) {
            tracing::debug!(%error, "RST not sent; the next packet of either end is answered with one");
        }
        self.end(index, connection, reason, State::Cut);
    }

    pub(super) fn cut(&self, filter: &FlowFilter, reason: EndReason) -> usize {
        let now = monotonic();
        let mut cut = 0;
        for (index, connection) in self.slots.live() {
            if filter.matches(&self.view(&connection, now)) {
                self.cut_slot(index, &connection, reason);
                cut += 1;
            }
        }
        cut
    }

    pub(super) fn views(&self) -> Vec<FlowView> {
        let now = monotonic();
        self.slots.live().map(|(_, connection)| self.view(&connection, now)).collect()
    }

    pub(super) fn status(&self) -> KernelStatus {
        let verdicts = Verdict::ALL
            .iter()
            .map(|verdict| {
                let packets = self.verdicts.get(&(*verdict as u32), 0).map(|cpus| cpus.iter().sum()).unwrap_or(0);
                (verdict.as_str().to_owned(), packets)
            })
            .collect();
        let mut interfaces = self.interfaces.lock().clone();
        let admission = self.admission.lock();
        for interface in &mut interfaces {
            if let Some(status) = &mut interface.admission {
                status.dropped = admission.dropped(interface.ifindex);
            }
        }
        let trouble =
            admission.trouble.as_ref().map(|error| format!("not all rules of admission are in the kernel: {error}"));
        drop(admission);
        let missing = interfaces
            .iter()
            .filter(|i| i.attached == "none")
            .map(|i| format!("{}: {}", i.name, i.why.as_deref().unwrap_or("not attached")))
            .chain(interfaces.iter().filter_map(InterfaceStatus::opening))
            .chain(trouble)
            .chain(self.ports.shared_with_host())
            .collect();
        KernelStatus {
            mode: "kernel".to_owned(),
            missing,
            interfaces,
            pin_dir: self.loaded.lock().pin_dir().display().to_string(),
            connections: self.slots.live().count() as u64,
            max_connections: u64::from(self.slots.len()),
            adopted: self.adopted.load(Ordering::Relaxed),
            ports: Some(self.ports.status()),
            verdicts,
        }
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    fn info(&self, connection: &Connection) -> ConnectionInfo {
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

    fn view(&self, connection: &Connection, now: u64) -> FlowView {
        let info = self.info(connection);
        let state = match State::from_u32(connection.state) {
            Some(State::Armed) if connection.from_backend.flags & FIRST_FLIGHT_ACKED == 0 => "armed",
            Some(State::Armed | State::Spliced) => "spliced",
            Some(State::Cut) => "cut",
            Some(State::Draining) => "draining",
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

impl Plan<'_> {
    fn connection(&self, label: u32) -> Connection {
        let now = monotonic();
        let started = self.info.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        // Until the ends have spoken: a window that either may fill, no more than our sockets ever offered.
        const FIRST_WINDOW: u32 = 1 << 20;
        let half = |start: u32, high: u32, other_start: u32| Half {
            last_seen: now,
            acked: u64::from(start),
            high,
            window_end: start.wrapping_add(FIRST_WINDOW),
            start,
            fin: other_start,
            ..Half::default()
        };
        Connection {
            state: State::Free as u32,
            generation: 0,
            min_ack: self.min_ack,
            label,
            id: self.info.id,
            started,
            to_backend_delta: self.first_flight_end.wrapping_sub(self.client_read),
            to_client_delta: self.client_write.wrapping_sub(self.backend_read),
            ifindex: [self.to_backend_device, self.to_client_device],
            scale: self.scale,
            idle_timeout: u32::try_from(self.idle_timeout.as_secs().max(1)).unwrap_or(u32::MAX),
            client: endpoint(self.client),
            local: endpoint(self.local),
            source: endpoint(self.source),
            backend: endpoint(self.backend),
            from_client: half(self.client_write, self.client_read, 0),
            from_backend: half(self.client_start, self.client_write, 0),
        }
    }
}

impl Arming {
    /// `extra` more bytes of the client belong to the first flight.
    pub(crate) fn raise_min_ack(&self, min_ack: u32) {
        self.flows.slots.set_min_ack(self.slot.index, min_ack);
    }

    /// The first flight is with the backend's socket, which the reaper closes once it is acknowledged. `held` is dropped when the
    /// connection ends.
    ///
    /// `silent`: the first flight is empty, so there is nothing to wait for.
    pub(crate) fn done(mut self, backend_socket: OwnedFd, port: PortGuard, held: Held, silent: bool) {
        self.done = true;
        port.pass_on();
        let live = Live {
            backend_socket: Some(backend_socket),
            armed_at: Some(Instant::now()),
            told: Transferred::default(),
            _held: held,
        };
        self.flows.live.lock().insert(self.slot.index, live);
        if self.flows.slots.state(self.slot.index) == State::Cut {
            let connection = self.flows.slots.read(self.slot.index);
            return self.flows.end(self.slot.index, &connection, EndReason::Killed, State::Cut);
        }
        if silent {
            return self.flows.spliced(self.slot);
        }
        // The event may have come before the socket was there to be closed.
        self.flows.first_flight_acked(self.slot);
    }

    fn take_back(&mut self) {
        self.done = true;
        let connection = self.flows.slots.read(self.slot.index);
        self.flows.remove_entries(self.slot.index, &connection);
        self.flows.labels.lock().release(self.label);
        self.flows.slots.release(self.slot.index);
    }
}

impl Drop for Arming {
    fn drop(&mut self) {
        if !self.done {
            self.take_back();
        }
    }
}

/// Names of the devices that face the world.
fn public(interfaces: &BTreeMap<String, InterfaceConfig>) -> impl Iterator<Item = &String> {
    interfaces.iter().filter(|(_, interface)| interface.side == Side::Public).map(|(name, _)| name)
}

fn tell_guard(status: &InterfaceStatus) {
    let Some(admission) = &status.admission else { return };
    let (interface, why) = (&status.name, admission.why.as_deref().unwrap_or_default());
    match status.opening() {
        Some(opening) => tracing::error!("{opening}"),
        None => tracing::info!(interface, mode = admission.mode, why, "admission"),
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
