//! What a namespace's TCP counts: `/proc/net/snmp` and `/proc/net/netstat`, named as `nstat` names them without the group.

use anyhow::{Context as _, Result};

use crate::netns::Namespace;

/// The counter's value since the namespace exists; the group is `Tcp` or `TcpExt`.
pub fn tcp_counter(ns: &Namespace, group: &str, name: &str) -> Result<u64> {
    // `/proc/net` is that of the process's first thread.
    let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
    let text = ns.exec(|| Ok::<_, std::io::Error>(read("snmp")? + &read("netstat")?))?;
    let prefix = format!("{group}: ");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    let (names, values) = lines.next().zip(lines.next()).with_context(|| format!("no group {group}"))?;
    let found = names.split(' ').zip(values.split(' ')).find(|(n, _)| *n == name);
    let (_, value) = found.with_context(|| format!("no counter {group}{name}"))?;
    value.parse().with_context(|| format!("{group}{name} is {value:?}"))
}
