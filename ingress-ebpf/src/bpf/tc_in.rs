//! tc ingress: the splice.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_check_mtu, bpf_ktime_get_ns};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use ingress_ebpf::admission::{Bytes, DEVICE_LISTS};
use ingress_ebpf::connection::{Connection, FIRST_FLIGHT_ACKED, REUSED, State};
use ingress_ebpf::event::Kind;
use ingress_ebpf::flow::{
    Direction, FlowEntry, FlowKey, ListenerKey, SYN_AGAIN, SYN_ECN_CLEARED, SYN_NUMBERS, SYN_OURS, SYN_SACK,
    SYN_TIMESTAMP_REMOVED, SynSeen,
};
use ingress_ebpf::header::{ACK, AE, CWR, ECE, FIN, Ipv4, Ipv6, RST, SYN, TCP_LEN, Tcp};
use ingress_ebpf::ip::{Ip, Odd, Readdressed};
use ingress_ebpf::proof::{self, observe};
use ingress_ebpf::raise::{reach, set};
use ingress_ebpf::rewrite::{Difference, Sum, Translation, before};
use ingress_ebpf::too_big::{TooBig, is_to_sender, quoted_direction};
use ingress_ebpf::verdict::{Action, Verdict};

use super::admission::{self, Unlinked};
use super::exit::Exit;
use super::maps::{CONNECTIONS, EXIST, FLOWS, LISTENERS, NOTES, count, declare_labels, tell};
use super::options::{Limits, Place, prepare_syn, translate_sack};
use super::packet::{Bare, Ethernet, Family, Layout, Look, Packet, Plain};

#[classifier]
pub(crate) fn ingress_tc_in(context: TcContext) -> i32 {
    let packet = Packet::new(&context);
    if packet.device() == u32::MAX {
        // Never true; a program that refers to the map keeps it in the object.
        return declare_labels() as i32;
    }
    if admission::policy().is_some() && refuse(packet, packet) {
        return TC_ACT_SHOT;
    }
    // A neighbour may own a connection with the same ends: it splices its frames, and the stack drops ours.
    if !packet.is_addressed_to_device() {
        return pass();
    }
    match packet.family() {
        Family::Ipv4 => take::<Ethernet<Ipv4>>(packet),
        Family::Ipv6 => take::<Ethernet<Ipv6>>(packet),
        Family::Other => pass(),
    }
}

/// For devices that carry bare IP packets: tun, WireGuard.
#[classifier]
pub(crate) fn ingress_ip_in(context: TcContext) -> i32 {
    let packet = Packet::new(&context);
    if admission::policy().is_some() && refuse(packet, Unlinked(packet)) {
        return TC_ACT_SHOT;
    }
    match packet.family() {
        Family::Ipv4 => take::<Bare<Ipv4>>(packet),
        Family::Ipv6 => take::<Bare<Ipv6>>(packet),
        Family::Other => pass(),
    }
}

#[inline(always)]
fn pass() -> i32 {
    count(Verdict::Miss);
    TC_ACT_UNSPEC
}

/// Not admitted.
#[inline(never)]
fn refuse<B: Bytes>(packet: Packet, bytes: B) -> bool {
    let Some(verdict) = admission::on_tc(&packet, &bytes) else { return false };
    count(verdict);
    tell_drop(packet, verdict);
    true
}

/// Flows first, all else then: one after the other, because a program has 512 bytes of stack in all, and a splice needs most
/// of them. So each is a function of its own, for each family.
#[inline(always)]
fn take<L: Layout>(packet: Packet) -> i32 {
    match handle::<L>(packet) {
        BEGINS => begin::<L>(packet, false),
        BEGINS_AGAIN => begin::<L>(packet, true),
        ODD => match too_big::<L>(packet) {
            ODD => odd::<L>(packet),
            action => action,
        },
        action => action,
    }
}

/// Beside the kernel's `TC_ACT_*`: a SYN that is of no flow.
const BEGINS: i32 = -2;
/// A SYN on a flow that is over, and whose entry is gone now.
const BEGINS_AGAIN: i32 = -3;
/// Not plain TCP.
const ODD: i32 = -4;

