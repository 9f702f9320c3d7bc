//! What a run prints: a table of medians, the ratios, the bars that the project sets itself, and JSON lines.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::case::{Better, Case};
use super::memory::PerConnection;
use super::peer::Peer;
use super::run::{PEERS, Results};

/// One line of `--json`.
#[derive(Serialize)]
pub(super) struct Line {
    pub(super) case: Cow<'static, str>,
    pub(super) ours: Option<f64>,
    pub(super) peer: f64,
    pub(super) peer_name: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: &'static str,
    /// Above 1: ours is better.
    pub(super) ratio: Option<f64>,
    /// That both took part in.
    pub(super) rounds: usize,
}

/// A figure that the project promises.
pub(super) struct Bar {
    pub(super) what: Cow<'static, str>,
    pub(super) value: Option<f64>,
    pub(super) limit: f64,
    pub(super) better: Better,
}

/// Idle connections that the bars for memory are about.
const MEMORY_BAR: usize = 100_000;

pub(super) fn print(results: &Results, json: bool) -> Result<()> {
    print_lines(&table(results)?, &lines(results), json)
}

/// The table on stdout; with `json` the lines there, and the table on stderr.
pub(super) fn print_lines(table: &str, lines: &[Line], json: bool) -> Result<()> {
    if !json {
        return Ok(write!(std::io::stdout().lock(), "{table}")?);
    }
    write!(std::io::stderr().lock(), "{table}")?;
    let mut stdout = std::io::stdout().lock();
    for line in lines {
        writeln!(stdout, "{}", serde_json::to_string(&line)?)?;
    }
    Ok(())
}

impl Results {
    fn median(&self, case: Case, peer: Peer) -> Option<f64> {
        self.samples.get(&(case, peer)).and_then(|samples| median(samples))
    }

    /// Ours over theirs, the better way round.
    fn ratio(&self, case: Case, peer: Peer) -> Option<f64> {
        case.better().ratio(self.median(case, Peer::Ingress)?, self.median(case, peer)?)
    }

    fn peers(&self) -> Vec<Peer> {
        PEERS.into_iter().filter(|peer| self.samples.keys().any(|(_, sampled)| sampled == peer)).collect()
    }

    fn cases(&self) -> Vec<Case> {
        Case::ALL.into_iter().filter(|case| self.samples.keys().any(|(sampled, _)| sampled == case)).collect()
    }
}

pub(super) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

fn lines(results: &Results) -> Vec<Line> {
    let mut lines = Vec::new();
    for case in results.cases() {
        for peer in results.peers().into_iter().filter(|peer| *peer != Peer::Ingress) {
            let Some(theirs) = results.median(case, peer) else { continue };
            let rounds = |peer| results.samples.get(&(case, peer)).map_or(0, Vec::len);
            lines.push(Line {
                case: case.name().into(),
                ours: results.median(case, Peer::Ingress),
                peer: theirs,
                peer_name: peer.name(),
                unit: case.unit(),
                better: case.better().name(),
                ratio: results.ratio(case, peer),
                rounds: rounds(peer).min(rounds(Peer::Ingress)),
            });
        }
    }
    lines
}

/// Markdown, so that a run can be pasted into docs/benchmarks.md.
fn table(results: &Results) -> Result<String> {
    let mut text = String::new();
    let peers = results.peers();
    writeln!(text, "\nMedians over the rounds, ± half their spread; threads per proxy: {}\n", results.threads)?;
    header(&mut text, &["case", "unit"], &peers)?;
    for case in results.cases() {
        write!(text, "| {} | {} |", case.name(), case.unit())?;
        for &peer in &peers {
            write!(text, " {} |", cell(results.samples.get(&(case, peer))))?;
        }
        writeln!(text)?;
    }
    if peers.contains(&Peer::Ingress) {
        writeln!(text, "\nOurs against each peer; above 1 ours is better\n")?;
        let others: Vec<Peer> = peers.iter().copied().filter(|peer| *peer != Peer::Ingress).collect();
        header(&mut text, &["case"], &others)?;
        for case in results.cases() {
            write!(text, "| {} |", case.name())?;
            for &peer in &others {
                write!(text, " {} |", results.ratio(case, peer).map_or("-".into(), |ratio| format!("{ratio:.2}")))?;
            }
            writeln!(text)?;
        }
    }
    write_bars(&mut text, bars(results))?;
    for (peer, version) in &results.versions {
        writeln!(text, "{}: {version}", peer.name())?;
    }
    for (peer, memory) in results.memory.iter().filter(|(_, memory)| memory.connections > 0) {
        let PerConnection { connections, kernel, daemon } = memory;
        writeln!(
            text,
            "{}: {connections} idle connections, each {kernel:.0} B kernel, {daemon:.0} B daemon",
            peer.name()
        )?;
    }
    for note in &results.notes {
        writeln!(text, "note: {note}")?;
    }
    Ok(text)
}

pub(super) fn write_bars(text: &mut String, bars: Vec<Bar>) -> Result<()> {
    writeln!(text, "\n| bar | limit | this run | |\n|---|---|---|---|")?;
    for Bar { what, value, limit, better } in bars {
        let sign = match better {
            Better::Higher => ">=",
            Better::Lower => "<=",
        };
        let (value, verdict) = match value {
            None => ("-".into(), "not measured"),
            Some(value) if better == Better::Higher && value >= limit => (significant(value), "met"),
            Some(value) if better == Better::Lower && value <= limit => (significant(value), "met"),
            Some(value) => (significant(value), "MISSED"),
        };
        writeln!(text, "| {what} | {sign} {limit} | {value} | {verdict} |")?;
    }
    Ok(writeln!(text)?)
}

