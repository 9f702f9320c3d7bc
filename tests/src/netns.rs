//! Network namespaces that vanish with their last handle.
//!
//! A namespace is entered by `setns` on its descriptor, never by `ip netns exec`: that would remount `/sys` and hide
//! the host's `/sys/fs/bpf`, where the daemon pins its maps.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::bpffs;
use crate::wait::here;

/// A handle to one namespace; clones share it, the last one removes it.
#[derive(Clone, Debug)]
pub struct Namespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    fd: OwnedFd,
}

impl Namespace {
    /// Creates `ing-<pid>-<n>-<role>` with its loopback device up.
    pub fn new(role: &str) -> Result<Self> {
        static SWEEP: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(remove_leftovers);

        let name = format!("{PREFIX}{}-{}-{role}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name])?;
        let fd = File::open(path_of(&name)).with_context(|| format!("opening namespace {name}"))?.into();
        let namespace = Self { inner: Arc::new(Inner { name, fd }) };
        // Else each device's own IPv6 address becomes good a second later, and Chromium gives up what it is loading at that moment
        // (ERR_NETWORK_CHANGED).
        namespace.sysctl("ipv6/conf/default/accept_dad", "0")?;
        namespace.ip_batch("link set lo up\n")?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets made there stay there, wherever they go.
    pub fn exec<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(self.inner.fd.as_fd(), CloneFlags::CLONE_NEWNET).expect("root may enter a namespace it has open");
            work()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(answer) => answer,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// A command that will run inside the namespace, in the host's mount namespace.
    ///
    /// Its process is killed when the *thread* that spawns it ends, so that nothing outlives an aborted test: spawn
    /// from the test's own thread.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let inner = self.inner.clone();
        let enter = move || {
            setns(inner.fd.as_fd(), CloneFlags::CLONE_NEWNET)?;
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes two system calls and touches no lock and no allocator.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a command to its end; its output, or an error that holds its stderr.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        finish(self.command(program).args(args), "")
    }

    /// Lines of `ip -batch`, in one process.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        finish(Command::new("ip").args(["-n", self.name(), "-batch", "-"]), lines)?;
        Ok(())
    }

    /// Moves a device of the host's own namespace into this one, as `name`; at the end of this one it goes back.
    pub fn take(&self, device: &str, name: &str) -> Result<()> {
        ip(&["link", "set", device, "netns", self.name(), "name", name])?;
        Ok(())
    }

    /// A device's Ethernet address.
    pub fn mac(&self, device: &str) -> Result<[u8; 6]> {
        let line = self.run("ip", &["-oneline", "link", "show", device])?;
        let text = line.split(' ').skip_while(|word| *word != "link/ether").nth(1);
        let octets = text.into_iter().flat_map(|text| text.split(':')).map(|octet| u8::from_str_radix(octet, 16));
        let octets: Vec<u8> = octets.collect::<Result<_, _>>()?;
        octets.try_into().map_err(|_| anyhow!("no Ethernet address in {line:?}"))
    }

    /// Writes `/proc/sys/net/<key>`, for instance `ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(key);
        self.exec(|| std::fs::write(&path, value)).with_context(|| format!("writing {value} to {}", path.display()))
    }

    /// Loads an nftables rule set.
    pub fn nft(&self, rules: &str) -> Result<()> {
        finish(self.command("nft").args(["-f", "-"]), rules)?;
        Ok(())
    }

    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.exec(|| TcpStream::connect_timeout(&to, here(Duration::from_secs(5))))
    }

    pub fn listen(&self, on: SocketAddr) -> std::io::Result<TcpListener> {
        self.exec(|| TcpListener::bind(on))
    }

    /// Whether a namespace of this name exists on the host.
    pub fn exists(name: &str) -> bool {
        path_of(name).exists()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Runs `ip` in the namespace of the caller.
fn ip(args: &[&str]) -> Result<String> {
    finish(Command::new("ip").args(args), "")
}

fn finish(command: &mut Command, input: &str) -> Result<String> {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {what}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("writing to {what}"))?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{what} ended with {}: {}\n{input}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn path_of(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Without `ip`, so that it also works while a test panics for lack of processes or descriptors.
fn remove(name: &str) {
    let path = path_of(name);
    // Nothing more can be done about an error here; the next run tries again.
    let _ = nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH);
    let _ = std::fs::remove_file(&path);
}

/// Removes namespaces and pins of processes that were killed before they could.
pub fn remove_leftovers() {
    for name in orphans(Path::new("/run/netns")) {
        remove(&name);
    }
    for name in orphans(Path::new(bpffs::PATH)) {
        // As above: the next run tries again.
        let _ = std::fs::remove_dir_all(Path::new(bpffs::PATH).join(name));
    }
}

/// Names in a directory whose owner is gone.
fn orphans(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_gone = |pid: u32| !Path::new("/proc").join(pid.to_string()).exists();
    names.filter(|name| owner_of(name).is_some_and(is_gone)).collect()
}

fn owner_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

const PREFIX: &str = "ing-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_stands_in_the_name() {
        assert_eq!(owner_of("ing-123-4-proxy"), Some(123));
        assert_eq!(owner_of("other-123-4-proxy"), None);
        assert_eq!(owner_of("ing-bench-1"), None);
    }
}
