//! Turns a packet of one leg into a packet of the other: addresses, ports, numbers, window, checksums, hops left.
//!
//! TCP checksums are never computed here: the caller gets differences and applies them as the kernel's
//! `bpf_l4_csum_replace` does, which also knows packets whose checksum the device will fill in (CHECKSUM_PARTIAL).

use crate::connection::{Connection, Endpoint, WindowScales};
use crate::flow::Direction;
use crate::header::{ACK, SYN, Tcp};
use crate::ip::{Ip, Readdressed};

/// Everything that changes in a packet of one direction.
#[derive(Clone, Copy, Debug)]
pub struct Translation<'a> {
    pub source: &'a Endpoint,
    pub destination: &'a Endpoint,
    /// Added to sequence numbers.
    pub seq_delta: u32,
    /// Added to acknowledgement numbers and SACK edges.
    pub ack_delta: u32,
    /// The sender's own window scale.
    pub scale_up: u8,
    /// The scale that the receiver believes in.
    pub scale_down: u8,
}

/// One's complement differences (new minus old) for `bpf_l4_csum_replace` with a zero `from` and size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Of the pseudo header: needs `BPF_F_PSEUDO_HDR`.
    pub pseudo: u32,
    /// Of the TCP header.
    pub header: u32,
    /// For `bpf_csum_update`, which repairs the sum over the whole packet that some devices deliver (CHECKSUM_COMPLETE). Zero
    /// for IPv4: its header has a checksum.
    pub uncovered: u32,
}

/// Adds up differences in one's complement (RFC 1624).
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// A 32-bit word in network order, at an even distance from the start of what is summed.
    #[inline(always)]
    pub fn replace32(&mut self, old: u32, new: u32) {
        self.0 += !old as u64 + new as u64;
    }

    /// A 16-bit word in network order, likewise.
    #[inline(always)]
    pub fn replace16(&mut self, old: u16, new: u16) {
        self.0 += !old as u64 + new as u64;
    }

    /// As `__wsum`.
    #[inline(always)]
    pub fn fold32(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }
}

/// The checksum field after `difference` (kernel: `csum_replace_by_diff`).
#[inline(always)]
pub fn apply(check: u16, difference: u32) -> u16 {
    let mut sum = !check as u32 as u64 + difference as u64;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The difference of a word that stands at an odd distance: bytes swap places (RFC 1071 section 2).
#[inline(always)]
pub const fn at_odd_offset(difference: u32) -> u32 {
    difference.rotate_right(8)
}

/// The window field of a packet, from the sender's scale to the scale that the receiver applies (RFC 7323 section 2.3).
/// An open window never becomes a closed one.
#[inline(always)]
pub fn window(field: u16, up: u8, down: u8) -> u16 {
    let bytes = (field as u32) << (up & 15);
    let scaled = bytes >> (down & 15);
    if scaled > 0xffff {
        0xffff
    } else if scaled == 0 && field != 0 {
        1
    } else {
        scaled as u16
    }
}

impl<'a> Translation<'a> {
    /// For packets of `connection` that go in `direction`.
    #[inline(always)]
    pub fn of(connection: &'a Connection, direction: Direction) -> Self {
        let WindowScales { client, to_client, backend, to_backend } = connection.scale;
        let (source, destination) = match direction {
            Direction::ToBackend => (&connection.source, &connection.backend),
            Direction::ToClient => (&connection.local, &connection.client),
        };
        let (seq_delta, opposite, scale_up, scale_down) = match direction {
            Direction::ToBackend => (connection.to_backend_delta, connection.to_client_delta, client, to_backend),
            Direction::ToClient => (connection.to_client_delta, connection.to_backend_delta, backend, to_client),
        };
        Self { source, destination, seq_delta, ack_delta: opposite.wrapping_neg(), scale_up, scale_down }
    }

    /// Rewrites both headers; an IPv4 checksum is right afterwards, the TCP checksum is left to the caller. There must be more
    /// than one hop left.
    #[inline(always)]
    pub fn apply<I: Ip>(&self, ip: &mut I, tcp: &mut Tcp) -> Difference {
        let Readdressed { pseudo, uncovered } = ip.forward(&self.source.address, &self.destination.address);
        let mut sum = Sum::default();
        let (source_port, destination_port) =
            (u16::from_ne_bytes(self.source.port), u16::from_ne_bytes(self.destination.port));
        sum.replace16(tcp.source_port, source_port);
        tcp.source_port = source_port;
        sum.replace16(tcp.destination_port, destination_port);
        tcp.destination_port = destination_port;
        let seq = u32::from_be(tcp.seq).wrapping_add(self.seq_delta).to_be();
        sum.replace32(tcp.seq, seq);
        tcp.seq = seq;
        if tcp.has(ACK) {
            let ack = u32::from_be(tcp.ack).wrapping_add(self.ack_delta).to_be();
            sum.replace32(tcp.ack, ack);
            tcp.ack = ack;
        }
        if !tcp.has(SYN) {
            let scaled = window(u16::from_be(tcp.window), self.scale_up, self.scale_down).to_be();
            sum.replace16(tcp.window, scaled);
            tcp.window = scaled;
        }
        Difference { pseudo, header: sum.fold32(), uncovered }
    }
}

/// The sum of two differences.
#[inline(always)]
pub fn fold_pair(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// One SACK block, translated. Numbers in host order; `start` is where the acknowledged stream begins for its sender: a
/// DSACK block (RFC 2883) below it speaks of the PROXY header or of a retransmitted hello, which the client never sent so.
///
/// `None`: the block says nothing that the receiver could understand.
#[inline(always)]
pub fn sack_block(left: u32, right: u32, ack_delta: u32, start: u32, ack: u32) -> Option<(u32, u32)> {
    let (left, right) = (left.wrapping_add(ack_delta), right.wrapping_add(ack_delta));
    let near_start = ack.wrapping_sub(start) < 1 << 30;
    if !near_start || !before(left, start) {
        return Some((left, right));
    }
    if before(start, right) { Some((start, right)) } else { None }
}

/// `a` comes before `b` in sequence space (RFC 9293 section 3.4).
#[inline(always)]
pub const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests;
