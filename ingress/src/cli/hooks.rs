//! `ingress hooks`: who is told what happens, and how that goes; `ingress hooks test` tries one.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};

use super::client::Client;
use super::text::{Column, Table, age, count};
use super::{Global, Outcome, print_json};
use crate::admin::api::HookName;
use crate::hooks::view::{HookStatus, HookTested};

#[derive(Debug, Args)]
pub(super) struct HooksArgs {
    #[command(subcommand)]
    verb: Option<HooksVerb>,
}

#[derive(Debug, Subcommand)]
enum HooksVerb {
    /// Send a message about nothing, at once, and say what became of it
    Test { name: String },
}

pub(super) fn run(args: HooksArgs, daemon: &Client, global: &Global, out: &mut impl Write) -> Outcome {
    match args.verb {
        None => {
            let hooks: Vec<HookStatus> = daemon.get("/v1/hooks")?;
            match global.json() {
                true => print_json(out, &hooks),
                false => Ok(list(out, &hooks)?),
            }
        }
        Some(HooksVerb::Test { name }) => {
            let tested: HookTested = daemon.post("/v1/hooks/test", &HookName { name })?;
            match global.json() {
                true => print_json(out, &tested),
                false => Ok(writeln!(out, "{} took message {}", tested.name, tested.id)?),
            }
        }
    }
}

/// For `ingress status`: one line for a hook that is well.
pub(super) fn write(out: &mut impl Write, hooks: &[HookStatus]) -> io::Result<()> {
    for hook in hooks {
        let HookStatus { name, kind, place, state, waiting, delivered_total, .. } = hook;
        let (waiting, delivered) = (count(*waiting), count(*delivered_total));
        writeln!(out, "hook     {name}, {kind} {place}: {state}, {delivered} delivered, {waiting} waiting")?;
        write_error(out, hook)?;
    }
    Ok(())
}

fn list(out: &mut impl Write, hooks: &[HookStatus]) -> io::Result<()> {
    use Column::{Left, Right};
    let columns = [
        Left("HOOK"),
        Left("TELLS"),
        Left("STATE"),
        Right("WAITING"),
        Right("DELIVERED"),
        Right("RETRIES"),
        Right("FAILED"),
        Right("DROPPED"),
        Right("LAST"),
    ];
    let mut table = Table::new(columns);
    for hook in hooks {
        table.row([
            hook.name.clone(),
            format!("{} {}", hook.kind, hook.place),
            hook.state.clone(),
            count(hook.waiting),
            count(hook.delivered_total),
            count(hook.retried_total),
            count(hook.failed_total),
            count(hook.dropped_total),
            hook.last_success.map_or_else(|| "-".to_owned(), |at| format!("{} ago", age(since(at)))),
        ]);
    }
    table.write(out, 0)?;
    hooks.iter().try_for_each(|hook| write_error(out, hook))
}

fn write_error(out: &mut impl Write, hook: &HookStatus) -> io::Result<()> {
    let Some(error) = &hook.last_error else { return Ok(()) };
    let failing = hook.failing_since.map(|at| format!(" for {}", age(since(at)))).unwrap_or_default();
    writeln!(out, "         {} IS FAILING{failing}: {error}", hook.name)
}

/// From Unix seconds until now.
fn since(at: f64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    (now - at).max(0.0)
}