#[inline(never)]
fn handle<L: Layout>(packet: Packet) -> i32 {
    match judge::<L>(&packet) {
        Judgement::Final(verdict, exit) => act::<L>(packet, verdict, exit),
        Judgement::Begins => BEGINS,
        Judgement::BeginsAgain => BEGINS_AGAIN,
        Judgement::Odd => ODD,
    }
}

/// Like [`handle`], of a SYN that no flow claims.
#[inline(never)]
fn begin<L: Layout>(packet: Packet, again: bool) -> i32 {
    let verdict = new_connection::<L>(&packet);
    let passed = verdict.action() == Action::Pass;
    act::<L>(packet, if again && passed { Verdict::SynOnEnded } else { verdict }, Exit::NONE)
}

/// TCP with IP options or extension headers, or in fragments: never spliced, and of a live flow never the stack's either.
#[inline(never)]
fn odd<L: Layout>(packet: Packet) -> i32 {
    let Some((key, odd)) = packet.odd::<L>() else { return pass() };
    // SAFETY: entries are never changed after they were inserted.
    if unsafe { FLOWS.get(&key) }.is_none() {
        return pass();
    }
    let verdict = match odd {
        Odd::Options => Verdict::DropIpOptions,
        Odd::Fragment => Verdict::DropFragment,
    };
    act::<L>(packet, verdict, Exit::NONE)
}

/// A router's word about a packet that we have sent on. Of a packet that our own stack has sent, it is the stack's.
#[inline(never)]
fn too_big<L: Layout>(packet: Packet) -> i32 {
    let Some((ip, message)) = packet.too_big::<L>() else { return ODD };
    // SAFETY: both lie within the packet.
    let (outer, message) = unsafe { (&*ip, &*message) };
    if !is_to_sender(outer, &message.ip) || !message.is_meant() {
        return ODD;
    }
    // SAFETY: entries are never changed after they were inserted.
    let Some(entry) = (unsafe { FLOWS.get(&message.answered_by()) }) else { return ODD };
    let Some(connection) = CONNECTIONS.get(entry.slot) else { return act::<L>(packet, Verdict::DropStale, Exit::NONE) };
    let back = if entry.direction == Direction::ToBackend as u32 { Direction::ToBackend } else { Direction::ToClient };
    let verdict = judge_too_big(outer, message, entry, connection, back);
    if verdict.action() != Action::Redirect {
        return act::<L>(packet, verdict, Exit::NONE);
    }
    let translation = Translation::of(connection, back);
    let rewritten = packet.rewrite_too_big::<L>(|ip, message| {
        let header = message.apply(&translation);
        let Readdressed { pseudo, uncovered } =
            ip.forward(&translation.source.address, &translation.destination.address);
        Difference { pseudo, header, uncovered }
    });
    let exit = Exit::of(connection, entry.slot, back);
    act::<L>(packet, if rewritten.is_some() { verdict } else { Verdict::DropRewriteFailed }, exit)
}

#[inline(always)]
fn judge_too_big<I: Ip>(
    outer: &I,
    message: &TooBig<I>,
    entry: &FlowEntry,
    connection: &Connection,
    back: Direction,
) -> Verdict {
    let live = matches!(State::from_u32(connection.state), Some(State::Armed | State::Spliced | State::Draining));
    if connection.generation != entry.generation || !live {
        return Verdict::DropStale;
    }
    let quoted = quoted_direction(back);
    match quoted {
        // The first flight is our own socket's until it is acknowledged.
        Direction::ToBackend if connection.from_backend.flags & FIRST_FLIGHT_ACKED == 0 => Verdict::ToLocalSocket,
        Direction::ToBackend | Direction::ToClient if !message.is_in_flight(connection, quoted) => Verdict::DropTooBig,
        Direction::ToBackend | Direction::ToClient if outer.hops() <= 1 => Verdict::DropTtl,
        Direction::ToBackend | Direction::ToClient => Verdict::TooBigReturned,
    }
}

