//! Builds the kernel object with the very command that the daemon's build script runs.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::step;

pub(crate) fn run() -> Result<()> {
    let mut command = step::cargo(&[
        "build",
        "--release",
        "-Z",
        "build-std=core",
        "--target",
        "bpfel-unknown-none",
        "-p",
        "ingress-ebpf",
        "--bin",
        "ingress-bpf",
        "--target-dir",
        "target/ebpf",
    ]);
    // `-Z` on the pinned stable toolchain.
    command.env("RUSTC_BOOTSTRAP", "1");
    // Set by the outer cargo for the host; they would win over the target's own flags.
    for name in HOST_ONLY {
        command.env_remove(name);
    }
    ensure!(ingress_tests::skip::find_program("bpf-linker").is_some(), "{NO_LINKER}");
    step::run("kernel programs", &mut command)?;
    eprintln!("built {}", object().display());
    Ok(())
}

/// What [`run`] builds.
pub(crate) fn object() -> PathBuf {
    step::root().join("target/ebpf/bpfel-unknown-none/release/ingress-bpf")
}

const HOST_ONLY: [&str; 6] =
    ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"];
const NO_LINKER: &str = "bpf-linker is not installed; ./scripts/install-tools.sh installs it";
