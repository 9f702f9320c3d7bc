//! What a slot of `ingress_conns` looks like, in a form that other builds can read: its fields by name. Pinned beside the table
//! as `ingress_layout`, so that an upgrade and a downgrade find what they need to know about a table that is not theirs.
//!
//! Rules for a change of [`Connection`]: the layout takes the next [`NUMBER`]; a field keeps its name as long as it keeps its
//! meaning; [`READABLE_FROM`] rises to [`NUMBER`] if an older build that passes over the new fields would harm a connection.

use core::mem::offset_of;

use crate::connection::{Connection, Half, Hop, PROBE};

/// The layout of this build.
#[cfg(not(feature = "layout-probe"))]
pub const NUMBER: u32 = 2;
/// Of the build that tests upgrades and downgrades.
#[cfg(feature = "layout-probe")]
pub const NUMBER: u32 = 3;

/// The oldest layout whose builds may take over connections of this one. Layout 1 has no next hops: there, each packet finds its own.
pub const READABLE_FROM: u32 = 1;
/// The oldest layout that this build can take over.
pub const OLDEST_READ: u32 = 1;

/// Longest name of a field; shorter ones are filled with zero bytes.
const NAME: usize = 28;
const FIELDS: usize = 64;

/// Value of the array map `ingress_layout`, which has one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Layout {
    pub number: u32,
    /// As [`READABLE_FROM`].
    pub readable_from: u32,
    /// [`FILLING`] or [`READY`].
    pub phase: u32,
    /// The layout from which the connections are taken over; 0: none.
    pub source: u32,
    /// How often connections were taken over before: of two tables of which one was taken from the other, the later one counts.
    pub epoch: u32,
    /// Bytes of a slot.
    pub size: u32,
    /// How many of `fields` there are.
    pub len: u32,
    pub fields: [Field; FIELDS],
}

/// Where a field lies in its slot.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub name: [u8; NAME],
    pub offset: u16,
    pub size: u16,
}

/// The table is not complete yet; whatever it has, its predecessor has too.
pub const FILLING: u32 = 0;
/// The connections of this table are its own, but for those that are [`crate::connection::State::Moving`].
pub const READY: u32 = 1;

const NONE: Field = Field { name: [0; NAME], offset: 0, size: 0 };

const fn field(prefix: &str, name: &str, offset: usize, size: usize) -> Field {
    let mut bytes = [0; NAME];
    let mut at = 0;
    while at < prefix.len() {
        bytes[at] = prefix.as_bytes()[at];
        at += 1;
    }
    while at < prefix.len() + name.len() {
        bytes[at] = name.as_bytes()[at - prefix.len()];
        at += 1;
    }
    Field { name: bytes, offset: offset as u16, size: size as u16 }
}

/// A field of `Connection` by its path, named as it is written.
macro_rules! fields {
    ($($name:ident: $size:expr,)+ ; $($half:ident),+ => $halves:tt) => {{
        let mut layout = Layout {
            number: NUMBER,
            readable_from: READABLE_FROM,
            phase: FILLING,
            source: 0,
            epoch: 0,
            size: size_of::<Connection>() as u32,
            len: 0,
            fields: [NONE; FIELDS],
        };
        $(layout = layout.with(field("", stringify!($name), offset_of!(Connection, $name), $size));)+
        $(fields!(@half layout, $half, $halves);)+
        layout
    }};
    (@half $layout:ident, $half:ident, { $($name:ident: $size:expr,)+ }) => {
        $($layout = $layout.with(field(
            concat!(stringify!($half), "."),
            stringify!($name),
            offset_of!(Connection, $half) + offset_of!(Half, $name),
            $size,
        ));)+
    };
}

impl Layout {
    /// This build's.
    pub const CURRENT: Self = fields! {
        state: 4,
        generation: 4,
        min_ack: 4,
        label: 4,
        id: 8,
        started: 8,
        to_backend_delta: 4,
        to_client_delta: 4,
        ifindex: 8,
        scale: 4,
        idle_timeout: 4,
        client: 18,
        local: 18,
        source: 18,
        backend: 18,
        ; from_client, from_backend => {
            last_seen: 8,
            packets: 8,
            acked: 8,
            high: 4,
            window_end: 4,
            fin: 4,
            flags: 4,
            start: 4,
            hop: size_of::<Hop>(),
        }
    };

