//! Asks a pinned link for its device, and takes it off that at once (`BPF_OBJ_GET`, `BPF_OBJ_GET_INFO_BY_FD`, `BPF_LINK_DETACH`;
//! bpf(2)), which aya does not offer. Removing the pin alone detaches some time later, when the kernel gets round to it: until
//! then the device counts as taken.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
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

/// Its `info` arm.
#[repr(C)]
struct InfoAttributes {
    fd: u32,
    len: u32,
    info: u64,
}

/// The start of `struct bpf_link_info`, of links to network devices.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    device: u32,
    rest: [u32; 3],
}

/// Index of the device on which the link pinned at `pin` stands; 0: it stands nowhere any more.
pub(super) fn device(pin: &Path) -> io::Result<u32> {
    let link = open(pin)?;
    let mut info = LinkInfo::default();
    let attributes =
        InfoAttributes { fd: link.as_raw_fd() as u32, len: size_of::<LinkInfo>() as u32, info: (&raw mut info) as u64 };
    // SAFETY: the kernel reads the attributes, of exactly this size, and writes at most `len` bytes of `info`.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const attributes, size_of::<InfoAttributes>())
    };
    if result == 0 { Ok(info.device) } else { Err(io::Error::last_os_error()) }
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
