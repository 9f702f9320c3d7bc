//! ICMP's "packet too big": a router on one leg speaks to us of a packet that an end of the other leg has sent.
//!
//! It quotes the packet as it was on its leg (RFC 792, RFC 4443 section 3.2). With addresses, ports and number as on the other leg,
//! it is what the sender has to hear.

use crate::connection::Connection;
use crate::flow::{Direction, FlowKey};
use crate::ip::Ip;
use crate::rewrite::{Translation, before};

/// What follows the IP header of such a message, as far as every router quotes: RFC 792 grants 8 bytes of the quoted payload.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TooBig<I> {
    pub kind: u8,
    pub code: u8,
    pub check: u16,
    /// The MTU that did not suffice, in the last two bytes (RFC 1191 section 4) or all four.
    pub mtu: u32,
    pub ip: I,
    pub source_port: u16,
    pub destination_port: u16,
    pub seq: u32,
}

impl<I: Ip> TooBig<I> {
    /// Whether this is one at all, and quotes plain TCP.
    #[inline(always)]
    pub fn is_meant(&self) -> bool {
        (self.kind, self.code) == I::TOO_BIG && self.ip.is_plain_tcp()
    }

    /// The key of the packets that answer the quoted one: they come from where it could not get through to.
    #[inline(always)]
    pub fn answered_by(&self) -> FlowKey {
        let (source, destination) = self.ip.addresses();
        FlowKey::new(destination, source, self.destination_port, self.source_port)
    }

    /// Only who sees the connection knows a number that is under way (RFC 5927 section 4). `quoted` is where the packet was going.
    #[inline(always)]
    pub fn is_in_flight(&self, connection: &Connection, quoted: Direction) -> bool {
        let seq = u32::from_be(self.seq);
        let (seq, sender, receiver) = match quoted {
            Direction::ToBackend => {
                (seq.wrapping_sub(connection.to_backend_delta), &connection.from_client, &connection.from_backend)
            }
            Direction::ToClient => (seq, &connection.from_backend, &connection.from_client),
        };
        !before(seq, receiver.acked as u32) && before(seq, sender.high)
    }

    /// As the sender knows its packet. `back` is the translation of packets that go to that sender. Returns the difference of what
    /// ICMP's checksum covers. TCP's own checksum, where it is quoted, stays as it was: nobody can check it without the payload.
    #[inline(always)]
    pub fn apply(&mut self, back: &Translation<'_>) -> u32 {
        let mut sum = self.ip.readdress(&back.destination.address, &back.source.address);
        let ports = (u16::from_ne_bytes(back.destination.port), u16::from_ne_bytes(back.source.port));
        sum.replace16(self.source_port, ports.0);
        sum.replace16(self.destination_port, ports.1);
        (self.source_port, self.destination_port) = ports;
        let seq = u32::from_be(self.seq).wrapping_add(back.ack_delta).to_be();
        sum.replace32(self.seq, seq);
        self.seq = seq;
        sum.fold32()
    }
}

/// Where the quoted packet was going, by the direction of those that answer it.
#[inline(always)]
pub const fn quoted_direction(answer: Direction) -> Direction {
    match answer {
        Direction::ToBackend => Direction::ToClient,
        Direction::ToClient => Direction::ToBackend,
    }
}

/// The outer header: from a router to the sender of the quoted packet.
#[inline(always)]
pub fn is_to_sender<I: Ip>(outer: &I, quoted: &I) -> bool {
    outer.addresses().1 == quoted.addresses().0 && outer.is_plain(I::ICMP)
}

const _: () = assert!(size_of::<TooBig<crate::header::Ipv4>>() == 36);
const _: () = assert!(size_of::<TooBig<crate::header::Ipv6>>() == 56);
