//! `ingress diff`: what would change, without changing anything.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use super::client::{Client, ClientError};
use super::text::plural;
use super::{Failure, Global, Outcome, print_json};
use crate::admin::api::PreviewQuery;
use crate::control::state::{Change, Changes};

#[derive(Debug, Default, Args)]
pub(super) struct DiffArgs {
    /// Look at what this provider would say instead of at the configuration file
    #[arg(long, value_name = "NAME", requires = "from")]
    provider: Option<String>,
    /// The provider's file or directory, or the answer that its URL would give
    #[arg(long, value_name = "PATH", requires = "provider")]
    from: Option<PathBuf>,
}

pub(super) fn show(args: DiffArgs, daemon: &Client, global: &Global, out: &mut impl Write) -> Outcome {
    let DiffArgs { provider, from } = args;
    // The daemon has another working directory.
    let from = from.map(std::path::absolute).transpose()?;
    let changes: Changes = match daemon.post("/v1/preview", &PreviewQuery { provider, from }) {
        // Read and refused: the file is at fault, not the daemon.
        Err(ClientError::Refused { status: 422, error }) => return Err(Failure::Config(error)),
        answer => answer?,
    };
    if global.json() {
        return print_json(out, &changes);
    }
    Ok(write(out, &changes)?)
}

pub(super) fn write(out: &mut impl Write, changes: &Changes) -> io::Result<()> {
    let Changes { changes, unserved, warnings } = changes;
    for Change { what, name, before, after } in changes {
        match (before, after) {
            (Some(before), None) => writeln!(out, "- {what} {name}: {before}")?,
            (None, Some(after)) => writeln!(out, "+ {what} {name}: {after}")?,
            (Some(before), Some(after)) if before != after => writeln!(out, "~ {what} {name}: {before}  =>  {after}")?,
            (Some(_), Some(_)) => writeln!(out, "~ {what} {name}: other settings")?,
            (None, None) => writeln!(out, "~ {what}")?,
        }
    }
    for item in unserved {
        writeln!(out, "not served: {item}")?;
    }
    for warning in warnings {
        writeln!(out, "{warning}")?;
    }
    match changes.len() {
        0 => writeln!(out, "nothing would change"),
        n => writeln!(out, "{} would take effect; nothing was changed", plural(n as u64, "change")),
    }
}
