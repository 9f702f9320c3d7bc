//! The programs, loaded once and shared by the tests one after another, and a connection to run packets over.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{TestRun, TestRunOptions};
use ingress_ebpf::connection::{Connection, Half, State, WindowScales};
use ingress_ebpf::flow::{Direction, FlowEntry, FlowKey, ListenerKey, SynSeen};
use ingress_ebpf::header::{ACK, IPPROTO_TCP, Ipv4, Tcp};
use ingress_ebpf::names::{map, program};
use ingress_ebpf::verdict::{Action, Verdict};
use parking_lot::{Mutex, MutexGuard};

use super::frame::Frame;
use super::six;
use crate::config::AdmissionConfig;
use crate::dataplane::admission::Admission;
use crate::dataplane::flows::keys;
use crate::dataplane::loader::{self, LoadError, Loaded};
use crate::dataplane::reset::endpoint;
use crate::dataplane::slots::{SlotId, Slots};
use crate::dataplane::xdp::Rung;

pub(super) const CLIENT: &str = "203.0.113.9:50000";
pub(super) const LOCAL: &str = "192.0.2.1:443";
pub(super) const SOURCE: &str = "10.0.0.1:20000";
pub(super) const BACKEND: &str = "10.0.0.2:8443";

/// Client-side: the client's first byte, about to wrap; it has sent [`HELLO`] bytes.
pub(super) const CLIENT_START: u32 = 0xffff_ff00;
pub(super) const HELLO: u32 = 500;
/// Client-side: our first byte to the client.
pub(super) const LOCAL_START: u32 = 0x0700_0000;
/// Backend-side: one past PROXY header and hello.
pub(super) const FLIGHT_END: u32 = 0x2000_0000;
/// Backend-side: the backend's first byte.
pub(super) const BACKEND_START: u32 = 0xffff_ffff;

pub(super) const SCALES: WindowScales = WindowScales { client: 8, to_client: 7, backend: 5, to_backend: 9 };
pub(super) const SLOT: SlotId = SlotId { index: 3, generation: 9 };
/// Its twin over IPv6.
const SLOT6: SlotId = SlotId { index: 4, generation: SLOT.generation };
/// Loopback, the only device that is everywhere.
const DEVICE: u32 = 1;

/// `TC_ACT_*` of linux/pkt_cls.h.
const UNSPEC: u32 = u32::MAX;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;
/// `enum xdp_action` of linux/bpf.h.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

pub(super) struct Rig {
    loaded: Loaded,
    flows: BpfHashMap<MapData, FlowKey, FlowEntry>,
    syns: BpfHashMap<MapData, FlowKey, SynSeen>,
    listeners: BpfHashMap<MapData, ListenerKey, u32>,
    verdicts: PerCpuArray<MapData, u64>,
    events: RingBuf<MapData>,
    admission: Admission,
    /// Admission has rules. They name sources of one IP version, so packets are run without twins.
    judging: bool,
    /// Of the next packets: `gso_size`.
    segment_payload: u16,
    slots: Slots,
}

/// What became of a packet.
#[derive(Debug)]
pub(super) struct Run {
    /// `None`: tc egress let it pass uncounted.
    pub(super) verdict: Option<Verdict>,
    pub(super) bytes: Vec<u8>,
    pub(super) priority: u32,
}

impl Run {
    pub(super) fn frame(&self) -> Frame {
        Frame::parse(&self.bytes)
    }
}

/// The rig, without flows, listeners and SYNs. `None`: this host cannot run the programs, and the reason has been printed.
pub(super) fn rig() -> Option<MutexGuard<'static, Rig>> {
    static RIG: OnceLock<Result<Mutex<Rig>, LoadError>> = OnceLock::new();
    match RIG.get_or_init(|| Rig::load().map(Mutex::new)) {
        Ok(rig) => {
            let mut rig = rig.lock();
            rig.clear();
            Some(rig)
        }
        Err(error @ (LoadError::Privileges { .. } | LoadError::NoBpffs { .. })) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}

