//! The kernel programs, loaded by themselves with rules in their maps.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, EbpfLoader};
use ingress_ebpf::admission::{DEVICE_PUBLIC, POLICY_DENY, POLICY_PACE, POLICY_PRIVATE_PORTS, Pace, Policy};
use ingress_ebpf::flow::{ListenerKey, mapped};
use ingress_ebpf::names::{map, program};

use super::frame::{Case, DENIED, LISTENER, PRIVATE_PORT};
use crate::step;

/// Where a packet meets admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    Xdp,
    Tc,
}

pub(super) struct Programs {
    pub(super) bpf: Ebpf,
    policy: Array<MapData, Policy>,
    devices: HashMap<MapData, u32, u32>,
}

/// Loopback, on which the kernel runs test packets.
const LOOPBACK: u32 = 1;
/// Denied networks, beside the one that is meant.
const NETWORKS: u16 = 1_000;
const REPEAT: u32 = 200_000;
/// `enum xdp_action`, `TC_ACT_SHOT`.
const XDP_DROP: u32 = 1;
const SHOT: u32 = 2;

impl Programs {
    pub(super) fn load() -> Result<Self> {
        let object = object();
        let bytes = std::fs::read(&object).with_context(|| format!("reading {}", object.display()))?;
        let mut loader = EbpfLoader::new();
        // As the daemon loads them: without a log.
        let mut bpf = loader.override_global("AYA_LOG_LEVEL", &0u8, true).load(&bytes)?;
        let tc: &mut SchedClassifier = bpf.program_mut(program::TC_IN).context("tc ingress")?.try_into()?;
        tc.load()?;
        for name in [program::XDP, program::XDP_GENERIC] {
            let xdp: &mut Xdp = bpf.program_mut(name).context("XDP")?.try_into()?;
            xdp.load()?;
        }

        let policy = Array::try_from(bpf.take_map(map::POLICY).context(map::POLICY)?)?;
        let devices = HashMap::try_from(bpf.take_map(map::DEVICES).context(map::DEVICES)?)?;
        let mut ports: HashMap<_, [u8; 2], u32> = bpf.take_map(map::PORTS).context(map::PORTS)?.try_into()?;
        ports.insert(PRIVATE_PORT.to_be_bytes(), 1, 0)?;
        let mut deny: LpmTrie<_, [u8; 4], u32> = bpf.take_map(map::DENY4).context(map::DENY4)?.try_into()?;
        for network in 0..NETWORKS {
            let [high, low] = network.to_be_bytes();
            deny.insert(&Key::new(24, [100, 64 + high, low, 0]), 1, 0)?;
        }
        let [a, b, c, _] = DENIED;
        deny.insert(&Key::new(24, [a, b, c, 0]), 1, 0)?;
        let mut listeners: HashMap<_, ListenerKey, u32> =
            bpf.take_map(map::LISTENERS).context(map::LISTENERS)?.try_into()?;
        let (address, port) = LISTENER;
        listeners.insert(ListenerKey { address: mapped(address), port: port.to_be_bytes(), reserved: [0; 2] }, 1, 0)?;
        let mut programs = Self { bpf, policy, devices };
        programs.guard(LOOPBACK)?;
        Ok(programs)
    }

    /// Makes a device one that faces the world.
    pub(super) fn guard(&mut self, ifindex: u32) -> Result<()> {
        Ok(self.devices.insert(ifindex, DEVICE_PUBLIC, 0)?)
    }

    /// All rules; the pace lets everybody through, or nobody.
    pub(super) fn set_rules(&mut self, pace: Pace) -> Result<()> {
        let flags = POLICY_PRIVATE_PORTS | POLICY_DENY | POLICY_PACE;
        Ok(self.policy.set(0, Policy { flags, reserved: 0, pace }, 0)?)
    }

    /// Nanoseconds per run, after a first run that must end as the case says.
    pub(super) fn cost(&mut self, case: Case, hook: Hook) -> Result<f64> {
        match case {
            Case::NoRules => self.policy.set(0, Policy::default(), 0)?,
            Case::DropSourceRate => self.set_rules(Pace { interval: u64::MAX / 4, ahead: 0 })?,
            Case::AdmittedData
            | Case::AdmittedSyn
            | Case::AdmittedIpv6
            | Case::DropPrivatePort
            | Case::DropDenied
            | Case::DropBadFlags
            | Case::DropMalformed
            | Case::DropUnreadable => self.set_rules(Pace { interval: 1, ahead: u64::MAX / 2 })?,
        }
        let packet = case.packet();
        // The first SYN of a source is always let in.
        self.test(hook, &packet, 1)?;
        let once = self.test(hook, &packet, 1)?;
        let dropped = match hook {
            Hook::Xdp => once.return_value == XDP_DROP,
            Hook::Tc => once.return_value == SHOT,
        };
        ensure!(dropped == case.is_dropped(), "{hook:?} answered with {}", once.return_value);
        Ok(self.test(hook, &packet, REPEAT)?.duration.as_nanos() as f64)
    }

    fn test(&self, hook: Hook, packet: &[u8], repeat: u32) -> Result<TestRunResult> {
        let options = TestRunOptions { data_in: Some(packet), repeat, ..TestRunOptions::new() };
        Ok(match hook {
            Hook::Xdp => {
                let program: &Xdp = self.bpf.program(program::XDP).context("XDP")?.try_into()?;
                program.test_run(options)?
            }
            Hook::Tc => {
                let program: &SchedClassifier = self.bpf.program(program::TC_IN).context("tc ingress")?.try_into()?;
                program.test_run(options)?
            }
        })
    }
}

/// Where `cargo xtask build-ebpf` leaves it.
fn object() -> PathBuf {
    step::root().join("target/ebpf/bpfel-unknown-none/release/ingress-bpf")
}
