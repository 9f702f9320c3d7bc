//! The tc programs on devices: by a pinned TCX link, or as a classic filter on kernels without TCX. Either outlives the
//! daemon, and the next one swaps its own programs in.

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use ingress_ebpf::names::program;

use super::{LoadError, Loaded, classifier};
use crate::dataplane::devices::{Device, Link};
use crate::dataplane::view::InterfaceStatus;
use crate::dataplane::{pinned_link, tcx};

/// Where a classic (clsact) filter stands on kernels without TCX. Low numbers run first.
const CLSACT_PRIORITY: u16 = 1;
pub(in crate::dataplane) const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x1947);

impl Loaded {
    /// Attaches both tc programs to one device, or takes over what stands there.
    pub(in crate::dataplane) fn attach(&mut self, device: &Device) -> InterfaceStatus {
        let Device { name, index, link, unfit, has_vlans: _, is_tracked: _, merges: _, has_lists: _ } = device;
        let (device, ifindex) = (name.as_str(), *index);
        let attached = "none".to_owned();
        let mut status = InterfaceStatus { name: name.clone(), ifindex, attached, why: None, admission: None };
        if let Some(why) = unfit {
            status.why = Some((*why).to_owned());
            return status;
        }
        if !self.pin_dir.exists() {
            // What is attached without a pin ends with us, and nobody adopts its connections.
            let dir = self.pin_dir.display();
            status.why = Some(format!("{dir} is gone (was the bpf file system unmounted?): restart ingress"));
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
    pub(in crate::dataplane) fn precursors(&self, status: &InterfaceStatus) -> Vec<String> {
        let id =
            |name: &&str| <&SchedClassifier>::try_from(self.bpf.program(name)?).ok()?.info().ok().map(|info| info.id());
        let ours: Vec<u32> = program::TC.iter().filter_map(id).collect();
        if status.attached == "tcx" { tcx::precursors(&status.name, status.ifindex, &ours) } else { Vec::new() }
    }

    /// Takes both tc programs off one device, as `status` says that they stand there, and forgets one that is gone.
    pub(in crate::dataplane) fn detach(&self, device: &Device, status: &InterfaceStatus) {
        for suffix in ["in", "out"] {
            // Mostly they stand as links, or are gone with their device.
            let _ = pinned_link::remove(&self.pin_dir.join(format!("link_{}_{suffix}", device.index)));
        }
        if status.attached == "clsact" {
            detach_clsact(&device.name);
        }
    }
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

/// The filters that were there.
pub(super) fn detach_clsact(device: &str) -> Vec<&'static str> {
    let (ingress, egress) = (TcAttachType::Ingress, TcAttachType::Egress);
    let ours =
        [(ingress, program::TC_IN), (egress, program::TC_OUT), (ingress, program::IP_IN), (egress, program::IP_OUT)];
    let stood = |(hook, ours)| aya::programs::tc::qdisc_detach_program(device, hook, ours).is_ok().then_some(ours);
    ours.into_iter().filter_map(stood).collect()
}
