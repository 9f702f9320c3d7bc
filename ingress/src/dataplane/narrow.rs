//! Tells a sender that its packets do not fit the device by which we would send them on: its MTU was lowered while the
//! connection ran. A router would say so by ICMP's "packet too big", and so do we, in the words of the sender's own leg.
//!
//! The kernel has dropped the packet; it comes again in smaller pieces.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use ingress_ebpf::connection::Connection;
use ingress_ebpf::flow::Direction;
use ingress_ebpf::header::{IPPROTO_TCP, IPV4_LEN, IPV6_LEN, Ipv4, Ipv6};
use ingress_ebpf::ip::Ip;

use super::devices;
use super::flows::{Flows, is_live};
use super::reset::{Resetter, checksum, ip_header, socket_address};
use super::slots::SlotId;

/// Packets that do not fit come in bursts, and one word is enough for each.
#[derive(Debug, Default)]
pub(super) struct Narrow(HashSet<(u32, u32, u32)>);

/// Senders that are told at one time. The others come again.
const AT_ONCE: usize = 512;

impl Narrow {
    /// A packet of this connection that went in `direction` did not fit.
    pub(super) fn note(&mut self, slot: SlotId, direction: u32) {
        if self.0.len() < AT_ONCE {
            self.0.insert((slot.index, slot.generation, direction));
        }
    }
}

impl Flows {
    pub(super) fn tell_narrow(&self, narrow: &mut Narrow) {
        for (index, generation, direction) in narrow.0.drain() {
            let Some(connection) = self.slots.get(SlotId { index, generation }).filter(is_live) else { continue };
            let direction =
                if direction == Direction::ToBackend as u32 { Direction::ToBackend } else { Direction::ToClient };
            if let Err(error) = tell(&self.resetter, &connection, direction) {
                tracing::debug!(%error, id = connection.id, "a sender was not told that its packets are too big");
            }
        }
    }
}

fn tell(resetter: &Resetter, connection: &Connection, direction: Direction) -> io::Result<()> {
    let mtu = devices::mtu(connection.ifindex[direction as usize & 1])?;
    let Sent { from, to, seq } = Sent::last(connection, direction);
    resetter.deliver(from, &message(from, to, seq, mtu))
}

/// A packet as its sender knows it.
struct Sent {
    from: SocketAddr,
    to: SocketAddr,
    /// The first number that is not acknowledged: it is under way, or the packet would not have come.
    seq: u32,
}

impl Sent {
    fn last(connection: &Connection, direction: Direction) -> Self {
        let (from, to, seq) = match direction {
            Direction::ToBackend => (&connection.client, &connection.local, connection.from_backend.acked as u32),
            Direction::ToClient => {
                let acked = connection.from_client.acked as u32;
                (&connection.backend, &connection.source, acked.wrapping_sub(connection.to_client_delta))
            }
        };
        Self { from: socket_address(from), to: socket_address(to), seq }
    }
}

/// With its IP header: to `from`, whose packet to `to` did not fit.
fn message(from: SocketAddr, to: SocketAddr, seq: u32, mtu: u32) -> Vec<u8> {
    let mut tcp = [0; 8];
    tcp[0..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    // As long as it was at least.
    let quoted_len = mtu.saturating_add(1);
    let quoted = ip_header(from.ip(), to.ip(), IPPROTO_TCP, quoted_len.saturating_sub(header_len(from)));
    // RFC 1191 section 4: the MTU is the last half of the second word; RFC 4443 section 3.2: all of it.
    let (kind, code) = if from.is_ipv4() { <Ipv4 as Ip>::TOO_BIG } else { <Ipv6 as Ip>::TOO_BIG };
    let word = if from.is_ipv4() { mtu.min(u32::from(u16::MAX)) } else { mtu };
    let mut icmp = vec![kind, code, 0, 0];
    icmp.extend(word.to_be_bytes());
    icmp.extend(quoted);
    icmp.extend(tcp);
    let protocol = if from.is_ipv4() { <Ipv4 as Ip>::ICMP } else { <Ipv6 as Ip>::ICMP };
    let check = match (to.ip(), from.ip()) {
        // ICMP's checksum covers a pseudo header in IPv6 only (RFC 4443 section 2.3).
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let pseudo = [source.octets(), destination.octets()].concat();
            checksum(&[&pseudo[..], &icmp].concat(), u32::from(protocol) + icmp.len() as u32)
        }
        (IpAddr::V4(_) | IpAddr::V6(_), IpAddr::V4(_) | IpAddr::V6(_)) => checksum(&icmp, 0),
    };
    icmp[2..4].copy_from_slice(&check.to_be_bytes());
    let mut packet = ip_header(to.ip(), from.ip(), protocol, icmp.len() as u32);
    packet.extend(icmp);
    packet
}

