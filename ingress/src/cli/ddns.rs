//! `ingress ddns`: the DNS records that this node keeps. A dry run reads the configuration itself, asks the providers and
//! changes nothing; it needs no daemon.

use std::io::{self, Write};

use clap::Args;

use super::client::Client;
use super::text::age;
use super::{Failure, Global, Outcome, print_json};
use crate::admin::status::Status;
use crate::config::{self, LoadError};
use crate::ddns::view::DnsRecordView;

#[derive(Debug, Args)]
pub(super) struct DdnsArgs {
    /// Ask the providers what they have and show what would change: `+` made, `~` changed, `=` right, `!` needs a person
    #[arg(long)]
    pub(super) dry_run: bool,
}

pub(super) fn show(daemon: &Client, global: &Global, out: &mut impl Write) -> Outcome {
    let status: Status = daemon.get("/v1/status")?;
    if global.json() {
        return print_json(out, &status.dns_records);
    }
    if status.dns_records.is_empty() {
        writeln!(
            out,
            "this node keeps no DNS records; the configuration has no `ddns`, or its first look is not over"
        )?;
    }
    Ok(write(out, &status.dns_records)?)
}

/// Exit code 1: a record needs a person.
pub(super) fn dry_run(global: &Global, out: &mut impl Write) -> Outcome {
    let loaded = config::load(&global.config).map_err(|error| match error {
        LoadError::Problems(problems) => Failure::Config(format!("{problems:#}")),
        error @ LoadError::Read { .. } => Failure::Config(error.to_string()),
    })?;
    let Some(ddns) = &loaded.config.ddns else {
        return Err(Failure::Config(format!("{} has no `ddns`", global.config.display())));
    };
    let lines = crate::ddns::preview(ddns, &loaded.config.state_dir);
    if global.json() {
        print_json(out, &lines.iter().map(|(line, _)| line).collect::<Vec<_>>())?;
    } else {
        for (line, _) in &lines {
            writeln!(out, "{line}")?;
        }
    }
    if lines.iter().all(|(_, is_well)| *is_well) { Ok(()) } else { Err(Failure::Silent(1)) }
}

pub(super) fn write(out: &mut impl Write, records: &[DnsRecordView]) -> io::Result<()> {
    for record in records {
        let DnsRecordView { provider, name, kind, wanted, published, error, confirmed, .. } = record;
        let says = published.as_deref().unwrap_or("not known");
        write!(out, "dns      {name} {kind} {says}, {provider}")?;
        if let Some(at) = confirmed {
            write!(out, ", confirmed {} ago", age(super::status::since(*at)))?;
        }
        writeln!(out)?;
        if let Some(error) = error {
            let wanted = wanted.as_ref().map(|wanted| format!(" (wanted is {wanted})")).unwrap_or_default();
            writeln!(out, "         NOT CURRENT{wanted}: {error}")?;
        }
    }
    Ok(())
}
