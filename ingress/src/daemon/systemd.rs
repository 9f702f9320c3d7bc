//! Tells systemd (Type=notify) how the daemon is. Silent where there is no systemd.

use sd_notify::NotifyState;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Started; from now on the watchdog hears from us twice in its time.
pub(super) fn ready(tasks: &mut JoinSet<()>, stop: CancellationToken) {
    notify(NotifyState::Ready);
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    tasks.spawn(async move {
        let mut every = tokio::time::interval(limit / 2);
        while stop.run_until_cancelled(every.tick()).await.is_some() {
            notify(NotifyState::Watchdog);
        }
    });
}

pub(super) fn stopping() {
    notify(NotifyState::Stopping);
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
