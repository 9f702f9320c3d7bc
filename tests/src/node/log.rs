//! What a daemon says, line by line, and waiting for a line.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::wait::{PATIENCE, here};

/// What the daemon said, line by line.
#[derive(Debug, Default)]
pub struct Log {
    lines: Mutex<Lines>,
    grown: Condvar,
}

/// The last [`KEPT`] lines or more: ten million connections have more than memory holds.
#[derive(Debug, Default)]
struct Lines {
    kept: Vec<String>,
    /// How many came before them.
    gone: usize,
}

impl Lines {
    fn push(&mut self, line: String) {
        if self.kept.len() == 2 * KEPT {
            self.kept.drain(..KEPT);
            self.gone += KEPT;
        }
        self.kept.push(line);
    }
}

impl Log {
    /// Everything that is kept; a line that is not JSON is a JSON string.
    pub fn lines(&self) -> Vec<Value> {
        self.locked().kept.iter().map(|line| parse(line)).collect()
    }

    pub(super) fn wait_for(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + here(PATIENCE);
        let mut seen = 0_usize;
        let mut lines = self.locked();
        loop {
            let new = seen.saturating_sub(lines.gone);
            if let Some(found) = lines.kept[new..].iter().map(|l| parse(l)).find(|l| condition(l)) {
                return Ok(found);
            }
            seen = lines.gone + lines.kept.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lines);
                bail!("no log line in {:?}: {what}\n{}", here(PATIENCE), self.tail());
            }
            lines = self.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The last lines, for the reader of a failed test.
    pub fn tail(&self) -> String {
        let lines = self.locked();
        let from = lines.kept.len().saturating_sub(TAIL);
        format!("the daemon's last log lines:\n{}", lines.kept[from..].join("\n"))
    }

    pub(super) fn follow(&self, output: impl std::io::BufRead) {
        for line in output.lines().map_while(Result::ok) {
            self.locked().push(line);
            self.grown.notify_all();
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|_| Value::from(line))
}

/// How many lines a failed test shows.
const TAIL: usize = 30;
/// Of a log, for the scenarios that look into it.
const KEPT: usize = 50_000;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn log_line_is_found_whether_it_came_before_or_comes_later() -> Result<()> {
        let log = Arc::new(Log::default());
        log.follow("{\"message\":\"early\"}\n".as_bytes());
        log.wait_for("early", |l| l["message"] == "early")?;
        let writer = log.clone();
        let later = std::thread::spawn(move || writer.follow("plain\n{\"message\":\"late\"}\n".as_bytes()));
        log.wait_for("late", |l| l["message"] == "late")?;
        later.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        assert_eq!(log.lines()[1], "plain");
        Ok(())
    }

    #[test]
    fn endless_log_is_followed_without_keeping_all_of_it() -> Result<()> {
        let log = Log::default();
        for n in 0..=2 * KEPT {
            log.locked().push(n.to_string());
        }
        let kept = log.lines();
        assert_eq!((kept.len(), kept[0].as_u64()), (KEPT + 1, Some(KEPT as u64)));
        let last = (2 * KEPT) as u64;
        assert_eq!(log.wait_for("the last", |l| l.as_u64() == Some(last))?, last);
        Ok(())
    }
}
