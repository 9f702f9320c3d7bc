//! The daemon's own use of the host, read from `/proc/self`.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// One reading. What cannot be read is `None` and left out of `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessUse {
    /// User and system together.
    pub cpu_seconds: Option<f64>,
    pub resident_bytes: Option<u64>,
    pub virtual_bytes: Option<u64>,
    pub threads: Option<u64>,
    pub open_fds: Option<u64>,
    pub max_fds: Option<u64>,
}

impl ProcessUse {
    pub fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        // The listing itself holds one descriptor open.
        let open_fds = fs::read_dir("/proc/self/fd").ok().map(|dir| (dir.count() as u64).saturating_sub(1));
        Self { open_fds, max_fds: max_fds(&limits), ..Self::from_stat(&stat) }
    }

    /// Without the descriptors, which take a walk to count: for those who ask all the time.
    pub fn read_cpu_and_memory() -> Self {
        Self::from_stat(&fs::read_to_string("/proc/self/stat").unwrap_or_default())
    }

    /// proc_pid_stat(5). The command name may hold spaces and brackets, so fields count from the last `)`.
    fn from_stat(stat: &str) -> Self {
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace().collect()).unwrap_or_default();
        // `state` is field 3 in the manual and the first one here.
        let field = |manual: usize| fields.get(manual - 3).and_then(|f| f.parse::<u64>().ok());
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().filter(|hz| *hz > 0);
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok());
        Self {
            cpu_seconds: field(14)
                .zip(field(15))
                .zip(per_second)
                .map(|((user, system), hz)| (user + system) as f64 / hz as f64),
            threads: field(20),
            virtual_bytes: field(23),
            resident_bytes: field(24).zip(page).map(|(pages, size)| pages * size),
            open_fds: None,
            max_fds: None,
        }
    }
}

fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_descriptors_and_threads() {
        let now = ProcessUse::read();
        assert!(now.resident_bytes > Some(100_000), "{now:?}");
        assert!(now.virtual_bytes >= now.resident_bytes, "{now:?}");
        assert!(now.open_fds >= Some(3) && now.max_fds >= now.open_fds, "{now:?}");
        assert!(now.threads >= Some(1) && now.cpu_seconds.is_some(), "{now:?}");
    }

    #[test]
    fn a_command_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 300 200 0 0 20 0 5 0 99 8192 2 0";
        let used = ProcessUse::from_stat(stat);
        assert_eq!((used.threads, used.virtual_bytes), (Some(5), Some(8192)));
    }
}
