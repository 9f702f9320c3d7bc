//! The tables of admission, kept equal to the configuration: who may come in, and who judges it on which device.
//!
//! What is in them holds while no daemon runs. Changes go in entry by entry, new ones before old ones go, so that nothing that
//! was dropped before a change and is dropped after it passes in between.

use std::collections::HashSet;
use std::hash::Hash;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap as BpfHashMap, MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use ingress_ebpf::admission::{
    DEVICE_LISTS, DEVICE_PRIVATE, DEVICE_PUBLIC, DEVICE_XDP, DropKey, POLICY_DENY, POLICY_PACE, POLICY_PRIVATE_PORTS,
    Pace, Policy,
};
use ingress_ebpf::flow::Address;
use ingress_ebpf::names::map;
use ingress_ebpf::verdict::Verdict;

use super::devices::{Device, Link};
use super::loader::Loaded;
use super::view::AdmissionStatus;
use super::xdp::{self, Rung};
use crate::config::{AdmissionConfig, InterfaceConfig, Side, XdpChoice};

pub(super) struct Admission {
    policy: Array<MapData, Policy>,
    devices: BpfHashMap<MapData, u32, u32>,
    ports: BpfHashMap<MapData, [u8; 2], u32>,
    deny4: LpmTrie<MapData, [u8; 4], u32>,
    deny6: LpmTrie<MapData, Address, u32>,
    drops: PerCpuHashMap<MapData, DropKey, u64>,
    /// Why the kernel's rules may not be the configuration's.
    pub(super) trouble: Option<String>,
}

impl Admission {
    /// With what an earlier daemon left in them.
    pub(super) fn open(loaded: &mut Loaded) -> anyhow::Result<Self> {
        Ok(Self {
            policy: loaded.take_map(map::POLICY)?.try_into()?,
            devices: loaded.take_map(map::DEVICES)?.try_into()?,
            ports: loaded.take_map(map::PORTS)?.try_into()?,
            deny4: loaded.take_map(map::DENY4)?.try_into()?,
            deny6: loaded.take_map(map::DENY6)?.try_into()?,
            drops: loaded.take_map(map::DROPS)?.try_into()?,
            trouble: None,
        })
    }

    /// What is judged, on all devices.
    pub(super) fn set_rules(&mut self, config: &AdmissionConfig) -> Result<(), MapError> {
        let AdmissionConfig { private_ports, deny, new_connections_per_source } = config;
        let ports: HashSet<[u8; 2]> = private_ports.iter().map(|port| port.to_be_bytes()).collect();
        let deny4: HashSet<([u8; 4], u32)> = deny.v4().map(|(ip, len)| (ip.octets(), len.into())).collect();
        let deny6: HashSet<(Address, u32)> = deny.v6().map(|(ip, len)| (ip.octets(), len.into())).collect();
        let bit = |wanted: bool, bit: u32| if wanted { bit } else { 0 };
        let policy = Policy {
            flags: bit(!ports.is_empty(), POLICY_PRIVATE_PORTS)
                | bit(!deny.is_empty(), POLICY_DENY)
                | bit(new_connections_per_source.is_some(), POLICY_PACE),
            reserved: 0,
            pace: new_connections_per_source.map_or(Pace::default(), |limit| Pace::new(limit.rate, limit.burst)),
        };
        // Also what is wanted already: it may have been changed by hand.
        ports.iter().try_for_each(|port| self.ports.insert(port, 1, 0))?;
        insert(&mut self.deny4, &deny4)?;
        insert(&mut self.deny6, &deny6)?;
        self.policy.set(0, policy, 0)?;
        for gone in self.ports.keys().flatten().filter(|port| !ports.contains(port)).collect::<Vec<_>>() {
            self.ports.remove(&gone)?;
        }
        keep_only(&mut self.deny4, &deny4)?;
        keep_only(&mut self.deny6, &deny6)
    }

