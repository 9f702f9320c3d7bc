//! `ingress routes`: what is served, who said so, and why the rest is not.

use std::io::{self, Write};

use clap::Args;

use super::client::Client;
use super::text::{Column, Table, count, plural};
use super::{Global, Outcome, print_json};
use crate::admin::routes::{RouteView, RoutesQuery};

#[derive(Debug, Default, Args)]
pub(super) struct RoutesArgs {
    /// Only those with this text in their name, host, port or rule
    #[arg(value_name = "TEXT")]
    matching: Option<String>,
    /// Only those of one provider; `file` for the configuration itself
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Only what is not served
    #[arg(long)]
    unserved: bool,
}

pub(super) fn show(args: RoutesArgs, daemon: &Client, global: &Global, out: &mut impl Write) -> Outcome {
    let RoutesArgs { matching, provider, unserved } = args;
    let routes: Vec<RouteView> = daemon.post("/v1/routes", &RoutesQuery { provider, matching, unserved })?;
    if global.json() {
        return print_json(out, &routes);
    }
    Ok(write(out, &routes)?)
}

pub(super) fn write(out: &mut impl Write, routes: &[RouteView]) -> io::Result<()> {
    use Column::{Left, Right};
    let (served, unserved): (Vec<_>, Vec<_>) = routes.iter().partition(|route| route.why.is_none());
    let columns =
        [Left("FOR"), Left("KIND"), Left("ROUTE"), Left("LISTENERS"), Left("POOL"), Right("UP"), Left("PROVIDER")];
    let mut table = Table::new(columns);
    for route_view in &served {
        let RouteView { matches, kind, route, listeners, pool, up, .. } = route_view;
        table.row([
            matches.clone(),
            kind.clone(),
            route.clone(),
            if listeners.is_empty() { "all".to_owned() } else { listeners.join(" ") },
            pool.clone().unwrap_or_default(),
            up.map_or_else(String::new, |up| count(up as u64)),
            said_by(route_view),
        ]);
    }
    if !served.is_empty() {
        table.write(out, 0)?;
    }
    if !unserved.is_empty() {
        let line = if served.is_empty() { "" } else { "\n" };
        writeln!(out, "{line}not served: {}", plural(unserved.len() as u64, "item"))?;
        for item in unserved {
            let (RouteView { matches, route, why, .. }, provider) = (item, said_by(item));
            let matches = if matches.is_empty() { String::new() } else { format!(" {matches}") };
            writeln!(out, "  {provider}: {route}{matches}: {}", why.as_deref().unwrap_or_default())?;
        }
    }
    Ok(())
}

/// The provider, and who told it: `platform: servers, lease 30s`.
fn said_by(route: &RouteView) -> String {
    let RouteView { provider, owner, lease, .. } = route;
    let owner = owner.as_ref().map(|owner| format!(": {owner}")).unwrap_or_default();
    let lease = lease.map(|seconds| format!(", lease {seconds}s")).unwrap_or_default();
    format!("{provider}{owner}{lease}")
}