#[inline(always)]
fn act<L: Layout>(packet: Packet, verdict: Verdict, exit: Exit) -> i32 {
    let redirect = verdict.action() == Action::Redirect;
    let verdict =
        if redirect && packet.complete_for_redirect::<L>().is_none() { Verdict::DropRewriteFailed } else { verdict };
    count(verdict);
    match verdict.action() {
        Action::Pass => TC_ACT_UNSPEC,
        Action::Drop => {
            tell_drop(packet, verdict);
            TC_ACT_SHOT
        }
        Action::Redirect => {
            // Somebody's before us may have set one. It would take part in the lookup, and nobody has asked for the way of a marked packet.
            packet.clear_mark();
            exit.by_neighbour()
        }
        Action::Reflect => exit.as_it_is(),
    }
}

#[inline(never)]
fn tell_drop(packet: Packet, verdict: Verdict) {
    debug!(
        &TcContext::new(packet.raw()),
        "dropped on ingress: verdict {}, device {}, {} bytes",
        verdict as u32,
        packet.device(),
        packet.len()
    );
}

enum Judgement {
    Final(Verdict, Exit),
    Begins,
    BeginsAgain,
    Odd,
}

#[inline(always)]
fn judge<L: Layout>(packet: &Packet) -> Judgement {
    match packet.look::<L>() {
        Look::Plain => {}
        Look::Odd => return Judgement::Odd,
        Look::Other => return Judgement::Final(Verdict::Miss, Exit::NONE),
    }
    let Some((plain, key)) = packet.plain::<L>() else { return Judgement::Final(Verdict::Miss, Exit::NONE) };
    let kind = plain.tcp.flags & (SYN | ACK | FIN | RST);
    if kind == SYN | ACK {
        note_answer(&key, u32::from_be(plain.tcp.seq).wrapping_add(1), u32::from_be(plain.tcp.ack));
    }
    // SAFETY: entries are never changed after they were inserted.
    let Some(entry) = (unsafe { FLOWS.get(&key) }) else {
        return if kind == SYN { Judgement::Begins } else { Judgement::Final(Verdict::Miss, Exit::NONE) };
    };
    let entry = *entry;
    let Some(connection) = CONNECTIONS.get_ptr_mut(entry.slot) else {
        return Judgement::Final(Verdict::DropStale, Exit::NONE);
    };
    // SAFETY: array map values live as long as the map. Words are written by one side each, and by several CPUs of the kernel's side
    // only as `raise` does it; a torn view of two words is possible and harmless, since every decision rests on one of them.
    let connection = unsafe { &mut *connection };
    if connection.generation != entry.generation {
        return Judgement::Final(Verdict::DropStale, Exit::NONE);
    }
    if connection.state == State::Moving as u32 {
        return Judgement::Final(Verdict::DropMoving, Exit::NONE);
    }
    if plain.tcp.flags & SYN != 0 && is_over(connection) {
        give_away(&key, &entry, connection);
        return if kind == SYN { Judgement::BeginsAgain } else { Judgement::Final(Verdict::SynOnEnded, Exit::NONE) };
    }
    let (verdict, exit) = on_flow::<L>(packet, &plain, &entry, connection);
    Judgement::Final(verdict, exit)
}

/// Either end may use its port again: ended, or cut, the connection has no more claim to it.
#[inline(always)]
fn is_over(connection: &Connection) -> bool {
    connection.state == State::Cut as u32
        || Connection::ended(connection.from_client.flags, connection.from_backend.flags)
}

/// The tuple of a connection that is over begins a new one. The daemon sees that the entry is no longer the old one's to remove.
#[inline(always)]
fn give_away(key: &FlowKey, entry: &FlowEntry, connection: &mut Connection) {
    let half = if entry.direction == Direction::ToBackend as u32 {
        &mut connection.from_client
    } else {
        &mut connection.from_backend
    };
    set(half, REUSED);
    let _ = FLOWS.remove(key);
}

