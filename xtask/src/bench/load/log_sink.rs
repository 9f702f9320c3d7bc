//! A syslog socket that counts what it receives and throws it away: the stand-in for the host's log daemon.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;

#[derive(clap::Args)]
pub(in crate::bench) struct LogSinkArgs {
    #[arg(long)]
    path: PathBuf,
}

/// Receives until stdin ends, then prints the number of datagrams.
pub(in crate::bench) fn run(args: LogSinkArgs) -> anyhow::Result<()> {
    let socket = UnixDatagram::bind(&args.path).with_context(|| format!("binding {}", args.path.display()))?;
    let lines = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&lines);
    std::thread::spawn(move || {
        // One byte is enough: what a log daemon does with the text is not measured here.
        while socket.recv(&mut [0u8; 1]).is_ok() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    super::say("ready")?;
    super::wait_for_end_of_stdin();
    super::say(&lines.load(Ordering::Relaxed).to_string())
}