pub(super) fn header(text: &mut String, first: &[&str], peers: &[Peer]) -> Result<()> {
    let names = || first.iter().copied().chain(peers.iter().map(|peer| peer.name()));
    writeln!(text, "| {} |", names().collect::<Vec<_>>().join(" | "))?;
    Ok(writeln!(text, "|{}", names().map(|_| "---|").collect::<String>())?)
}

pub(super) fn cell(samples: Option<&Vec<f64>>) -> String {
    let Some((samples, middle)) = samples.and_then(|samples| Some((samples, median(samples)?))) else {
        return "-".into();
    };
    let (low, high) = samples.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    if samples.len() < 2 || middle == 0.0 {
        return significant(middle);
    }
    format!("{} ±{:.0}%", significant(middle), 50.0 * (high - low) / middle)
}

/// Three significant digits, thousands whole.
pub(super) fn significant(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn bars(results: &Results) -> Vec<Bar> {
    let ratio = |case, peer| results.ratio(case, peer);
    // The lowest ratio belongs to the strongest proxy.
    let best_proxy = |case| {
        let proxies = [Peer::Haproxy, Peer::HaproxySplice, Peer::Nginx, Peer::Envoy];
        proxies.into_iter().filter_map(|peer| ratio(case, peer)).min_by(f64::total_cmp)
    };
    let higher = |what: &'static str, value, limit| Bar { what: what.into(), value, limit, better: Better::Higher };
    let lower = |what: &'static str, value, limit| Bar { what: what.into(), value, limit, better: Better::Lower };
    // With fewer connections the fixed part of the maps weighs more on each.
    let memory = results.memory.get(&Peer::Ingress).filter(|memory| memory.connections >= MEMORY_BAR);
    vec![
        higher("bulk_1, share of direct", ratio(Case::Bulk1, Peer::Direct), 0.90),
        higher("bulk_8, share of direct", ratio(Case::Bulk8, Peer::Direct), 0.90),
        higher("bulk_1, times the best proxy", best_proxy(Case::Bulk1), 2.5),
        higher("bulk_8, times the best proxy", best_proxy(Case::Bulk8), 2.5),
        lower("CPU per GB, times direct", ratio(Case::CpuPerGb, Peer::Direct).map(f64::recip), 1.25),
        higher("connections/s, times HAProxy, both with logs", ratio(Case::Connections, Peer::Haproxy), 1.0),
        lower("kernel bytes per idle connection at 100,000", memory.map(|m| m.kernel), 640.0),
        lower("daemon bytes per idle connection at 100,000", memory.map(|m| m.daemon), 256.0),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn results() -> Results {
        let samples = [
            ((Case::Bulk1, Peer::Ingress), vec![50.0, 60.0, 58.0]),
            ((Case::Bulk1, Peer::Direct), vec![60.0, 59.0, 61.0]),
            ((Case::Bulk1, Peer::Haproxy), vec![20.0, 20.0, 20.0]),
            ((Case::Bulk1, Peer::Nginx), vec![29.0, 29.0]),
            ((Case::CpuPerGb, Peer::Ingress), vec![0.25]),
            ((Case::CpuPerGb, Peer::Direct), vec![0.2]),
        ];
        Results {
            samples: samples.into_iter().collect(),
            memory: BTreeMap::from([(
                Peer::Ingress,
                PerConnection { connections: 100_000, kernel: 700.0, daemon: 10.0 },
            )]),
            threads: 1,
            versions: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn the_bar_against_proxies_is_measured_against_the_strongest() {
        let bars = bars(&results());
        assert_eq!(bars[2].value, Some(2.0));
        assert_eq!(bars[4].value, Some(1.25));
        assert_eq!(bars[5].value, None);
    }

    #[test]
    fn the_table_says_which_bars_are_met() -> Result<()> {
        let text = table(&results())?;
        assert!(text.contains("| bulk_1, share of direct | >= 0.9 | 0.967 | met |"), "{text}");
        assert!(text.contains("| bulk_1, times the best proxy | >= 2.5 | 2.00 | MISSED |"), "{text}");
        assert!(text.contains("| CPU per GB, times direct | <= 1.25 | 1.25 | met |"), "{text}");
        assert!(text.contains("| kernel bytes per idle connection at 100,000 | <= 640 | 700 | MISSED |"), "{text}");
        assert!(text.contains("| connections/s, times HAProxy, both with logs | >= 1 | - | not measured |"), "{text}");
        Ok(())
    }

    #[test]
    fn json_has_the_promised_keys_and_null_where_ours_is_missing() -> Result<()> {
        let mut results = results();
        let line = serde_json::to_value(&lines(&results)[0])?;
        let keys: Vec<&str> = line.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["better", "case", "ours", "peer", "peer_name", "ratio", "rounds", "unit"]);
        results.samples.retain(|(_, peer), _| *peer != Peer::Ingress);
        let line = serde_json::to_value(&lines(&results)[0])?;
        assert!(line["ours"].is_null() && line["ratio"].is_null());
        assert_eq!(line["peer"], 60.0);
        Ok(())
    }

    #[test]
    fn the_median_of_an_even_number_is_the_middle_of_two() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
