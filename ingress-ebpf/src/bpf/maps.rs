//! The maps, all pinned. docs/operations.md explains each to whoever looks with `bpftool map dump`.

use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use aya_ebpf::macros::btf_map;
use ingress_ebpf::admission::{DropKey, Policy};
use ingress_ebpf::connection::{Connection, Label};
use ingress_ebpf::event::{Event, Kind, RING};
use ingress_ebpf::flow::{Address, FlowEntry, FlowKey, ListenerKey, SynSeen};
use ingress_ebpf::verdict::Verdict;

/// `BPF_F_NO_PREALLOC`: entries cost memory only while they exist.
const NO_PREALLOC: usize = 1;
/// `BPF_F_MMAPABLE`: the daemon reads and writes slots as plain memory.
const MMAPABLE: usize = 1 << 10;

/// `BPF_EXIST`: replace, do not add.
pub(super) const EXIST: u64 = 2;

/// Key: addresses and ports of an arriving packet. Value: its connection's slot and direction. Writer: daemon, except that
/// a SYN on an ended connection deletes. Reader: both tc programs. Life: handoff to reaping. At most 176 bytes an entry,
/// two entries a connection. Sized by the daemon.
#[btf_map(name = "ingress_flows")]
pub(super) static FLOWS: HashMap<FlowKey, FlowEntry, 131_072, NO_PREALLOC> = HashMap::new();

/// One slot a connection, 256 bytes each, allocated whole at load. Sized by the daemon.
#[btf_map(name = "ingress_conns")]
pub(super) static CONNECTIONS: Array<Connection, 65_536, MMAPABLE> = Array::new();

/// Words for log lines, shared by connections; the programs never read them. 1 KiB an entry. Sized by the
/// daemon: where PROXY headers are accepted, each connection has words of its own.
#[btf_map(name = "ingress_labels")]
static LABELS: HashMap<u32, Label, 65_536, NO_PREALLOC> = HashMap::new();

/// Addresses and ports whose SYNs are prepared for a handoff. Writer: daemon. Reader: tc ingress, SYNs only.
#[btf_map(name = "ingress_listen")]
pub(super) static LISTENERS: HashMap<ListenerKey, u32, 1_024, NO_PREALLOC> = HashMap::new();

/// Key: addresses and ports of the handshake as *arriving* packets carry them. Writer: tc programs. Reader: daemon, which
/// takes the entry at the handoff. An evicted entry means relay, never harm.
#[btf_map(name = "ingress_notes")]
pub(super) static NOTES: LruHashMap<FlowKey, SynSeen, 16_384> = LruHashMap::new();

/// Packets per [`Verdict`].
#[btf_map(name = "ingress_verdict")]
static VERDICTS: PerCpuArray<u64, { Verdict::ALL.len() }> = PerCpuArray::new();

/// Hints to the daemon, one consumer.
#[btf_map(name = "ingress_events")]
static EVENTS: RingBuf<Event, { RING as usize }> = RingBuf::new();

/// What admission judges. Writer: daemon, one value at a time. Reader: XDP and tc ingress, each packet.
#[btf_map(name = "ingress_policy")]
pub(super) static POLICY: Array<Policy, 1> = Array::new();

/// Key: interface index. Value: `DEVICE_*` bits. Writer: daemon. Reader: XDP and tc ingress.
#[btf_map(name = "ingress_devices")]
pub(super) static DEVICES: HashMap<u32, u32, 256, NO_PREALLOC> = HashMap::new();

/// Private ports, in network byte order. Writer: daemon. Reader: XDP and tc ingress, on public devices.
#[btf_map(name = "ingress_ports")]
pub(super) static PORTS: HashMap<[u8; 2], u32, 1_024, NO_PREALLOC> = HashMap::new();

/// Denied IPv4 networks. Writer: daemon. Reader: XDP and tc ingress. At most 100 bytes an entry.
#[btf_map(name = "ingress_deny4")]
pub(super) static DENY4: LpmTrie<[u8; 4], u32, 65_536> = LpmTrie::new();

/// Denied IPv6 networks, as above.
#[btf_map(name = "ingress_deny6")]
pub(super) static DENY6: LpmTrie<Address, u32, 65_536> = LpmTrie::new();

/// Key: a source (`source_network`). Value: when its next connection is due (`Pace::take`). Writer and reader: XDP and tc
/// ingress. An evicted source begins anew. 1.9 MiB, allocated whole at load.
#[btf_map(name = "ingress_sources")]
pub(super) static SOURCES: LruHashMap<Address, u64, 16_384> = LruHashMap::new();

/// Packets that were not admitted, per device and reason. The daemon makes and deletes the entries.
#[btf_map(name = "ingress_drops")]
static DROPS: PerCpuHashMap<DropKey, u64, 1_536, NO_PREALLOC> = PerCpuHashMap::new();

/// A packet that was not admitted.
#[inline(always)]
pub(super) fn count_drop(ifindex: u32, verdict: Verdict) {
    if let Some(counter) = DROPS.get_ptr_mut(DropKey { ifindex, verdict: verdict as u32 }) {
        // SAFETY: a per-CPU value; XDP and tc programs of one CPU run one after another.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
pub(super) fn count(verdict: Verdict) {
    if let Some(counter) = VERDICTS.get_ptr_mut(verdict as u32) {
        // SAFETY: a per-CPU value, and a tc program is not interrupted by itself on one CPU.
        unsafe { *counter += 1 };
    }
}

/// A full ring loses the hint; the daemon's scan finds the fact.
#[inline(always)]
pub(super) fn tell(kind: Kind, slot: u32, generation: u32, detail: u32) {
    if let Some(mut entry) = EVENTS.reserve(0) {
        entry.write(Event { kind: kind as u32, slot, generation, detail });
        entry.submit(0);
    }
}

/// Keeps a map that no program reads in the object.
#[inline(always)]
pub(super) fn declare_labels() -> *const core::ffi::c_void {
    (&raw const LABELS).cast()
}
