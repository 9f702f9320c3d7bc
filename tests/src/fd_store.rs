//! A stand-in for systemd as a keeper of descriptors: takes `FDSTORE=1` messages (sd_pid_notify_with_fds(3)) and passes what it
//! holds to the next start (sd_listen_fds(3)).

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::wait::{PATIENCE, wait_until};

/// Ends with its last handle on the socket's file.
#[derive(Debug)]
pub struct FdStore {
    path: PathBuf,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    by_name: BTreeMap<String, Vec<OwnedFd>>,
    /// Our own messages to ourselves.
    heard: u64,
}

impl FdStore {
    /// Tells the daemon its own pid, which is this shell's, as systemd does.
    pub const STARTER: [&'static str; 3] = ["sh", "-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""];

    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("notify.sock");
        let socket = UnixDatagram::bind(&path).context("binding the notify socket")?;
        let kept = Arc::new(Mutex::new(Kept::default()));
        let keeper = kept.clone();
        // Ends with the process; a daemon that outlives its node must not be blocked by a full queue.
        std::thread::spawn(move || {
            while let Ok((text, fds)) = receive(&socket) {
                lock(&keeper).obey(&text, fds);
            }
        });
        Ok(Self { path, kept })
    }

    /// What is kept now, one name for each descriptor.
    pub fn names(&self) -> Result<Vec<String>> {
        self.catch_up()?;
        Ok(lock(&self.kept).all().map(|(name, _)| name.to_owned()).collect())
    }

    /// Lets the command's process find the notify socket and all that is kept.
    pub fn hand_over(&self, command: &mut Command) -> Result<()> {
        self.catch_up()?;
        command.env("NOTIFY_SOCKET", &self.path);
        let kept = lock(&self.kept);
        let names: Vec<&str> = kept.all().map(|(name, _)| name).collect();
        if names.is_empty() {
            return Ok(());
        }
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        // Out of the way of the numbers that they are to have.
        let copy = |fd: &OwnedFd| -> Result<OwnedFd> {
            let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(500))?;
            // SAFETY: a new descriptor that nobody else has.
            Ok(unsafe { OwnedFd::from_raw_fd(copy) })
        };
        let copies: Vec<OwnedFd> = kept.all().map(|(_, fd)| copy(fd)).collect::<Result<_>>()?;
        let place = move || {
            for (number, fd) in (FIRST..).zip(&copies) {
                // SAFETY: whatever had that number is nothing that the new process is to have.
                if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls and touches no lock and no allocator.
        unsafe { command.pre_exec(place) };
        Ok(())
    }

    /// Until everything that was sent before has been taken.
    fn catch_up(&self) -> Result<()> {
        let socket = UnixDatagram::unbound()?;
        let before = lock(&self.kept).heard;
        socket.send_to(CATCH_UP.as_bytes(), &self.path)?;
        wait_until(PATIENCE, "the keeper of sockets has caught up", || lock(&self.kept).heard > before)
    }
}

impl Kept {
    fn all(&self) -> impl Iterator<Item = (&str, &OwnedFd)> {
        self.by_name.iter().flat_map(|(name, fds)| fds.iter().map(|fd| (name.as_str(), fd)))
    }

    fn obey(&mut self, text: &str, fds: Vec<OwnedFd>) {
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored").to_owned();
        for line in text.lines() {
            match line {
                "FDSTOREREMOVE=1" => drop(self.by_name.remove(&name)),
                CATCH_UP => self.heard += 1,
                _ => {}
            }
        }
        if text.lines().any(|line| line == "FDSTORE=1") {
            self.by_name.entry(name).or_default().extend(fds);
        }
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

fn receive(socket: &UnixDatagram) -> Result<(String, Vec<OwnedFd>)> {
    let mut text = vec![0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 253]);
    let (length, fds) = {
        let mut parts = [IoSliceMut::new(&mut text)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                // SAFETY: the kernel has just made them for us.
                fds.extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, fds)
    };
    Ok((String::from_utf8_lossy(&text[..length]).into_owned(), fds))
}

/// `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;
const CATCH_UP: &str = "X_CATCH_UP=1";