#[inline(always)]
fn on_flow<L: Layout>(
    packet: &Packet,
    plain: &Plain,
    entry: &FlowEntry,
    connection: &mut Connection,
) -> (Verdict, Exit) {
    let header_len = plain.tcp.header_len();
    if header_len < TCP_LEN || plain.segment_len < header_len as u32 {
        return (Verdict::DropMalformed, Exit::NONE);
    }
    let len = plain.segment_len - header_len as u32;
    let flags = plain.tcp.flags;

    match State::from_u32(connection.state) {
        Some(State::Armed | State::Spliced | State::Draining) => {}
        Some(State::Cut) => return (answer_with_rst::<L>(packet, plain, len), Exit::by(packet.device())),
        Some(State::Free | State::Moving) | None => return (Verdict::DropStale, Exit::NONE),
    }
    if plain.hops <= 1 {
        return (Verdict::DropTtl, Exit::NONE);
    }

    let direction =
        if entry.direction == Direction::ToBackend as u32 { Direction::ToBackend } else { Direction::ToClient };
    if flags & SYN != 0
        && let Some(verdict) = on_syn(plain, direction, connection)
    {
        return (verdict, Exit::NONE);
    }

    let seq = u32::from_be(plain.tcp.seq);
    let ack = u32::from_be(plain.tcp.ack);
    let window = u16::from_be(plain.tcp.window) as u32;
    let (seen, first_ack) = match direction {
        Direction::ToBackend => {
            (proof::Packet { seq, ack, len, flags, window: window << (connection.scale.client & 15) }, false)
        }
        Direction::ToClient => {
            let acked = connection.from_backend.flags & FIRST_FLIGHT_ACKED != 0;
            if !acked && flags & RST == 0 && before(ack, connection.min_ack) {
                let pure_ack = len == 0 && flags & FIN == 0;
                return (if pure_ack { Verdict::ToLocalSocket } else { Verdict::DropEarlyData }, Exit::NONE);
            }
            if !acked {
                // Our socket sent the first flight, so no packet of the client has shown its end.
                let sent = connection.min_ack.wrapping_sub(connection.to_backend_delta);
                let window_end = connection.from_client.window_end;
                reach(&mut connection.from_client, sent, window_end);
            }
            let seen = proof::Packet {
                seq: seq.wrapping_add(connection.to_client_delta),
                ack: ack.wrapping_sub(connection.to_backend_delta),
                len,
                flags,
                window: window << (connection.scale.backend & 15),
            };
            (seen, !acked)
        }
    };

    // SAFETY: a plain call.
    let now = unsafe { bpf_ktime_get_ns() };
    let (own, other) = match direction {
        Direction::ToBackend => (&mut connection.from_client, &connection.from_backend),
        Direction::ToClient => (&mut connection.from_backend, &connection.from_client),
    };
    let ended_before = Connection::ended(own.flags, other.flags);
    let proven = observe(own, other, &seen, now);
    if proven && first_ack && flags & RST == 0 {
        set(own, FIRST_FLIGHT_ACKED);
        tell(Kind::FirstFlightAcked, entry.slot, entry.generation, 0);
    }
    if !ended_before && Connection::ended(own.flags, other.flags) {
        tell(Kind::Ended, entry.slot, entry.generation, 0);
    }
    let start = own.start;
    let exit = Exit::of(connection, entry.slot, direction);
    if is_too_big_for(*packet, L::LINK as u32, <L::Ip as Ip>::LEN as u32 + header_len as u32, exit.device) {
        if proven {
            tell(Kind::Narrow, entry.slot, entry.generation, entry.direction);
        }
        return (Verdict::DropNarrow, Exit::NONE);
    }

    if packet.segment_payload() != 0
        && admission::device(packet.device()) & DEVICE_LISTS != 0
        && packet.break_list(L::TCP as u32 + header_len as u32).is_none()
    {
        return (Verdict::DropRewriteFailed, Exit::NONE);
    }
    let translation = Translation::of(connection, direction);
    if packet.rewrite::<L>(|ip, tcp| translation.apply(ip, tcp)).is_none() {
        return (Verdict::DropRewriteFailed, Exit::NONE);
    }
    if header_len > TCP_LEN
        && translate_sack(
            place::<L>(packet),
            header_len,
            translation.ack_delta,
            receiver_start(start, direction, connection),
            ack.wrapping_add(translation.ack_delta),
        )
        .is_none()
    {
        return (Verdict::DropRewriteFailed, Exit::NONE);
    }
    match direction {
        _ if !proven => (Verdict::SplicedUnproven, exit),
        Direction::ToBackend => (Verdict::SplicedToBackend, exit),
        Direction::ToClient => (Verdict::SplicedToClient, exit),
    }
}

