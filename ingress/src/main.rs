//! The binary; everything it does is in the library.

use ingress::cli::{self, Starts};
use ingress::{daemon, dataplane};

fn main() -> std::process::ExitCode {
    cli::main(Starts { run: daemon::run, detach: dataplane::detach })
}
