//! What a build with another layout left in the kernel. Its connections are converted, its maps shared and its links taken over,
//! so that they go on under our programs; where that cannot be, they stay with the programs that they have.
//!
//! Both builds' pins stand side by side, `v1` and `v2`. Each step can be the last one before a kill; the next start of either
//! build sees by the phase in `ingress_layout` how far it came:
//!
//! 1. `FILLING`: our directory pins all maps of theirs but the connection table, then our programs are loaded on them.
//! 2. `READY`: every connection stands in our table as `Moving`. What its packets prove still goes to theirs.
//! 3. Links are renamed into our directory, and our programs swapped in under them: packets of `Moving` connections are dropped,
//!    to be sent again.
//! 4. What the packets have proven is copied, connection by connection, and each goes on. That is memory to memory.
//! 5. Their directory goes.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use aya::maps::{Array, Map, MapData};
use ingress_ebpf::connection::{Connection, State};
use ingress_ebpf::layout::{Conversion, FILLING, Layout, READY};
use ingress_ebpf::names::map;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::loader::LoadError;
use super::pinned_link;
use super::slots::{SlotId, Slots};

/// The description of one directory's connection table.
pub(super) struct Description(Array<MapData, Layout>);

/// Connections that are to go on under our programs.
pub(super) struct Predecessor {
    dir: PathBuf,
    layout: Layout,
    conversion: Conversion,
    table: Table,
    /// They stand in our table already: an earlier start of ours did not come to the end.
    filled: bool,
    /// They were ours: a start of that build did not come to the end. What had not arrived there still stands in our table.
    moved_away: bool,
}

/// What stands in the pin directory beside our own part of it.
#[derive(Default)]
pub(super) struct Found {
    pub(super) predecessor: Option<Predecessor>,
    /// Why connections stay with the programs of another build.
    pub(super) strangers: Vec<String>,
}

/// Looks at what other builds left, and removes what a move that was broken off left behind.
pub(super) fn find(pin_dir: &Path, own: &Path) -> Result<Found, LoadError> {
    let mut found = Found::default();
    let mut ours = describe(own);
    if ours.is_some_and(|layout| layout.phase == FILLING) {
        remove(own)?;
        ours = None;
    }
    let mut others = Vec::new();
    for dir in fs::read_dir(pin_dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        match describe(&dir) {
            _ if dir == own => {}
            Some(layout) if layout.phase == FILLING => remove(&dir)?,
            Some(layout) => others.push((dir, layout)),
            // Only an empty one can be removed: a start or a removal that did not come far.
            None => drop(fs::remove_dir(&dir)),
        }
    }
    // A move between two other builds was broken off late: what is there by now counts.
    let later = |(_, earlier): &(PathBuf, Layout)| others.iter().find(|(_, later)| later.is_after(earlier));
    for (dir, to) in others.iter().filter_map(|earlier| Some((&earlier.0, &later(earlier)?.0))) {
        take_links(dir, to)?;
        remove(dir)?;
    }
    others.retain(|(dir, _)| dir.exists());
    for (dir, layout) in others {
        let filled = ours.is_some_and(|ours| ours.is_after(&layout));
        let moved_away = ours.is_some_and(|ours| layout.is_after(&ours));
        if let Err(why) = layout.readable() {
            found.strangers.push(stranger(&dir, &why));
        } else if found.predecessor.is_none() && (filled || moved_away || ours.is_none()) {
            let table = Table::map(&dir, layout.size as usize)?;
            let conversion = layout.conversion();
            found.predecessor = Some(Predecessor { dir, layout, conversion, table, filled, moved_away });
        } else {
            found.strangers.push(stranger(&dir, &"this build has connections of its own"));
        }
    }
    Ok(found)
}

fn stranger(dir: &Path, why: &dyn std::fmt::Display) -> String {
    format!(
        "connections of {} go on unattended, with the programs that they have, until they end: {why}",
        dir.display()
    )
}

/// `None`: nothing of a build.
fn describe(dir: &Path) -> Option<Layout> {
    match (dir.join(map::CONNECTIONS).exists(), dir.join(map::LAYOUT).exists()) {
        (true, _) => {}
        // Begun, or being removed.
        (false, true) => return Some(Layout { number: 0, phase: FILLING, ..Layout::CURRENT }),
        (false, false) => return None,
    }
    let number = dir.file_name().and_then(|name| name.to_str()?.strip_prefix('v')?.parse::<u32>().ok());
    let unknown = Layout { number: number.unwrap_or(0), phase: READY, len: 0, ..Layout::CURRENT };
    match Description::open(dir) {
        Ok(Some(description)) => Some(description.read(dir).unwrap_or(unknown)),
        Ok(None) => Some(if number == Some(Layout::UNDESCRIBED.number) { Layout::UNDESCRIBED } else { unknown }),
        Err(error) => {
            tracing::warn!(%error, "pins of another build");
            Some(unknown)
        }
    }
}

