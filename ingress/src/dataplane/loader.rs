//! Loads the programs, pins them and their maps, and attaches them to devices. A daemon that comes after a killed one finds
//! the pins, keeps the maps with every flow in them, and swaps its own programs in under the pinned links.

mod attach;
mod pins;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::Map;
use aya::programs::links::LinkError;
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use ingress_ebpf::layout::NUMBER;
use ingress_ebpf::names::{map, program};

pub(super) use self::attach::CLSACT_HANDLE;
use self::attach::detach_clsact;
pub(super) use self::pins::remove_pins;
use self::pins::{check_pinned, describe, prepare_pin_dir, share_maps};
use super::devices::{self, Device};
use super::pin_lock::PinLock;
use super::predecessor::{self, Description, Found, Predecessor};
use super::program_log::{self, ProgramLog};
use super::slots::Slots;
use super::xdp::{self, Rung};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("INGRESS_BPF_OBJECT"));

#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or root); effective capabilities are {effective:#x}")]
    Privileges { effective: u64 },
    #[error(
        "{path} is not on a bpf file system: mount it (mount -t bpf bpf /sys/fs/bpf) or set kernel.pin_dir: {source}"
    )]
    NoBpffs { path: PathBuf, source: io::Error },
    #[error(
        "pinned map {path} is of another layout ({found}, wanted {wanted}): run `ingress detach`, then start again"
    )]
    Layout { path: PathBuf, found: String, wanted: String },
    #[error(
        "{path} is in use by a running daemon: stop that one first; a second one needs a kernel.pin_dir of its own"
    )]
    InUse { path: PathBuf },
    #[error("loading the kernel programs: {0}")]
    Load(#[from] aya::EbpfError),
    #[error("loading program {name}: {source}")]
    Verify { name: &'static str, source: ProgramError },
    #[error("link: {0}")]
    Link(#[from] LinkError),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("the object has no {0}")]
    Missing(&'static str),
}

/// Programs and maps of one pin directory.
pub(super) struct Loaded {
    bpf: Ebpf,
    pin_dir: PathBuf,
    pub slots: u32,
    description: Description,
    /// Whose connections are to go on under these programs.
    predecessor: Option<Predecessor>,
    /// Why connections of other builds stay with theirs.
    pub strangers: Vec<String>,
    /// Why the XDP program cannot be used; tc does its work then.
    no_xdp: Option<String>,
    _lock: PinLock,
}

/// `<pin_dir>/v<layout>`.
pub(super) fn versioned(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("v{NUMBER}"))
}

/// Sizes of pinned maps are fixed when they are made: an adopted directory keeps its own, whatever `slots` says.
pub(super) fn load(pin_dir: &Path, slots: u32) -> Result<Loaded, LoadError> {
    check_privileges()?;
    let (pins, pin_dir) = (pin_dir, versioned(pin_dir));
    prepare_pin_dir(&pin_dir)?;
    let lock = PinLock::take(pins)?;
    let Found { predecessor, strangers } = predecessor::find(pins, &pin_dir)?;
    for why in &strangers {
        tracing::warn!("{why}");
    }
    // Again: it goes with what a broken-off move left in it.
    prepare_pin_dir(&pin_dir)?;
    let mut description = describe(&pin_dir, predecessor.as_ref())?;
    if let Some(predecessor) = predecessor.as_ref().filter(|predecessor| !predecessor.is_shared()) {
        share_maps(predecessor, &pin_dir)?;
    }
    let slots = check_pinned(&pin_dir)?.or(predecessor.as_ref().map(Predecessor::slots)).unwrap_or(slots);

    for retired in map::RETIRED {
        // Programs that still use it hold it until ours take their place.
        let _ = fs::remove_file(pin_dir.join(retired));
    }
    let log_level = program_log::level();
    let mut loader = EbpfLoader::new();
    loader.override_global(program_log::LEVEL, &log_level, true);
    loader
        .map_max_entries(map::FLOWS, slots * 2)
        .map_max_entries(map::CONNECTIONS, slots)
        .map_max_entries(map::LABELS, slots);
    for name in map::PINNED {
        loader.map_pin_path(name, pin_dir.join(name));
    }
    let mut bpf = loader.load(OBJECT)?;
    // All at once, though there may be no device for some: a program that is loaded later would find its maps' descriptors closed.
    for name in program::TC.iter().copied() {
        classifier(&mut bpf, name)?.load().map_err(|source| LoadError::Verify { name, source })?;
    }
    let no_xdp = xdp::load(&mut bpf).err().map(|error| error.to_string());
    if let Some(error) = &no_xdp {
        tracing::warn!(error, "no XDP: tc judges who may come in");
    }
    if predecessor.is_none() {
        description.ready(&pin_dir, None)?;
    }
    Ok(Loaded { bpf, pin_dir, slots, description, predecessor, strangers, no_xdp, _lock: lock })
}

impl Loaded {
    pub(super) fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Writes a predecessor's connections into our table, where they wait for [`Loaded::settle`].
    pub(super) fn fill(&self, slots: &Slots) {
        if let Some(predecessor) = self.predecessor.as_ref().filter(|predecessor| !predecessor.is_filled()) {
            predecessor.fill(slots);
        }
    }

    /// Takes a predecessor's links over; [`Loaded::attach`] then finds them.
    pub(super) fn take_links(&mut self) -> Result<(), LoadError> {
        let Some(predecessor) = &self.predecessor else { return Ok(()) };
        self.description.ready(&self.pin_dir, Some(predecessor))?;
        predecessor.hand_over_links(&self.pin_dir)
    }

    /// Our programs stand under the links of the devices `attached`: a predecessor's connections go on, and its pins go.
    pub(super) fn settle(&mut self, slots: &Slots, attached: &[u32]) -> Result<(), LoadError> {
        let Some(predecessor) = self.predecessor.take() else { return Ok(()) };
        Predecessor::remove_links_but(&self.pin_dir, attached)?;
        let connections = predecessor.settle(slots);
        let from = predecessor.number();
        tracing::info!(connections, from, to = NUMBER, "connections taken over from a build of another layout");
        predecessor.remove()?;
        self.description.ready(&self.pin_dir, None)
    }

    pub(super) fn log(&mut self) -> ProgramLog {
        ProgramLog::open(&mut self.bpf)
    }

    pub(super) fn take_map(&mut self, name: &'static str) -> Result<Map, LoadError> {
        self.bpf.take_map(name).ok_or(LoadError::Missing(name))
    }

    #[cfg(test)]
    pub(super) fn xdp(&mut self, rung: Rung) -> &aya::programs::Xdp {
        xdp::program(&mut self.bpf, rung).expect("the object holds them")
    }

    #[cfg(test)]
    pub(super) fn program(&self, name: &'static str) -> &SchedClassifier {
        self.bpf.program(name).and_then(|program| program.try_into().ok()).expect("the object holds all programs")
    }

    #[cfg(test)]
    pub(super) fn info(&self, name: &str) -> Result<aya::programs::ProgramInfo, ProgramError> {
        self.bpf.program(name).expect("the object holds all programs").info()
    }

    /// See [`xdp::adopt`].
    pub(super) fn adopt_xdp(&mut self, ifindex: u32, rungs: &[Rung]) -> Option<Rung> {
        if self.no_xdp.is_some() {
            return None;
        }
        xdp::adopt(&mut self.bpf, &self.pin_dir, ifindex, rungs)
    }

    /// See [`xdp::attach`].
    pub(super) fn attach_xdp(&mut self, ifindex: u32, rungs: &[Rung]) -> Result<Rung, String> {
        match &self.no_xdp {
            Some(why) => Err(why.clone()),
            None => xdp::attach(&mut self.bpf, &self.pin_dir, ifindex, rungs),
        }
    }
}

/// Removes every link, filter and pin below `pin_dir`, of all layouts, unless a daemon works with them. Returns what it removed.
pub(super) fn detach(pin_dir: &Path) -> Result<Vec<String>, LoadError> {
    let _lock = pin_dir.exists().then(|| PinLock::take(pin_dir)).transpose()?;
    let mut removed = Vec::new();
    let all = devices::all().map_err(|source| LoadError::Io { what: "listing devices".to_owned(), source })?;
    for Device { name, .. } in all {
        removed.extend(detach_clsact(&name).into_iter().map(|ours| format!("filter {ours} on {name}")));
    }
    removed.extend(remove_pins(pin_dir)?);
    Ok(removed)
}

fn classifier<'a>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, LoadError> {
    let found = bpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    found.try_into().map_err(|source| LoadError::Verify { name, source })
}

/// CAP_NET_ADMIN 12, CAP_SYS_ADMIN 21, CAP_PERFMON 38, CAP_BPF 39 (capabilities(7)).
fn check_privileges() -> Result<(), LoadError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective & (1 << bit) != 0;
    if has(12) && (has(21) || (has(38) && has(39))) { Ok(()) } else { Err(LoadError::Privileges { effective }) }
}
