//! The binary; everything it does is in the library.

use ingress::cli::{self, Starts};
use ingress::{daemon, dataplane};

/// A connection on its way to the kernel is many short-lived allocations on one thread and few on another that ends it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main(Starts { run: daemon::run, detach: dataplane::detach })
}
