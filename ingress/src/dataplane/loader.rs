//! Loads the programs, pins them and their maps, and attaches them to devices. A daemon that comes after a killed one finds
//! the pins, keeps the maps with every flow in them, and swaps its own programs in under the pinned links.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use ingress_ebpf::admission::{DropKey, Policy};
use ingress_ebpf::connection::{Connection, Label};
use ingress_ebpf::event::RING;
use ingress_ebpf::flow::{Address, FlowEntry, FlowKey, ListenerKey, SynSeen};
use ingress_ebpf::layout::{FILLING, Layout, NUMBER, READY};
use ingress_ebpf::names::{map, program};
use ingress_ebpf::verdict::Verdict;

use super::devices::{self, Device, Link};
use super::pinned_link;
use super::predecessor::{self, Description, Found, Predecessor};
use super::program_log::{self, ProgramLog};
use super::slots::Slots;
use super::tcx;
use super::view::InterfaceStatus;
use super::xdp::{self, Rung};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("INGRESS_BPF_OBJECT"));

/// Where a classic (clsact) filter stands on kernels without TCX. Low numbers run first.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x1947);

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
    Ok(Loaded { bpf, pin_dir, slots, description, predecessor, strangers, no_xdp })
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

    /// Attaches both tc programs to one device, or takes over what stands there.
    pub(super) fn attach(&mut self, device: &Device) -> InterfaceStatus {
        let Device { name, index, link, unfit, has_vlans: _ } = device;
        let (device, ifindex) = (name.as_str(), *index);
        let attached = "none".to_owned();
        let mut status = InterfaceStatus { name: name.clone(), ifindex, attached, why: None, admission: None };
        if let Some(why) = unfit {
            status.why = Some((*why).to_owned());
            return status;
        }
        let (into, out_of) = match link {
            Link::Ethernet => (program::TC_IN, program::TC_OUT),
            Link::Bare => (program::IP_IN, program::IP_OUT),
        };
        let hooks = [(into, TcAttachType::Ingress, "in"), (out_of, TcAttachType::Egress, "out")];
        let mut why = None;
        let tcx = KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 6, 0));
        if tcx {
            let pins = hooks.map(|(_, _, suffix)| self.pin_dir.join(format!("link_{ifindex}_{suffix}")));
            let new: Vec<_> = pins.iter().filter(|pin| !pin.exists()).collect();
            let attached = hooks.iter().zip(&pins).try_for_each(|((name, hook, _), pin)| {
                attach_tcx(classifier(&mut self.bpf, name)?, device, *hook, pin)
            });
            match attached {
                Ok(()) => {
                    status.attached = "tcx".to_owned();
                    return status;
                }
                Err(error) => {
                    why = Some(format!("tcx: {error:#}"));
                    // Half of them is worse than none. What stood there before carries connections and stays.
                    for pin in new {
                        let _ = pinned_link::remove(pin);
                    }
                }
            }
        } else {
            why.get_or_insert_with(|| "kernel before 6.6 has no tcx".to_owned());
        }
        let attached =
            hooks.iter().try_for_each(|(name, hook, _)| attach_clsact(classifier(&mut self.bpf, name)?, device, *hook));
        match attached {
            Ok(()) => status.attached = "clsact".to_owned(),
            Err(error) => {
                let hint =
                    format!("has another filter priority {CLSACT_PRIORITY}? `tc filter show dev {device} ingress`");
                why = Some(format!("{}; clsact: {error:#}: {hint}", why.unwrap_or_default()));
            }
        }
        status.why = why;
        status
    }

    /// See [`tcx::precursors`].
    pub(super) fn precursors(&self, status: &InterfaceStatus) -> Vec<String> {
        let id =
            |name: &&str| <&SchedClassifier>::try_from(self.bpf.program(name)?).ok()?.info().ok().map(|info| info.id());
        let ours: Vec<u32> = program::TC.iter().filter_map(id).collect();
        if status.attached == "tcx" { tcx::precursors(&status.name, status.ifindex, &ours) } else { Vec::new() }
    }

    /// Takes both tc programs off one device, as `status` says that they stand there, and forgets one that is gone.
    pub(super) fn detach(&self, device: &Device, status: &InterfaceStatus) {
        for suffix in ["in", "out"] {
            // Mostly they stand as links, or are gone with their device.
            let _ = pinned_link::remove(&self.pin_dir.join(format!("link_{}_{suffix}", device.index)));
        }
        if status.attached == "clsact" {
            detach_clsact(&device.name);
        }
    }
}

