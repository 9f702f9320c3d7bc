//! `cargo xtask bench l4 --wan`: clients that are far away. Fetches over long lines, and downloads over one that loses packets.
//!
//! What is asked: a proxy ends TCP near its clients and its backends, a spliced connection runs from end to end. Does a backend
//! that shook hands over a short way send well over the long one?

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use ingress_tests::distance::{Bottleneck, Distance};

use super::case::Better;
use super::load::client::{Measured, Mode};
use super::peer::Peer;
use super::program::{check_interrupt, interrupted};
use super::report::{Bar, Line, cell, header, median, print_lines, write_bars};
use super::run::Bench;
use super::stage::Stage;
use super::topology::Way;
use super::{L4Args, progress};

const PEERS: [Peer; 3] = [Peer::Ingress, Peer::Haproxy, Peer::Direct];
const ROUND_TRIPS: [Duration; 3] = [Duration::from_millis(30), Duration::from_millis(100), Duration::from_millis(260)];
const CONGESTION: [&str; 2] = ["cubic", "bbr"];
/// A household's line.
const BOTTLENECK: Bottleneck = Bottleneck { bytes_per_second: 100_000_000 / 8, queue: Duration::from_millis(100) };
/// In 1,000 packets of each direction, where packets are lost.
const LOST: u64 = 10;
const LOSSY_ROUND_TRIP: Duration = Duration::from_millis(30);

/// A network and a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Fetch { round_trip: Duration, congestion: &'static str },
    Lossy { congestion: &'static str },
}

/// One figure of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    Throughput,
    FirstByte,
}

type Samples = BTreeMap<(Cell, Figure, Peer), Vec<f64>>;

pub(super) fn run(args: &L4Args) -> Result<()> {
    let mut bench = Bench::new(args)?;
    let rounds = args.rounds.unwrap_or(if args.quick { 1 } else { 3 }).max(1);
    let peers = bench.available(&args.peer, &PEERS)?;
    let mut samples = Samples::new();
    let done = all_rounds(&mut bench, &peers, rounds, &mut samples);
    match done {
        Err(error) if interrupted() && !samples.is_empty() => bench.results.note(format!("incomplete: {error:#}")),
        other => other?,
    }
    let mut text = table(&samples, &peers)?;
    for (peer, version) in &bench.results.versions {
        writeln!(text, "{}: {version}", peer.name())?;
    }
    for note in &bench.results.notes {
        writeln!(text, "note: {note}")?;
    }
    print_lines(&text, &lines(&samples), args.json)
}

fn all_rounds(bench: &mut Bench, peers: &[Peer], rounds: usize, samples: &mut Samples) -> Result<()> {
    for round in 1..=rounds {
        for (n, cell) in Cell::all().into_iter().enumerate() {
            for index in 0..peers.len() {
                // Another peer begins each time: what the machine does over time hits all alike.
                let peer = peers[(index + round + n) % peers.len()];
                match cell.measure(bench, peer) {
                    Ok(measured) => {
                        progress(format_args!("round {round}/{rounds} {}: {}", peer.name(), cell.told(&measured)));
                        for (figure, value) in cell.figures(&measured) {
                            samples.entry((cell, figure, peer)).or_default().push(value);
                        }
                    }
                    Err(error) => {
                        check_interrupt()?;
                        bench.results.note(format!("{} without {}: {error:#}", cell.name(), peer.name()));
                    }
                }
            }
        }
    }
    Ok(())
}

impl Cell {
    fn all() -> Vec<Self> {
        let fetches = |round_trip| CONGESTION.map(|congestion| Self::Fetch { round_trip, congestion });
        let lossy = CONGESTION.map(|congestion| Self::Lossy { congestion });
        ROUND_TRIPS.into_iter().flat_map(fetches).chain(lossy).collect()
    }

    fn name(self) -> String {
        match self {
            Self::Fetch { round_trip, congestion } => format!("{}ms_{congestion}", round_trip.as_millis()),
            Self::Lossy { congestion } => format!("lossy_{congestion}"),
        }
    }

    fn way(self) -> Way {
        let bottleneck = Some(BOTTLENECK);
        match self {
            Self::Fetch { round_trip, congestion } => {
                Way { distance: Distance { delay: round_trip / 2, bottleneck, ..Distance::default() }, congestion }
            }
            Self::Lossy { congestion } => {
                let distance = Distance { delay: LOSSY_ROUND_TRIP / 2, lost: LOST, bottleneck, ..Distance::default() };
                Way { distance, congestion }
            }
        }
    }

    fn measure(self, bench: &mut Bench, peer: Peer) -> Result<Measured> {
        let mut stage = Stage::set(bench, peer, Some(self.way()))?;
        let measured = match self {
            Self::Fetch { .. } => stage.load(bench, Mode::Fetch, &[("--count", 3)]),
            // Several streams and a long window: with few losses in a window, chance decides.
            Self::Lossy { .. } => {
                stage.load(bench, Mode::Bulk, &[("--streams", 4), ("--warmup-ms", 1_000), ("--window-ms", 10_000)])
            }
        }?;
        stage.strike(bench)?;
        Ok(measured)
    }