fn header_len(address: SocketAddr) -> u32 {
    (if address.is_ipv4() { IPV4_LEN } else { IPV6_LEN }) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    use ingress_ebpf::connection::Half;
    use ingress_ebpf::too_big::TooBig;

    use crate::dataplane::reset::endpoint;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("test address")
    }

    fn connection(ends: [&str; 4]) -> Connection {
        let [client, local, source, backend] = ends.map(|end| endpoint(address(end)));
        Connection {
            client,
            local,
            source,
            backend,
            to_backend_delta: 1_000,
            to_client_delta: 2_000_000,
            from_client: Half { acked: (1 << 32) + 5_000_000, high: 40_000, ..Half::default() },
            from_backend: Half { acked: 30_000, high: 5_009_000, ..Half::default() },
            ..Connection::default()
        }
    }

    /// Reads a message as the programs read those of other routers.
    fn read<I: Ip>(packet: &[u8]) -> (I, TooBig<I>) {
        assert!(packet.len() >= size_of::<I>() + size_of::<TooBig<I>>());
        // SAFETY: long enough, and any bytes are valid headers.
        unsafe {
            (
                packet.as_ptr().cast::<I>().read_unaligned(),
                packet.as_ptr().add(I::LEN).cast::<TooBig<I>>().read_unaligned(),
            )
        }
    }

    fn speaks_of_what_is_under_way<I: Ip>(ends: [&str; 4]) {
        let connection = connection(ends);
        for (direction, seq) in [(Direction::ToBackend, 30_000), (Direction::ToClient, 3_000_000)] {
            let Sent { from, to, seq: first } = Sent::last(&connection, direction);
            assert_eq!(first, seq, "{direction:?}");
            let packet = message(from, to, first, 1_400);
            let (outer, too_big) = read::<I>(&packet);
            assert!(too_big.is_meant() && ingress_ebpf::too_big::is_to_sender(&outer, &too_big.ip));
            assert_eq!(u32::from_be(too_big.mtu), 1_400);
            assert_eq!((u32::from_be(too_big.seq), too_big.source_port.to_be()), (seq, from.port()));
        }
        let backwards = Connection { to_backend_delta: 0, ..connection };
        let (_, too_big) = read::<I>(&message(address(ends[0]), address(ends[1]), 30_000, 1_400));
        assert!(too_big.is_in_flight(&backwards, Direction::ToBackend));
    }

    #[test]
    fn a_message_quotes_what_its_receiver_has_sent_and_nobody_has_acknowledged() {
        speaks_of_what_is_under_way::<Ipv4>(["203.0.113.9:50000", "192.0.2.1:443", "10.0.0.1:20000", "10.0.0.2:8443"]);
        speaks_of_what_is_under_way::<Ipv6>([
            "[2001:db8:9::9]:50000",
            "[2001:db8::1]:443",
            "[2001:db8:a::1]:20000",
            "[2001:db8:a::2]:8443",
        ]);
    }

    #[test]
    fn the_checksum_of_a_message_verifies() {
        let four = message(address("10.0.0.2:1"), address("10.0.0.1:2"), 7, 1_280);
        assert_eq!(checksum(&four[IPV4_LEN..], 0), 0);
        let six = message(address("[2001:db8::2]:1"), address("[2001:db8::1]:2"), 7, 1_280);
        let seed = 58 + (six.len() - IPV6_LEN) as u32;
        assert_eq!(checksum(&six[8..], seed), 0, "with its pseudo header, whose addresses stand before it");
    }
}
