//! `cargo xtask bench xdp`: what admission costs. Nanoseconds per packet and verdict, as the kernel measures them
//! (`BPF_PROG_TEST_RUN`), by XDP and by tc; and how many SYNs a second are dropped, beside nftables.

mod flood;
mod frame;
mod programs;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use self::frame::Case;
use self::programs::{Hook, Programs};
use super::report::{Line, print_lines};
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
            case: format!("xdp_{}", case.name()).into(),
            ours: Some(xdp),
            peer: tc,
            peer_name: "tc",
            unit: "ns/packet",
            better: "lower",
            ratio: Some(tc / xdp),
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
            case: "xdp_syn_drop_rate".into(),
            ours: Some(ours),
            peer,
            peer_name: way.name(),
            unit: "1/s",
            better: "higher",
            ratio: Some(ours / peer),
            rounds: rounds as usize,
        }
    };
    Ok(peers.map(line).collect())
}

fn report(lines: &[Line], json: bool) -> Result<()> {
    let mut table = String::from("\n| case | unit | XDP | peer | | ratio |\n|---|---|---|---|---|---|\n");
    for Line { case, ours, peer, peer_name, unit, ratio, .. } in lines {
        let [ours, ratio] = [ours, ratio].map(|value| value.unwrap_or(f64::NAN));
        table.push_str(&format!("| {case} | {unit} | {ours:.0} | {peer:.0} | {peer_name} | {ratio:.2} |\n"));
    }
    print_lines(&table, lines, json)
}

/// Of at least one round.
fn median(samples: &[f64]) -> f64 {
    super::report::median(samples).unwrap_or(f64::NAN)
}
