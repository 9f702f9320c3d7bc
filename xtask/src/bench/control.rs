//! `cargo xtask bench control`: how long a change of routes takes, and what they cost. At 1,000 to 100,000 routes, beside HAProxy
//! with the same names in a map; and how soon a registration is routable on all nodes of a mesh.

mod caddy;
mod haproxy;
mod mesh;
mod ours;
mod visit;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use self::caddy::Caddy;
use self::haproxy::Haproxy;
use self::ours::Ours;
use super::case::Better;
use super::report::{Line, cell, median, print_lines, significant};
use super::{again_as_release, program, progress};

#[derive(clap::Args)]
pub(super) struct ControlArgs {
    /// One JSON object per line and case on stdout; the table goes to stderr.
    #[arg(long)]
    json: bool,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Numbers of routes.
    #[arg(long, default_values_t = [1_000, 10_000, 100_000])]
    routes: Vec<usize>,
    /// Registrations on a mesh of three nodes.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..))]
    registrations: u32,
}

/// What is measured at each number of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    /// Merge, compile and publish, as the daemon itself measures it.
    Compile,
    /// From the verb to its answer, reading the changed file included.
    Reload,
    /// Resident memory after the reload.
    Rss,
    /// From a client's SYN to its backend's first byte, right after that: what looking the name up adds is in it.
    FirstByte,
}

/// Who or what a figure stands beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Ours,
    Haproxy,
    Caddy,
}

impl Who {
    const ALL: [Self; 3] = [Self::Ours, Self::Haproxy, Self::Caddy];

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ingress",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
        }
    }
}

/// Milliseconds from a registration to its first connection through every node.
const ROUTABLE_BAR: f64 = 50.0;
/// Milliseconds, and MB, at 100,000 routes.
const COMPILE_BAR: f64 = 1_000.0;
const RSS_BAR: f64 = 250.0;

type Samples = BTreeMap<(Figure, usize, Who), Vec<f64>>;

pub(super) fn run(args: &ControlArgs) -> Result<()> {
    if cfg!(debug_assertions) {
        return again_as_release();
    }
    ensure!(nix::unistd::geteuid().is_root(), "the bench makes network namespaces: run it as root");
    program::catch_interrupts()?;
    let caddy = caddy::is_installed();
    if !caddy {
        progress(format_args!("without caddy: it is not installed"));
    }
    let mut samples = Samples::new();
    let mut note = |figure, routes, who, value| samples.entry((figure, routes, who)).or_default().push(value);
    for round in 1..=args.rounds {
        for &routes in &args.routes {
            program::check_interrupt()?;
            progress(format_args!("round {round}/{}: {routes} routes", args.rounds));
            let ours = Ours::start(routes)?;
            let changed = ours.change().with_context(|| format!("ingress with {routes} routes"))?;
            note(Figure::Compile, routes, Who::Ours, changed.compile_ms);
            note(Figure::Reload, routes, Who::Ours, changed.reload_ms);
            note(Figure::Rss, routes, Who::Ours, changed.rss_mb);
            note(Figure::FirstByte, routes, Who::Ours, ours.first_byte_us()?);
            drop(ours);
            let mut theirs = Haproxy::start(routes)?;
            let changed = theirs.change().with_context(|| format!("HAProxy with {routes} names"))?;
            note(Figure::Reload, routes, Who::Haproxy, changed.reload_ms);
            note(Figure::Rss, routes, Who::Haproxy, changed.rss_mb);
            note(Figure::FirstByte, routes, Who::Haproxy, theirs.first_byte_us()?);
            drop(theirs);
            if caddy {
                let changed = Caddy::start(routes)?.change().with_context(|| format!("Caddy with {routes} hosts"))?;
                note(Figure::Reload, routes, Who::Caddy, changed.reload_ms);
                note(Figure::Rss, routes, Who::Caddy, changed.rss_mb);
            }
        }
    }
    progress(format_args!("{} registrations on three nodes", args.registrations));
    let mut lines = lines(&samples);
    lines.extend(mesh::routable(args.registrations)?);
    print_lines(&table(&samples, &lines), &lines, args.json)
}

