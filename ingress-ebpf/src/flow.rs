//! Keys of the flow table: which packets belong to a handed-off connection.

/// An IPv6 address, or an IPv4 address mapped into IPv6 (RFC 4291 section 2.5.5.2), in network byte order.
pub type Address = [u8; 16];

/// The source and destination of a packet as it arrives. Key of `ingress_flows`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub source: Address,
    pub destination: Address,
    /// Network byte order.
    pub source_port: [u8; 2],
    /// Network byte order.
    pub destination_port: [u8; 2],
}

/// Which connection a packet belongs to and which way it goes. Value of `ingress_flows`; written once by the daemon.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEntry {
    /// Index into `ingress_conns`.
    pub slot: u32,
    /// Must equal the connection's; a mismatch means that the slot has been given to another connection.
    pub generation: u32,
    /// [`Direction`] as a number.
    pub direction: u32,
    pub reserved: u32,
}

/// Where a flow's packets are going.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToBackend = 0,
    ToClient = 1,
}

/// Key of `ingress_listen`: an address and port whose connections may be handed off. A zero address stands for all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    pub address: Address,
    /// Network byte order.
    pub port: [u8; 2],
    pub reserved: [u8; 2],
}

/// What a handshake said when it crossed our programs. Value of `ingress_notes`; its presence proves that the handshake's wire
/// addresses are the sockets' own: no NAT stands between the programs and the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynSeen {
    /// Device that the SYN arrived on or left by.
    pub ifindex: u32,
    /// Device by which our own packet left, SYN or SYN-ACK; 0: by none that carries the programs.
    pub left_by: u32,
    /// The firewall mark of that packet as it left.
    pub mark: u32,
    /// `SYN_*` bits.
    pub flags: u32,
    /// The first number after the handshake in our own stack's stream, and in the other end's. Whoever sends the SYN is known
    /// at once, the other one with [`SYN_NUMBERS`].
    pub local_next: u32,
    pub remote_next: u32,
}

/// The timestamp option was there and has been overwritten with NOPs.
pub const SYN_TIMESTAMP_REMOVED: u32 = 1;
/// SACK-permitted was offered (and left in place).
pub const SYN_SACK: u32 = 2;
/// ECN was asked for and cleared.
pub const SYN_ECN_CLEARED: u32 = 4;
/// Both numbers are known, by an answer that proves to be to this SYN: our own stack's to the client's, or one that
/// acknowledges ours, which nobody can do who has not seen it.
pub const SYN_NUMBERS: u32 = 8;
/// There may have been two answers, as from a stack that sends SYN cookies, and only the socket knows which of them counts:
/// there will be no numbers.
pub const SYN_AGAIN: u32 = 16;
/// Our own, towards a backend.
pub const SYN_OURS: u32 = 32;

impl SynSeen {
    /// Where our own stack's stream and the other end's begin, if that is certain.
    pub const fn numbers(&self) -> Option<(u32, u32)> {
        if self.flags & SYN_NUMBERS != 0 { Some((self.local_next, self.remote_next)) } else { None }
    }
}

impl FlowKey {
    /// Of a packet with these addresses (in words, as they lie in a header) and ports, all in network byte order.
    #[inline(always)]
    pub fn new(source: [u32; 4], destination: [u32; 4], source_port: u16, destination_port: u16) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (source, destination);
        let [[i, j], [k, l]] = [source_port.to_ne_bytes(), destination_port.to_ne_bytes()];
        let words = [a, b, c, d, e, f, g, h, u32::from_ne_bytes([i, j, k, l])];
        // SAFETY: 36 bytes each, and every pattern is valid in either. (Byte by byte it would take a BPF program 36 stores.)
        unsafe { core::mem::transmute::<[u32; 9], Self>(words) }
    }

    /// The key of the packets that answer this one.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// `address`, as it lies in an IPv4 header, in the words of an IPv6 header.
#[inline(always)]
pub const fn mapped_words(address: u32) -> [u32; 4] {
    [0, 0, 0xffffu32.to_be(), address]
}

/// `address` in network byte order, as it stands in an IPv4 header.
#[inline(always)]
pub const fn mapped(address: [u8; 4]) -> Address {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

const _: () = assert!(size_of::<FlowKey>() == 36);
const _: () = assert!(size_of::<FlowEntry>() == 16);
const _: () = assert!(size_of::<ListenerKey>() == 20);
const _: () = assert!(size_of::<SynSeen>() == 24);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), integers and byte arrays only, every byte pattern valid; the sizes asserted above leave no padding.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ListenerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SynSeen {}
}
