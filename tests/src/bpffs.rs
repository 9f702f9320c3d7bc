//! The BPF file system at `/sys/fs/bpf`, mounted once. Two mounts would be two worlds.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

pub const PATH: &str = "/sys/fs/bpf";

/// Mounts it unless it is; safe to call from several processes at once.
pub fn ensure_mounted() -> Result<()> {
    let lock = File::create("/run/lock/ingress-bpffs").context("creating the lock for mounting bpffs")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e).context("locking bpffs")?;
    if is_mounted()? {
        return Ok(());
    }
    mount(Some("bpf"), PATH, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("mounting bpffs at {PATH}"))
}

fn is_mounted() -> Result<bool> {
    Ok(statfs(Path::new(PATH)).with_context(|| format!("looking at {PATH}"))?.filesystem_type() == BPF_FS_MAGIC)
}
