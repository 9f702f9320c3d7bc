//! Confining programs to some of the CPUs for a time.

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::machine;

const MYSELF: Pid = Pid::from_raw(0);

/// While it lives, the calling thread and what it starts run on few CPUs only. Dropping it gives all of them back.
pub(super) struct Confined {
    all: CpuSet,
    few: CpuSet,
    groups: Vec<i32>,
}

impl Confined {
    /// To the last `count` of the CPUs that we may use: the first one serves most interrupts.
    pub(super) fn to(count: usize) -> Result<Self> {
        let all = sched_getaffinity(MYSELF).context("asking for our CPUs")?;
        let mut few = CpuSet::new();
        let allowed = (0..CpuSet::count()).rev().filter(|&cpu| all.is_set(cpu).unwrap_or(false));
        for cpu in allowed.take(count) {
            few.set(cpu)?;
        }
        sched_setaffinity(MYSELF, &few).context("confining ourselves")?;
        Ok(Self { all, few, groups: Vec::new() })
    }

    /// Confines every thread of a process group too.
    pub(super) fn with(mut self, group: i32) -> Result<Self> {
        place(group, &self.few)?;
        self.groups.push(group);
        Ok(self)
    }

    /// A process group that was started meanwhile gets all CPUs with us.
    pub(super) fn release(mut self, group: i32) {
        self.groups.push(group);
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        // It was allowed a moment ago; a program that has ended needs no CPUs.
        let _ = sched_setaffinity(MYSELF, &self.all);
        for &group in &self.groups {
            let _ = place(group, &self.all);
        }
    }
}

fn place(group: i32, cpus: &CpuSet) -> Result<()> {
    for pid in machine::processes_of(group)? {
        // Processes and threads may end while we look.
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let Ok(thread) = thread.file_name().to_string_lossy().parse() else { continue };
            match sched_setaffinity(Pid::from_raw(thread), cpus) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("placing thread {thread}")),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_cpus_come_back_when_the_guard_goes() -> Result<()> {
        let before = sched_getaffinity(MYSELF)?;
        let confined = Confined::to(1)?;
        let few = sched_getaffinity(MYSELF)?;
        assert_eq!((0..CpuSet::count()).filter(|&cpu| few.is_set(cpu).unwrap_or(false)).count(), 1);
        drop(confined);
        assert_eq!(sched_getaffinity(MYSELF)?, before);
        Ok(())
    }
}
