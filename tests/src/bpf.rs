//! bpf(2) by hand, as other people's programs and an operator's tools speak it beside the daemon.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Loads a program of these instructions, each 8 bytes.
pub(crate) fn load(kind: u32, code: &[u8]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attributes = Attributes::default();
    attributes.put(0, kind);
    attributes.put(4, (code.len() / 8) as u32);
    attributes.put_pointer(8, code.as_ptr().cast());
    attributes.put_pointer(16, license.as_ptr().cast());
    attributes.call(BPF_PROG_LOAD)
}

/// `link = target, where it stands, flags`.
pub(crate) fn link(program: &OwnedFd, device: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    attributes.put(0, program.as_raw_fd() as u32);
    attributes.put(4, device);
    attributes.put(8, attach_type);
    attributes.put(12, flags);
    attributes.call(BPF_LINK_CREATE)
}

/// What is pinned there.
pub(crate) fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attributes = Attributes::default();
    attributes.put_pointer(0, path.as_ptr().cast());
    attributes.call(BPF_OBJ_GET)
}

/// Takes a pinned link off its device, as `bpftool link detach` does; the pin stays.
pub fn detach_link(pin: &Path) -> io::Result<()> {
    let link = open(pin)?;
    let mut attributes = Attributes::default();
    attributes.put(0, link.as_raw_fd() as u32);
    attributes.ask(BPF_LINK_DETACH).map(drop)
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

    fn ask(&mut self, command: libc::c_long) -> io::Result<i32> {
        // SAFETY: all pointers in it outlive the call, which only reads.
        let answer = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
    }

    /// A command whose answer is a descriptor.
    fn call(&mut self, command: libc::c_long) -> io::Result<OwnedFd> {
        let fd = self.ask(command)?;
        // SAFETY: a descriptor of our own.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_DETACH: libc::c_long = 34;