    /// Mbit/s and milliseconds.
    fn figures(self, measured: &Measured) -> Vec<(Figure, f64)> {
        let throughput = (Figure::Throughput, measured.bytes as f64 * 8.0 / 1e6 / measured.seconds);
        match self {
            Self::Fetch { .. } => vec![throughput, (Figure::FirstByte, measured.p50 / 1e3)],
            Self::Lossy { .. } => vec![throughput],
        }
    }

    fn told(self, measured: &Measured) -> String {
        let figures = self.figures(measured);
        let told = figures.iter().map(|(figure, value)| format!("{} {value:.1} {}", figure.case(self), figure.unit()));
        told.collect::<Vec<_>>().join(", ")
    }
}

impl Figure {
    fn case(self, cell: Cell) -> String {
        match (self, cell) {
            (Self::Throughput, Cell::Lossy { congestion }) => format!("lossy_goodput_{congestion}"),
            (Self::Throughput, Cell::Fetch { .. }) => format!("wan_throughput_{}", cell.name()),
            (Self::FirstByte, Cell::Fetch { .. } | Cell::Lossy { .. }) => format!("wan_ttfb_{}", cell.name()),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Throughput => "Mbit/s",
            Self::FirstByte => "ms",
        }
    }

    fn better(self) -> Better {
        match self {
            Self::Throughput => Better::Higher,
            Self::FirstByte => Better::Lower,
        }
    }
}

/// Ours over theirs, the better way round.
fn ratio(samples: &Samples, cell: Cell, figure: Figure, peer: Peer) -> Option<f64> {
    let of = |peer| median(samples.get(&(cell, figure, peer))?);
    figure.better().ratio(of(Peer::Ingress)?, of(peer)?)
}

fn rows(samples: &Samples) -> Vec<(Cell, Figure)> {
    let mut rows: Vec<_> = samples.keys().map(|&(cell, figure, _)| (cell, figure)).collect();
    rows.dedup();
    rows
}

/// What the project promises of far clients.
fn bars(samples: &Samples) -> Vec<Bar> {
    let bar = |(cell, figure)| {
        let name = Figure::case(figure, cell);
        let (peer, limit, better) = match (cell, figure) {
            (Cell::Lossy { .. }, Figure::Throughput | Figure::FirstByte) => (Peer::Direct, 0.9, Better::Higher),
            (Cell::Fetch { .. }, Figure::Throughput) => (Peer::Haproxy, 0.9, Better::Higher),
            (Cell::Fetch { .. }, Figure::FirstByte) => (Peer::Haproxy, 1.2, Better::Lower),
        };
        let value = ratio(samples, cell, figure, peer);
        let value = match better {
            Better::Higher => value,
            Better::Lower => value.map(f64::recip),
        };
        Bar { what: format!("{name}, times {}", peer.name()).into(), value, limit, better }
    };
    rows(samples).into_iter().map(bar).collect()
}

fn table(samples: &Samples, peers: &[Peer]) -> Result<String> {
    let mut text = String::from("\nMedians over the rounds, ± half their spread\n\n");
    header(&mut text, &["case", "unit"], peers)?;
    for (cell_, figure) in rows(samples) {
        write!(text, "| {} | {} |", figure.case(cell_), figure.unit())?;
        for &peer in peers {
            write!(text, " {} |", cell(samples.get(&(cell_, figure, peer))))?;
        }
        writeln!(text)?;
    }
    write_bars(&mut text, bars(samples))?;
    Ok(text)
}

fn lines(samples: &Samples) -> Vec<Line> {
    let of = |cell, figure, peer| samples.get(&(cell, figure, peer));
    let line = |(&(cell, figure, peer), theirs): (&(Cell, Figure, Peer), &Vec<f64>)| {
        let ours = of(cell, figure, Peer::Ingress);
        Some(Line {
            case: figure.case(cell).into(),
            ours: ours.and_then(|ours| median(ours)),
            peer: median(theirs)?,
            peer_name: peer.name(),
            unit: figure.unit(),
            better: figure.better().name(),
            ratio: ratio(samples, cell, figure, peer),
            rounds: theirs.len().min(ours.map_or(0, Vec::len)),
        })
    };
    samples.iter().filter(|((_, _, peer), _)| *peer != Peer::Ingress).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_byte_that_is_late_misses_its_bar_and_one_that_is_early_meets_it() {
        let cell = Cell::Fetch { round_trip: ROUND_TRIPS[0], congestion: "bbr" };
        let samples = |ours: f64| -> Samples {
            [(Peer::Ingress, ours), (Peer::Haproxy, 60.0)]
                .map(|(peer, ms)| ((cell, Figure::FirstByte, peer), vec![ms]))
                .into()
        };
        let value = |ours| bars(&samples(ours))[0].value.expect("both were measured");
        assert!((value(90.0) - 1.5).abs() < 1e-9);
        assert!((value(30.0) - 0.5).abs() < 1e-9);
        assert_eq!(bars(&samples(90.0))[0].limit, 1.2);
        assert_eq!(lines(&samples(90.0))[0].case, "wan_ttfb_30ms_bbr");
    }

    #[test]
    fn every_cell_gives_figures_with_names_of_their_own() {
        let measured = Measured { seconds: 1.0, bytes: 1_000_000, p50: 60_000.0, ..Measured::default() };
        let mut names: Vec<_> = Cell::all()
            .into_iter()
            .flat_map(|cell| cell.figures(&measured).into_iter().map(move |(figure, _)| figure.case(cell)))
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), count), (14, 14));
    }
}