    /// What the first builds of layout 1 left, which did not describe it: all that there is now but for next hops.
    pub const UNDESCRIBED: Self = {
        let size = Self::CURRENT.size - PROBE as u32;
        let mut first =
            Self { number: 1, readable_from: 1, phase: READY, size, len: 0, fields: [NONE; FIELDS], ..Self::CURRENT };
        let mut at = 0;
        while at < Self::CURRENT.len as usize {
            let field = Self::CURRENT.fields[at];
            if field.size as usize != size_of::<Hop>() {
                first = first.with(Field { offset: field.offset - PROBE as u16, ..field });
            }
            at += 1;
        }
        first
    };

    const fn with(mut self, field: Field) -> Self {
        self.fields[self.len as usize] = field;
        self.len += 1;
        self
    }

    pub fn fields(&self) -> &[Field] {
        &self.fields[..(self.len as usize).min(FIELDS)]
    }

    /// Slots of both are the same bytes.
    pub fn is_same(&self, other: &Self) -> bool {
        self.size == other.size && self.fields() == other.fields()
    }

    /// Connections of `earlier` were moved here, and may still be on their way.
    pub fn is_after(&self, earlier: &Self) -> bool {
        self.phase == READY && self.source == earlier.number && self.epoch == earlier.epoch.wrapping_add(1)
    }

    /// Whether this build may take over connections that are laid out as `self`, and if not, why.
    pub fn readable(&self) -> Result<(), Unreadable> {
        if self.number < OLDEST_READ {
            return Err(Unreadable::TooOld { found: self.number });
        }
        if self.readable_from > NUMBER {
            return Err(Unreadable::TooNew { found: self.number, readable_from: self.readable_from });
        }
        let fits = |field: &Field| u32::from(field.offset) + u32::from(field.size) <= self.size;
        if self.fields().is_empty() || !self.fields().iter().all(fits) {
            return Err(Unreadable::Nonsense { found: self.number });
        }
        Ok(())
    }

    /// How to read connections that are laid out as `self`, which is readable.
    pub fn conversion(&self) -> Conversion {
        let mut conversion = Conversion { moves: [Move { from: 0, to: 0, size: 0 }; FIELDS], len: 0 };
        for to in Self::CURRENT.fields() {
            let Some(from) = self.fields().iter().find(|from| from.name == to.name) else { continue };
            // Little-endian integers may have grown.
            conversion.moves[conversion.len] =
                Move { from: from.offset.into(), to: to.offset.into(), size: to.size.min(from.size).into() };
            conversion.len += 1;
        }
        conversion
    }
}

/// The way of every field that two layouts have in common from one to the other.
pub struct Conversion {
    moves: [Move; FIELDS],
    len: usize,
}

#[derive(Clone, Copy)]
struct Move {
    from: usize,
    to: usize,
    size: usize,
}

impl Conversion {
    /// `slot`: its bytes in the other layout. What only we have is zero.
    pub fn connection(&self, slot: &[u8]) -> Connection {
        let mut ours = [0; size_of::<Connection>()];
        for Move { from, to, size } in self.moves[..self.len].iter().copied() {
            if let (Some(to), Some(from)) = (ours.get_mut(to..to + size), slot.get(from..from + size)) {
                to.copy_from_slice(from);
            }
        }
        // SAFETY: as many bytes as a Connection has; integers and byte arrays only, so every byte pattern is valid.
        unsafe { core::ptr::read_unaligned(ours.as_ptr().cast()) }
    }
}

/// Why connections of another build stay with its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    TooOld { found: u32 },
    TooNew { found: u32, readable_from: u32 },
    Nonsense { found: u32 },
}

