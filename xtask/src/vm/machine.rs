//! QEMU, emulating: no KVM is needed, and everything takes some ten times longer than it would with it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ingress_tests::guest::{FAILED, NICS, PASSED};

pub(super) const QEMU: &str = "qemu-system-x86_64";
const MEMORY: &str = "1500";
/// Two, so that what races can race.
const CPUS: &str = "2";

/// Boots `kernel` with `ramdisk`, gives each line of its console to `see`, and waits for the guest's verdict.
pub(super) fn run(kernel: &Path, ramdisk: &Path, limit: Duration, mut see: impl FnMut(&str)) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut command = Command::new(QEMU);
    // 6.12 panics now and then where TCG emulates cmpxchg16b.
    command.args(["-accel", "tcg", "-cpu", "max,cx16=off", "-smp", CPUS, "-m", MEMORY]);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(ramdisk).args(["-append", "console=ttyS0 quiet panic=-1"]);
    // Of the makes that QEMU knows, the one whose driver has large receive offload. A hub joins them.
    for (id, address) in NICS.iter().enumerate() {
        command.arg("-netdev").arg(format!("hubport,id=port{id},hubid=0"));
        command.arg("-device").arg(format!("vmxnet3,netdev=port{id},mac={address},romfile="));
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut machine = Machine(child.with_context(|| format!("starting {QEMU}"))?);
    let console = machine.0.stdout.take().context("the machine has a console")?;
    let lines = follow(console);
    let mut verdict = None;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line == PASSED => verdict = Some(Ok(())),
            Ok(line) => match line.strip_prefix(FAILED) {
                Some(why) => verdict = Some(Err(why.to_owned())),
                None => see(&line),
            },
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => bail!("not done within {limit:?}"),
        }
    }
    let status = machine.0.wait().context("waiting for the machine's end")?;
    ensure!(status.success(), "{QEMU} ended with {status}");
    match verdict {
        Some(Ok(())) => Ok(()),
        Some(Err(why)) => bail!("{why}"),
        None => bail!("the machine ended without a verdict: a panic?"),
    }
}

/// Dropping it switches it off.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Mostly it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The console's lines without what belongs to a terminal. The channel ends with the machine.
fn follow(console: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(console).split(b'\n').map_while(|line| line.ok());
        for line in lines {
            if sender.send(plain(&String::from_utf8_lossy(&line))).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Without escape sequences (ECMA-48) and other control characters: the firmware clears its screen in front of the first line.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // A control sequence lasts until its final byte; all others are two characters.
            if chars.next() == Some('[') {
                let _ = chars.find(|c| matches!(c, '\u{40}'..='\u{7e}'));
            }
        } else if !c.is_control() {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_firmware_paints_is_taken_off_a_line() {
        assert_eq!(plain("\u{1b}c\u{1b}[?7l\u{1b}[2J\u{1b}[0mguest: ready\r"), "guest: ready");
    }
}
