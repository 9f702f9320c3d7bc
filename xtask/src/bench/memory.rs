//! What an idle connection costs a peer: in its own memory, in sockets, and in BPF maps.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ingress_tests::netns::Namespace;
use serde_json::Value;

use super::machine;
use super::peer::{Process, Running};
use super::program::{check_interrupt, run_to_end};

/// Bytes per connection.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct PerConnection {
    /// How many were open.
    pub(super) connections: usize,
    /// Sockets in the proxy's namespace, and BPF maps whole: their fixed part is shared out over the connections.
    pub(super) kernel: f64,
    /// Growth of the proxy's anonymous memory.
    pub(super) daemon: f64,
}

impl PerConnection {
    pub(super) fn total(self) -> f64 {
        self.kernel + self.daemon
    }
}

/// A peer's memory at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    anonymous: u64,
    sockets: u64,
    maps: u64,
}

impl Memory {
    pub(super) fn of(peer: &Running, proxy: &Namespace) -> Result<Self> {
        let anonymous = peer.group().map_or(Ok(0), machine::anonymous_memory)?;
        let sockets = proxy.exec(machine::tcp_sockets)?;
        let maps = match &peer.process {
            Process::None | Process::Proxy(_) => 0,
            Process::Ingress(ingress) => map_bytes(ingress.program.group(), ingress.pin_dir())?,
        };
        Ok(Self { anonymous, sockets, maps })
    }

    /// What `connections` have added since `before`. Maps count with all that they hold, not with their growth only:
    /// a map that takes all its memory at the start is not free.
    pub(super) fn since(self, before: Self, connections: usize) -> Result<PerConnection> {
        let sockets = self.sockets.saturating_sub(before.sockets) * machine::socket_bytes()?;
        let each = |bytes: u64| bytes as f64 / connections.max(1) as f64;
        Ok(PerConnection {
            connections,
            kernel: each(sockets + self.maps),
            daemon: each(self.anonymous.saturating_sub(before.anonymous)),
        })
    }
}

/// Waits until the number of the proxy's sockets stands still: a handed-off connection closes both of its own.
pub(super) fn wait_for_sockets_to_settle(proxy: &Namespace, patience: Duration) -> Result<()> {
    const STILL: Duration = Duration::from_millis(500);
    let deadline = Instant::now() + patience;
    let mut before = proxy.exec(machine::tcp_sockets)?;
    while Instant::now() < deadline {
        std::thread::sleep(STILL);
        check_interrupt()?;
        let now = proxy.exec(machine::tcp_sockets)?;
        if now == before {
            break;
        }
        before = now;
    }
    Ok(())
}

/// Memory of every map that the daemon holds open or has pinned, as the kernel accounts it.
fn map_bytes(pid: i32, pin_dir: &Path) -> Result<u64> {
    let mut maps: BTreeMap<u64, u64> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("looking at the daemon's descriptors")? {
        // A descriptor may be closed while we look.
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        if let (Some(id), Some(bytes)) = (field(&info, "map_id:"), field(&info, "memlock:")) {
            maps.insert(id, bytes);
        }
    }
    let mut pins = Vec::new();
    files_below(pin_dir, &mut pins)?;
    for pin in pins {
        let mut show = Command::new("bpftool");
        show.args(["--json", "map", "show", "pinned"]).arg(&pin);
        // A pinned program or link is no map, and bpftool says so.
        let Ok(output) = run_to_end(show, Duration::from_secs(5)) else { continue };
        let map: Value = serde_json::from_str(&output).context("reading bpftool's answer")?;
        if let (Some(id), Some(bytes)) = (map["id"].as_u64(), map["bytes_memlock"].as_u64()) {
            maps.insert(id, bytes);
        }
    }
    Ok(maps.values().sum())
}

fn field(info: &str, key: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix(key))?.trim().parse().ok()
}

fn files_below(dir: &Path, found: &mut Vec<std::path::PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_took_its_memory_at_the_start_still_counts_whole() -> Result<()> {
        let before = Memory { anonymous: 1_000, sockets: 2, maps: 64_000 };
        let after = Memory { anonymous: 21_000, sockets: 2, maps: 64_000 };
        let each = after.since(before, 100)?;
        assert_eq!(each, PerConnection { connections: 100, kernel: 640.0, daemon: 200.0 });
        assert_eq!(each.total(), 840.0);
        Ok(())
    }

    #[test]
    fn fdinfo_of_a_map_gives_id_and_memory() {
        let info = "pos:\t0\nmap_type:\t1\nmemlock:\t8192\nmap_id:\t17\n";
        assert_eq!((field(info, "map_id:"), field(info, "memlock:")), (Some(17), Some(8192)));
        assert_eq!(field("pos:\t0\n", "map_id:"), None);
    }
}
