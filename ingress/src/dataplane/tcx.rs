//! What else stands on a TCX hook (BPF_PROG_QUERY, linux/bpf.h).

use std::io;

/// Programs of others that stand before `ours` on a device, of which somebody should know: what they keep to themselves, or let
/// pass for good, never gets to us.
pub(super) fn precursors(device: &str, ifindex: u32, ours: &[u32]) -> Vec<String> {
    let mut found = Vec::new();
    for (hook, word) in [(Hook::Ingress, "ingress"), (Hook::Egress, "egress")] {
        let Ok(all) = programs(ifindex, hook) else { continue };
        let Some(place) = all.iter().position(|id| ours.contains(id)) else { continue };
        found.extend(all[..place].iter().map(|id| {
            format!(
                "{device}: program {id} (`bpftool prog show id {id}`) stands before ours on {word}: unless it hands packets on \
                 (TCX_NEXT), connections in the kernel stall; attach it behind ours"
            )
        }));
    }
    found
}

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Hook {
    Ingress = 46,
    Egress = 47,
}

/// Ids of the programs on a hook, in the order in which they run. Those beyond [`MOST`] are left out.
fn programs(ifindex: u32, hook: Hook) -> io::Result<Vec<u32>> {
    const BPF_PROG_QUERY: libc::c_long = 16;
    let mut ids = [0u32; MOST];
    let mut query = Query {
        ifindex,
        attach_type: hook as u32,
        ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    // SAFETY: the kernel writes at most `count` ids, and within the struct whose size it is told.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    let error = io::Error::last_os_error();
    match result {
        0 => Ok(ids[..(query.count as usize).min(MOST)].to_vec()),
        // There are more.
        _ if error.raw_os_error() == Some(libc::ENOSPC) => Ok(ids.to_vec()),
        _ => Err(error),
    }
}

/// `BPF_MPROG_MAX`: no hook has more.
const MOST: usize = 64;

/// `union bpf_attr`, as BPF_PROG_QUERY reads it.
#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    reserved: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}
