//! `ingress drain`: no new connections on this node, and waiting for those that are open.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Args;

use super::client::Client;
use super::text::{age, plural};
use super::{Failure, Global, Outcome, print_json};
use crate::admin::api::{DrainOrder, Drained};
use crate::admin::status::Status;

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Return when no connection is left, or after this many seconds; exit code 1 says that some are left
    #[arg(long, value_name = "SECONDS", conflicts_with = "cancel")]
    wait: Option<u64>,
    /// Take new connections again
    #[arg(long)]
    cancel: bool,
}

pub(super) fn run(args: DrainArgs, daemon: &Client, global: &Global, out: &mut impl Write) -> Outcome {
    let DrainArgs { wait, cancel } = args;
    let started = Instant::now();
    let mut answer: Drained = daemon.post("/v1/drain", &DrainOrder { cancel })?;
    if let Some(seconds) = wait {
        while answer.open > 0 && started.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(LOOK);
            let status: Status = daemon.get("/v1/status")?;
            if !status.drained {
                return Err(Failure::Runtime(anyhow::anyhow!("the drain was cancelled, or the daemon was restarted")));
            }
            answer.open = status.connections.open();
        }
    }
    if global.json() {
        print_json(out, &answer)?;
    } else {
        write(out, answer, wait.map(|_| started.elapsed()))?;
    }
    if wait.is_some() && answer.open > 0 { Err(Failure::Silent(1)) } else { Ok(()) }
}

fn write(out: &mut impl Write, answer: Drained, waited: Option<Duration>) -> io::Result<()> {
    let Drained { draining, open } = answer;
    let open = plural(open, "connection");
    match waited {
        _ if !draining => writeln!(out, "not draining: new connections are taken; {open} open"),
        None => writeln!(out, "draining: no new connections; {open} open"),
        Some(waited) => writeln!(out, "draining: {open} left after {}", age(waited.as_secs_f64())),
    }
}

/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(200);
