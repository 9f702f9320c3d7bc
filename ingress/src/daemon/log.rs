//! What the daemon says: JSON lines on stderr, which journald keeps.

use tracing_subscriber::EnvFilter;

/// From here on `tracing` events and panics are JSON lines. `INGRESS_LOG` takes filters such as `info,ingress::l4=debug`.
pub(super) fn start() {
    let filter = EnvFilter::try_from_env("INGRESS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let format = tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter);
    // Fails only if a test of this process has started one before.
    let _ = format.with_writer(std::io::stderr).try_init();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let message = panic.payload_as_str().unwrap_or("panic without a message");
        tracing::error!(place, message, "this is a bug; please report it");
    }));
}
