//! tokio's clock, which tests can stop, in the standard library's words.

use std::time::Instant;

pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// `None`: never.
pub async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for what a test expects; false if it does not come true in a time that is enough on a busy machine.
#[cfg(test)]
pub(crate) async fn comes_true(condition: impl AsyncFn() -> bool) -> bool {
    use std::time::Duration;

    let deadline = now() + Duration::from_secs(20);
    while !condition().await {
        if now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    true
}
