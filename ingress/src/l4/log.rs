//! The connection log: one JSON line at the end of each connection, and one at its start on request.
//!
//! Lines are not events of `tracing`: at tens of thousands a second, one write per line would cost more than the
//! connection. Workers append to one buffer; a thread of its own writes it out. A reader that is too slow costs lines,
//! which are counted, never the workers' time.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use super::outcome::{ConnectionEnd, ConnectionInfo, Mode};

/// Where workers leave their lines.
#[derive(Clone, Debug)]
pub struct ConnectionLog(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Lines that found no room since the last write.
    dropped: u64,
    closed: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    timestamp: Timestamp,
    level: &'static str,
    target: &'static str,
    message: &'static str,
    id: u64,
    listener: &'a str,
    client: SocketAddr,
    local: SocketAddr,
    sni: Option<&'a str>,
    alpn: Option<&'a str>,
    route: Option<&'a str>,
    pool: &'a str,
    backend: &'a str,
    backend_address: SocketAddr,
    #[serde(flatten)]
    end: Option<End>,
}

#[derive(Serialize)]
struct End {
    bytes_to_backend: u64,
    bytes_to_client: u64,
    duration_ms: u64,
    mode: &'static str,
    relay_reason: Option<&'static str>,
    end_reason: &'static str,
}

impl ConnectionLog {
    /// Starts the thread that writes to `out`. It ends, all lines written, after [`ConnectionLog::close`].
    pub fn start(mut out: impl Write + Send + 'static) -> std::io::Result<(Self, JoinHandle<()>)> {
        let log = Self(Arc::default());
        let queue = log.0.clone();
        let writer = std::thread::Builder::new().name("log".into()).spawn(move || {
            let mut lines = Vec::new();
            while let Some(dropped) = queue.next(&mut lines) {
                if dropped > 0 {
                    lines.extend_from_slice(dropped_line(dropped).as_bytes());
                }
                // Nobody is left to be told when the log itself fails.
                let _ = out.write_all(&lines).and_then(|()| out.flush());
                lines.clear();
                // Lines come together: a busy daemon writes a hundred times a second, not once per line.
                std::thread::sleep(GATHER);
            }
        })?;
        Ok((log, writer))
    }

    /// A connection reached its backend.
    pub fn started(&self, info: &ConnectionInfo) {
        self.append(&line("connection started", info, None));
    }

    /// A connection ended.
    pub fn ended(&self, end: &ConnectionEnd) {
        let relay_reason = match end.mode {
            Mode::Kernel => None,
            Mode::Relay(reason) => Some(reason.as_str()),
        };
        let fields = End {
            bytes_to_backend: end.bytes_to_backend,
            bytes_to_client: end.bytes_to_client,
            duration_ms: end.duration.as_millis() as u64,
            mode: end.mode.as_str(),
            relay_reason,
            end_reason: end.reason.as_str(),
        };
        self.append(&line("connection ended", &end.info, Some(fields)));
    }

    /// Lets the writing thread end when it has written what is there.
    pub fn close(&self) {
        self.0.waiting.lock().closed = true;
        self.0.wake.notify_one();
    }

    fn append(&self, line: &Line<'_>) {
        let mut text = Vec::with_capacity(640);
        if serde_json::to_writer(&mut text, line).is_err() {
            return;
        }
        text.push(b'\n');
        let mut waiting = self.0.waiting.lock();
        if waiting.lines.len() + text.len() > MAX_WAITING {
            waiting.dropped += 1;
            return;
        }
        let first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(&text);
        drop(waiting);
        if first {
            self.0.wake.notify_one();
        }
    }
}

impl Queue {
    /// Swaps what waits into `lines`, which is empty, and says how many more were dropped. `None`: closed and nothing
    /// waits.
    fn next(&self, lines: &mut Vec<u8>) -> Option<u64> {
        let mut waiting = self.waiting.lock();
        while waiting.lines.is_empty() && !waiting.closed {
            self.wake.wait(&mut waiting);
        }
        std::mem::swap(&mut waiting.lines, lines);
        (!lines.is_empty()).then(|| std::mem::take(&mut waiting.dropped))
    }
}