impl Description {
    /// As yet for a table that is not there, or that an early build has left without one.
    pub(super) fn create(dir: &Path, phase: u32, predecessor: Option<&Predecessor>) -> Result<Self, LoadError> {
        let mut array = Array::create(1, 0).map_err(|error| failed(dir, &error))?;
        let (source, epoch) = predecessor.map_or((0, 0), |before| (before.number(), before.layout.epoch + 1));
        let layout = Layout { phase, source, epoch, ..Layout::CURRENT };
        array.set(0, layout, 0).map_err(|error| failed(dir, &error))?;
        array.pin(dir.join(map::LAYOUT)).map_err(|error| failed(dir, &error))?;
        Self::open(dir)?.ok_or(LoadError::Missing(map::LAYOUT))
    }

    /// `None`: there is none.
    pub(super) fn open(dir: &Path) -> Result<Option<Self>, LoadError> {
        let path = dir.join(map::LAYOUT);
        if !path.exists() {
            return Ok(None);
        }
        let data = MapData::from_pin(&path).map_err(|error| failed(dir, &error))?;
        Ok(Some(Self(Map::Array(data).try_into().map_err(|error| failed(dir, &error))?)))
    }

    pub(super) fn read(&self, dir: &Path) -> Result<Layout, LoadError> {
        self.0.get(&0, 0).map_err(|error| failed(dir, &error))
    }

    /// `from`: connections are still to come from there.
    pub(super) fn ready(&mut self, dir: &Path, from: Option<&Predecessor>) -> Result<(), LoadError> {
        let now = self.read(dir)?;
        let (source, epoch) = from.map_or((0, now.epoch), |before| (before.number(), before.layout.epoch + 1));
        self.0.set(0, Layout { phase: READY, source, epoch, ..now }, 0).map_err(|error| failed(dir, &error))
    }
}

fn failed(dir: &Path, error: &dyn std::fmt::Display) -> LoadError {
    LoadError::Io { what: format!("layout of {}", dir.display()), source: io::Error::other(error.to_string()) }
}

impl Predecessor {
    pub(super) fn number(&self) -> u32 {
        self.layout.number
    }

    /// Slots of its table; ours gets as many, because a slot keeps its number.
    pub(super) fn slots(&self) -> u32 {
        self.table.len
    }

    pub(super) fn is_filled(&self) -> bool {
        self.filled
    }

    /// Our directory already pins the maps that it shares with theirs.
    pub(super) fn is_shared(&self) -> bool {
        self.filled || self.moved_away
    }

    fn read(&self, index: u32) -> Connection {
        self.conversion.connection(&self.table.read(index))
    }

    /// Pins a map of theirs in our directory too, so that our programs use the very same.
    pub(super) fn share(&self, name: &str, own: &Path) -> Result<(), LoadError> {
        let map = MapData::from_pin(self.dir.join(name)).map_err(|error| failed(&self.dir, &error))?;
        map.pin(own.join(name)).map_err(|error| failed(own, &error))
    }