/// Both handshakes agreed on segments that fit, so this happens where a device's MTU is lowered afterwards. `link` and `headers`:
/// bytes before IP, and of IP and TCP.
// A stack frame of its own: a program has 512 bytes, and the splice needs most of them.
#[inline(never)]
fn is_too_big_for(packet: Packet, link: u32, headers: u32, device: u32) -> bool {
    let carried = packet.len().wrapping_sub(link);
    if carried <= SMALLEST_MTU {
        return false;
    }
    // Of a packet that is yet to be cut into segments, each of those has to fit.
    let largest = match packet.segment_payload() {
        0 => carried,
        payload => headers.wrapping_add(payload),
    };
    let mut mtu = 0;
    // SAFETY: the helper writes the device's MTU. What it says of the packet itself counts other headers.
    unsafe { bpf_check_mtu(packet.raw().cast(), device, &raw mut mtu, 0, 0) };
    mtu != 0 && largest > mtu
}

/// Every IPv4 host takes packets of this size (RFC 791): nobody is asked about smaller ones.
const SMALLEST_MTU: u32 = 576;

/// Where the acknowledged stream begins, in the numbers of whoever receives the acknowledgement.
#[inline(always)]
fn receiver_start(start: u32, direction: Direction, connection: &Connection) -> u32 {
    match direction {
        Direction::ToBackend => start.wrapping_sub(connection.to_client_delta),
        Direction::ToClient => start,
    }
}

/// A SYN on the tuple of a live flow. `None`: the client's goes to the backend, as any router would send it; the answer is a
/// challenge ACK, by which a client that lost its state ends the old connection (RFC 5961 section 4).
#[inline(always)]
fn on_syn(plain: &Plain, direction: Direction, connection: &Connection) -> Option<Verdict> {
    match direction {
        Direction::ToBackend if plain.tcp.flags & ACK == 0 => None,
        // The answer to our own SYN, sent again: it belongs to our socket as long as there is one.
        Direction::ToClient if connection.from_backend.flags & FIRST_FLIGHT_ACKED == 0 => Some(Verdict::ToLocalSocket),
        Direction::ToBackend | Direction::ToClient => Some(Verdict::DropSyn),
    }
}

/// A backend answers our SYN: completes what is remembered of it. The stack, behind us, takes the first answer that is whole;
/// which one that was is only certain as long as all say the same.
// A stack frame of its own: a program has 512 bytes, and the splice needs most of them.
#[inline(never)]
fn note_answer(key: &FlowKey, remote_next: u32, ack: u32) {
    // SAFETY: a copy; a mixed one of an entry that is replaced meanwhile does not fit the answer.
    let Some(mut seen) = (unsafe { NOTES.get(key) }).copied() else { return };
    if seen.flags & SYN_OURS == 0 || seen.flags & SYN_AGAIN != 0 || seen.local_next != ack {
        return;
    }
    if seen.flags & SYN_NUMBERS == 0 {
        seen.remote_next = remote_next;
        seen.flags |= SYN_NUMBERS;
    } else if seen.remote_next != remote_next {
        seen.flags = seen.flags & !SYN_NUMBERS | SYN_AGAIN;
    } else {
        return;
    }
    // Not in place: the memory of an evicted entry may already be another handshake's.
    let _ = NOTES.insert(key, seen, EXIST);
}

