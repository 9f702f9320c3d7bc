//! The systemd unit as it is shipped: how exposed it is, and that it agrees with the daemon it starts.

use std::path::{Path, PathBuf};
use std::process::Command;

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging")
}

fn unit() -> String {
    std::fs::read_to_string(packaging().join("ingress.service")).expect("the unit file")
}

/// All values of a key, over all its lines.
fn values(key: &str) -> Vec<String> {
    let prefix = format!("{key}=");
    let lines: Vec<String> = unit().lines().filter_map(|line| line.strip_prefix(&prefix).map(str::to_owned)).collect();
    lines.iter().flat_map(|line| line.split_whitespace()).map(str::to_owned).collect()
}

/// systemd-analyze, or the reason why there is none.
fn systemd_analyze() -> Result<Command, String> {
    let found = Command::new("systemd-analyze").arg("--version").output();
    match found {
        Ok(output) if output.status.success() => Ok(Command::new("systemd-analyze")),
        Ok(output) => Err(format!("systemd-analyze --version: {}", output.status)),
        Err(error) => Err(format!("systemd-analyze: {error} (apt-get install systemd)")),
    }
}

#[test]
fn the_units_exposure_is_below_three() {
    let mut analyze = match systemd_analyze() {
        Ok(command) => command,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let unit = packaging().join("ingress.service");
    let output = analyze.args(["security", "--offline=true", "--no-pager"]).arg(&unit).output().expect("it ran before");
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, level) = text.split_once("Overall exposure level for ingress.service: ").unwrap_or_else(|| {
        panic!("no exposure level in\n{text}{}", String::from_utf8_lossy(&output.stderr));
    });
    let level: f64 = level.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number");
    assert!(level < 3.0, "{level}:\n{text}");
}

#[test]
fn every_line_of_the_unit_is_known_to_systemd() {
    let mut analyze = match systemd_analyze() {
        Ok(command) => command,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let output = analyze.arg("verify").arg(packaging().join("ingress.service")).output().expect("it ran before");
    let said = String::from_utf8_lossy(&output.stderr);
    // The binary is not installed where tests run; nothing else may be wrong.
    let wrong: Vec<&str> =
        said.lines().filter(|l| l.contains("ingress.service") && !l.contains("is not executable")).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_the_kernel_path_needs_is_left() {
    let capabilities = values("CapabilityBoundingSet");
    for needed in ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON", "CAP_NET_BIND_SERVICE"] {
        assert!(capabilities.iter().any(|c| c == needed), "{needed}");
    }
    assert!(!capabilities.iter().any(|c| c == "CAP_SYS_ADMIN"), "CAP_SYS_ADMIN is as good as root");
    let families = values("RestrictAddressFamilies");
    for needed in ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"] {
        assert!(families.iter().any(|f| f == needed), "{needed}");
    }
    assert_eq!(
        values("SystemCallFilter").last().map(String::as_str),
        Some("sched_setaffinity"),
        "allowed last, so they stay"
    );
    assert!(values("SystemCallFilter").iter().any(|call| call == "bpf"));
}

#[test]
fn the_daemon_may_write_where_it_pins_and_keeps_state() {
    let kernel = ingress::config::KernelConfig::default();
    let writable = format!("-{}", kernel.pin_dir.display());
    assert_eq!(values("ReadWritePaths"), [writable], "not /sys/fs/bpf itself: ProtectKernelTunables would win");
    let state = values("StateDirectory").join("");
    assert_eq!(Path::new("/var/lib").join(state), Path::new("/var/lib/ingress"));
    let socket = ingress::config::AdminConfig::default().socket;
    assert_eq!(socket.parent(), Some(Path::new("/run").join(values("RuntimeDirectory").join("")).as_path()));
}

#[test]
fn a_stopping_daemon_has_time_to_drain() {
    let drain = ingress::config::Limits::default().drain_timeout.as_secs();
    let stop: u64 = values("TimeoutStopSec").join("").parse().expect("seconds");
    assert!(stop > drain + 10, "{stop} s to stop, {drain} s of them to drain");
}

#[test]
fn the_reserved_ports_are_the_ones_that_the_daemon_uses() {
    let sysctl = std::fs::read_to_string(packaging().join("sysctl.d/30-ingress.conf")).expect("the sysctl file");
    let (first, last) = ingress::config::KernelConfig::default().port_range;
    let wanted = format!("net.ipv4.ip_local_reserved_ports = {first}-{last}");
    assert!(sysctl.lines().any(|line| line == wanted), "{wanted} is missing");
}
