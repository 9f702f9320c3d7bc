//! Somebody else's program on a hook: a few instructions, loaded by hand, that mark each packet and let it pass on, or not; or that
//! do nothing at all.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use crate::bpf;
use crate::netns::Namespace;

/// Stands as long as this does.
#[derive(Debug)]
pub struct Guest {
    _link: OwnedFd,
    pub id: u32,
}

/// What becomes of packets after they were marked.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    /// The next program gets them (TCX_NEXT).
    Next,
    /// The stack gets them, and no other program (TCX_PASS).
    Pass,
}

/// Where among the programs of a hook.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    First,
    Last,
}

impl Guest {
    /// Marks what arrives on `device`.
    pub fn mark(ns: &Namespace, device: &str, mark: u32, then: Then, place: Place) -> Result<Self> {
        let verdict = match then {
            Then::Next => -1,
            Then::Pass => 0,
        };
        let place = match place {
            Place::First => BPF_F_BEFORE,
            Place::Last => BPF_F_AFTER,
        };
        // r2 = mark; *(u32 *)(r1 + 8) = r2; r0 = verdict; exit. The mark is the third word of `struct __sk_buff`.
        let code = [
            instruction(0xb4, 0x02, 0, mark as i32),
            instruction(0x63, 0x21, 8, 0),
            instruction(0xb4, 0x00, 0, verdict),
            instruction(0x95, 0, 0, 0),
        ];
        Self::stand(ns, device, (BPF_PROG_TYPE_SCHED_CLS, &code.concat()), (BPF_TCX_INGRESS, place))
    }

    /// Lets all pass that arrives on `device`, as its one XDP program.
    pub fn xdp(ns: &Namespace, device: &str) -> Result<Self> {
        let code = [instruction(0xb4, 0x00, 0, XDP_PASS), instruction(0x95, 0, 0, 0)];
        Self::stand(ns, device, (BPF_PROG_TYPE_XDP, &code.concat()), (BPF_XDP, 0))
    }

    /// `program`: its type and code. `hook`: the type of attachment, and flags.
    fn stand(ns: &Namespace, device: &str, program: (u32, &[u8]), hook: (u32, u32)) -> Result<Self> {
        let program = bpf::load(program.0, program.1).context("loading a program")?;
        let id = id_of(&program).context("asking for a program's id")?;
        let link = ns.exec(|| {
            let index = nix::net::if_::if_nametoindex(device)?;
            bpf::link(&program, index, hook.0, hook.1)
        });
        Ok(Self { _link: link.context("attaching a program")?, id })
    }
}

fn instruction(code: u8, registers: u8, offset: u8, value: i32) -> [u8; 8] {
    let [a, b, c, d] = value.to_le_bytes();
    [code, registers, offset, 0, a, b, c, d]
}

fn id_of(program: &OwnedFd) -> Result<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("prog_id:")).context("fdinfo says prog_id")?;
    Ok(id.trim().parse()?)
}

/// linux/bpf.h
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;
const XDP_PASS: i32 = 2;
