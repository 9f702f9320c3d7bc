//! Waiting for a condition with a deadline: the only place where the lab sleeps.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Long enough for a slow, shared machine; a healthy run never gets near it.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// How many times longer everything takes here, a whole number: for machines that are emulated.
pub const SLOWNESS: &str = "INGRESS_SLOWNESS";

/// A deadline as it is meant on this machine.
pub fn here(deadline: Duration) -> Duration {
    deadline * slowness()
}

/// What this machine moves in the time in which others move `bytes`.
pub fn amount_here(bytes: u64) -> u64 {
    bytes / u64::from(slowness())
}

fn slowness() -> u32 {
    static FACTOR: LazyLock<u32> =
        LazyLock::new(|| std::env::var(SLOWNESS).ok().and_then(|factor| factor.parse().ok()).unwrap_or(1).max(1));
    *FACTOR
}

/// Polls until `condition` holds. The error names `what` and the deadline.
pub fn wait_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for(deadline, what, || condition().then_some(()))
}

/// Polls until `probe` has an answer, and returns it.
pub fn wait_for<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = here(deadline);
    let started = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return Ok(answer);
        }
        if started.elapsed() >= deadline {
            bail!("waited {deadline:?} in vain: {what}");
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_returned_as_soon_as_there_is_one() {
        let mut asked = 0;
        let answer = wait_for(Duration::from_secs(5), "three questions", || {
            asked += 1;
            (asked == 3).then_some(asked)
        });
        assert_eq!(answer.ok(), Some(3));
    }

    #[test]
    fn error_says_what_was_waited_for() {
        let error = wait_until(Duration::ZERO, "the impossible", || false).expect_err("it cannot hold");
        assert!(error.to_string().contains("the impossible"), "{error}");
    }
}
