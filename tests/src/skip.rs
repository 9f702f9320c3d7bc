//! Skips that cannot hide: each prints its reason and is counted, and with `INGRESS_NO_SKIP` set each is a failure.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::netns::Namespace;

/// Names a file to which each skip appends one line; `cargo xtask test` sets it and prints the list at the end.
pub const SKIP_FILE: &str = "INGRESS_SKIP_FILE";
/// Any value turns every skip into a failure, but for those that are the kernel's.
pub const NO_SKIP: &str = "INGRESS_NO_SKIP";
/// The value of [`NO_SKIP`] with which those are failures too: where the kernel was chosen.
pub const NOT_EVEN_KERNEL: &str = "kernel";

/// Returns early from a scenario, counted as skipped, unless this host has root's rights and the named programs.
#[macro_export]
macro_rules! require {
    ($($program:literal),* $(,)?) => {
        if let Some(reason) = $crate::skip::missing(&[$($program),*]) {
            return $crate::skip::skip(&reason);
        }
    };
}

/// What the lab lacks here, as a sentence; `None`: nothing.
pub fn missing(programs: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces need root".into());
    }
    let absent: Vec<&str> = ["ip"].iter().chain(programs).copied().filter(|p| find_program(p).is_none()).collect();
    (!absent.is_empty()).then(|| format!("not installed: {} (scripts/install-tools.sh)", absent.join(", ")))
}

/// Of kinds of network devices, as `ip link add type` calls them: what this kernel lacks, as a sentence.
pub fn missing_device(kind: &str) -> Result<Option<String>> {
    let made = Namespace::new("try")?.ip_batch(&format!(
        "link add v0 type veth peer name v1\n{}\n",
        match kind {
            "vlan" => "link add link v0 name x0 type vlan id 5".to_owned(),
            "vrf" => "link add x0 type vrf table 5".to_owned(),
            kind => format!("link add x0 type {kind}"),
        }
    ));
    Ok(made.is_err().then(|| format!("this kernel has no {kind} devices")))
}

/// Counts one skip. The caller returns what this returns.
pub fn skip(reason: &str) -> Result<()> {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    if std::env::var_os(NO_SKIP).is_some() {
        bail!("{test} may not be skipped here: {reason}");
    }
    count(&test, reason)
}

/// Likewise for what no installation brings: always counted, and no failure where one has to take the kernel that there is.
pub fn skip_on_this_kernel(reason: &str) -> Result<()> {
    if std::env::var_os(NO_SKIP).is_some_and(|value| value == NOT_EVEN_KERNEL) {
        return skip(reason);
    }
    count(std::thread::current().name().unwrap_or("a test"), reason)
}

fn count(test: &str, reason: &str) -> Result<()> {
    let line = format!("{test}: {reason}\n");
    std::io::stderr().write_all(format!("SKIPPED {line}").as_bytes())?;
    if let Some(path) = std::env::var_os(SKIP_FILE) {
        std::fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())?;
    }
    Ok(())
}

/// Looks in `PATH` and in the sbin directories, which a plain user's `PATH` lacks on Debian.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(name)).find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_is_not_installed_is_named() {
        let reason = missing(&["sh", "no-such-program-here"]);
        let reason = reason.expect("one program is missing");
        assert!(reason.contains("no-such-program-here") || reason.contains("root"), "{reason}");
        assert!(find_program("sh").is_some());
    }
}
