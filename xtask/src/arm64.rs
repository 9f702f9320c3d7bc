//! `cargo xtask test arm64`: the daemon for 64-bit ARM, built here. The kernel programs are compiled for BPF, not for a
//! processor, so it has to carry the very object that the tests on this host load.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use ingress_tests::skip::find_program;

use crate::{build_ebpf, step};

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Of Debian's package gcc-aarch64-linux-gnu: links, and compiles the C parts of libraries.
const COMPILER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64-static";
/// Where Debian puts the libraries of that processor on other ones.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";
const EXAMPLE: &str = "examples/sni-passthrough/ingress.yaml";

/// What is missing here; `None`: nothing.
pub(crate) fn missing() -> Option<String> {
    let absent: Vec<&str> =
        [COMPILER, EMULATOR].into_iter().filter(|program| find_program(program).is_none()).collect();
    (!absent.is_empty()).then(|| format!("not installed: {} (scripts/install-tools.sh --arm64)", absent.join(", ")))
}

/// Builds it, looks for the object in it, and lets it judge the shipped example.
pub(crate) fn run() -> Result<()> {
    build_ebpf::run()?;
    let mut cargo = step::cargo(&["build", "--locked", "--package", "ingress", "--target", TARGET]);
    cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", COMPILER);
    // Nobody debugs it here, and it would be most of what is written.
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "0");
    step::run("daemon for arm64", &mut cargo)?;

    let daemon = step::root().join("target").join(TARGET).join("debug/ingress");
    let object = std::fs::read(build_ebpf::object()).context("reading the kernel programs")?;
    let carried = std::fs::read(&daemon).with_context(|| format!("reading {}", daemon.display()))?;
    ensure!(contains(&carried, &object), "the daemon for arm64 carries other kernel programs than the host's");
    eprintln!("it carries the host's kernel programs, {} bytes of them", object.len());

    for words in [&["version"][..], &["check", "--config", EXAMPLE]] {
        emulate(&daemon, words)?;
    }
    Ok(())
}

fn emulate(program: &Path, words: &[&str]) -> Result<()> {
    let mut command = Command::new(EMULATOR);
    command.args(["-L", LIBRARIES]).arg(program).args(words).current_dir(step::root());
    step::run(&format!("arm64: ingress {}", words.join(" ")), &mut command)
}

/// Objects begin with a page that is found once or twice, so this is no search of every byte at every place.
fn contains(bytes: &[u8], part: &[u8]) -> bool {
    const HEAD: usize = 64;
    if part.len() < HEAD {
        return false;
    }
    bytes.windows(part.len()).any(|window| window[..HEAD] == part[..HEAD] && window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_found_whole_or_not_at_all() {
        let bytes: Vec<u8> = (0..1000u32).map(|n| (n * 7 % 251) as u8).collect();
        assert!(contains(&bytes, &bytes[333..555]));
        let mut other = bytes[333..555].to_vec();
        if let Some(last) = other.last_mut() {
            *last ^= 1;
        }
        assert!(!contains(&bytes, &other));
        assert!(!contains(&bytes, &bytes[..10]), "too short to say anything");
    }
}