    pub(super) fn pin(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Step 2, but for the phase. Free slots keep their generation as well.
    pub(super) fn fill(&self, slots: &Slots) {
        for index in 0..self.table.len.min(slots.len()) {
            let connection = self.read(index);
            if self.moved_away && connection.state == State::Moving as u32 {
                continue;
            }
            let state = match State::from_u32(connection.state) {
                Some(State::Free) => State::Free,
                Some(State::Armed | State::Spliced | State::Cut | State::Draining | State::Moving) | None => {
                    State::Moving
                }
            };
            slots.write(SlotId { index, generation: connection.generation }, &connection, state);
        }
    }

    /// The first half of step 3.
    pub(super) fn hand_over_links(&self, own: &Path) -> Result<(), LoadError> {
        take_links(&self.dir, own)
    }

    /// The end of step 3: where our programs do not belong any more, theirs must not go on with a table that is not kept.
    pub(super) fn remove_links_but(own: &Path, attached: &[u32]) -> Result<(), LoadError> {
        for pin in fs::read_dir(own).into_iter().flatten().flatten() {
            let name = pin.file_name();
            let on = |suffix| name.to_str()?.strip_prefix("link_")?.strip_suffix(suffix)?.parse::<u32>().ok();
            if on("_in").or_else(|| on("_out")).is_some_and(|ifindex| !attached.contains(&ifindex)) {
                let what = || format!("removing {}", pin.path().display());
                pinned_link::remove(&pin.path()).map_err(|source| LoadError::Io { what: what(), source })?;
            }
        }
        Ok(())
    }

    /// Step 4. Returns how many connections there were.
    pub(super) fn settle(&self, slots: &Slots) -> usize {
        let moving: Vec<u32> = slots.moving().collect();
        for index in &moving {
            slots.settle(*index, &self.read(*index));
        }
        // A packet that was in their program when ours took its place: its numbers are made up for by the next one, but nobody
        // says a second time that a connection has ended.
        for index in &moving {
            let theirs = self.read(*index);
            slots.add_flags(*index, theirs.from_client.flags, theirs.from_backend.flags);
        }
        moving.len()
    }

    /// Step 5.
    pub(super) fn remove(self) -> Result<(), LoadError> {
        remove(&self.dir)
    }
}

fn take_links(from: &Path, to: &Path) -> Result<(), LoadError> {
    for pin in fs::read_dir(from).into_iter().flatten().flatten() {
        if pin.file_name().to_string_lossy().starts_with("link_") {
            let what = || format!("moving {} to {}", pin.path().display(), to.display());
            fs::rename(pin.path(), to.join(pin.file_name()))
                .map_err(|source| LoadError::Io { what: what(), source })?;
        }
    }
    Ok(())
}

/// Removes a directory of pins. The connections first and the description last: what is left after a kill tells of itself that
/// it is nothing.
fn remove(dir: &Path) -> Result<(), LoadError> {
    let io = |path: &Path| {
        let what = format!("removing {}", path.display());
        move |source| LoadError::Io { what, source }
    };
    let mut pins: Vec<PathBuf> = fs::read_dir(dir).map_err(io(dir))?.flatten().map(|pin| pin.path()).collect();
    pins.sort_by_key(|pin| (pin.ends_with(map::LAYOUT), !pin.ends_with(map::CONNECTIONS)));
    pins.iter().try_for_each(|pin| pinned_link::remove(pin).map_err(io(pin)))?;
    fs::remove_dir(dir).map_err(io(dir))
}

/// A connection table of any layout, to read.
struct Table {
    base: NonNull<u8>,
    bytes: NonZeroUsize,
    stride: usize,
    len: u32,
}

// SAFETY: memory that is shared with the kernel anyway, and only read, by volatile bytes.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// `size`: bytes of a slot, as described.
    fn map(dir: &Path, size: usize) -> Result<Self, LoadError> {
        let path = dir.join(map::CONNECTIONS);
        let data = MapData::from_pin(&path).map_err(|error| failed(dir, &error))?;
        let info = data.info().map_err(|error| failed(dir, &error))?;
        if info.value_size() as usize != size {
            let (found, wanted) = (format!("value {} B", info.value_size()), format!("{size} B, as described"));
            return Err(LoadError::Layout { path, found, wanted });
        }
        // The kernel pads what it maps.
        let (len, stride) = (info.max_entries(), size.next_multiple_of(8));
        let io = |source| LoadError::Io { what: format!("mapping {}", path.display()), source };
        let bytes = NonZeroUsize::new((len as usize * stride).next_multiple_of(4096))
            .ok_or_else(|| io(io::ErrorKind::InvalidData.into()))?;
        // SAFETY: a fresh shared mapping of a map of exactly this size.
        let base = unsafe { mmap(None, bytes, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, data.fd().as_fd(), 0) }
            .map_err(|error| io(error.into()))?;
        Ok(Self { base: base.cast(), bytes, stride, len })
    }

    /// A copy of one slot.
    fn read(&self, index: u32) -> Vec<u8> {
        assert!(index < self.len, "slot {index} of {}", self.len);
        let mut words = Vec::with_capacity(self.stride);
        for at in (0..self.stride).step_by(8) {
            // SAFETY: in bounds: `len` strides are mapped. Aligned: strides are multiples of 8 from a page's start.
            let word = unsafe { self.base.add(index as usize * self.stride + at).cast::<u64>().read_volatile() };
            words.extend_from_slice(&word.to_ne_bytes());
        }
        words
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nothing borrowed from it outlives self.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}
