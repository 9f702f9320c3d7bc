//! `cargo xtask bench xdp`: what admission costs. Nanoseconds per packet and verdict, as the kernel measures them
//! (`BPF_PROG_TEST_RUN`), by XDP and by tc; and how many SYNs a second are dropped, beside nftables.

mod flood;
mod frame;
mod programs;

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use self::frame::Case;
use self::programs::{Hook, Programs};
use super::{program, progress};
use crate::build_ebpf;

#[derive(clap::Args)]
pub(super) struct XdpArgs {
    /// One JSON object per line and case on stdout; the table goes to stderr.
    #[arg(long)]
    json: bool,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Leave out the flood of SYNs, which takes two seconds for each way of dropping and round.
    #[arg(long)]
    no_flood: bool,
}

/// One line of `--json`, in the form of `bench l4`.
#[derive(Serialize)]
struct Line {
    case: String,
    ours: f64,
    peer: f64,
    peer_name: &'static str,
    unit: &'static str,
    better: &'static str,
    /// Above 1: ours is better.
    ratio: f64,
    rounds: usize,
}

pub(super) fn run(args: &XdpArgs) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the bench loads kernel programs: run it as root");
    program::catch_interrupts()?;
    build_ebpf::run()?;
    let mut lines = costs(args.rounds)?;
    if !args.no_flood {
        lines.extend(floods(args.rounds)?);
    }
    report(&lines, args.json)
}

/// XDP beside tc, for each packet.
fn costs(rounds: u32) -> Result<Vec<Line>> {
    let mut programs = Programs::load()?;
    let mut samples: BTreeMap<(Case, Hook), Vec<f64>> = BTreeMap::new();
    for round in 1..=rounds {
        progress(format_args!("cost per packet, round {round} of {rounds}"));
        for case in Case::ALL {
            for hook in [Hook::Xdp, Hook::Tc] {
                program::check_interrupt()?;
                let nanoseconds = programs.cost(case, hook).with_context(|| case.name())?;
                samples.entry((case, hook)).or_default().push(nanoseconds);
            }
        }
    }
    let line = |case: Case| {
        let [xdp, tc] = [Hook::Xdp, Hook::Tc].map(|hook| median(&samples[&(case, hook)]));
        Line {
            case: format!("xdp_{}", case.name()),
            ours: xdp,
            peer: tc,
            peer_name: "tc",
            unit: "ns/packet",
            better: "lower",
            ratio: tc / xdp,
            rounds: rounds as usize,
        }
    };
    Ok(Case::ALL.into_iter().map(line).collect())
}

/// Native XDP beside every other way to drop the same SYNs.
fn floods(rounds: u32) -> Result<Vec<Line>> {
    let mut samples: BTreeMap<flood::Way, Vec<f64>> = BTreeMap::new();
    for round in 1..=rounds {
        for way in flood::Way::ALL {
            program::check_interrupt()?;
            progress(format_args!("flood of SYNs, dropped by {}, round {round} of {rounds}", way.name()));
            let rate = flood::dropped_per_second(way).with_context(|| format!("dropping by {}", way.name()))?;
            samples.entry(way).or_default().push(rate);
        }
    }
    let ours = median(&samples[&flood::Way::Xdp]);
    let peers = flood::Way::ALL.into_iter().filter(|way| *way != flood::Way::Xdp);
    let line = |way: flood::Way| {
        let peer = median(&samples[&way]);
        Line {
            case: "xdp_syn_drop_rate".to_owned(),
            ours,
            peer,
            peer_name: way.name(),
            unit: "1/s",
            better: "higher",
            ratio: ours / peer,
            rounds: rounds as usize,
        }
    };
    Ok(peers.map(line).collect())
}

fn report(lines: &[Line], json: bool) -> Result<()> {
    let mut table = String::from("\n| case | unit | XDP | peer | | ratio |\n|---|---|---|---|---|---|\n");
    for Line { case, ours, peer, peer_name, unit, ratio, .. } in lines {
        table.push_str(&format!("| {case} | {unit} | {ours:.0} | {peer:.0} | {peer_name} | {ratio:.2} |\n"));
    }
    if !json {
        return Ok(write!(std::io::stdout().lock(), "{table}")?);
    }
    write!(std::io::stderr().lock(), "{table}")?;
    let mut stdout = std::io::stdout().lock();
    for line in lines {
        writeln!(stdout, "{}", serde_json::to_string(line)?)?;
    }
    Ok(())
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}
