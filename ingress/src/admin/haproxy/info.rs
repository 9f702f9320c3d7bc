//! `show info`: the daemon as HAProxy's process. Lines of HAProxy's that say nothing about us are left out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::table::{Format, Value, tagged};
use crate::admin::{Admin, ListenerStatus};
use crate::metrics::process::ProcessUse;

/// Place among HAProxy's lines, name, tag of the typed form.
type Line = (usize, &'static str, &'static str, Value);

pub(super) fn show(admin: &Admin, format: Format) -> String {
    let lines = lines(admin).into_iter();
    match format {
        Format::Plain => lines.map(|(_, name, _, value)| format!("{name}: {value}\n")).collect(),
        Format::Typed => lines.map(|(at, name, tag, value)| format!("{at}.{name}.1:{tag}:{value}\n")).collect(),
        Format::Json => {
            let fields = lines.map(|(at, name, tag, value)| tagged(at, name, tag, &value));
            serde_json::Value::from_iter(fields).to_string() + "\n"
        }
    }
}

fn lines(admin: &Admin) -> Vec<Line> {
    let listeners = admin.listeners();
    let sum = |of: fn(&ListenerStatus) -> u64| listeners.iter().map(of).sum::<u64>();
    let open = sum(|l| l.counts.open_kernel + l.counts.open_relay + l.counts.opening);
    let limits = admin.sources.snapshots.borrow().config.limits.max_connections;
    let process = ProcessUse::read();
    let files = process.max_fds.unwrap_or_default();
    let up = admin.started.elapsed();
    let started = SystemTime::now().checked_sub(up).unwrap_or(UNIX_EPOCH);
    let stopping = *admin.sources.drain.borrow() || admin.sources.draining.is_cancelled();
    let text = |text: String| Value::Text(text);
    let number = |number: u64| Value::Number(number);
    vec![
        (0, "Name", "POS:str", text("ingress".into())),
        (1, "Version", "POS:str", text(env!("CARGO_PKG_VERSION").into())),
        (2, "Release_date", "POS:str", text(date(built()))),
        (3, "Nbthread", "CGS:u32", number(process.threads.unwrap_or_default())),
        (4, "Nbproc", "CGS:u32", number(1)),
        (5, "Process_num", "KGP:u32", number(1)),
        (6, "Pid", "SGP:u32", number(std::process::id().into())),
        (7, "Uptime", "MDP:str", text(uptime(up))),
        (8, "Uptime_sec", "MDP:u32", number(up.as_secs())),
        (13, "Ulimit-n", "CLP:u32", number(files)),
        (14, "Maxsock", "CLP:u32", number(files)),
        (15, "Maxconn", "CLP:u32", number(limits.into())),
        (16, "Hard_maxconn", "CLP:u32", number(limits.into())),
        (17, "CurrConns", "MGP:u32", number(open)),
        (18, "CumConns", "MCP:u32", number(sum(|l| l.counts.accepted_total))),
        (23, "Maxpipes", "CLP:u32", number(0)),
        (24, "PipesUsed", "MGP:u32", number(0)),
        (25, "PipesFree", "MGP:u32", number(0)),
        (47, "Tasks", "MGP:u32", number(sum(|l| l.counts.open_relay + l.counts.opening))),
        (48, "Run_queue", "MGP:u32", number(0)),
        (50, "node", "COS:str", text(admin.node.clone())),
        (52, "Stopping", "MGP:u32", number(stopping.into())),
        (55, "Listeners", "MGP:u32", number(listeners.len() as u64)),
        (61, "TotalBytesOut", "MGP:u64", number(sum(|l| l.counts.bytes.to_backend + l.counts.bytes.to_client))),
        (66, "Build info", "POS:str", text(concat!("ingress ", env!("CARGO_PKG_VERSION")).into())),
        (70, "Start_time_sec", "MDP:u32", number(unix_seconds(started))),
    ]
}

/// `0d 0h01m02s`.
fn uptime(up: Duration) -> String {
    let seconds = up.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{days}d {hours}h{minutes:02}m{:02}s", seconds % 60)
}

/// When this program was written to disk, which is all that a program knows of its release.
fn built() -> u64 {
    let changed = std::fs::metadata("/proc/self/exe").and_then(|file| file.modified());
    changed.map_or(0, unix_seconds)
}

fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// `2026/01/31`, in the proleptic Gregorian calendar: days are counted from 1 March, so that the leap day is the last.
fn date(unix: u64) -> String {
    let days = unix / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    format!("{:04}/{month:02}/{day:02}", year + era * 400 + u64::from(month <= 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_are_written_as_haproxy_does() {
        assert_eq!(uptime(Duration::from_secs(93_784)), "1d 2h03m04s");
        for (unix, expected) in [
            (0, "1970/01/01"),
            (951_782_400, "2000/02/29"),
            (1_795_265_383, "2026/11/21"),
            (4_107_542_400, "2100/03/01"),
        ] {
            assert_eq!(date(unix), expected);
        }
    }
}
