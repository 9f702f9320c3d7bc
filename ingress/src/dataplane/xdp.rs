//! Puts an XDP program on a device: natively where the driver can, generically else. Its link is pinned, so that admission
//! outlives the daemon; what the pin is called says how it is attached.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{Xdp, XdpLink, XdpMode};
use ingress_ebpf::names::program;

use super::loader::LoadError;
use super::pinned_link;
use crate::config::XdpChoice;

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rung {
    Native,
    Generic,
}

impl Rung {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn mode(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Native => program::XDP,
            Self::Generic => program::XDP_GENERIC,
        }
    }

    /// Where its link on a device is pinned.
    pub(super) fn pin(self, pin_dir: &Path, ifindex: u32) -> PathBuf {
        pin_dir.join(format!("link_{ifindex}_xdp_{}", self.as_str()))
    }
}

/// What is tried, in this order.
pub(super) const fn rungs(choice: XdpChoice) -> &'static [Rung] {
    match choice {
        XdpChoice::Auto => &[Rung::Native, Rung::Generic],
        XdpChoice::Native => &[Rung::Native],
        XdpChoice::Generic => &[Rung::Generic],
        XdpChoice::Off => &[],
    }
}

/// Gives the pinned link, if it is one of `rungs`, our program. `None`: there is none, or its device is gone.
pub(super) fn adopt(bpf: &mut Ebpf, pin_dir: &Path, ifindex: u32, rungs: &[Rung]) -> Option<Rung> {
    rungs.iter().copied().find(|rung| adopt_on(bpf, pin_dir, ifindex, *rung).is_some())
}

fn adopt_on(bpf: &mut Ebpf, pin_dir: &Path, ifindex: u32, rung: Rung) -> Option<()> {
    let pinned = PinnedLink::from_pin(rung.pin(pin_dir, ifindex)).ok()?;
    let link: XdpLink = FdLink::from(pinned).try_into().ok()?;
    let program = program(bpf, rung).ok()?;
    let id = program.attach_to_link(link).ok()?;
    // The pin keeps the link; our handle may go.
    drop(program.take_link(id).ok()?);
    Some(())
}

/// Attaches on the first rung that holds. The error says why none does.
pub(super) fn attach(bpf: &mut Ebpf, pin_dir: &Path, ifindex: u32, rungs: &[Rung]) -> Result<Rung, String> {
    let mut why = Vec::new();
    for rung in rungs {
        match attach_on(bpf, pin_dir, ifindex, *rung) {
            Ok(()) => return Ok(*rung),
            Err(error) => why.push(format!("{} XDP: {error}", rung.as_str())),
        }
    }
    Err(why.join("; "))
}

fn attach_on(bpf: &mut Ebpf, pin_dir: &Path, ifindex: u32, rung: Rung) -> Result<(), LoadError> {
    let failed = |source| LoadError::Verify { name: rung.program(), source };
    let program = program(bpf, rung)?;
    let id = program.attach_to_if_index(ifindex, rung.mode()).map_err(failed)?;
    let link: FdLink = program.take_link(id).map_err(failed)?.try_into()?;
    let pin = rung.pin(pin_dir, ifindex);
    link.pin(&pin)
        .map(drop)
        .map_err(|error| LoadError::Io { what: format!("pinning {}", pin.display()), source: io::Error::other(error) })
}

/// Loads the programs of all rungs.
pub(super) fn load(bpf: &mut Ebpf) -> Result<(), LoadError> {
    for rung in [Rung::Native, Rung::Generic] {
        let failed = |source| LoadError::Verify { name: rung.program(), source };
        program(bpf, rung)?.load().map_err(failed)?;
    }
    Ok(())
}

pub(super) fn program(bpf: &mut Ebpf, rung: Rung) -> Result<&mut Xdp, LoadError> {
    let name = rung.program();
    let found = bpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    found.try_into().map_err(|source| LoadError::Verify { name, source })
}

/// Takes the program off the device, whatever rung it is on.
pub(super) fn detach(pin_dir: &Path, ifindex: u32) {
    for rung in [Rung::Native, Rung::Generic] {
        // Mostly there is none.
        let _ = pinned_link::remove(&rung.pin(pin_dir, ifindex));
    }
}

/// As [`detach`], from every device but these.
pub(super) fn detach_all_but(pin_dir: &Path, present: &[u32]) {
    for pin in fs::read_dir(pin_dir).into_iter().flatten().flatten() {
        let name = pin.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("link_")?.split_once("_xdp_")?.0.parse().ok());
        if index.is_some_and(|index: u32| !present.contains(&index)) {
            let _ = pinned_link::remove(&pin.path());
        }
    }
}