impl Rig {
    fn load() -> Result<Self, LoadError> {
        let pins = format!("/sys/fs/bpf/ing-test-{}", std::process::id());
        let loaded = loader::load(Path::new(&pins), 16);
        // Descriptors keep the maps; the pins may go at once, whatever the tests do.
        let removed = loader::remove_pins(Path::new(&pins));
        let mut loaded = loaded?;
        removed?;
        let admission = Admission::open(&mut loaded).expect("the object holds the maps of admission");
        let mut take = |name| loaded.take_map(name).expect("the object holds every map");
        let connections = take(map::CONNECTIONS);
        let Map::Array(data) = &connections else { panic!("{} is an array", map::CONNECTIONS) };
        let slots = Slots::map(data.fd(), 16, |_| ()).expect("the table can be mapped");
        Ok(Self {
            flows: take(map::FLOWS).try_into().expect("a hash map"),
            syns: take(map::NOTES).try_into().expect("a hash map"),
            listeners: take(map::LISTENERS).try_into().expect("a hash map"),
            verdicts: take(map::VERDICTS).try_into().expect("a per-CPU array"),
            events: take(map::EVENTS).try_into().expect("a ring buffer"),
            admission,
            judging: false,
            segment_payload: 0,
            slots,
            loaded,
        })
    }

    fn clear(&mut self) {
        for key in self.flows.keys().flatten().collect::<Vec<_>>() {
            let _ = self.flows.remove(&key);
        }
        for key in self.syns.keys().flatten().collect::<Vec<_>>() {
            let _ = self.syns.remove(&key);
        }
        for key in self.listeners.keys().flatten().collect::<Vec<_>>() {
            let _ = self.listeners.remove(&key);
        }
        self.admit(&AdmissionConfig::default(), 0);
        // Packets without a twin have told of themselves alone.
        while self.events.next().is_some() {}
    }

    /// What is judged on [`DEVICE`], of which `bits` are `DEVICE_*`.
    pub(super) fn admit(&mut self, rules: &AdmissionConfig, bits: u32) {
        self.judging = !rules.is_empty();
        self.admission.set_rules(rules).expect("room for the rules");
        self.admission.set_device(DEVICE, bits).expect("room for a device");
    }

    /// Instructions that the verifier followed until it let the program in.
    pub(super) fn verified_instructions(&self, name: &str) -> u32 {
        let info = self.loaded.info(name).expect("a loaded program has information");
        info.verified_instruction_count().expect("kernels since 5.16 tell")
    }

    /// Installs `connection` in [`SLOT`] with both its entries, and its twin.
    pub(super) fn install(&mut self, connection: &Connection, state: State) {
        self.slots.write(SLOT, connection, state);
        self.slots.write(SLOT6, &six::connection_of(connection), state);
        for (key, direction) in keys(connection) {
            self.enter(key, SLOT.generation, direction);
        }
    }

    pub(super) fn enter(&mut self, key: FlowKey, generation: u32, direction: Direction) {
        for (key, slot) in [(key, SLOT), (six::key_of(key), SLOT6)] {
            let entry = FlowEntry { slot: slot.index, generation, direction: direction as u32, reserved: 0 };
            self.flows.insert(key, entry, 0).expect("room for an entry");
        }
    }

    pub(super) fn has_entry(&self, key: FlowKey) -> bool {
        let found = self.flows.get(&key, 0).is_ok();
        assert_eq!(self.flows.get(&six::key_of(key), 0).is_ok(), found, "its twin");
        found
    }

    pub(super) fn connection(&self) -> Connection {
        let four = self.slots.read(SLOT.index);
        let six = self.slots.read(SLOT6.index);
        let without_time = |half: Half| Half { last_seen: u64::from(half.last_seen > 0), ..half };
        for (four, six) in [(four.from_client, six.from_client), (four.from_backend, six.from_backend)] {
            assert_eq!(without_time(four), without_time(six), "its twin");
        }
        four
    }

