//! Takes a pinned link off its device at once (`BPF_OBJ_GET`, `BPF_LINK_DETACH`; bpf(2)), which aya does not offer. Removing
//! the pin alone detaches some time later, when the kernel gets round to it: until then the device counts as taken.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// The `pathname` arm of `union bpf_attr` (linux/bpf.h).
#[repr(C)]
struct ObjectAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Its `link_detach` arm.
#[repr(C)]
struct DetachAttributes {
    link_fd: u32,
}

/// Detaches what is pinned at `pin`, if it is a link, and removes the pin. A link whose device is gone is detached already.
pub(super) fn remove(pin: &Path) -> io::Result<()> {
    if let Ok(link) = open(pin) {
        let attributes = DetachAttributes { link_fd: link.as_raw_fd() as u32 };
        // SAFETY: the kernel reads the attributes, of exactly this size. Its answer changes nothing: the pin goes in any case.
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const attributes, size_of::<DetachAttributes>()) };
    }
    fs::remove_file(pin)
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = ObjectAttributes { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the kernel reads the attributes, of exactly this size, and the path, which ends with a zero.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attributes, size_of::<ObjectAttributes>()) };
    match i32::try_from(fd) {
        // SAFETY: a descriptor that nobody else has.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}
