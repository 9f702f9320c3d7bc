//! Which devices carry the programs, and who judges what comes by them: at the start, when the configuration changes, and when
//! devices come, change and go.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::time::Instant;

use super::Flows;
use crate::config::{AdmissionConfig, Config, InterfaceConfig, Side};
use crate::dataplane::admission::Post;
use crate::dataplane::devices::{self, Device};
use crate::dataplane::links::Renewed;
use crate::dataplane::standing::stands;
use crate::dataplane::view::{AdmissionStatus, InterfaceStatus};
use crate::dataplane::xdp;

/// What the configuration says of devices.
pub(super) struct Wanted {
    /// Those that get the programs; empty: all that can carry them. Public ones get them in any case.
    names: Vec<String>,
    interfaces: BTreeMap<String, InterfaceConfig>,
    admission: AdmissionConfig,
}

/// A device as it was when it was last seen to, and what came of that.
#[derive(Clone)]
pub(super) struct Attached {
    pub(super) device: Device,
    pub(super) status: InterfaceStatus,
}

impl Attached {
    pub(super) fn carries(&self, device: u32) -> bool {
        self.status.ifindex == device && self.status.attached != "none"
    }

    /// Packets of connections that are in the kernel already are spliced all the same: most drivers say well enough of what LRO has
    /// merged how it is to be cut again.
    pub(super) fn takes_handoffs(&self, device: u32) -> bool {
        self.carries(device) && !self.device.merges
    }

    /// What keeps new connections in userspace although it carries the programs.
    pub(super) fn drawback(&self) -> Option<String> {
        let name = &self.device.name;
        (self.carries(self.device.index) && self.device.merges).then(|| {
            format!(
                "{name}: large receive offload is on, and what it has merged cannot be sent on for certain: new connections over it are \
                 relayed until `ethtool -K {name} lro off` (of a VLAN, bond or bridge, on the devices that it stands on)"
            )
        })
    }

    pub(super) fn is_tracked(&self, device: u32) -> bool {
        self.device.index == device && self.device.is_tracked
    }
}

impl Wanted {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            names: config.kernel.interfaces.clone(),
            interfaces: config.interfaces.clone(),
            admission: config.admission.clone(),
        }
    }

    fn devices(&self, all: &[Device]) -> Vec<Device> {
        let is_wanted = |device: &&Device| match &self.names[..] {
            [] => device.unfit.is_none(),
            names => names.contains(&device.name),
        };
        let mut devices: Vec<Device> = all.iter().filter(is_wanted).cloned().collect();
        for name in self.names.iter().chain(public(&self.interfaces)) {
            if !devices.iter().any(|device| device.name == *name) {
                devices.push(devices::named(all, name));
            }
        }
        devices
    }
}

impl Flows {
    /// For the first time. An error is one of listing devices.
    pub(super) fn attach(&self) -> io::Result<()> {
        let wanted = self.wanted.lock();
        self.judge(&wanted.admission);
        let all = devices::all()?;
        self.see_to(&wanted, &all, &Renewed::All);
        Ok(())
    }

    /// What an earlier daemon handed off may be without its device since. An error is one of listing devices.
    pub(super) fn strand(&self) -> io::Result<()> {
        let all = devices::all()?;
        let is_gone = |index: &u32| !all.iter().any(|device| device.index == *index);
        let gone: HashSet<u32> =
            self.slots.live().flat_map(|(_, connection)| connection.ifindex).filter(is_gone).collect();
        self.gone.lock().extend(gone.into_iter().map(|index| (index, Instant::now())));
        Ok(())
    }

    /// Makes admission what the configuration says, without a gap. What cannot be done stands in [`Flows::status`].
    pub(in crate::dataplane) fn admit(&self, interfaces: &BTreeMap<String, InterfaceConfig>, config: &AdmissionConfig) {
        let mut wanted = self.wanted.lock();
        wanted.interfaces = interfaces.clone();
        wanted.admission = config.clone();
        self.judge(config);
        match devices::all() {
            Ok(all) => self.see_to(&wanted, &all, &Renewed::All),
            Err(error) => tracing::error!(%error, "cannot list network devices: who judges on which stays as it was"),
        }
    }

    /// Devices came, changed or went.
    pub(in crate::dataplane) fn devices_changed(&self, renewed: &Renewed) {
        let wanted = self.wanted.lock();
        match devices::all() {
            Ok(all) => self.see_to(&wanted, &all, renewed),
            Err(error) => tracing::error!(%error, "cannot list network devices: new ones do not carry the programs"),
        }
    }

    /// Somebody may have taken programs of ours off a device that is still there, or all pins away: puts back what can be put back.
    pub(in crate::dataplane) fn put_back(&self) {
        let wanted = self.wanted.lock();
        let pin_dir = self.loaded.lock().pin_dir().to_owned();
        let claimed = self.interfaces.lock().clone();
        let mut bare: Vec<&Attached> = claimed.iter().filter(|claimed| !stands(&pin_dir, &claimed.status)).collect();
        if bare.is_empty() {
            return;
        }
        let Ok(all) = devices::all() else { return };
        // A device that goes takes its programs along, which is told and seen to elsewhere.
        bare.retain(|bare| all.contains(&bare.device));
        for Attached { device, .. } in &bare {
            tracing::error!(
                interface = device.name,
                "somebody took our programs off this device: putting them back; until then the host's stack gets the packets of \
                 connections in the kernel, and resets them"
            );
        }
        let bare = bare.iter().map(|bare| bare.device.index).collect();
        self.see_to(&wanted, &all, &Renewed::Only(bare));
    }

