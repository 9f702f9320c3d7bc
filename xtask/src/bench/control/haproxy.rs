//! HAProxy with the same names in a map, as its manual recommends for many. It reloads by starting anew: the new process takes the
//! listening sockets over and tells the old one to finish.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use ingress_tests::netns::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Changed, name, rss_mb, visit};
use crate::bench::program::run_to_end;

/// A running HAProxy; dropping it ends it.
pub(super) struct Haproxy {
    namespace: Namespace,
    dir: tempfile::TempDir,
    routes: usize,
    /// All that were started: the old one of a reload may still be finishing.
    pids: Vec<u32>,
}

impl Haproxy {
    pub(super) fn start(routes: usize) -> Result<Self> {
        let namespace = Namespace::new("bench-control")?;
        namespace.ip_batch("link set lo up\n")?;
        let dir = tempfile::Builder::new().prefix("ingress-bench-").tempdir()?;
        let mut haproxy = Self { namespace, dir, routes, pids: Vec::new() };
        let config = format!(
            "global\n    nbthread 1\n    maxconn 1000\n\
             defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n\
             frontend tls\n    bind 127.0.0.1:443\n    tcp-request inspect-delay 5s\n    \
             tcp-request content accept if {{ req.ssl_hello_type 1 }}\n    \
             use_backend %[req.ssl_sni,lower,map({},a)]\n\
             backend a\n    server a 127.0.0.1:8443\n\
             backend b\n    server b 127.0.0.1:9443\n",
            haproxy.path("names.map").display()
        );
        std::fs::write(haproxy.path("haproxy.cfg"), config)?;
        haproxy.write_map("a")?;
        haproxy.launch()?;
        Ok(haproxy)
    }

    /// One name goes to another backend.
    pub(super) fn change(&mut self) -> Result<Changed> {
        self.write_map("b")?;
        let began = Instant::now();
        // It returns once the new process serves.
        self.launch()?;
        let reload_ms = began.elapsed().as_secs_f64() * 1e3;
        let rss_mb = rss_mb(*self.pids.last().context("HAProxy runs")?)?;
        Ok(Changed { compile_ms: f64::NAN, reload_ms, rss_mb })
    }

    pub(super) fn first_byte_us(&self) -> Result<f64> {
        visit::first_byte_us(&self.namespace, self.routes)
    }

    fn launch(&mut self) -> Result<()> {
        let mut command = self.namespace.command("haproxy");
        command.arg("-D").arg("-f").arg(self.path("haproxy.cfg")).arg("-p").arg(self.path("haproxy.pid"));
        if let Some(old) = self.pids.last() {
            command.arg("-sf").arg(old.to_string());
        }
        run_to_end(command, std::time::Duration::from_secs(30)).context("starting HAProxy")?;
        let pid = std::fs::read_to_string(self.path("haproxy.pid")).context("HAProxy's pid file")?;
        self.pids.push(pid.trim().parse().context("HAProxy's pid")?);
        Ok(())
    }

    fn write_map(&self, first: &str) -> Result<()> {
        let line = |n| format!("{} {}\n", name(n), if n == 0 { first } else { "a" });
        Ok(std::fs::write(self.path("names.map"), (0..self.routes).map(line).collect::<String>())?)
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(self.dir.path()).join(name)
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let config = self.path("haproxy.cfg").display().to_string();
        for pid in &self.pids {
            // An old one is mostly gone, and its number may be somebody else's.
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if !String::from_utf8_lossy(&words).contains(&config) {
                continue;
            }
            let _ = i32::try_from(*pid).map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        }
    }
}
