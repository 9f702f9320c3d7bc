//! Programs that the bench starts: each in a process group of its own, each ended by that group's id.
//!
//! Every wait has a deadline and ends early on Ctrl-C, so that guards can tidy up.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, killpg, sigaction};
use nix::unistd::Pid;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
const POLL: Duration = Duration::from_millis(10);

/// From here on SIGINT and SIGTERM make every wait return an error instead of killing us.
pub(super) fn catch_interrupts() -> anyhow::Result<()> {
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler stores to an atomic and does nothing else.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("catching {signal}"))?;
    }
    Ok(())
}

pub(super) fn check_interrupt() -> anyhow::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

pub(super) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A running program. Dropping it ends its whole process group.
pub(super) struct Program {
    name: String,
    child: Child,
    /// Time to end by itself after SIGTERM.
    grace: Duration,
    stderr: PathBuf,
    lines: Option<Receiver<String>>,
    stdin: Option<ChildStdin>,
}

impl Program {
    /// A server: everything that it prints goes to `log`; it gets `grace` to stop.
    pub(super) fn server(name: &str, mut command: Command, log: &Path, grace: Duration) -> anyhow::Result<Self> {
        let out = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let child = command.spawn().with_context(|| format!("starting {name}: {command:?}"))?;
        Ok(Self { name: name.into(), child, grace, stderr: log.into(), lines: None, stdin: None })
    }

    /// A load program: it talks in lines on stdout, ends when its stdin does, and has nothing to lose.
    pub(super) fn load(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let stderr = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).process_group(0);
        let mut child = command.spawn().with_context(|| format!("starting {name}: {command:?}"))?;
        let stdout = child.stdout.take().with_context(|| format!("{name} has no stdout"))?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take();
        Ok(Self { name: name.into(), child, grace: Duration::ZERO, stderr: log.into(), lines: Some(lines), stdin })
    }

    /// Process group, which is also the process id of its first process.
    pub(super) fn group(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The next line of a load program, or what it said instead.
    pub(super) fn next_line(&mut self, patience: Duration) -> anyhow::Result<String> {
        let lines = self.lines.as_ref().with_context(|| format!("{} does not talk", self.name))?;
        let deadline = Instant::now() + patience;
        loop {
            check_interrupt()?;
            match lines.recv_timeout(POLL) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => bail!("{} said nothing for {patience:?}{}", self.name, self.last()),
                Err(RecvTimeoutError::Disconnected) => bail!("{} ended early{}", self.name, self.last()),
            }
        }
    }

    /// Lets a load program end, and returns its last line.
    pub(super) fn finish(mut self, patience: Duration) -> anyhow::Result<String> {
        self.stdin = None;
        self.next_line(patience)
    }

    /// An error if it has ended, with what it said.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}{}", self.name, self.last());
        }
        Ok(())
    }

    /// The last lines on its stderr, ready to be appended to a message.
    fn last(&self) -> String {
        const LINES: usize = 5;
        let text = std::fs::read_to_string(&self.stderr).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(LINES)..].join(" | ");
        if tail.is_empty() { String::new() } else { format!(": {tail}") }
    }

    fn wait(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(POLL);
        }
        false
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.group());
        if matches!(self.child.try_wait(), Ok(None)) && !self.grace.is_zero() {
            // An error here means that it ended in between.
            let _ = killpg(group, Signal::SIGTERM);
            self.wait(self.grace);
        }
        // Also for workers whose master is gone; no process left is no error to us.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Runs a short command to its end; its stdout, or an error with its stderr.
pub(super) fn run_to_end(mut command: Command, patience: Duration) -> anyhow::Result<String> {
    let what = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().with_context(|| format!("starting {what}"))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let (sender, done) = channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let deadline = Instant::now() + patience;
    let output = loop {
        match done.recv_timeout(POLL) {
            Ok(output) => break output.with_context(|| format!("waiting for {what}"))?,
            Err(_) if Instant::now() < deadline => {}
            Err(_) => {
                killpg(pid, Signal::SIGKILL)?;
                bail!("{what} took longer than {patience:?}");
            }
        }
    };
    if !output.status.success() {
        bail!("{what} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
