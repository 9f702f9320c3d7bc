//! Deletes many keys of a BPF map with one system call (`BPF_MAP_DELETE_BATCH`, kernel commit aa2e93b8e58e), which aya does
//! not offer. Key by key, reaping cost more than everything else that the daemon does for a connection.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use ingress_ebpf::flow::FlowKey;

const BPF_MAP_DELETE_BATCH: libc::c_int = 27;

/// The `batch` arm of `union bpf_attr` (linux/bpf.h).
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// Deletes `keys`; those that are not there are passed over.
pub(super) fn delete(map: BorrowedFd<'_>, keys: &[FlowKey]) -> io::Result<()> {
    let mut rest = keys;
    while !rest.is_empty() {
        let mut attributes = BatchAttributes {
            in_batch: 0,
            out_batch: 0,
            keys: rest.as_ptr() as u64,
            values: 0,
            count: rest.len() as u32,
            map_fd: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads `count` keys of the map's key size, which is `FlowKey`'s (checked when the map is opened).
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_DELETE_BATCH, &raw mut attributes, size_of::<BatchAttributes>())
        };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        // It stops at a key that is not there, and says how many came before.
        if error.raw_os_error() != Some(libc::ENOENT) {
            return Err(error);
        }
        let deleted = (attributes.count as usize).min(rest.len().saturating_sub(1));
        rest = &rest[deleted + 1..];
    }
    Ok(())
}
