//! `cargo xtask`: everything that is done to this repository, as one program.

mod arm64;
mod bench;
mod build_ebpf;
mod docs;
mod fuzz;
mod layers;
mod step;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and measures ingress")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the kernel programs.
    BuildEbpf,
    /// Formatting, lints, layers, every test and every scenario.
    Test(test::Args),
    /// Check who imports what in the daemon.
    Layers,
    /// Measure ingress beside its peers.
    Bench(bench::Args),
    /// Fuzz the parsers.
    Fuzz(fuzz::Args),
    /// Check the links in the documentation, rustdoc included.
    Docs,
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::BuildEbpf => build_ebpf::run(),
        Task::Test(args) => test::run(&args),
        Task::Layers => layers::run(),
        Task::Bench(args) => bench::run(args),
        Task::Fuzz(args) => fuzz::run(args),
        Task::Docs => docs::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}