    pub(super) fn set_state(&self, state: State) {
        self.slots.set_state(SLOT.index, state);
        self.slots.set_state(SLOT6.index, state);
    }

    /// `address`: with a zero IP address, the port on all of them.
    pub(super) fn listen(&mut self, address: &str) {
        let address = parse(address);
        let twin = match address {
            SocketAddr::V4(four) => Some((six::address(*four.ip()), four.port()).into()),
            SocketAddr::V6(_) => None,
        };
        for address in [Some(address), twin].into_iter().flatten() {
            let endpoint = endpoint(address);
            let ip = if address.ip().is_unspecified() { [0; 16] } else { endpoint.address };
            let key = ListenerKey { address: ip, port: endpoint.port, reserved: [0; 2] };
            self.listeners.insert(key, 1, 0).expect("room for a listener");
        }
    }

    /// What is remembered of a SYN, which is forgotten then.
    pub(super) fn take_syn(&mut self, key: FlowKey) -> Option<SynSeen> {
        let mut take = |key| {
            let seen = self.syns.get(&key, 0).ok()?;
            self.syns.remove(&key).expect("it was there");
            Some(seen)
        };
        let (four, six) = (take(key), take(six::key_of(key)));
        assert_eq!(four, six, "its twin");
        four
    }

    /// What the programs have told since the last call: the kinds, all of [`SLOT`], and the same of its twin.
    pub(super) fn events(&mut self) -> Vec<u32> {
        let (mut four, mut six) = (Vec::new(), Vec::new());
        while let Some(record) = self.events.next() {
            let word = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().expect("four bytes"));
            assert_eq!(word(8), SLOT.generation);
            assert!([SLOT.index, SLOT6.index].contains(&word(4)));
            if word(4) == SLOT.index { &mut four } else { &mut six }.push(word(0));
        }
        assert_eq!(four, six, "its twin");
        four
    }

    /// A packet that arrives.
    pub(super) fn arrives(&mut self, bytes: &[u8]) -> Run {
        let run = self.run(program::TC_IN, bytes, DEVICE, 0);
        assert!(run.verdict.is_some(), "every arriving packet is counted");
        run
    }

    /// A packet that is yet to be cut into segments with `payload` bytes each.
    pub(super) fn arrives_uncut(&mut self, bytes: &[u8], payload: u16) -> Run {
        self.segment_payload = payload;
        let run = self.run(program::TC_IN, bytes, DEVICE, 0);
        self.segment_payload = 0;
        run
    }

    /// A packet that meets native XDP; `None`: it passes.
    pub(super) fn enters(&mut self, bytes: &[u8]) -> Option<Verdict> {
        self.enters_by(Rung::Native, bytes)
    }

    pub(super) fn enters_by(&mut self, rung: Rung, bytes: &[u8]) -> Option<Verdict> {
        let before = self.counts();
        let options = TestRunOptions { data_in: Some(bytes), ..TestRunOptions::new() };
        let result = self.loaded.xdp(rung).test_run(options).expect("the kernel runs the program");
        let verdict = self.counted_since(&before);
        assert_eq!(result.return_value, if verdict.is_some() { XDP_DROP } else { XDP_PASS }, "{verdict:?}");
        verdict
    }

    /// A packet of our own stack that leaves.
    pub(super) fn leaves(&mut self, bytes: &[u8], priority: u32) -> Run {
        self.run(program::TC_OUT, bytes, 0, priority)
    }

    /// A packet that arrived on a device and leaves.
    pub(super) fn is_forwarded(&mut self, bytes: &[u8]) -> Run {
        self.run(program::TC_OUT, bytes, DEVICE, 0)
    }

    /// A packet that has no twin.
    pub(super) fn arrives_alone(&mut self, bytes: &[u8]) -> Option<Verdict> {
        self.run_one(program::TC_IN, bytes, DEVICE, 0).verdict
    }

    /// Two packets that arrive at the same moment, on two CPUs, again and again. `look` sees what the connection has become, which
    /// begins anew each time. Without a second CPU it sees them one after the other.
    pub(super) fn arrive_at_once(&self, packets: [&[u8]; 2], rounds: u32, mut look: impl FnMut(u32, Connection)) {
        let arrive = |bytes: &[u8]| {
            let mut out = vec![0u8; bytes.len() + 256];
            let options = TestRunOptions { data_in: Some(bytes), data_out: Some(&mut out), ..TestRunOptions::new() };
            self.loaded.program(program::TC_IN).test_run(options).expect("the kernel runs the program");
        };
        let before = self.slots.read(SLOT.index);
        let (begun, ended) = (AtomicU32::new(0), AtomicU32::new(0));
        let wait_for = |counter: &AtomicU32, round| {
            let mut tries = 0_u32;
            while counter.load(Ordering::Acquire) != round {
                tries += 1;
                // The other one may wait for this very CPU.
                if tries.is_multiple_of(1_000) { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=rounds {
                    wait_for(&begun, round);
                    arrive(packets[1]);
                    ended.store(round, Ordering::Release);
                }
            });
            for round in 1..=rounds {
                self.slots.write(SLOT, &before, State::Spliced);
                begun.store(round, Ordering::Release);
                arrive(packets[0]);
                wait_for(&ended, round);
                look(round, self.slots.read(SLOT.index));
            }
        });
    }

    /// The packet, and the same packet over IPv6.
    fn run(&mut self, program: &'static str, bytes: &[u8], arrived_on: u32, priority: u32) -> Run {
        let four = self.run_one(program, bytes, arrived_on, priority);
        if let Some(twin) = six::frame(bytes).filter(|_| !self.judging) {
            let six = self.run_one(program, &twin, arrived_on, priority);
            assert_eq!((four.verdict, four.priority), (six.verdict, six.priority), "its twin");
            let expected = six::frame(&four.bytes).expect("IPv4 stays IPv4");
            assert_eq!(six::normal(six.bytes), six::normal(expected), "{:?}: its twin", four.verdict);
        }
        four
    }

    fn run_one(&mut self, program: &'static str, bytes: &[u8], arrived_on: u32, priority: u32) -> Run {
        let before = self.counts();
        // struct __sk_buff, as far as the programs read it: priority at 32, ingress_ifindex at 36, gso_size at 176.
        let mut context = [0u8; 180];
        context[32..36].copy_from_slice(&priority.to_ne_bytes());
        context[36..40].copy_from_slice(&arrived_on.to_ne_bytes());
        context[176..180].copy_from_slice(&u32::from(self.segment_payload).to_ne_bytes());
        let (mut out, mut context_out) = (vec![0u8; bytes.len() + 256], [0u8; 192]);
        let options = TestRunOptions {
            data_in: Some(bytes),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::new()
        };
        let result = self.loaded.program(program).test_run(options).expect("the kernel runs the program");
        out.truncate(result.data_size_out as usize);
        let verdict = self.counted_since(&before);

        let expected = match verdict.map_or(Action::Pass, Verdict::action) {
            Action::Pass => UNSPEC,
            Action::Drop => SHOT,
            Action::Redirect | Action::Reflect => REDIRECT,
        };
        assert_eq!(result.return_value, expected, "{verdict:?}");
        if !matches!(verdict, Some(Verdict::SynPrepared | Verdict::SynPreparedOut | Verdict::SynOnEnded))
            && expected == UNSPEC
        {
            assert_eq!(out, bytes, "{verdict:?} leaves the packet alone");
        }
        let priority = u32::from_ne_bytes(context_out[32..36].try_into().expect("four bytes"));
        Run { verdict, bytes: out, priority }
    }

    /// The verdict that is counted once more than `before`.
    fn counted_since(&self, before: &[u64]) -> Option<Verdict> {
        let after = self.counts();
        let mut counted = Verdict::ALL.into_iter().zip(before.iter().zip(after)).filter(|(_, (b, a))| **b != *a);
        let verdict = counted.next().map(|(verdict, (before, after))| {
            assert_eq!(after, before + 1, "{verdict:?} is counted once");
            verdict
        });
        assert_eq!(counted.next().map(|(verdict, _)| verdict), None, "a packet has one verdict");
        verdict
    }

    fn counts(&self) -> Vec<u64> {
        let count = |verdict: Verdict| -> u64 {
            self.verdicts.get(&(verdict as u32), 0).expect("a counter for every verdict").iter().sum()
        };
        Verdict::ALL.into_iter().map(count).collect()
    }
}

