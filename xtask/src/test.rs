//! `cargo xtask test`: what must hold before anything is merged, in the order of what fails fastest.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use ingress_tests::skip::{NO_SKIP, SKIP_FILE};

use crate::{docs, layers, step};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the tests whose names contain this, without the static checks.
    filter: Option<String>,
    /// Count a test that lacks something on this host as failed.
    #[arg(long)]
    no_skip: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let skips = tempfile::NamedTempFile::new().context("making the list of skips")?;
    let mut suite =
        Suite { filter: args.filter.as_deref(), no_skip: args.no_skip, skips: skips.path(), sum: Sum::default() };
    if args.filter.is_none() {
        suite.note("formatting", step::run("formatting", &mut step::cargo(&["fmt", "--all", "--check"])));
        suite.note("layers", layers::run());
        suite.note("links", docs::check_links());
        let lint = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        suite.note("lints", step::run("lints", &mut step::cargo(&lint)));
    }
    // Always the whole workspace: another selection would choose other features and compile most dependencies again. The
    // scenarios run the binary that this builds.
    step::run("daemon and tests", &mut step::cargo(&["build", "--locked", "--workspace", "--all-targets"]))?;
    if args.filter.as_deref().is_none_or(|filter| filter.contains(UPGRADE) || UPGRADE_SCENARIOS.contains(filter)) {
        step::run("daemon of another layout", &mut step::cargo(&LAYOUT_PROBE))?;
    }
    suite.test("unit tests", &["--workspace", "--lib", "--bins"], &[])?;
    suite.test(
        "integration tests and scenarios",
        &["--workspace", "--test", "*"],
        &["--test-threads", SCENARIO_THREADS],
    )?;
    suite.test("documentation tests", &["--workspace", "--doc"], &[])?;

    let Sum { passed, failed, ignored, broken } = suite.sum;
    let skipped = std::fs::read_to_string(skips.path()).context("reading the list of skips")?;
    let skipped: Vec<&str> = skipped.lines().collect();
    eprintln!();
    skipped.iter().for_each(|line| eprintln!("skipped: {line}"));
    // A skipped scenario returns early, so cargo counts it as passed.
    let summary = format!(
        "{} passed, {failed} failed, {} skipped",
        passed.saturating_sub(skipped.len()),
        ignored + skipped.len()
    );
    eprintln!("{summary}");
    if !broken.is_empty() {
        bail!("failed: {}", broken.join(", "));
    }
    if passed + failed == 0 {
        bail!("no test is called {:?}", args.filter.as_deref().unwrap_or("anything"));
    }
    Ok(())
}

/// Runs parts of the tests and adds up what they say.
struct Suite<'a> {
    filter: Option<&'a str>,
    no_skip: bool,
    skips: &'a Path,
    sum: Sum,
}

#[derive(Default)]
struct Sum {
    passed: usize,
    failed: usize,
    ignored: usize,
    broken: Vec<String>,
}

impl Suite<'_> {
    /// A check that failed does not keep the others from running.
    fn note(&mut self, what: &str, outcome: Result<()>) {
        if let Err(e) = outcome {
            eprintln!("{e:#}");
            self.sum.broken.push(what.into());
        }
    }

    fn test(&mut self, what: &str, select: &[&str], harness: &[&str]) -> Result<()> {
        step::announce(what);
        let mut command = step::cargo(&["test", "--locked", "--no-fail-fast"]);
        command.args(select).args(self.filter).arg("--").args(harness);
        command.env(SKIP_FILE, self.skips).env("RUST_BACKTRACE", "0");
        if self.no_skip {
            command.env(NO_SKIP, "1");
        }
        if std::io::stdout().is_terminal() {
            command.env("CARGO_TERM_COLOR", "always").args(["--color", "always"]);
        }
        if !self.stream(&mut command)? {
            self.sum.broken.push(what.into());
        }
        Ok(())
    }

    /// Passes stdout on line by line and counts the results in it; whether all went well.
    fn stream(&mut self, command: &mut Command) -> Result<bool> {
        let mut child = command.stdout(Stdio::piped()).spawn().context("starting cargo test")?;
        let stdout = child.stdout.take().context("cargo has a stdout")?;
        for line in BufReader::new(stdout).lines() {
            let line = line.context("reading from cargo test")?;
            writeln!(std::io::stdout(), "{line}")?;
            self.sum.add(&line);
        }
        Ok(child.wait()?.success())
    }
}

impl Sum {
    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; ...`; other lines count nothing.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result:") else { return };
        let mut previous = 0;
        for word in counts.split([' ', '.', ';']) {
            match word {
                "passed" => self.passed += previous,
                "failed" => self.failed += previous,
                "ignored" => self.ignored += previous,
                other => previous = other.parse().unwrap_or(0),
            }
        }
    }
}

/// What the scenarios about upgrades are called.
const UPGRADE_SCENARIOS: &str = "s1_upgrade";
const UPGRADE: &str = "upgrade";
/// With the test of the scenarios, so that cargo chooses the same features as for the build of everything.
const LAYOUT_PROBE: [&str; 6] = [
    "build",
    "--locked",
    "--workspace",
    "--features=ingress/layout-probe",
    "--bin=ingress-layout-probe",
    "--test=scenarios",
];

/// Scenarios wait more than they compute, yet each holds several servers.
const SCENARIO_THREADS: &str = "2";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_parts_are_added() {
        let mut sum = Sum::default();
        for line in [
            "running 3 tests",
            "test passed ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s",
            "test result: \u{1b}[31mFAILED\u{1b}[0m. 40 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out",
        ] {
            sum.add(line);
        }
        assert_eq!((sum.passed, sum.failed, sum.ignored), (43, 2, 1));
    }
}
