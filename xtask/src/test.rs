//! `cargo xtask test`: what must hold before anything is merged, in the order of what fails fastest.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use ingress_tests::skip::{NO_SKIP, SKIP_FILE};

use crate::{arm64, docs, layers, step, vm};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the tests whose names contain this, without the static checks. `vm`: on Debian's kernels,
    /// under QEMU. `arm64`: the daemon for that processor.
    filter: Option<String>,
    /// After `vm`: one of the kernels, as `6.1`, and parts of the names of scenarios; without: all.
    only: Vec<String>,
    /// Count a test that lacks something on this host as failed.
    #[arg(long)]
    no_skip: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let skips = tempfile::NamedTempFile::new().context("making the list of skips")?;
    let mut suite =
        Suite { filter: args.filter.as_deref(), no_skip: args.no_skip, skips: skips.path(), sum: Sum::default() };
    match suite.filter {
        Some(VIRTUAL) => {
            let (guests, parts) = vm::chosen(&args.only);
            suite.machines(&guests, &parts)?;
        }
        Some(_) if !args.only.is_empty() => bail!("{:?}: only `vm` takes more than one word", args.only),
        Some(ARM64) => suite.arm64()?,
        Some(_) => suite.tests()?,
        None => {
            suite.checks();
            suite.tests()?;
            suite.machines(&[vm::OLDEST.in_short()], &[])?;
        }
    }

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

/// Results of tests, added up.
#[derive(Default)]
pub(crate) struct Sum {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    ignored: usize,
    broken: Vec<String>,
}

impl Suite<'_> {
    fn checks(&mut self) {
        self.note("formatting", step::run("formatting", &mut step::cargo(&["fmt", "--all", "--check"])));
        self.note("layers", layers::run());
        self.note("links", docs::check_links());
        let lint = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        self.note("lints", step::run("lints", &mut step::cargo(&lint)));
    }

    fn tests(&mut self) -> Result<()> {
        // Always the whole workspace: another selection would choose other features and compile most dependencies again. The
        // scenarios run the binary that this builds.
        step::run("daemon and tests", &mut step::cargo(&["build", "--locked", "--workspace", "--all-targets"]))?;
        if self.filter.is_none_or(|filter| filter.contains(UPGRADE) || UPGRADE_SCENARIOS.contains(filter)) {
            step::run("daemon of another layout", &mut step::cargo(&LAYOUT_PROBE))?;
        }
        self.test("unit tests", &["--workspace", "--lib", "--bins"], &[])?;
        self.test(
            "integration tests and scenarios",
            &["--workspace", "--test", "*"],
            &["--test-threads", SCENARIO_THREADS],
        )?;
        self.test("documentation tests", &["--workspace", "--doc"], &[])
    }

    fn machines(&mut self, guests: &[vm::Guest], parts: &[&str]) -> Result<()> {
        for guest in guests {
            match vm::run(guest, parts) {
                Ok(vm::Outcome::Ran(sum)) => self.sum.passed += sum.passed,
                // Whether Debian's mirror can be reached is nobody's fault here.
                Ok(vm::Outcome::Skipped(reason)) => self.count_skip(&format!("Linux {}", guest.name), &reason)?,
                Err(e) => {
                    self.sum.failed += 1;
                    self.note(&format!("Linux {}", guest.name), Err(e));
                }
            }
        }
        Ok(())
    }

    fn arm64(&mut self) -> Result<()> {
        if let Some(reason) = arm64::missing() {
            return self.skip("arm64", &reason);
        }
        let outcome = arm64::run();
        *(if outcome.is_ok() { &mut self.sum.passed } else { &mut self.sum.failed }) += 1;
        self.note("arm64", outcome);
        Ok(())
    }

    /// As a scenario that is skipped: it counts as passed, and the list says that it was not.
    fn skip(&mut self, what: &str, reason: &str) -> Result<()> {
        if self.no_skip {
            self.sum.failed += 1;
            self.note(what, Err(anyhow!("{what} may not be skipped here: {reason}")));
            return Ok(());
        }
        self.count_skip(what, reason)
    }

    fn count_skip(&mut self, what: &str, reason: &str) -> Result<()> {
        self.sum.passed += 1;
        let mut list = OpenOptions::new().append(true).open(self.skips).context("opening the list of skips")?;
        writeln!(list, "{what}: {reason}").context("writing to the list of skips")
    }

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
    pub(crate) fn add(&mut self, line: &str) {
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

/// Words that are no filters.
const VIRTUAL: &str = "vm";
const ARM64: &str = "arm64";
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
