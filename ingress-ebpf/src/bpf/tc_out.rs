//! tc egress: keeps our own host silent on handed-off tuples, and prepares our SYNs towards backends.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_clone_redirect;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use ingress_ebpf::connection::{FIRST_FLIGHT_ACKED, State};
use ingress_ebpf::flow::{
    Direction, FlowKey, SYN_AGAIN, SYN_NUMBERS, SYN_OURS, SYN_SACK, SYN_TIMESTAMP_REMOVED, SynSeen,
};
use ingress_ebpf::header::{ACK, FIN, Ipv4, Ipv6, RST, SYN, TCP_LEN};
use ingress_ebpf::names::{
    PRIORITY_BYPASS, PRIORITY_SYN, PRIORITY_SYN_NO_SACK, PRIORITY_SYN_SEGMENT, PRIORITY_SYN_TWICE, PRIORITY_TAG,
};
use ingress_ebpf::verdict::{Action, Verdict};

use super::maps::{CONNECTIONS, EXIST, FLOWS, NOTES, count};
use super::options::{Limits, Place, prepare_syn};
use super::packet::{Bare, Ethernet, Family, Layout, Look, Packet};

#[classifier]
pub(crate) fn ingress_tc_out(context: TcContext) -> i32 {
    let packet = Packet::new(&context);
    if packet.is_forwarded() {
        return TC_ACT_UNSPEC;
    }
    match packet.family() {
        Family::Ipv4 => handle::<Ethernet<Ipv4>>(packet),
        Family::Ipv6 => handle::<Ethernet<Ipv6>>(packet),
        Family::Other => TC_ACT_UNSPEC,
    }
}

/// For devices that carry bare IP packets: tun, WireGuard.
#[classifier]
pub(crate) fn ingress_ip_out(context: TcContext) -> i32 {
    let packet = Packet::new(&context);
    if packet.is_forwarded() {
        return TC_ACT_UNSPEC;
    }
    match packet.family() {
        Family::Ipv4 => handle::<Bare<Ipv4>>(packet),
        Family::Ipv6 => handle::<Bare<Ipv6>>(packet),
        Family::Other => TC_ACT_UNSPEC,
    }
}

#[inline(never)]
fn handle<L: Layout>(packet: Packet) -> i32 {
    let verdict = judge::<L>(&packet);
    if verdict != Verdict::Miss {
        count(verdict);
    }
    match verdict.action() {
        Action::Drop => {
            tell_drop(packet, verdict);
            TC_ACT_SHOT
        }
        Action::Pass | Action::Redirect | Action::Reflect => TC_ACT_UNSPEC,
    }
}

#[inline(never)]
fn tell_drop(packet: Packet, verdict: Verdict) {
    debug!(
        &TcContext::new(packet.raw()),
        "dropped on egress: verdict {}, device {}, {} bytes",
        verdict as u32,
        packet.device(),
        packet.len()
    );
}

#[inline(always)]
fn judge<L: Layout>(packet: &Packet) -> Verdict {
    let Look::Plain = packet.look::<L>() else { return Verdict::Miss };
    let Some((plain, key)) = packet.plain::<L>() else { return Verdict::Miss };
    let priority = packet.priority();
    if priority == PRIORITY_BYPASS {
        packet.set_priority(0);
        return Verdict::Miss;
    }
    let answered = key.reversed();
    if priority & PRIORITY_TAG == PRIORITY_SYN {
        // The socket keeps the tag for life; queueing disciplines must not see it.
        packet.set_priority(0);
        if plain.tcp.flags & (SYN | ACK | FIN | RST) == SYN {
            return backend_syn::<L>(*packet, &answered, priority);
        }
    } else if plain.tcp.flags & (SYN | ACK | FIN | RST) == SYN | ACK {
        note_answer(*packet, &answered, u32::from_be(plain.tcp.seq).wrapping_add(1), u32::from_be(plain.tcp.ack));
    }
    // The flow whose packets this one would answer.
    // SAFETY: entries are never changed after they were inserted.
    let Some(entry) = (unsafe { FLOWS.get(&answered) }) else { return Verdict::Miss };
    let Some(connection) = CONNECTIONS.get_ptr_mut(entry.slot) else { return Verdict::Miss };
    // SAFETY: array map values live as long as the map.
    let connection = unsafe { &*connection };
    if connection.generation != entry.generation {
        return Verdict::Miss;
    }
    let to_backend = entry.direction == Direction::ToClient as u32;
    let still_ours = connection.state == State::Armed as u32 && connection.from_backend.flags & FIRST_FLIGHT_ACKED == 0;
    // Our backend socket still delivers the first flight; our client socket has nothing left to say.
    if to_backend && still_ours { Verdict::Miss } else { Verdict::DropLocalStack }
}

/// Our stack answers a client's SYN: completes what is remembered of it.
// A stack frame of its own: a program has 512 bytes, and the splice needs most of them.
#[inline(never)]
fn note_answer(packet: Packet, key: &FlowKey, local_next: u32, remote_next: u32) {
    // SAFETY: a copy; a mixed one of an entry that is replaced meanwhile does not fit the answer.
    let Some(mut seen) = (unsafe { NOTES.get(key) }).copied() else { return };
    if seen.flags & SYN_OURS != 0 || seen.remote_next != remote_next {
        return;
    }
    let numbers = seen.flags & (SYN_NUMBERS | SYN_AGAIN) == 0;
    if numbers {
        seen.local_next = local_next;
        seen.flags |= SYN_NUMBERS;
    }
    // The first device is the one that the stack chose: what it stands on may see the packet too.
    let way = seen.left_by == 0;
    if way {
        seen.left_by = packet.device();
        seen.mark = packet.mark();
    }
    if numbers || way {
        // Not in place: the memory of an evicted entry may already be another handshake's.
        let _ = NOTES.insert(key, seen, EXIST);
    }
}

#[inline(never)]
fn backend_syn<L: Layout>(packet: Packet, answered: &FlowKey, priority: u32) -> Verdict {
    let Some(tcp) = packet.tcp::<L>() else { return Verdict::Miss };
    let header_len = tcp.header_len();
    if header_len < TCP_LEN {
        return Verdict::Miss;
    }
    let limits = Limits { no_sack: priority & PRIORITY_SYN_NO_SACK != 0, segment: priority & PRIORITY_SYN_SEGMENT };
    let place = Place { skb: packet.raw(), tcp: L::TCP as u32 };
    let Some(found) = prepare_syn(place, header_len, limits) else { return Verdict::DropRewriteFailed };
    if limits.segment != 0 && !found.segment {
        // The backend will take the default, which nobody asked for: no note, no handoff.
        return Verdict::SynPreparedOut;
    }
    let mut flags = SYN_OURS;
    if found.timestamp {
        flags |= SYN_TIMESTAMP_REMOVED;
    }
    if found.sack_permitted && !limits.no_sack {
        flags |= SYN_SACK;
    }
    let local_next = u32::from_be(tcp.seq).wrapping_add(1);
    let device = packet.device();
    let seen = SynSeen { ifindex: device, left_by: device, mark: packet.mark(), flags, local_next, remote_next: 0 };
    let _ = NOTES.insert(answered, seen, 0);
    if priority & PRIORITY_SYN_TWICE != 0 {
        // SAFETY: the helper clones the packet; the clone's priority is cleared, so it passes here as any other.
        unsafe { bpf_clone_redirect(packet.raw(), packet.device(), 0) };
    }
    Verdict::SynPreparedOut
}
