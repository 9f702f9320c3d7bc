//! `cargo xtask fuzz <target>`: runs one of the fuzz targets in tests/fuzz for a while.
//!
//! The committed corpus is read and never written; what the fuzzer finds is kept beside its build, so that the next run goes
//! on from there.

use std::fs;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::step;

#[derive(clap::Args)]
pub(crate) struct Args {
    target: Target,
    /// Stop after this many seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Target {
    ClientHello,
    Config,
    ProxyHeader,
    Rewrite,
    Traefik,
}

pub(crate) fn run(Args { target, seconds }: Args) -> Result<()> {
    let name = target.name();
    let installed = step::cargo(&["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    ensure!(
        installed.is_ok_and(|status| status.success()),
        "cargo-fuzz is missing; `cargo install cargo-fuzz --locked` installs it"
    );
    let committed = format!("{FUZZ}/corpus/{name}");
    let found = format!("{FUZZ}/target/corpus/{name}");
    fs::create_dir_all(step::root().join(&found)).with_context(|| format!("making {found}"))?;

    // The parsers are safe Rust: a sanitizer would find nothing, take a nightly toolchain and half of the speed.
    let mut fuzz = step::cargo(&["fuzz", "run", "--fuzz-dir", FUZZ, "--sanitizer", "none", name, &found, &committed]);
    fuzz.arg("--").arg(format!("-max_total_time={seconds}"));
    step::run(&format!("fuzzing {name} for {seconds} s"), &mut fuzz).with_context(|| {
        format!(
            "if {FUZZ}/artifacts/{name} holds a new input, add it to {committed}: `cargo test` replays it from there"
        )
    })
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::ClientHello => "client_hello",
            Self::Config => "config",
            Self::ProxyHeader => "proxy_header",
            Self::Rewrite => "rewrite",
            Self::Traefik => "traefik",
        }
    }
}

const FUZZ: &str = "tests/fuzz";