fn lines(samples: &Samples) -> Vec<Line> {
    let mut lines = Vec::new();
    for (&(figure, routes, who), ours) in samples {
        if who != Who::Ours {
            continue;
        }
        let ours = (median(ours), ours.len());
        let bar = match figure {
            Figure::Reload | Figure::FirstByte => None,
            Figure::Compile => Some(COMPILE_BAR),
            Figure::Rss => Some(RSS_BAR),
        };
        lines.extend(bar.map(|bar| figure.line(routes, ours, bar, "bar")));
        for who in [Who::Haproxy, Who::Caddy] {
            let theirs = samples.get(&(figure, routes, who)).and_then(|theirs| median(theirs));
            lines.extend(theirs.map(|theirs| figure.line(routes, ours, theirs, who.name())));
        }
    }
    lines
}

impl Figure {
    fn case(self, routes: usize) -> String {
        match self {
            Self::Compile => format!("compile_ms_{routes}"),
            Self::Reload => format!("reload_ms_{routes}"),
            Self::Rss => format!("rss_mb_{routes}"),
            Self::FirstByte => format!("first_byte_us_{routes}"),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Compile | Self::Reload => "ms",
            Self::Rss => "MB",
            Self::FirstByte => "us",
        }
    }

    fn line(self, routes: usize, (ours, rounds): (Option<f64>, usize), peer: f64, peer_name: &'static str) -> Line {
        let better = Better::Lower;
        Line {
            case: self.case(routes).into(),
            ours,
            peer,
            peer_name,
            unit: self.unit(),
            better: better.name(),
            ratio: ours.and_then(|ours| better.ratio(ours, peer)),
            rounds,
        }
    }
}

fn table(samples: &Samples, lines: &[Line]) -> String {
    let mut text = String::from("\n| case | unit | ingress | haproxy | caddy |\n|---|---|---|---|---|\n");
    for &(figure, routes, who) in samples.keys() {
        if who == Who::Ours {
            let cells = Who::ALL.map(|who| cell(samples.get(&(figure, routes, who)))).join(" | ");
            text.push_str(&format!("| {} | {} | {cells} |\n", figure.case(routes), figure.unit()));
        }
    }
    for Line { case, ours, unit, .. } in lines.iter().filter(|line| line.case.starts_with("routable")) {
        let ours = ours.map_or_else(|| "-".to_owned(), significant);
        text.push_str(&format!("| {case} | {unit} | {ours} | - | - |\n"));
    }
    text.push_str("\n| bar | limit | this run | |\n|---|---|---|---|\n");
    for Line { case, ours, peer, unit, .. } in lines.iter().filter(|line| line.peer_name == "bar") {
        let verdict = match ours {
            Some(ours) if ours <= peer => "met",
            Some(_) => "MISSED",
            None => "not measured",
        };
        let ours = ours.map_or_else(|| "-".to_owned(), significant);
        text.push_str(&format!("| {case} | <= {peer} {unit} | {ours} | {verdict} |\n"));
    }
    text
}

/// What a change of one route took.
struct Changed {
    compile_ms: f64,
    reload_ms: f64,
    rss_mb: f64,
}

/// The name of one route.
fn name(n: usize) -> String {
    format!("h{n:06}.example.com")
}

/// Resident memory of a process, MB.
fn rss_mb(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("reading a process's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_stands_beside_haproxy_where_it_has_one_and_beside_its_bar_where_there_is_one() {
        let samples = Samples::from([
            ((Figure::Compile, 1_000, Who::Ours), vec![3.0]),
            ((Figure::Reload, 1_000, Who::Ours), vec![20.0]),
            ((Figure::Reload, 1_000, Who::Haproxy), vec![60.0]),
            ((Figure::Rss, 1_000, Who::Ours), vec![300.0]),
            ((Figure::Rss, 1_000, Who::Haproxy), vec![30.0]),
        ]);
        let lines = lines(&samples);
        let told: Vec<_> = lines.iter().map(|line| (line.case.as_ref(), line.peer_name, line.ratio)).collect();
        assert_eq!(told[1], ("reload_ms_1000", "haproxy", Some(3.0)));
        assert_eq!(told[3], ("rss_mb_1000", "haproxy", Some(0.1)));
        let table = table(&samples, &lines);
        assert!(table.contains("| compile_ms_1000 | <= 1000 ms | 3.00 | met |"), "{table}");
        assert!(table.contains("| rss_mb_1000 | <= 250 MB | 300 | MISSED |"), "{table}");
    }
}