fn line<'a>(message: &'static str, info: &'a ConnectionInfo, end: Option<End>) -> Line<'a> {
    let ConnectionInfo { id, listener, client, local, started: _, sni, alpn, route, pool, backend, backend_address } =
        info;
    Line {
        timestamp: Timestamp(SystemTime::now()),
        level: "INFO",
        target: "connection",
        message,
        id: *id,
        listener: listener.as_str(),
        client: *client,
        local: *local,
        sni: sni.as_ref().map(|sni| sni.as_str()),
        alpn: alpn.as_deref(),
        route: route.as_ref().map(|route| route.as_str()),
        pool: pool.as_str(),
        backend,
        backend_address: *backend_address,
        end,
    }
}

fn dropped_line(lines: u64) -> String {
    let timestamp = Timestamp(SystemTime::now());
    let fields = format_args!(
        r#""level":"WARN","target":"connection","message":"connection log lines dropped: stderr is read too slowly""#
    );
    format!("{{\"timestamp\":\"{timestamp}\",{fields},\"lines\":{lines}}}\n")
}

/// RFC 3339 in UTC with microseconds, as the other log lines carry it.
struct Timestamp(SystemTime);

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let micros = since.subsec_micros();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

/// Days after 1970-01-01 -> year, month, day (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// How long a line may wait behind another one.
const GATHER: Duration = Duration::from_millis(10);
/// About two seconds of lines at 10,000 connections per second.
const MAX_WAITING: usize = 8 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l4::outcome::{EndReason, RelayReason};
    use crate::route::{ListenerName, PoolName, RouteName, Sni};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn end() -> ConnectionEnd {
        let info = ConnectionInfo {
            id: 7,
            listener: ListenerName::new("tls"),
            client: ([192, 0, 2, 1], 5000).into(),
            local: ([192, 0, 2, 2], 443).into(),
            started: SystemTime::now(),
            sni: Sni::parse("app.example.com").ok(),
            alpn: Some("h2,http/1.1".into()),
            route: Some(RouteName::new("app")),
            pool: PoolName::new("app"),
            backend: "one".into(),
            backend_address: ([10, 0, 0, 1], 8443).into(),
        };
        ConnectionEnd {
            info,
            mode: Mode::Relay(RelayReason::KernelOff),
            reason: EndReason::Closed,
            bytes_to_backend: 10,
            bytes_to_client: 20,
            duration: Duration::from_millis(30),
        }
    }

    #[test]
    fn a_line_is_json_with_all_that_is_known_of_the_connection() {
        let sink = Sink::default();
        let (log, writer) = ConnectionLog::start(sink.clone()).expect("thread");
        log.ended(&end());
        log.close();
        writer.join().expect("writer");
        let text = sink.0.lock().clone();
        let line: serde_json::Value = serde_json::from_slice(&text).expect("one JSON line");
        assert_eq!(line["target"], "connection");
        assert_eq!(line["sni"], "app.example.com");
        assert_eq!(line["bytes_to_client"], 20);
        assert_eq!(line["relay_reason"], "kernel_off");
        assert_eq!(line["end_reason"], "closed");
    }

    #[test]
    fn a_log_that_nobody_drains_drops_lines_instead_of_growing() {
        let log = ConnectionLog(Arc::default());
        let end = end();
        while log.0.waiting.lock().dropped < 3 {
            log.ended(&end);
        }
        let mut lines = Vec::new();
        assert_eq!(log.0.next(&mut lines), Some(3));
        assert!(lines.len() <= MAX_WAITING && lines.len() > MAX_WAITING - 1024, "{} bytes wait", lines.len());
        assert!(serde_json::from_str::<serde_json::Value>(&dropped_line(3)).is_ok());
    }

    #[test]
    fn timestamps_follow_the_calendar() {
        let at = |secs| Timestamp(UNIX_EPOCH + Duration::new(secs, 5_000)).to_string();
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000005Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000005Z");
        assert_eq!(at(1_735_689_600), "2025-01-01T00:00:00.000005Z");
    }
}
