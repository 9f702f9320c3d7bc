//! The connection table `ingress_conns`, mapped into our memory: reading a million counters costs no system call.

use std::io;
use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use ingress_ebpf::connection::{Connection, Half, Hop, State};
use ingress_ebpf::flow::Direction;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use parking_lot::Mutex;

/// A slot in use: index and generation name one connection for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SlotId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

pub(super) struct Slots {
    base: NonNull<Connection>,
    len: u32,
    bytes: NonZeroUsize,
    free: Mutex<Free>,
}

struct Free {
    /// Lowest on top, so that what is in use stays together and scans stay short.
    stack: Vec<u32>,
    /// One past the highest slot ever handed out.
    high_water: u32,
}

// SAFETY: the memory is shared with the kernel anyway; every access below is volatile or atomic, and each word has one writer.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    /// Maps the table; slots that an earlier daemon left in use, or that `fill` writes now, stay in use.
    pub(super) fn map(map: impl AsFd, len: u32, fill: impl FnOnce(&Self)) -> io::Result<Self> {
        let page = 4096;
        let bytes = (len as usize * size_of::<Connection>()).next_multiple_of(page);
        let bytes = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh shared mapping of a map of exactly this size.
        let base = unsafe {
            mmap(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, map.as_fd(), 0)?
        };
        let slots = Self { base: base.cast(), len, bytes, free: Mutex::new(Free { stack: Vec::new(), high_water: 0 }) };
        fill(&slots);
        {
            let mut free = slots.free.lock();
            for index in (0..len).rev() {
                if slots.state(index) == State::Free {
                    free.stack.push(index);
                } else {
                    free.high_water = free.high_water.max(index + 1);
                }
            }
        }
        Ok(slots)
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// A slot of the next generation, still in state Free for the kernel. `None`: all are taken.
    pub(super) fn take(&self) -> Option<SlotId> {
        let mut free = self.free.lock();
        let index = free.stack.pop()?;
        free.high_water = free.high_water.max(index + 1);
        drop(free);
        Some(SlotId { index, generation: self.generation(index).wrapping_add(1) })
    }

    /// Gives a slot back; no flow entry may refer to it any more.
    pub(super) fn release(&self, index: u32) {
        self.set_state(index, State::Free);
        self.free.lock().stack.push(index);
    }

    /// Slots that are not free, with a copy of each.
    pub(super) fn used(&self) -> impl Iterator<Item = (u32, Connection)> {
        self.all_in(&[State::Armed, State::Spliced, State::Cut, State::Draining, State::Moving])
    }

    /// Slots that wait for what their packets have proven elsewhere.
    pub(super) fn moving(&self) -> impl Iterator<Item = u32> {
        let high_water = self.free.lock().high_water;
        (0..high_water).filter(|index| self.state(*index) == State::Moving)
    }

    /// Slots of connections that have not ended.
    pub(super) fn live(&self) -> impl Iterator<Item = (u32, Connection)> {
        self.all_in(&[State::Armed, State::Spliced])
    }

    fn all_in(&self, states: &'static [State]) -> impl Iterator<Item = (u32, Connection)> {
        let high_water = self.free.lock().high_water;
        let is_in = |state: u32| State::from_u32(state).is_some_and(|state| states.contains(&state));
        (0..high_water)
            .filter(|index| states.contains(&self.state(*index)))
            .map(|index| (index, self.read(index)))
            // It may have changed between the two looks.
            .filter(move |(_, connection)| is_in(connection.state))
    }

    /// A copy. Words that the kernel is writing may be a packet apart from one another.
    pub(super) fn read(&self, index: u32) -> Connection {
        // SAFETY: `pointer` is in bounds; every bit pattern is a valid Connection.
        unsafe { self.pointer(index).read_volatile() }
    }

    /// The connection in `slot`, if the slot is still that connection's.
    pub(super) fn get(&self, slot: SlotId) -> Option<Connection> {
        let connection = self.read(slot.index);
        (connection.generation == slot.generation && connection.state != State::Free as u32).then_some(connection)
    }

    /// Fills a taken slot. The state is written last: before it, the kernel treats packets as stale.
    pub(super) fn write(&self, slot: SlotId, connection: &Connection, state: State) {
        let connection = Connection { state: State::Free as u32, generation: slot.generation, ..*connection };
        // SAFETY: in bounds; no flow entry of this generation exists yet, so nobody else writes.
        unsafe { self.pointer(slot.index).write_volatile(connection) };
        self.set_state(slot.index, state);
    }

    /// A moving slot gets what its packets have proven and goes on. No packet changes it before.
    pub(super) fn settle(&self, index: u32, theirs: &Connection) {
        let slot = self.pointer(index);
        // SAFETY: in bounds; the programs look at nothing but the state of a moving connection.
        unsafe {
            (&raw mut (*slot).from_client).write_volatile(theirs.from_client);
            (&raw mut (*slot).from_backend).write_volatile(theirs.from_backend);
        }
        let state = match State::from_u32(theirs.state) {
            Some(state @ (State::Armed | State::Spliced | State::Cut | State::Draining)) => state,
            // Nobody knows its numbers.
            Some(State::Moving | State::Free) | None => State::Cut,
        };
        self.set_state(index, state);
    }

    /// What the packets of either end have set in `flags`.
    pub(super) fn add_flags(&self, index: u32, from_client: u32, from_backend: u32) {
        let half = offset_of!(Half, flags);
        for (offset, flags) in
            [(offset_of!(Connection, from_client), from_client), (offset_of!(Connection, from_backend), from_backend)]
        {
            let word = self.word(index, offset + half);
            if word.load(Ordering::Relaxed) | flags != word.load(Ordering::Relaxed) {
                word.fetch_or(flags, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn state(&self, index: u32) -> State {
        // Another build of the same layout cannot have written anything else.
        State::from_u32(self.word(index, offset_of!(Connection, state)).load(Ordering::Acquire)).unwrap_or(State::Cut)
    }

    pub(super) fn set_state(&self, index: u32, state: State) {
        self.word(index, offset_of!(Connection, state)).store(state as u32, Ordering::Release);
    }

    pub(super) fn set_min_ack(&self, index: u32, min_ack: u32) {
        self.word(index, offset_of!(Connection, min_ack)).store(min_ack, Ordering::Release);
    }

    /// Where packets in this direction leave from now on, and to whom. In between, a lookup may choose the neighbour.
    pub(super) fn set_exit(&self, index: u32, direction: usize, device: u32, hop: Hop) {
        let to_backend = direction & 1 == Direction::ToBackend as usize;
        let sender =
            if to_backend { offset_of!(Connection, from_client) } else { offset_of!(Connection, from_backend) };
        let at = sender + offset_of!(Half, hop);
        self.word(index, at + offset_of!(Hop, family)).store(0, Ordering::Release);
        let offset = offset_of!(Connection, ifindex) + (direction & 1) * size_of::<u32>();
        self.word(index, offset).store(device, Ordering::Release);
        let (words, _) = hop.address.as_chunks();
        for (n, word) in words.iter().enumerate() {
            let offset = at + offset_of!(Hop, address) + n * size_of::<u32>();
            self.word(index, offset).store(u32::from_ne_bytes(*word), Ordering::Release);
        }
        self.word(index, at + offset_of!(Hop, family)).store(hop.family, Ordering::Release);
    }

    fn generation(&self, index: u32) -> u32 {
        self.word(index, offset_of!(Connection, generation)).load(Ordering::Relaxed)
    }

    fn word(&self, index: u32, offset: usize) -> &AtomicU32 {
        // SAFETY: in bounds, aligned (slots are a multiple of 8 bytes, from a page's start), alive as long as self.
        unsafe { AtomicU32::from_ptr(self.pointer(index).byte_add(offset).cast()) }
    }

    fn pointer(&self, index: u32) -> *mut Connection {
        assert!(index < self.len, "slot {index} of {}", self.len);
        // SAFETY: checked above.
        unsafe { self.base.as_ptr().add(index as usize) }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nothing borrowed from it outlives self.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}
