//! The pin directory: whether it can be one, which maps of an earlier daemon stand in it, and its end.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use ingress_ebpf::admission::{DropKey, Policy};
use ingress_ebpf::connection::{Connection, Label};
use ingress_ebpf::event::RING;
use ingress_ebpf::flow::{Address, FlowEntry, FlowKey, ListenerKey, SynSeen};
use ingress_ebpf::layout::{FILLING, Layout, NUMBER, READY};
use ingress_ebpf::names::map;
use ingress_ebpf::verdict::Verdict;

use super::LoadError;
use crate::dataplane::pinned_link;
use crate::dataplane::predecessor::{Description, Predecessor};

pub(super) fn prepare_pin_dir(pin_dir: &Path) -> Result<(), LoadError> {
    let no_bpffs = |source: io::Error| LoadError::NoBpffs { path: pin_dir.to_owned(), source };
    fs::create_dir_all(pin_dir).map_err(no_bpffs)?;
    let path = CString::new(pin_dir.as_os_str().as_bytes()).map_err(|e| no_bpffs(e.into()))?;
    let found = filesystem(&path).map_err(no_bpffs)?;
    if found == libc::BPF_FS_MAGIC {
        return Ok(());
    }
    // Left behind, the directory would hide that nothing is mounted here.
    let _ = fs::remove_dir(pin_dir);
    Err(no_bpffs(io::Error::other(format!("file system type {found:#x}"))))
}

fn filesystem(path: &CStr) -> io::Result<libc::__fsword_t> {
    Ok(nix::sys::statfs::statfs(path).map_err(io::Error::from)?.filesystem_type().0)
}

/// The description that stands in our directory, or a new one.
pub(super) fn describe(pin_dir: &Path, predecessor: Option<&Predecessor>) -> Result<Description, LoadError> {
    let adopted = pin_dir.join(map::CONNECTIONS).exists();
    let Some(description) = Description::open(pin_dir)? else {
        let phase = if adopted { READY } else { FILLING };
        return Description::create(pin_dir, phase, predecessor);
    };
    if adopted && !description.read(pin_dir)?.is_same(&Layout::CURRENT) {
        let (found, wanted) = ("other fields".to_owned(), format!("those of layout {NUMBER}"));
        return Err(LoadError::Layout { path: pin_dir.join(map::LAYOUT), found, wanted });
    }
    Ok(description)
}

/// Pins all maps of a predecessor that we can use as they are. What else begins empty: words for log lines, rules that are
/// written again anyway, counters.
pub(super) fn share_maps(predecessor: &Predecessor, pin_dir: &Path) -> Result<(), LoadError> {
    for name in map::PINNED.iter().filter(|name| **name != map::CONNECTIONS) {
        let path = predecessor.pin(name);
        if !path.exists() {
            continue;
        }
        let wanted = MAPS.iter().find(|(known, ..)| known == name).map(|(_, key, value)| (*key, *value));
        let found = sizes(&path, wanted.unwrap_or_default())?;
        let fits = wanted.is_none_or(|wanted| (found.key, found.value) == wanted);
        if fits && found.entries_fit(name) {
            predecessor.share(name, pin_dir)?;
        } else if *name == map::FLOWS {
            return Err(found.mismatch());
        }
    }
    Ok(())
}

/// Bytes of key and value.
const MAPS: [(&str, usize, usize); 13] = [
    (map::FLOWS, size_of::<FlowKey>(), size_of::<FlowEntry>()),
    (map::CONNECTIONS, size_of::<u32>(), size_of::<Connection>()),
    (map::LABELS, size_of::<u32>(), size_of::<Label>()),
    (map::LISTENERS, size_of::<ListenerKey>(), size_of::<u32>()),
    (map::NOTES, size_of::<FlowKey>(), size_of::<SynSeen>()),
    (map::VERDICTS, size_of::<u32>(), size_of::<u64>()),
    (map::POLICY, size_of::<u32>(), size_of::<Policy>()),
    (map::DEVICES, size_of::<u32>(), size_of::<u32>()),
    (map::PORTS, size_of::<[u8; 2]>(), size_of::<u32>()),
    (map::DENY4, size_of::<u32>() + size_of::<[u8; 4]>(), size_of::<u32>()),
    (map::DENY6, size_of::<u32>() + size_of::<Address>(), size_of::<u32>()),
    (map::SOURCES, size_of::<Address>(), size_of::<u64>()),
    (map::DROPS, size_of::<DropKey>(), size_of::<u64>()),
];

struct Sizes {
    path: PathBuf,
    key: usize,
    value: usize,
    entries: u32,
    wanted: (usize, usize),
}

impl Sizes {
    /// Of a map that has to be just as long as this build thinks.
    fn entries_fit(&self, name: &str) -> bool {
        match name {
            map::VERDICTS => self.entries as usize == Verdict::ALL.len(),
            map::EVENTS => self.entries == RING,
            _ => true,
        }
    }

    fn mismatch(self) -> LoadError {
        let Self { path, key, value, entries: _, wanted } = self;
        let words = |(key, value): (usize, usize)| format!("key {key} B, value {value} B");
        LoadError::Layout { path, found: words((key, value)), wanted: words(wanted) }
    }
}

fn sizes(path: &Path, wanted: (usize, usize)) -> Result<Sizes, LoadError> {
    let info = MapData::from_pin(path).and_then(|data| data.info()).map_err(|error| {
        let wanted = format!("key {} B, value {} B", wanted.0, wanted.1);
        LoadError::Layout { path: path.to_owned(), found: error.to_string(), wanted }
    })?;
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    Ok(Sizes { path: path.to_owned(), key, value, entries: info.max_entries(), wanted })
}

/// Pinned maps are reused by name alone, so their sizes are checked first. `Some(slots)`: there are pins.
pub(super) fn check_pinned(pin_dir: &Path) -> Result<Option<u32>, LoadError> {
    let mut slots = None;
    for (name, key, value) in MAPS.into_iter().chain([(map::EVENTS, 0, 0)]) {
        let path = pin_dir.join(name);
        if !path.exists() {
            continue;
        }
        let found = sizes(&path, (key, value))?;
        if (found.key, found.value) != (key, value) {
            return Err(found.mismatch());
        }
        if !found.entries_fit(name) {
            // Made by a build with other verdicts, which begin at zero now, or with another ring: hints can be lost.
            let what = format!("removing {}", path.display());
            fs::remove_file(&path).map_err(|source| LoadError::Io { what, source })?;
        }
        if name == map::CONNECTIONS {
            slots = Some(found.entries);
        }
    }
    Ok(slots)
}

/// Removes `pin_dir` with the pins of all layouts. What a pin kept, descriptors may still keep.
pub(in crate::dataplane) fn remove_pins(pin_dir: &Path) -> Result<Vec<String>, LoadError> {
    let mut removed = Vec::new();
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| LoadError::Io { what, source }
    };
    let versions = match fs::read_dir(pin_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        Err(error) => return Err(io(&format!("reading {}", pin_dir.display()))(error)),
    };
    for version in versions.flatten() {
        let Ok(pins) = fs::read_dir(version.path()) else { continue };
        for pin in pins.flatten() {
            pinned_link::remove(&pin.path()).map_err(io(&format!("removing {}", pin.path().display())))?;
            removed.push(format!("pin {}", pin.path().display()));
        }
        fs::remove_dir(version.path()).map_err(io(&format!("removing {}", version.path().display())))?;
    }
    fs::remove_dir(pin_dir).map_err(io(&format!("removing {}", pin_dir.display())))?;
    Ok(removed)
}
