//! The first process of a virtual machine of `cargo xtask test vm`: makes a Debian kernel ready for scenarios, runs what its
//! plan says, tells how that went, and switches the machine off.

#![expect(clippy::print_stdout, reason = "standard output is the serial console")]

use std::ffi::CString;
use std::fs::{self, File};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use ingress_tests::bpffs;
use ingress_tests::guest::{FAILED, PASSED, PLAN, Plan};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

fn main() -> ExitCode {
    // On any other machine the end would be the user's.
    if std::process::id() != 1 {
        eprintln!("guest: only as the first process of a virtual machine; see `cargo xtask test vm`");
        return ExitCode::FAILURE;
    }
    match make_ready().and_then(|plan| carry_out(&plan)) {
        Ok(()) => println!("{PASSED}"),
        Err(e) => println!("{FAILED}{e:#}"),
    }
    // It returns only if it fails; then the first process ends, and `panic=-1` ends the machine.
    let _ = reboot(RebootMode::RB_POWER_OFF);
    ExitCode::FAILURE
}

fn make_ready() -> Result<Plan> {
    for (kind, target) in MOUNTS {
        fs::create_dir_all(target).with_context(|| format!("making {target}"))?;
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {target}"))?;
    }
    fs::create_dir_all("/run/lock").context("making /run/lock")?;
    bpffs::ensure_mounted()?;

    let plan = fs::read(PLAN).with_context(|| format!("reading {PLAN}"))?;
    let plan: Plan = serde_json::from_slice(&plan).with_context(|| format!("understanding {PLAN}"))?;
    for module in &plan.modules {
        let file = File::open(module).with_context(|| format!("opening {}", module.display()))?;
        finit_module(file, &CString::default(), ModuleInitFlags::empty())
            .with_context(|| format!("loading {}", module.display()))?;
    }
    Ok(plan)
}

fn carry_out(plan: &Plan) -> Result<()> {
    let mut failed = Vec::new();
    for step in &plan.steps {
        let status = Command::new(&step.program)
            .args(&step.arguments)
            .env_clear()
            .envs(plan.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("starting {}", step.program.display()))?;
        if !status.success() {
            failed.push(format!("{} ({status})", step.program.display()));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join(", "));
    Ok(())
}

/// In this order.
const MOUNTS: [(&str, &str); 5] =
    [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp"), ("tmpfs", "/run")];
