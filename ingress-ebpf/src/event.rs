//! What the kernel tells the daemon through the ring buffer `ingress_events`. Events only hasten what the daemon's periodic
//! scan of `ingress_conns` finds by itself: a lost one delays, never corrupts.

/// Bytes of the ring; each record takes 8 more than it has.
pub const RING: u32 = 262_144;

/// One record of the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// [`Kind`] as a number.
    pub kind: u32,
    pub slot: u32,
    pub generation: u32,
    /// What [`Kind`] says; 0 where it says nothing.
    pub detail: u32,
}

#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The backend has acknowledged the first flight: our backend socket can go.
    FirstFlightAcked = 1,
    /// Both FINs acknowledged or a proven RST: the connection is over.
    Ended = 2,
    /// A packet was larger than the device on its way takes. Detail: its [`crate::flow::Direction`].
    Narrow = 3,
}

impl Kind {
    pub const fn from_u32(kind: u32) -> Option<Self> {
        match kind {
            1 => Some(Self::FirstFlightAcked),
            2 => Some(Self::Ended),
            3 => Some(Self::Narrow),
            _ => None,
        }
    }
}

const _: () = assert!(size_of::<Event>() == 16);
