//! Who may come in: what is judged before the splice and before the host's stack see a packet.
//!
//! One function, [`judge`], for the XDP program, for tc ingress where there is no XDP, and for tests. It drops what the
//! operator does not want to our listeners and private ports, and nothing else: whatever it cannot place is the host's.

mod parse;
#[cfg(test)]
mod tests;

use crate::flow::Address;
use crate::header::{ACK, FIN, IPPROTO_TCP, RST, SYN, TCP_LEN};
use crate::verdict::Verdict;
use parse::{Found, Parsed, parse};

/// What the operator asks for. The one value of `ingress_policy`, written whole by the daemon at each change.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Sum of `POLICY_*`; 0: nothing is judged.
    pub flags: u32,
    pub reserved: u32,
    pub pace: Pace,
}

/// New connections of one source: the generic cell rate algorithm (ITU-T I.371), a token bucket in one number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Nanoseconds between two connections at the rate that can go on for ever.
    pub interval: u64,
    /// Nanoseconds that a source may be ahead of that rate.
    pub ahead: u64,
}

/// `ingress_ports` has entries.
pub const POLICY_PRIVATE_PORTS: u32 = 1;
/// `ingress_deny4` or `ingress_deny6` has entries.
pub const POLICY_DENY: u32 = 2;
/// [`Policy::pace`] is set.
pub const POLICY_PACE: u32 = 4;

/// Bits of a value of `ingress_devices`. A device without entry has none.
///
/// Faces the world: private ports are dropped.
pub const DEVICE_PUBLIC: u32 = 1;
/// Faces our own machines: nothing is judged.
pub const DEVICE_PRIVATE: u32 = 2;
/// Its XDP program judges, so that tc ingress need not.
pub const DEVICE_XDP: u32 = 4;
/// Segments may come by it in lists, each with its own headers, of which a program sees the first.
pub const DEVICE_LISTS: u32 = 8;

/// Key of `ingress_drops`: packets that admission dropped on one device for one reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DropKey {
    pub ifindex: u32,
    /// [`Verdict`] as a number.
    pub verdict: u32,
}

/// A packet from its Ethernet header on, or without one: see [`Bytes::unlinked`].
pub trait Bytes {
    /// Whole, however it lies in memory.
    fn size(&self) -> usize;

    /// Fills `into` with the bytes at `offset`; `None`: the packet ends before.
    fn load<T: Plain>(&self, offset: usize, into: &mut T) -> Option<()>;

    /// The same, for an `offset` that varies from packet to packet: slower, but one way only, where [`Bytes::load`] may have two, and
    /// the verifier follows each way to the end of the program.
    #[inline(always)]
    fn load_anywhere<T: Plain>(&self, offset: usize, into: &mut T) -> Option<()> {
        self.load(offset, into)
    }

    /// `Some`: the packet begins with its IP header, and this would be its EtherType, in network byte order.
    #[inline(always)]
    fn unlinked(&self) -> Option<u16> {
        None
    }

    /// A VLAN tag with another id than 0 has been taken out of the packet: it is another device's.
    fn is_of_vlan(&self) -> bool;
}

/// Integers and byte arrays only, without padding.
///
/// # Safety
/// Every byte pattern is a valid value.
pub unsafe trait Plain: Copy + Default {}

/// What the maps say.
pub trait Tables {
    fn is_listener(&self, address: &Address, port: [u8; 2]) -> bool;
    fn is_private_port(&self, port: [u8; 2]) -> bool;
    fn is_denied(&self, source: &Address) -> bool;
    /// Counts a new connection; false: this source has had its share. The argument is [`source_network`].
    fn may_connect(&self, source: &Address, pace: &Pace) -> bool;
}

/// `Some`: the packet is dropped, and why. `device` has `DEVICE_*` bits.
#[inline(always)]
pub fn judge(policy: &Policy, device: u32, packet: &impl Bytes, tables: &impl Tables) -> Option<Verdict> {
    let guarded = policy.flags & POLICY_PRIVATE_PORTS != 0 && device & DEVICE_PUBLIC != 0;
    let mut found = Found::default();
    match parse(packet, &mut found) {
        Parsed::Other => return None,
        // The stack would drop it too, uncounted.
        Parsed::Malformed => return Some(Verdict::DropMalformed),
        // Behind headers that nobody sends there may be a private port.
        Parsed::Unreadable => return guarded.then_some(Verdict::DropUnreadable),
        Parsed::Found => {}
    }
    if guarded && tables.is_private_port(found.destination_port) {
        return Some(Verdict::DropPrivatePort);
    }
    if found.protocol != IPPROTO_TCP {
        return None;
    }

    // Whether a listener is meant is asked last, because that takes the most time.
    let is_ours = || tables.is_listener(&found.destination, found.destination_port);
    let [offset, flags] = found.offset_and_flags;
    let header_len = (offset >> 4) as usize * 4;
    if header_len < TCP_LEN || (!found.fragment && header_len > found.len) {
        return is_ours().then_some(Verdict::DropMalformed);
    }
    if !is_plausible(flags) {
        return is_ours().then_some(Verdict::DropBadFlags);
    }
    if policy.flags & POLICY_DENY != 0 && tables.is_denied(&found.source) {
        return is_ours().then_some(Verdict::DropDenied);
    }
    if policy.flags & POLICY_PACE != 0
        && flags & (SYN | ACK | FIN | RST) == SYN
        && is_ours()
        && !tables.may_connect(&source_network(&found.source), &policy.pace)
    {
        return Some(Verdict::DropSourceRate);
    }
    None
}

/// Flags that some TCP sends (RFC 9293 section 3.10.7): everything but a SYN and a lone RST has ACK, and SYN, FIN and RST
/// exclude one another.
#[inline(always)]
const fn is_plausible(flags: u8) -> bool {
    matches!(flags & (SYN | ACK | FIN | RST), SYN | ACK | RST)
        || matches!(flags & (SYN | ACK | FIN | RST), ACK_SYN | ACK_FIN | ACK_RST)
}

const ACK_SYN: u8 = ACK | SYN;
const ACK_FIN: u8 = ACK | FIN;
const ACK_RST: u8 = ACK | RST;

/// Who counts as one source: an IPv4 address, or an IPv6 /64, within which a host chooses freely.
#[inline(always)]
pub const fn source_network(source: &Address) -> Address {
    let [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..] = *source else {
        let [a, b, c, d, e, f, g, h, ..] = *source;
        return [a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, 0];
    };
    *source
}

impl Pace {
    /// `rate` new connections a second for ever, `burst` at once. Both are at least 1.
    pub const fn new(rate: u32, burst: u32) -> Self {
        let interval = 1_000_000_000 / rate as u64;
        Self { interval, ahead: interval * (burst as u64 - 1) }
    }

    /// `due`: what this function last gave for the source, 0 at first. `None`: too early. `now` in nanoseconds.
    #[inline(always)]
    pub const fn take(&self, due: u64, now: u64) -> Option<u64> {
        // Further ahead than this pace lets anybody get: counted by another one, before a reload.
        let is_foreign = due > now && due - now > self.ahead + self.interval;
        let due = if due < now || is_foreign { now } else { due };
        if due - now > self.ahead {
            return None;
        }
        Some(due + self.interval)
    }
}

const _: () = assert!(size_of::<Policy>() == 24);
const _: () = assert!(size_of::<DropKey>() == 8);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), integers only, every byte pattern valid; the sizes asserted above leave no padding.
    unsafe impl aya::Pod for super::Policy {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::DropKey {}
}