    fn judge(&self, rules: &AdmissionConfig) {
        let mut admission = self.admission.lock();
        admission.trouble = admission.set_rules(rules).err().map(|error| error.to_string());
        if let Some(error) = &admission.trouble {
            tracing::error!(error, "not all rules of admission are in the kernel");
        }
    }

    /// Puts the programs on devices that want them, and leaves those alone that are as they were, unless `renewed`.
    fn see_to(&self, wanted: &Wanted, all: &[Device], renewed: &Renewed) {
        let mut admission = self.admission.lock();
        let mut loaded = self.loaded.lock();
        // A copy: nobody who hands off a connection waits for programs to be attached.
        let before = self.interfaces.lock().clone();
        let mut after = Vec::new();
        for device in wanted.devices(all) {
            let known = before.iter().find(|known| known.device == device);
            if let Some(known) = known.filter(|_| !renewed.contains(device.index)) {
                after.push(known.clone());
                continue;
            }
            let mut status = loaded.attach(&device);
            let config = wanted.interfaces.get(&device.name);
            let by_tc = status.attached != "none";
            let post = Post { device: &device, by_tc, config, judging: !wanted.admission.is_empty() };
            status.admission = match admission.guard(&mut loaded, &post) {
                Ok(guarded) => guarded,
                Err(error) => Some(AdmissionStatus::open(config, error.to_string())),
            };
            let attached = Attached { device, status };
            if known.is_none_or(|known| known.status != attached.status) {
                tell(&attached.status);
            }
            if let Some(drawback) = attached.drawback() {
                tracing::warn!("{drawback}");
            }
            after.push(attached);
        }
        // Live connections may come by a device that nobody wants any more: it keeps its programs as long as it can.
        let stays = |known: &&Attached| {
            !after.iter().any(|attached| attached.device.index == known.device.index)
                && known.device.unfit.is_none()
                && all.contains(&known.device)
        };
        after.extend(before.iter().filter(stays).cloned().collect::<Vec<_>>());

        let present: Vec<u32> = after.iter().map(|attached| attached.device.index).collect();
        let carried: HashSet<u32> =
            after.iter().filter(|a| a.carries(a.device.index)).map(|a| a.device.index).collect();
        *self.interfaces.lock() = after;
        let mut gone = self.gone.lock();
        gone.retain(|index, _| !carried.contains(index));
        for Attached { device, status } in &before {
            if status.attached != "none" && !carried.contains(&device.index) {
                tracing::info!(
                    interface = device.name,
                    "a device that carried the programs is gone, or part of another now"
                );
                loaded.detach(device, status);
                gone.entry(device.index).or_insert_with(Instant::now);
            }
        }
        drop(gone);
        xdp::detach_all_but(loaded.pin_dir(), &present);
        if let Err(error) = admission.forget_all_but(&present) {
            tracing::warn!(%error, "entries of devices that are gone stay in the tables of admission");
        }
    }

    /// Devices that carry our programs.
    pub(super) fn attached(&self) -> Vec<u32> {
        self.interfaces.lock().iter().filter(|a| a.carries(a.device.index)).map(|a| a.device.index).collect()
    }
}

/// Names of the devices that face the world.
fn public(interfaces: &BTreeMap<String, InterfaceConfig>) -> impl Iterator<Item = &String> {
    interfaces.iter().filter(|(_, interface)| interface.side == Side::Public).map(|(name, _)| name)
}

fn tell(status: &InterfaceStatus) {
    let interface = &status.name;
    if status.attached == "none" {
        let why = status.why.as_deref().unwrap_or_default();
        tracing::warn!(interface, why, "programs not attached: connections over it are relayed");
    }
    let Some(admission) = &status.admission else { return };
    let why = admission.why.as_deref().unwrap_or_default();
    match status.opening() {
        Some(opening) => tracing::error!("{opening}"),
        None => tracing::info!(interface, mode = admission.mode, why, "admission"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_that_merges_segments_carries_the_programs_and_takes_no_handoffs() {
        let device = |merges| Device { index: 3, merges, ..devices::named(&[], "eth0") };
        let attached = |merges, attached: &str| {
            let (name, attached) = ("eth0".to_owned(), attached.to_owned());
            let status = InterfaceStatus { name, ifindex: 3, attached, why: None, admission: None };
            Attached { device: device(merges), status }
        };
        let plain = attached(false, "tcx");
        assert!(plain.carries(3) && plain.takes_handoffs(3) && plain.drawback().is_none());
        let merging = attached(true, "tcx");
        assert!(merging.carries(3) && !merging.takes_handoffs(3));
        assert!(merging.drawback().is_some_and(|why| why.contains("ethtool -K eth0 lro off")));
        let bare = attached(true, "none");
        assert!(
            !bare.carries(3) && !bare.takes_handoffs(3) && bare.drawback().is_none(),
            "why it is bare is said elsewhere"
        );
    }
}