    /// Who judges what comes by one device. tc does until the XDP program stands, and once it goes.
    pub(super) fn guard(&mut self, loaded: &mut Loaded, post: &Post<'_>) -> Result<Option<AdmissionStatus>, MapError> {
        let Post { device, by_tc, config, judging } = *post;
        let ifindex = device.index;
        let side = match config.map(|config| config.side) {
            Some(Side::Public) => DEVICE_PUBLIC,
            Some(Side::Private) => DEVICE_PRIVATE,
            None => 0,
        };
        let judged = judging && side != DEVICE_PRIVATE;
        let bits = side | if device.has_lists { DEVICE_LISTS } else { 0 };
        if ifindex == 0 {
            let why = device.unfit.unwrap_or_default().to_owned();
            return Ok(judged.then(|| AdmissionStatus::open(config, why)));
        }
        let (rungs, mut why) = post.rungs(judged);
        let mut rung = loaded.adopt_xdp(ifindex, rungs);
        if rung.is_none() {
            self.set_device(ifindex, bits)?;
            xdp::detach(loaded.pin_dir(), ifindex);
            if !rungs.is_empty() {
                match loaded.attach_xdp(ifindex, rungs) {
                    Ok(attached) => rung = Some(attached),
                    Err(error) => why = Some(error),
                }
            }
        }
        if rung.is_some() {
            self.set_device(ifindex, bits | DEVICE_XDP)?;
        }
        if !judged {
            return Ok(None);
        }
        self.count_from_zero(ifindex)?;
        let mode = match rung {
            Some(rung) => rung.as_str(),
            None if by_tc => "tc",
            None => AdmissionStatus::OPEN,
        };
        let side = if side == DEVICE_PUBLIC { "public" } else { "" };
        Ok(Some(AdmissionStatus { side: side.to_owned(), mode: mode.to_owned(), why, dropped: Vec::new() }))
    }

    /// `bits`: `DEVICE_*`.
    pub(super) fn set_device(&mut self, ifindex: u32, bits: u32) -> Result<(), MapError> {
        self.devices.insert(ifindex, bits, 0)
    }

    /// Makes a device's counters, unless they are there.
    fn count_from_zero(&mut self, ifindex: u32) -> Result<(), MapError> {
        let cpus = nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
        for verdict in Verdict::ADMISSION {
            let key = DropKey { ifindex, verdict: verdict as u32 };
            if self.drops.get(&key, 0).is_err() {
                self.drops.insert(key, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
            }
        }
        Ok(())
    }

    /// Packets of one device that were not admitted, by reason.
    pub(super) fn dropped(&self, ifindex: u32) -> Vec<(String, u64)> {
        let packets = |verdict: &Verdict| {
            let key = DropKey { ifindex, verdict: *verdict as u32 };
            self.drops.get(&key, 0).map(|cpus| cpus.iter().sum()).unwrap_or(0)
        };
        Verdict::ADMISSION.iter().map(|verdict| (verdict.as_str().to_owned(), packets(verdict))).collect()
    }

    /// Forgets devices that are no more; their indices are not given again soon.
    pub(super) fn forget_all_but(&mut self, present: &[u32]) -> Result<(), MapError> {
        for gone in self.devices.keys().flatten().filter(|index| !present.contains(index)).collect::<Vec<_>>() {
            self.devices.remove(&gone)?;
        }
        for gone in self.drops.keys().flatten().filter(|key| !present.contains(&key.ifindex)).collect::<Vec<_>>() {
            self.drops.remove(&gone)?;
        }
        Ok(())
    }
}

/// A device, and what is wanted of it.
#[derive(Clone, Copy)]
pub(super) struct Post<'a> {
    pub(super) device: &'a Device,
    /// tc ingress stands on it.
    pub(super) by_tc: bool,
    pub(super) config: Option<&'a InterfaceConfig>,
    /// There are rules.
    pub(super) judging: bool,
}

impl Post<'_> {
    /// What XDP is tried, and why not more.
    fn rungs(&self, judged: bool) -> (&'static [Rung], Option<String>) {
        match self.config {
            Some(InterfaceConfig { side: Side::Public, xdp }) if judged => match (self.device.unfit, xdp) {
                (Some(unfit), _) => (&[], Some(unfit.to_owned())),
                (None, _) if self.device.link == Link::Bare => {
                    (&[], Some("its packets have no Ethernet header, which XDP would look for".to_owned()))
                }
                (None, XdpChoice::Auto) if self.device.has_vlans => {
                    (&[], Some("VLANs stand on it, whose tags XDP may not see".to_owned()))
                }
                (None, choice) => (xdp::rungs(*choice), None),
            },
            Some(_) | None => (&[], None),
        }
    }
}

fn insert<K: Pod>(trie: &mut LpmTrie<MapData, K, u32>, networks: &HashSet<(K, u32)>) -> Result<(), MapError> {
    networks.iter().try_for_each(|(address, len)| trie.insert(&Key::new(*len, *address), 1, 0))
}

fn keep_only<K: Pod + Eq + Hash>(
    trie: &mut LpmTrie<MapData, K, u32>,
    networks: &HashSet<(K, u32)>,
) -> Result<(), MapError> {
    let is_wanted = |key: &Key<K>| networks.contains(&(key.data(), key.prefix_len()));
    for gone in trie.keys().flatten().filter(|key| !is_wanted(key)).collect::<Vec<_>>() {
        trie.remove(&gone)?;
    }
    Ok(())
}
