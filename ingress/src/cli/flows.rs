//! `ingress flows`: which connections there are, how fast they run, and ending some of them.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::to_value;

use super::client::{Client, ClientError};
use super::text::{Column, Table, age, bit_rate, bytes, count, plural};
use super::{Failure, Global, Outcome, ask, print_json};
use crate::admin::api::{FlowList, FlowQuery, Killed};
use crate::flow::FlowView;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct FlowsArgs {
    #[command(subcommand)]
    verb: Option<FlowsVerb>,
    #[command(flatten)]
    filter: Filter,
    /// Show at most so many, the youngest first; 0 for all
    #[arg(long, value_name = "N", default_value_t = 200)]
    limit: usize,
    /// Show again every second, with rates, until interrupted
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Subcommand)]
enum FlowsVerb {
    /// End connections with a reset to both ends
    Kill {
        #[command(flatten)]
        filter: Filter,
        /// End every connection
        #[arg(long)]
        all: bool,
    },
}

/// All given conditions must hold.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Filters (all given ones must match)")]
struct Filter {
    /// The connection's number
    #[arg(long)]
    id: Option<u64>,
    /// The client's address
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
    /// The server name that the client asked for
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Where the bytes run
    #[arg(long, value_parser = ["kernel", "relay"])]
    mode: Option<String>,
}

pub(super) fn run(args: FlowsArgs, global: &Global, out: &mut impl Write) -> Outcome {
    let FlowsArgs { verb, filter, limit, watch } = args;
    match verb {
        Some(FlowsVerb::Kill { filter, all }) => kill(FlowQuery { all, ..filter.into() }, global, out),
        None => {
            let limit = (limit > 0).then_some(limit);
            let query = FlowQuery { limit, ..filter.into() };
            let daemon = ask(global)?;
            if watch { follow(&daemon, &query, global, out) } else { list(&daemon, &query, global, out) }
        }
    }
}

fn kill(query: FlowQuery, global: &Global, out: &mut impl Write) -> Outcome {
    if query == FlowQuery::default() {
        let message = "flows kill without a filter would end every connection; give a filter, or --all if you mean it";
        return Err(Failure::Usage(message.into()));
    }
    let Killed { killed } = ask(global)?.post("/v1/flows/kill", &query)?;
    if global.json() {
        return print_json(out, &Killed { killed });
    }
    Ok(writeln!(out, "{} ended", plural(killed as u64, "connection"))?)
}

fn list(daemon: &Client, query: &FlowQuery, global: &Global, out: &mut impl Write) -> Outcome {
    let flows: FlowList = daemon.get(&path(query))?;
    if global.json() {
        return print_json(out, &flows);
    }
    Ok(write(out, &flows, None)?)
}

/// Text: a screen that is drawn anew, or blocks if it goes to a file. JSON: one line per second. A daemon that restarts
/// meanwhile is waited for.
fn follow(daemon: &Client, query: &FlowQuery, global: &Global, out: &mut impl Write) -> Outcome {
    let path = path(query);
    let screen = io::stdout().is_terminal() && !global.json();
    let mut before: Option<(Instant, HashMap<u64, u64>)> = None;
    loop {
        match daemon.get::<FlowList>(&path) {
            Err(ClientError::NotRunning { .. } | ClientError::Talk { .. }) if before.is_some() => {
                writeln!(io::stderr(), "the daemon went away; waiting for it")?;
            }
            Err(error) => return Err(error.into()),
            Ok(flows) if global.json() => {
                serde_json::to_writer(&mut *out, &flows).map_err(io::Error::from)?;
                writeln!(out)?;
                before = Some((Instant::now(), HashMap::new()));
            }
            Ok(mut flows) => {
                let now = Instant::now();
                let rates =
                    before.as_ref().map(|(then, carried)| rates(&flows, carried, now - *then)).unwrap_or_default();
                let carried = flows.flows.iter().map(|flow| (flow.id, flow.bytes_to_backend + flow.bytes_to_client));
                before = Some((now, carried.collect()));
                busiest_first(&mut flows, &rates);
                if let Some(rows) = screen.then(terminal_rows).flatten() {
                    // Heading, closing line and the cursor's own line.
                    flows.flows.truncate(rows.saturating_sub(3));
                    write!(out, "{CLEAR}")?;
                }
                write(out, &flows, Some(&rates))?;
                if !screen {
                    writeln!(out)?;
                }
            }
        }
        out.flush()?;
        std::thread::sleep(WATCH_INTERVAL);
    }
}

