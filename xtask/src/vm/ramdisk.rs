//! What a guest needs: the tests that were built, the daemon, their peers, the libraries of all of them, and kernel modules.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use ingress_tests::guest::{PLAN, Plan, Step};
use ingress_tests::skip::{NO_SKIP, NOT_EVEN_KERNEL, find_program};
use ingress_tests::wait::SLOWNESS;

use super::archive::Archive;
use super::built::Built;
use super::modules;

/// What the lab calls by name.
pub(super) const PEERS: [&str; 7] = ["ip", "nginx", "curl", "openssl", "ethtool", "nft", "tc"];

/// Devices, queueing, and the rules of a lab with connection tracking.
const MODULES: [&str; 15] = [
    "veth",
    "bridge",
    "8021q",
    "bonding",
    "vrf",
    "sch_ingress",
    "cls_bpf",
    "cls_u32",
    "tun",
    "vmxnet3",
    "af_packet",
    "nf_tables",
    "nft_ct",
    "nf_conntrack_netlink",
    "unix_diag",
];

/// What emulation costs, generously: a verifier that needs a second needs twenty.
const SLOWER: &str = "8";

/// Writes the ramdisk `file`: first the program tests whose names begin with `programs`, if any, then the scenarios.
pub(super) fn write(
    file: &Path,
    kernel_modules: &Path,
    built: &Built,
    programs: Option<&str>,
    scenarios: &[&str],
) -> Result<()> {
    let out = File::create(file).with_context(|| format!("creating {}", file.display()))?;
    let mut archive = Archive::new(BufWriter::new(out));
    let mut libraries = BTreeSet::new();
    let mut add = |archive: &mut Archive<_>, host: &Path, guest: &Path| -> Result<()> {
        archive.program(guest, &stripped(host)?)?;
        libraries.extend(libraries_of(host)?);
        Ok(())
    };
    add(&mut archive, &built.guest, Path::new("/init"))?;
    add(&mut archive, &built.programs, Path::new(PROGRAMS))?;
    add(&mut archive, &built.scenarios, Path::new(SCENARIOS))?;
    // The scenarios look for it beside themselves.
    add(&mut archive, &built.daemon, Path::new("/tests/ingress"))?;
    for peer in PEERS {
        let path = find_program(peer).with_context(|| format!("{peer} is not installed"))?;
        add(&mut archive, &path, &Path::new("/usr/bin").join(peer))?;
    }
    for library in libraries {
        let content = fs::read(&library).with_context(|| format!("reading {}", library.display()))?;
        archive.program(&library, &content)?;
    }

    let mut plan = Plan { environment: environment(), ..Plan::default() };
    for module in modules::collect(kernel_modules, &MODULES)? {
        let path = PathBuf::from(format!("/modules/{}.ko", module.name));
        archive.file(&path, &module.content)?;
        plan.modules.push(path);
    }
    plan.steps.extend(programs.map(|tests| Step { program: PROGRAMS.into(), arguments: vec![tests.into()] }));
    if !scenarios.is_empty() {
        let arguments = ["--exact", "--test-threads", "2"].iter().chain(scenarios).map(|word| (*word).into()).collect();
        plan.steps.push(Step { program: SCENARIOS.into(), arguments });
    }
    archive.file(Path::new(PLAN), &serde_json::to_vec(&plan)?)?;
    for (path, content) in FILES {
        archive.file(Path::new(path), content.as_bytes())?;
    }
    for path in ["/root", "/var/lib/nginx", "/var/log/nginx", "/etc/ssl"] {
        archive.directory(Path::new(path))?;
    }
    archive.finish()?;
    Ok(())
}

const PROGRAMS: &str = "/tests/programs";
const SCENARIOS: &str = "/tests/scenarios";

/// nginx asks for its user's name, openssl for its configuration.
const FILES: [(&str, &str); 3] = [
    ("/etc/passwd", "root:x:0:0::/root:/none\nwww-data:x:33:33::/:/none\nnobody:x:65534:65534::/:/none\n"),
    ("/etc/group", "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"),
    ("/usr/lib/ssl/openssl.cnf", ""),
];

fn environment() -> Vec<(String, String)> {
    [("PATH", "/usr/bin"), ("HOME", "/root"), (SLOWNESS, SLOWER), (NO_SKIP, NOT_EVEN_KERNEL)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// Debug information would be most of the ramdisk.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let stripped = tempfile::NamedTempFile::new().context("making a place for a program")?;
    let status =
        Command::new("strip").arg("-o").arg(stripped.path()).arg(program).status().context("starting strip")?;
    ensure!(status.success(), "strip could not read {}", program.display());
    fs::read(stripped.path()).with_context(|| format!("reading {} stripped", program.display()))
}

/// The shared libraries that a program loads, and its loader, where it looks for them.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("starting ldd")?;
    ensure!(output.status.success(), "ldd says nothing about {}", program.display());
    // `libm.so.6 => /lib/libm.so.6 (0x...)` and `/lib64/ld-linux-x86-64.so.2 (0x...)`.
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(said
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(Into::into)
        .collect())
}
