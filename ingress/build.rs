//! Builds the kernel programs with the workspace's own toolchain and hands the object to `dataplane::loader`.
//!
//! `INGRESS_BPF_OBJECT=/path/to/object` skips the build, for editors and for hosts without bpf-linker.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=INGRESS_BPF_OBJECT");
    let object = match env::var_os("INGRESS_BPF_OBJECT") {
        Some(given) => PathBuf::from(given),
        None => build(),
    };
    println!("cargo:rerun-if-changed={}", object.display());
    println!("cargo:rustc-env=INGRESS_BPF_OBJECT={}", object.display());
}

fn build() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    println!("cargo:rerun-if-changed={}", workspace.join("ingress-ebpf/src").display());
    println!("cargo:rerun-if-changed={}", workspace.join("ingress-ebpf/Cargo.toml").display());
    println!("cargo:rerun-if-changed={}", workspace.join(".cargo/config.toml").display());
    let probe = env::var_os("CARGO_FEATURE_LAYOUT_PROBE").is_some();
    // One directory for all profiles: the object does not depend on how the daemon is built.
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target_dir = out_dir.ancestors().nth(4).expect("OUT_DIR lies in the target directory");
    let target_dir = target_dir.join(if probe { "ebpf-layout-probe" } else { "ebpf" });

    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo
        .current_dir(workspace)
        .args(["build", "--release", "--package", "ingress-ebpf", "--bin", "ingress-bpf"])
        .args(["-Z", "build-std=core", "--target", "bpfel-unknown-none", "--target-dir"])
        .arg(&target_dir)
        .env("RUSTC_BOOTSTRAP", "1");
    if probe {
        cargo.args(["--features", "layout-probe"]);
    }
    for inherited in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
    ] {
        cargo.env_remove(inherited);
    }
    let output = cargo.output().expect("cargo could be started");
    assert!(
        output.status.success(),
        "building the kernel programs failed. It needs bpf-linker and the component rust-src; \
         ./scripts/install-tools.sh installs both.\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    target_dir.join("bpfel-unknown-none/release/ingress-bpf")
}