/// As the daemon leaves it once the first flight is with the backend's socket.
pub(super) fn connection() -> Connection {
    let half = |start: u32, high: u32| Half {
        acked: start.into(),
        start,
        high,
        window_end: start.wrapping_add(1 << 20),
        ..Half::default()
    };
    let client_read = CLIENT_START.wrapping_add(HELLO);
    Connection {
        min_ack: FLIGHT_END,
        to_backend_delta: FLIGHT_END.wrapping_sub(client_read),
        to_client_delta: LOCAL_START.wrapping_sub(BACKEND_START),
        ifindex: [DEVICE; 2],
        scale: SCALES,
        client: endpoint(parse(CLIENT)),
        local: endpoint(parse(LOCAL)),
        source: endpoint(parse(SOURCE)),
        backend: endpoint(parse(BACKEND)),
        from_client: half(LOCAL_START, client_read),
        from_backend: half(CLIENT_START, LOCAL_START),
        ..Connection::default()
    }
}

/// The client's next packet: `sent` bytes after its hello, `read` bytes of ours acknowledged.
pub(super) fn from_client(sent: u32, read: u32, payload: &[u8]) -> Frame {
    let seq = CLIENT_START.wrapping_add(HELLO).wrapping_add(sent);
    packet(CLIENT, LOCAL, seq, LOCAL_START.wrapping_add(read), payload)
}

