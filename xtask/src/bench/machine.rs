//! What the whole machine says of itself: CPU time, memory of processes, sizes of kernel objects.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;

/// Fields of `/proc/stat`'s first line that count as work: user, nice, system, irq, softirq.
const BUSY_FIELDS: [usize; 5] = [0, 1, 2, 5, 6];

/// CPU time that all processes and interrupts have taken since boot, over all CPUs.
pub(super) fn busy() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let ticks = busy_ticks(&stat).context("/proc/stat has no line of all CPUs")?;
    // SAFETY: sysconf has no preconditions.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(Duration::from_secs_f64(ticks as f64 / per_second.max(1) as f64))
}

fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    BUSY_FIELDS.iter().map(|&field| fields.get(field)).sum()
}

/// Waits until the last case's closing work is done, so that it is not charged to the next; at most `patience`.
pub(super) fn settle(patience: Duration) -> anyhow::Result<()> {
    const STEP: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + patience;
    let mut before = busy()?;
    while Instant::now() < deadline {
        std::thread::sleep(STEP);
        let now = busy()?;
        // One tick in the step, of the two or more CPUs there are.
        if now.saturating_sub(before) <= Duration::from_millis(10) {
            return Ok(());
        }
        before = now;
    }
    Ok(())
}

/// Anonymous resident memory of every process in a process group, bytes.
pub(super) fn anonymous_memory(group: i32) -> anyhow::Result<u64> {
    let mut total = 0;
    for pid in processes_of(group)? {
        // A process may end while we look.
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        total += kilobytes(&status, "RssAnon:").unwrap_or(0) * 1024;
    }
    Ok(total)
}

/// Every process whose process group is `group`.
pub(super) fn processes_of(group: i32) -> anyhow::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if process_group(&stat) == Some(group) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The fifth field of `/proc/PID/stat`; the second may hold blanks, but ends with the last parenthesis.
fn process_group(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

/// Kernel memory of one connected TCP socket that a process holds, bytes: the socket, its inode, dentry and file.
pub(super) fn socket_bytes() -> anyhow::Result<u64> {
    let slabs = fs::read_to_string("/proc/slabinfo").context("reading /proc/slabinfo")?;
    ["TCP", "sock_inode_cache", "dentry", "filp"]
        .into_iter()
        .map(|cache| slab_object(&slabs, cache).with_context(|| format!("/proc/slabinfo does not show {cache}")))
        .sum()
}

/// What one object costs: a slab's pages divided by the objects in it.
fn slab_object(slabs: &str, cache: &str) -> Option<u64> {
    const PAGE: u64 = 4096;
    let line = slabs.lines().find(|line| line.split_whitespace().next() == Some(cache))?;
    let mut numbers = line.split_whitespace().skip(4).map(str::parse::<u64>);
    let (per_slab, pages) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (pages * PAGE).checked_div(per_slab)
}

/// TCP sockets of the calling thread's network namespace, TIME_WAIT not counted.
pub(super) fn tcp_sockets() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/sockstat").context("reading sockstat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: inuse ")).context("sockstat has no TCP line")?;
    Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_iowait_and_steal_are_not_work() {
        let stat = "cpu  100 20 3 5000 600 7 8 900 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_ticks(stat), Some(100 + 20 + 3 + 7 + 8));
        assert_eq!(busy_ticks("intr 1\n"), None);
    }

    #[test]
    fn a_process_name_with_blanks_and_parentheses_does_not_shift_the_group() {
        assert_eq!(process_group("12 (a (b) c) S 1 34 34 0 -1"), Some(34));
    }

    #[test]
    fn a_slab_object_costs_its_share_of_the_pages() {
        let slabs =
            "filp 643 714 192 21 1 : tunables 0 0 0\nTCP                   26     26   2368   13    8 : tunables\n";
        assert_eq!(slab_object(slabs, "TCP"), Some(8 * 4096 / 13));
        assert_eq!(slab_object(slabs, "UDP"), None);
    }
}