/// A SYN without a flow, or on one that is over. For a listener, it is made ready for a later handoff: no timestamps, no ECN.
#[inline(always)]
fn new_connection<L: Layout>(packet: &Packet) -> Verdict {
    let Some((Plain { tcp, .. }, key)) = packet.plain::<L>() else { return Verdict::Miss };
    let mut listener = ListenerKey { address: key.destination, port: key.destination_port, reserved: [0; 2] };
    // SAFETY: entries are never changed after they were inserted.
    if unsafe { LISTENERS.get(&listener) }.is_none() {
        listener.address = [0; 16];
        // SAFETY: as above.
        if unsafe { LISTENERS.get(&listener) }.is_none() {
            return Verdict::Miss;
        }
    }
    let header_len = tcp.header_len();
    if header_len < TCP_LEN {
        return Verdict::Miss;
    }
    let mut flags = 0;
    if tcp.flags & (ECE | CWR) != 0 || tcp.offset & AE != 0 {
        if packet.rewrite::<L>(clear_ecn).is_none() {
            return Verdict::DropRewriteFailed;
        }
        flags |= SYN_ECN_CLEARED;
    }
    let Some(found) = prepare_syn(place::<L>(packet), header_len, Limits::default()) else {
        return Verdict::DropRewriteFailed;
    };
    if found.timestamp {
        flags |= SYN_TIMESTAMP_REMOVED;
    }
    if found.sack_permitted {
        flags |= SYN_SACK;
    }
    let remote_next = u32::from_be(tcp.seq).wrapping_add(1);
    let (mut left_by, mut mark) = (0, 0);
    // SAFETY: a copy; of an entry that is replaced meanwhile, a mixed one at worst, which is as unknown as none.
    if let Some(earlier) = unsafe { NOTES.get(&key) }
        && earlier.remote_next == remote_next
    {
        flags |= SYN_AGAIN;
        (left_by, mark) = (earlier.left_by, earlier.mark);
    }
    let seen = SynSeen { ifindex: packet.arrived_on(), left_by, mark, flags, local_next: 0, remote_next };
    let _ = NOTES.insert(&key, seen, 0);
    Verdict::SynPrepared
}

#[inline(always)]
fn clear_ecn<I>(_ip: &mut I, tcp: &mut Tcp) -> Difference {
    let (offset, flags) = (tcp.offset, tcp.flags);
    tcp.flags &= !(ECE | CWR);
    tcp.offset &= !AE;
    let mut sum = Sum::default();
    sum.replace16(u16::from_ne_bytes([offset, flags]), u16::from_ne_bytes([tcp.offset, tcp.flags]));
    Difference { header: sum.fold32(), ..Difference::default() }
}

/// Turns the packet into an RST to its sender: addresses and ports change places (which no checksum notices), the number is
/// the one that the sender itself expects. Payload stays: an RST may carry it (RFC 1122 section 4.2.2.12), and so the
/// checksum needs no second look at it.
#[inline(always)]
fn answer_with_rst<L: Layout>(packet: &Packet, plain: &Plain, len: u32) -> Verdict {
    if plain.tcp.has(RST) || !plain.tcp.has(ACK) {
        return Verdict::DropStale;
    }
    let fin = plain.tcp.has(FIN) as u32;
    let written = packet.rewrite::<L>(|ip, tcp| {
        let old = *tcp;
        let end = u32::from_be(old.seq).wrapping_add(len).wrapping_add(fin);
        ip.turn_around();
        tcp.source_port = old.destination_port;
        tcp.destination_port = old.source_port;
        tcp.seq = old.ack;
        tcp.ack = end.to_be();
        tcp.flags = RST | ACK;
        tcp.window = 0;
        let mut sum = Sum::default();
        // seq := ack leaves the sum as if the old seq had been replaced by the new ack.
        sum.replace32(old.seq, tcp.ack);
        sum.replace16(u16::from_ne_bytes([old.offset, old.flags]), u16::from_ne_bytes([tcp.offset, tcp.flags]));
        sum.replace16(old.window, 0);
        Difference { header: sum.fold32(), ..Difference::default() }
    });
    if written.is_none() || packet.swap_ethernet_addresses::<L>().is_none() {
        return Verdict::DropRewriteFailed;
    }
    Verdict::CutAnswered
}

#[inline(always)]
fn place<L: Layout>(packet: &Packet) -> Place {
    Place { skb: packet.raw(), tcp: L::TCP as u32 }
}