/// The backend's next packet: `sent` bytes so far, `read` bytes beyond the first flight acknowledged.
pub(super) fn from_backend(sent: u32, read: u32, payload: &[u8]) -> Frame {
    packet(BACKEND, SOURCE, BACKEND_START.wrapping_add(sent), FLIGHT_END.wrapping_add(read), payload)
}

pub(super) fn packet(from: &str, to: &str, seq: u32, ack: u32, payload: &[u8]) -> Frame {
    let address = |text: &str| match parse(text) {
        SocketAddr::V4(v4) => (u32::from_ne_bytes(v4.ip().octets()), v4.port().to_be()),
        SocketAddr::V6(_) => panic!("{text} is IPv4"),
    };
    let ((source, source_port), (destination, destination_port)) = (address(from), address(to));
    Frame {
        ip: Ipv4 {
            version_ihl: 0x45,
            id: 0x1234,
            fragment: 0x4000u16.to_be(),
            ttl: 64,
            protocol: IPPROTO_TCP,
            source,
            destination,
            ..Ipv4::default()
        },
        tcp: Tcp {
            source_port,
            destination_port,
            seq: seq.to_be(),
            ack: ack.to_be(),
            flags: ACK,
            window: 1_000u16.to_be(),
            ..Tcp::default()
        },
        options: Vec::new(),
        payload: payload.to_vec(),
    }
}

/// With these flags instead of ACK alone.
pub(super) fn flagged(flags: u8, frame: Frame) -> Frame {
    Frame { tcp: Tcp { flags, ..frame.tcp }, ..frame }
}

pub(super) fn key(from: &str, to: &str) -> FlowKey {
    let (from, to) = (endpoint(parse(from)), endpoint(parse(to)));
    FlowKey { source: from.address, destination: to.address, source_port: from.port, destination_port: to.port }
}

fn parse(address: &str) -> SocketAddr {
    address.parse().expect("a test address")
}
