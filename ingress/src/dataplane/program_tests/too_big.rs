//! A router says that a packet of a flow was too big: its sender hears it in the words of its own leg, if the packet can be one.

use ingress_ebpf::connection::State;
use ingress_ebpf::header::{ETHERNET_LEN, IPV4_LEN};
use ingress_ebpf::verdict::Verdict;

use super::frame::checksum;
use super::rig::{CLIENT, LOCAL, Rig, SOURCE, connection, from_backend, from_client, packet, rig};

const ROUTER: &str = "198.51.100.77:0";
const MTU: u16 = 1_300;
const ICMP: u8 = 1;
/// From the start of the frame to the quoted packet.
const QUOTED: usize = ETHERNET_LEN + IPV4_LEN + 8;
/// IP header, ports and sequence number: all that RFC 792 grants.
const SHORTEST: usize = IPV4_LEN + 8;

/// What a router answers to the host of `to` about `sent`, a frame.
pub(super) fn too_big(to: &str, sent: &[u8]) -> Vec<u8> {
    quoting(to, &sent[ETHERNET_LEN..])
}

fn quoting(to: &str, quoted: &[u8]) -> Vec<u8> {
    let mut bytes = packet(ROUTER, to, 0, 0, b"").bytes();
    bytes.truncate(ETHERNET_LEN + IPV4_LEN);
    bytes[ETHERNET_LEN + 9] = ICMP;
    let [high, low] = MTU.to_be_bytes();
    bytes.extend([3, 4, 0, 0, 0, 0, high, low]);
    bytes.extend(quoted);
    let total_len = (bytes.len() - ETHERNET_LEN) as u16;
    bytes[16..18].copy_from_slice(&total_len.to_be_bytes());
    fill(&mut bytes, 24, 14..34);
    let end = bytes.len();
    fill(&mut bytes, 36, 34..end);
    bytes
}

fn fill(bytes: &mut [u8], at: usize, over: std::ops::Range<usize>) {
    bytes[at..at + 2].fill(0);
    let check = checksum(&bytes[over], 0);
    bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
}

/// Addresses, ports and number of a packet.
fn told(packet: &[u8]) -> [&[u8]; 2] {
    [&packet[12..20], &packet[20..28]]
}

/// A flow whose first flight is with the backend.
fn spliced(rig: &mut Rig) {
    rig.install(&connection(), State::Spliced);
    assert_eq!(rig.arrives(&from_backend(0, 0, b"").bytes()).verdict, Some(Verdict::SplicedToClient));
    rig.events();
}

#[test]
fn the_sender_hears_of_its_packet_as_it_sent_it() {
    let Some(mut rig) = rig() else { return };
    spliced(&mut rig);
    let large = [7; 1_400];
    let (sent_by_client, sent_by_backend) = (from_client(0, 0, &large).bytes(), from_backend(0, 0, &large).bytes());
    for (sent, to, from_us, to_sender) in
        [(sent_by_client, SOURCE, LOCAL, CLIENT), (sent_by_backend, LOCAL, SOURCE, super::rig::BACKEND)]
    {
        let forwarded = rig.arrives(&sent).bytes;
        for quoted in [SHORTEST, SHORTEST + 12, 548] {
            let before = rig.connection();
            let run = rig.arrives(&quoting(to, &forwarded[ETHERNET_LEN..][..quoted]));
            assert_eq!(run.verdict, Some(Verdict::TooBigReturned));
            let outer = packet(from_us, to_sender, 0, 0, b"").bytes();
            assert_eq!(run.bytes[26..34], outer[26..34], "from our address to the sender");
            assert_eq!(run.bytes[22], 63, "one hop less");
            assert_eq!(
                told(&run.bytes[QUOTED..]),
                told(&sent[ETHERNET_LEN..]),
                "the quoted packet is the sender's own"
            );
            assert_eq!(run.bytes[40..42], MTU.to_be_bytes());
            for (what, part) in [("outer header", 14..34), ("ICMP", 34..run.bytes.len()), ("quoted header", 42..62)] {
                assert_eq!(checksum(&run.bytes[part], 0), 0, "checksum of {what}");
            }
            let after = rig.connection();
            assert_eq!((after.from_client, after.from_backend), (before.from_client, before.from_backend));
        }
    }
}

#[test]
fn what_is_not_under_way_cannot_be_too_big() {
    let Some(mut rig) = rig() else { return };
    spliced(&mut rig);
    let sent = rig.arrives(&from_client(0, 0, &[7; 1_000]).bytes()).bytes;
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes[38..42].try_into().expect("four bytes"));
    let about = |offset: u32| {
        let mut forged = sent.clone();
        forged[38..42].copy_from_slice(&number(&sent).wrapping_add(offset).to_be_bytes());
        too_big(SOURCE, &forged)
    };
    for (offset, verdict) in [
        (0, Verdict::TooBigReturned),
        (999, Verdict::TooBigReturned),
        (1_000, Verdict::DropTooBig),
        (1 << 31, Verdict::DropTooBig),
        (1u32.wrapping_neg(), Verdict::DropTooBig),
    ] {
        assert_eq!(rig.arrives(&about(offset)).verdict, Some(verdict), "{offset}");
    }
    // All of it has arrived.
    assert_eq!(rig.arrives(&from_backend(0, 1_000, b"").bytes()).verdict, Some(Verdict::SplicedToClient));
    assert_eq!(rig.arrives(&about(0)).verdict, Some(Verdict::DropTooBig));
}

#[test]
fn what_quotes_no_flow_of_ours_is_the_stacks_business() {
    let Some(mut rig) = rig() else { return };
    spliced(&mut rig);
    let sent = rig.arrives(&from_client(0, 0, &[7; 1_000]).bytes()).bytes;
    let with = |at: usize, value: u8| {
        let mut bytes = too_big(SOURCE, &sent);
        bytes[at] = value;
        bytes
    };
    assert_eq!(rig.arrives(&too_big(LOCAL, &sent)).verdict, Some(Verdict::Miss), "not to the packet's sender");
    let strange = packet("10.0.0.1:20001", "10.0.0.2:8443", 1, 2, b"").bytes();
    assert_eq!(rig.arrives(&too_big(SOURCE, &strange)).verdict, Some(Verdict::Miss));
    for (what, bytes) in [
        ("an echo", with(34, 8)),
        ("port unreachable", with(35, 3)),
        ("quoted UDP", with(QUOTED + 9, 17)),
        ("quoted IP options", with(QUOTED, 0x46)),
        ("a quoted fragment", with(QUOTED + 7, 1)),
    ] {
        assert_eq!(rig.arrives_alone(&bytes), Some(Verdict::Miss), "{what}");
    }
    let mut short = too_big(SOURCE, &sent);
    short.truncate(QUOTED + SHORTEST - 1);
    assert_eq!(rig.arrives_alone(&short), Some(Verdict::Miss), "cut off");
}

#[test]
fn our_own_sockets_first_flight_is_the_stacks_business_too() {
    let Some(mut rig) = rig() else { return };
    rig.install(&connection(), State::Armed);
    let sent = rig.arrives(&from_client(0, 0, &[7; 1_000]).bytes()).bytes;
    assert_eq!(rig.arrives(&too_big(SOURCE, &sent)).verdict, Some(Verdict::ToLocalSocket));
    rig.set_state(State::Cut);
    assert_eq!(rig.arrives(&too_big(SOURCE, &sent)).verdict, Some(Verdict::DropStale));
}