impl core::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooOld { found } => {
                write!(f, "layout {found} is older than {OLDEST_READ}, the oldest that this build reads")
            }
            Self::TooNew { found, readable_from } => {
                write!(f, "layout {found} asks for a build of layout {readable_from} or newer; this one has {NUMBER}")
            }
            Self::Nonsense { found } => write!(f, "layout {found} does not describe itself soundly"),
        }
    }
}

const _: () = assert!(size_of::<Field>() == 32);
const _: () = assert!(size_of::<Layout>() == 28 + 32 * FIELDS);

/// Every byte has a name: whoever forgets to name a new field is told.
const _: () = {
    let mut named = 0;
    let mut at = 0;
    while at < Layout::CURRENT.len as usize {
        named += Layout::CURRENT.fields[at].size as usize;
        at += 1;
    }
    assert!(named + PROBE == size_of::<Connection>());
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), integers and byte arrays only, every byte pattern valid; sizes asserted above, so no padding.
    unsafe impl aya::Pod for super::Layout {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Endpoint;

    fn bytes(connection: &Connection) -> Vec<u8> {
        // SAFETY: a Connection has no padding (its size is asserted), so all of its bytes are initialised.
        unsafe { core::slice::from_raw_parts((&raw const *connection).cast::<u8>(), size_of::<Connection>()) }.to_vec()
    }

    fn sample() -> Connection {
        Connection {
            state: 2,
            generation: 77,
            id: u64::MAX - 5,
            client: Endpoint { address: [9; 16], port: [1, 187] },
            from_backend: Half { acked: 1 << 40, flags: 8, ..Half::default() },
            ..Connection::default()
        }
    }

    #[test]
    fn the_own_layout_converts_to_itself() {
        let sample = sample();
        assert_eq!(bytes(&Layout::CURRENT.conversion().connection(&bytes(&sample))), bytes(&sample));
    }

    #[test]
    fn moved_grown_and_unknown_fields_are_told_apart() {
        let mut theirs = Layout { len: 0, size: 64, ..Layout::CURRENT };
        theirs = theirs.with(field("", "unheard_of", 0, 8));
        theirs = theirs.with(field("", "generation", 8, 2));
        theirs = theirs.with(field("from_backend.", "acked", 16, 8));
        theirs = theirs.with(field("", "state", 24, 8));
        let mut slot = vec![0xff; 64];
        slot[8..10].copy_from_slice(&300_u16.to_le_bytes());
        slot[16..24].copy_from_slice(&(7_u64 << 33).to_le_bytes());
        slot[24..32].copy_from_slice(&2_u64.to_le_bytes());
        let ours = theirs.conversion().connection(&slot);
        assert_eq!((ours.generation, ours.from_backend.acked, ours.state), (300, 7 << 33, 2));
        assert_eq!((ours.id, ours.idle_timeout, ours.client), (0, 0, Endpoint::default()));
    }

    #[test]
    fn a_connection_of_the_first_layout_has_no_next_hop() {
        let sample = sample();
        let mut slot = bytes(&sample)[PROBE..].to_vec();
        // What was reserved then may be anything.
        slot[size_of::<Connection>() - PROBE - size_of::<Hop>()..].fill(0xff);
        let ours = Layout::UNDESCRIBED.conversion().connection(&slot);
        assert_eq!((ours.id, ours.client, ours.from_backend), (sample.id, sample.client, sample.from_backend));
    }

    #[test]
    fn a_layout_is_refused_by_its_number_and_by_its_sense() {
        let other = |number, readable_from| Layout { number, readable_from, ..Layout::CURRENT };
        assert_eq!(other(NUMBER + 1, NUMBER).readable(), Ok(()));
        assert_eq!(
            other(NUMBER + 2, NUMBER + 1).readable(),
            Err(Unreadable::TooNew { found: NUMBER + 2, readable_from: NUMBER + 1 })
        );
        assert_eq!(other(OLDEST_READ - 1, 0).readable(), Err(Unreadable::TooOld { found: OLDEST_READ - 1 }));
        let short = Layout { size: 100, ..Layout::CURRENT };
        assert_eq!(short.readable(), Err(Unreadable::Nonsense { found: NUMBER }));
    }
}
