//! One handed-off connection: what the daemon fixed at the handoff, and what the packets have shown since.
//!
//! All sequence numbers are *client-side* numbers, those that the client sees on its wire, unless a field says otherwise.
//! The daemon and the kernel never write the same word: the daemon owns the first 128 bytes, each [`Half`] belongs to the
//! packets of one sender (and is only initialised by the daemon before the flow entries exist).

use crate::flow::Address;

/// Value of the array map `ingress_conns`, which the daemon maps into its memory. 256 bytes: two cache lines of constants,
/// then one line for each sender.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Connection {
    /// Moves all that follows, as a new field would.
    #[cfg(feature = "layout-probe")]
    pub probe: [u64; PROBE / 8],
    /// [`State`] as a number. Writer: daemon.
    pub state: u32,
    /// Counts the uses of this slot. Writer: daemon.
    pub generation: u32,
    /// Backend-side number: the end of the first flight, which our own socket sends. Writer: daemon.
    pub min_ack: u32,
    /// Key into `ingress_labels`.
    pub label: u32,
    /// The daemon's connection id.
    pub id: u64,
    /// Milliseconds since the epoch, of the accept.
    pub started: u64,
    /// Added to the client's sequence numbers towards the backend, subtracted from the backend's acknowledgements.
    pub to_backend_delta: u32,
    /// Added to the backend's sequence numbers towards the client, subtracted from the client's acknowledgements.
    pub to_client_delta: u32,
    /// Output device, by [`crate::flow::Direction`].
    pub ifindex: [u32; 2],
    pub scale: WindowScales,
    /// Seconds without a proven packet in either direction until the daemon ends the connection.
    pub idle_timeout: u32,
    pub client: Endpoint,
    /// Our address that the client called.
    pub local: Endpoint,
    /// Our address towards the backend.
    pub source: Endpoint,
    pub backend: Endpoint,
    pub from_client: Half,
    pub from_backend: Half,
}

/// Bytes by which the layout that only tests know is longer: they are in front of all other fields.
pub const PROBE: usize = if cfg!(feature = "layout-probe") { 64 } else { 0 };

/// An address and port in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: Address,
    pub port: [u8; 2],
}

/// Window scale shifts (RFC 7323 section 2.2) of both handshakes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowScales {
    /// Announced by the client.
    pub client: u8,
    /// Announced by us to the client.
    pub to_client: u8,
    /// Announced by the backend.
    pub backend: u8,
    /// Announced by us to the backend.
    pub to_backend: u8,
}

/// What one sender's packets have proven. Writer: that sender's packets, in the kernel, on several CPUs at once ([`crate::raise`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Half {
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC) of the last proven packet.
    pub last_seen: u64,
    /// Of two that come at the same moment, one may be missed.
    pub packets: u64,
    /// The highest acknowledgement number sent, extended to 64 bits; counts from `start`.
    pub acked: u64,
    /// The end of the highest data sent.
    pub high: u32,
    /// The right edge of the window that this sender last offered: a number of the *other* stream.
    pub window_end: u32,
    /// One past this sender's FIN; valid with [`FIN_SENT`].
    pub fin: u32,
    /// `FIN_SENT` and its kind.
    pub flags: u32,
    /// Where the stream that this sender acknowledges began. Constant.
    pub start: u32,
    /// Where this sender's packets go from here. Writer: daemon.
    pub hop: Hop,
}

/// The next host on a packet's way, where the routing table has several for its destination: the one that the connection began
/// with, because the lookup of a single packet may choose another. As the kernel has it, `struct bpf_redir_neigh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// `AF_INET` or `AF_INET6`, of `address`; 0: there is but one, and each packet's lookup finds it.
    pub family: u32,
    /// In network byte order; of an IPv4 address the first 4 bytes.
    pub address: [u8; 16],
}

/// Life of a slot; only the daemon moves it.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Free = 0,
    /// Entries stand, the first flight is on its way through our backend socket.
    Armed = 1,
    /// No socket of ours is left.
    Spliced = 2,
    /// Whatever arrives is answered with an RST.
    Cut = 3,
    /// Over and logged; stragglers are still spliced until the slot is reaped.
    Draining = 4,
    /// On its way from a table of another layout, or from a relay's sockets: for a moment, every packet is dropped, so that what the
    /// packets have proven, or the sockets said, is read when no packet can change it.
    Moving = 5,
}

impl State {
    pub const fn from_u32(state: u32) -> Option<Self> {
        match state {
            0 => Some(Self::Free),
            1 => Some(Self::Armed),
            2 => Some(Self::Spliced),
            3 => Some(Self::Cut),
            4 => Some(Self::Draining),
            5 => Some(Self::Moving),
            _ => None,
        }
    }
}

/// This sender has sent a FIN.
pub const FIN_SENT: u32 = 1;
/// This sender has acknowledged the other's FIN.
pub const FIN_ACKED: u32 = 2;
/// This sender has sent an RST whose sequence number proves it.
pub const RST_SENT: u32 = 4;
/// Backend only: it has acknowledged the whole first flight; our own socket is silent from now on.
pub const FIRST_FLIGHT_ACKED: u32 = 8;
/// A SYN of a new connection on the same tuple has removed the flow entry.
pub const REUSED: u32 = 16;
/// This sender's FIN came without an acknowledgement of the other's: an end that will hold TIME_WAIT. Both do whose FINs cross.
pub const FIN_FIRST: u32 = 32;
/// Since the handoff: this sender's packets leave where the addresses alone lead, so they move when the route moves.
pub const FOLLOWS: u32 = 64;
/// Since the handoff: they were led there by a device, a mark or a port, and stay. With neither, nobody has written it down.
pub const STAYS: u32 = 128;

impl Connection {
    /// Both FINs are acknowledged, or a proven RST has passed: only stragglers follow.
    #[inline(always)]
    pub const fn ended(client_flags: u32, backend_flags: u32) -> bool {
        (client_flags | backend_flags) & (RST_SENT | REUSED) != 0 || (client_flags & backend_flags & FIN_ACKED) != 0
    }

    /// Payload bytes that the backend has acknowledged.
    pub const fn bytes_to_backend(&self) -> u64 {
        payload(&self.from_backend)
    }

    /// Payload bytes that the client has acknowledged.
    pub const fn bytes_to_client(&self) -> u64 {
        payload(&self.from_client)
    }
}

/// A FIN takes a sequence number of its own.
const fn payload(half: &Half) -> u64 {
    let acked = half.acked.saturating_sub(half.start as u64);
    if half.flags & FIN_ACKED != 0 { acked.saturating_sub(1) } else { acked }
}

const _: () = assert!(size_of::<Hop>() == 20);
const _: () = assert!(size_of::<Half>() == 64);
const _: () = assert!(size_of::<Endpoint>() == 18);
const _: () = assert!(core::mem::offset_of!(Connection, from_client) == PROBE + 128);
const _: () = assert!(size_of::<Connection>() == PROBE + 256);

/// Words that log lines need about a connection, shared by all connections with the same words. Value of `ingress_labels`.
///
/// `text` holds the fields listener, SNI, ALPN, route, pool and backend, each ended by a zero byte.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Label {
    pub length: u32,
    pub text: [u8; 948],
}

const _: () = assert!(size_of::<Label>() == 952);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), integers and byte arrays only, every byte pattern valid; offsets and size asserted above, so no padding.
    unsafe impl aya::Pod for super::Connection {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Label {}
}
