//! Somebody else's program on a TCX hook: four instructions, loaded by hand, that mark each packet and let it pass on, or not.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

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
        let program = load(mark, verdict).context("loading a program")?;
        let id = id_of(&program).context("asking for a program's id")?;
        let link = ns.exec(|| {
            let index = nix::net::if_::if_nametoindex(device)?;
            attach(&program, index, place)
        });
        Ok(Self { _link: link.context("attaching a program")?, id })
    }
}

/// `r2 = mark; *(u32 *)(r1 + 8) = r2; r0 = verdict; exit`: the mark is the third word of `struct __sk_buff`.
fn load(mark: u32, verdict: i32) -> std::io::Result<OwnedFd> {
    let instruction = |code: u8, registers: u8, offset: u8, value: i32| {
        let [a, b, c, d] = value.to_le_bytes();
        [code, registers, offset, 0, a, b, c, d]
    };
    let code = [
        instruction(0xb4, 0x02, 0, mark as i32),
        instruction(0x63, 0x21, 8, 0),
        instruction(0xb4, 0x00, 0, verdict),
        instruction(0x95, 0, 0, 0),
    ]
    .concat();
    let license = c"GPL";
    let mut attributes = Attributes::default();
    attributes.put(0, BPF_PROG_TYPE_SCHED_CLS);
    attributes.put(4, (code.len() / 8) as u32);
    attributes.put_pointer(8, code.as_ptr().cast());
    attributes.put_pointer(16, license.as_ptr().cast());
    attributes.call(BPF_PROG_LOAD)
}

fn attach(program: &OwnedFd, index: u32, place: Place) -> std::io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    attributes.put(0, program.as_raw_fd() as u32);
    attributes.put(4, index);
    attributes.put(8, BPF_TCX_INGRESS);
    attributes.put(
        12,
        match place {
            Place::First => BPF_F_BEFORE,
            Place::Last => BPF_F_AFTER,
        },
    );
    attributes.call(BPF_LINK_CREATE)
}

fn id_of(program: &OwnedFd) -> Result<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("prog_id:")).context("fdinfo says prog_id")?;
    Ok(id.trim().parse()?)
}

/// `union bpf_attr`.
#[repr(align(8))]
struct Attributes([u8; 64]);

impl Default for Attributes {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl Attributes {
    fn put(&mut self, at: usize, word: u32) {
        self.0[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }

    fn put_pointer(&mut self, at: usize, pointer: *const u8) {
        self.0[at..at + 8].copy_from_slice(&(pointer as u64).to_ne_bytes());
    }

    /// A command whose answer is a descriptor.
    fn call(&mut self, command: libc::c_long) -> std::io::Result<OwnedFd> {
        // SAFETY: all pointers in it outlive the call, which only reads.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: a descriptor of our own.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

/// linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;