fn busiest_first(list: &mut FlowList, rates: &HashMap<u64, f64>) {
    let rate = |flow: &FlowView| rates.get(&flow.id).copied().unwrap_or(0.0);
    list.flows.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
}

fn terminal_rows() -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize`, which `size` is, and touches nothing else.
    let done = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (done == 0 && size.ws_row > 0).then_some(size.ws_row.into())
}

/// Bytes per second by id, of connections that were there before.
fn rates(flows: &FlowList, before: &HashMap<u64, u64>, elapsed: Duration) -> HashMap<u64, f64> {
    let rate = |flow: &FlowView| {
        let moved = (flow.bytes_to_backend + flow.bytes_to_client).checked_sub(*before.get(&flow.id)?)?;
        Some((flow.id, moved as f64 / elapsed.as_secs_f64().max(0.001)))
    };
    flows.flows.iter().filter_map(rate).collect()
}

pub(super) fn write(out: &mut impl Write, list: &FlowList, rates: Option<&HashMap<u64, f64>>) -> io::Result<()> {
    use Column::{Left, Right};
    let rate_title = if rates.is_some() { "RATE" } else { "IDLE" };
    let columns = [
        Right("ID"),
        Left("MODE"),
        Left("CLIENT"),
        Left("SNI"),
        Left("POOL"),
        Left("BACKEND"),
        Right("TO BACKEND"),
        Right("TO CLIENT"),
        Right("AGE"),
        Right(rate_title),
        Left("WHY"),
    ];
    let mut table = Table::new(columns);
    for flow in &list.flows {
        let why = flow.reason.clone().unwrap_or_else(|| match flow.state.as_str() {
            "spliced" | "relay" => String::new(),
            state => state.to_owned(),
        });
        table.row([
            flow.id.to_string(),
            flow.mode.clone(),
            flow.client.to_string(),
            flow.sni.clone().unwrap_or_else(|| "-".into()),
            flow.pool.clone(),
            flow.backend.clone(),
            bytes(flow.bytes_to_backend),
            bytes(flow.bytes_to_client),
            age(flow.age),
            match rates {
                Some(rates) => rates.get(&flow.id).map_or_else(|| "-".into(), |rate| bit_rate(*rate)),
                None => age(flow.idle),
            },
            why,
        ]);
    }
    table.write(out, 0)?;
    let shown = list.flows.len();
    if shown < list.total {
        return writeln!(
            out,
            "{} of {} shown; --limit 0 shows all, filters narrow them down",
            count(shown as u64),
            count(list.total as u64)
        );
    }
    writeln!(out, "{}", plural(list.total as u64, "connection"))
}

/// Form-encoded by hand: the values are names and numbers, and everything else is escaped.
fn path(query: &FlowQuery) -> String {
    let mut path = String::from("/v1/flows");
    let fields = to_value(query).ok().and_then(|value| value.as_object().cloned()).unwrap_or_default();
    for (i, (key, value)) in fields.iter().enumerate() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        path.push(if i == 0 { '?' } else { '&' });
        path.push_str(key);
        path.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => path.push(char::from(byte)),
                other => path.push_str(&format!("%{other:02X}")),
            }
        }
    }
    path
}

impl From<Filter> for FlowQuery {
    fn from(filter: Filter) -> Self {
        let Filter { id, client, sni, route, pool, backend, listener, mode } = filter;
        let sni = sni.map(|name| name.to_ascii_lowercase());
        Self { id, client, sni, route, pool, backend, listener, mode, limit: None, all: false }
    }
}

const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Home, then erase to the end: no flicker, no scrollback lost.
const CLEAR: &str = "\x1b[H\x1b[J";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_survives_its_way_through_the_query() {
        let query = FlowQuery {
            id: Some(7),
            client: Some(IpAddr::from([192, 0, 2, 1])),
            route: Some("*.example.com & more".into()),
            limit: Some(200),
            ..FlowQuery::default()
        };
        let path = path(&query);
        let uri: axum::http::Uri = path.parse().expect("a valid URI");
        let axum::extract::Query(parsed) = axum::extract::Query::<FlowQuery>::try_from_uri(&uri).expect("parses");
        assert_eq!(parsed, query, "{path}");
    }
}
