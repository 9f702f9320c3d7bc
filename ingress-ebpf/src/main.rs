//! The kernel programs. Built for `bpfel-unknown-none` by `cargo xtask build-ebpf`; on the host only a stub remains, so that
//! a plain `cargo build` at the workspace root works.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod bpf;
