//! Admission as the programs see it: the maps behind [`Tables`], and the packet behind [`Bytes`].

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use ingress_ebpf::admission::{Bytes, DEVICE_PRIVATE, DEVICE_XDP, Pace, Plain, Policy, Tables, judge};
use ingress_ebpf::flow::{Address, ListenerKey};
use ingress_ebpf::verdict::Verdict;

use super::maps::{DENY4, DENY6, DEVICES, LISTENERS, POLICY, PORTS, SOURCES, count_drop};
use super::packet::Packet;

/// The policy, unless there is nothing to judge.
#[inline(always)]
pub(super) fn policy() -> Option<&'static Policy> {
    let policy = POLICY.get(0)?;
    (policy.flags != 0).then_some(policy)
}

/// `DEVICE_*` bits.
#[inline(always)]
pub(super) fn device(ifindex: u32) -> u32 {
    // SAFETY: the daemon replaces a value as a whole.
    unsafe { DEVICES.get(ifindex) }.copied().unwrap_or(0)
}

/// The verdict of tc ingress, on devices whose XDP program does not judge. `bytes`: of the packet.
#[inline(always)]
pub(super) fn on_tc(packet: &Packet, bytes: &impl Bytes) -> Option<Verdict> {
    let policy = policy()?;
    let ifindex = packet.device();
    let device = device(ifindex);
    if device & (DEVICE_PRIVATE | DEVICE_XDP) != 0 {
        return None;
    }
    let verdict = judge(policy, device, bytes, &Maps)?;
    count_drop(ifindex, verdict);
    Some(verdict)
}

impl Bytes for Packet {
    #[inline(always)]
    fn size(&self) -> usize {
        Packet::len(self) as usize
    }

    #[inline(always)]
    fn load<T: Plain>(&self, offset: usize, into: &mut T) -> Option<()> {
        if let Some(found) = self.at::<T>(offset) {
            // SAFETY: `at` has checked the bounds, and the verifier knows what alignment a packet has on this machine.
            *into = unsafe { found.read() };
            return Some(());
        }
        Packet::load(self, offset, into)
    }

    #[inline(always)]
    fn load_anywhere<T: Plain>(&self, offset: usize, into: &mut T) -> Option<()> {
        Packet::load(self, offset, into)
    }

    #[inline(always)]
    fn is_of_vlan(&self) -> bool {
        Packet::vlan(self) != 0
    }
}

/// A packet of a device that has no Ethernet headers.
pub(super) struct Unlinked(pub(super) Packet);

impl Bytes for Unlinked {
    #[inline(always)]
    fn size(&self) -> usize {
        Bytes::size(&self.0)
    }

    #[inline(always)]
    fn load<T: Plain>(&self, offset: usize, into: &mut T) -> Option<()> {
        Bytes::load(&self.0, offset, into)
    }

    #[inline(always)]
    fn load_anywhere<T: Plain>(&self, offset: usize, into: &mut T) -> Option<()> {
        self.0.load_anywhere(offset, into)
    }

    #[inline(always)]
    fn unlinked(&self) -> Option<u16> {
        Some(self.0.protocol())
    }

    #[inline(always)]
    fn is_of_vlan(&self) -> bool {
        false
    }
}

pub(super) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn is_listener(&self, address: &Address, port: [u8; 2]) -> bool {
        let mut key = ListenerKey { address: *address, port, reserved: [0; 2] };
        // SAFETY: entries are never changed after they were inserted.
        if unsafe { LISTENERS.get(key) }.is_some() {
            return true;
        }
        key.address = [0; 16];
        // SAFETY: as above.
        unsafe { LISTENERS.get(key) }.is_some()
    }

    #[inline(always)]
    fn is_private_port(&self, port: [u8; 2]) -> bool {
        // SAFETY: as above.
        unsafe { PORTS.get(port) }.is_some()
    }

    #[inline(always)]
    fn is_denied(&self, source: &Address) -> bool {
        match *source {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => DENY4.get(&Key::new(32, [a, b, c, d])).is_some(),
            address => DENY6.get(&Key::new(128, address)).is_some(),
        }
    }

    /// Two CPUs that count the same source at once may count one connection for two: SYNs of one source mostly meet one
    /// receive queue, and a limit need not be exact.
    #[inline(always)]
    fn may_connect(&self, source: &Address, pace: &Pace) -> bool {
        // SAFETY: a plain call.
        let now = unsafe { bpf_ktime_get_ns() };
        if let Some(due) = SOURCES.get_ptr_mut(source) {
            // SAFETY: values of an LRU map live until the program ends; one aligned word is read and written whole.
            return match pace.take(unsafe { due.read_volatile() }, now) {
                Some(next) => {
                    // SAFETY: as above.
                    unsafe { due.write_volatile(next) };
                    true
                }
                None => false,
            };
        }
        if let Some(first) = pace.take(0, now) {
            let _ = SOURCES.insert(source, first, 0);
        }
        true
    }
}
