//! The daemon with another layout of the connection table: what a later build will be to this one. For tests.

use ingress::cli::{self, Starts};
use ingress::{daemon, dataplane};

fn main() -> std::process::ExitCode {
    cli::main(Starts { run: daemon::run, detach: dataplane::detach })
}