/// Removes every link, filter and pin below `pin_dir`, of all layouts. Returns what it removed.
pub(super) fn detach(pin_dir: &Path) -> Result<Vec<String>, LoadError> {
    let mut removed = Vec::new();
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| LoadError::Io { what, source }
    };
    for Device { name, .. } in devices::all().map_err(io("listing devices"))? {
        removed.extend(detach_clsact(&name).into_iter().map(|ours| format!("filter {ours} on {name}")));
    }
    removed.extend(remove_pins(pin_dir)?);
    Ok(removed)
}

/// The filters that were there.
fn detach_clsact(device: &str) -> Vec<&'static str> {
    let (ingress, egress) = (TcAttachType::Ingress, TcAttachType::Egress);
    let ours =
        [(ingress, program::TC_IN), (egress, program::TC_OUT), (ingress, program::IP_IN), (egress, program::IP_OUT)];
    let stood = |(hook, ours)| aya::programs::tc::qdisc_detach_program(device, hook, ours).is_ok().then_some(ours);
    ours.into_iter().filter_map(stood).collect()
}

/// Removes `pin_dir` with the pins of all layouts. What a pin kept, descriptors may still keep.
pub(super) fn remove_pins(pin_dir: &Path) -> Result<Vec<String>, LoadError> {
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

fn classifier<'a>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, LoadError> {
    let found = bpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    found.try_into().map_err(|source| LoadError::Verify { name, source })
}

fn attach_tcx(classifier: &mut SchedClassifier, device: &str, hook: TcAttachType, pin: &Path) -> Result<(), LoadError> {
    let failed = |source: ProgramError| LoadError::Verify { name: "link", source };
    match PinnedLink::from_pin(pin) {
        Ok(old) => {
            let link: Result<SchedClassifierLink, LinkError> = FdLink::from(old).try_into();
            match link.map_err(LoadError::from).and_then(|l| classifier.attach_to_link(l).map_err(failed)) {
                Ok(id) => {
                    // The pin keeps the link; our handle may go.
                    drop(classifier.take_link(id).map_err(failed)?);
                    return Ok(());
                }
                // The device behind the link is gone (ENOLINK): the pin is a shell.
                Err(_) => {
                    let what = format!("removing the stale pin {}", pin.display());
                    fs::remove_file(pin).map_err(|source| LoadError::Io { what, source })?;
                }
            }
        }
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let id =
        classifier.attach_with_options(device, hook, TcAttachOptions::TcxOrder(LinkOrder::first())).map_err(failed)?;
    let link: FdLink = classifier.take_link(id).map_err(failed)?.try_into()?;
    let what = format!("pinning {}", pin.display());
    link.pin(pin).map_err(|e| LoadError::Io { what, source: io::Error::other(e) })?;
    Ok(())
}

fn attach_clsact(classifier: &mut SchedClassifier, device: &str, hook: TcAttachType) -> Result<(), LoadError> {
    let failed = |source: ProgramError| LoadError::Verify { name: "filter", source };
    match qdisc_add_clsact(device) {
        Ok(()) | Err(TcError::AlreadyAttached) => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(failed(error.into())),
    }
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: CLSACT_PRIORITY,
        handle: CLSACT_HANDLE,
        ..NlOptions::default()
    });
    let id = match classifier.attach_with_options(device, hook, options) {
        Ok(id) => id,
        Err(_) => {
            let standing = SchedClassifierLink::attached(device, hook, CLSACT_PRIORITY, CLSACT_HANDLE, None)
                .map_err(|source| LoadError::Io { what: format!("finding the filter on {device}"), source })?;
            classifier.attach_to_link(standing).map_err(failed)?
        }
    };
    // Dropping the link would remove the filter, which is to outlive us.
    std::mem::forget(classifier.take_link(id).map_err(failed)?);
    Ok(())
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

fn prepare_pin_dir(pin_dir: &Path) -> Result<(), LoadError> {
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
fn describe(pin_dir: &Path, predecessor: Option<&Predecessor>) -> Result<Description, LoadError> {
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
fn share_maps(predecessor: &Predecessor, pin_dir: &Path) -> Result<(), LoadError> {
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
fn check_pinned(pin_dir: &Path) -> Result<Option<u32>, LoadError> {
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
