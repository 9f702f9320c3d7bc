//! Caddy with the same names as hosts of HTTP routes: its Debian package has no passthrough. It reloads in place.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ingress_tests::netns::Namespace;
use ingress_tests::skip::find_program;
use serde_json::json;

use super::{Changed, name, rss_mb};
use crate::bench::program::{Program, check_interrupt, run_to_end};

/// For a start or a reload of 100,000 routes.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Caddy {
    // Ends before its network and files go.
    program: Program,
    namespace: Namespace,
    dir: tempfile::TempDir,
    routes: usize,
}

pub(super) fn is_installed() -> bool {
    find_program("caddy").is_some()
}

impl Caddy {
    pub(super) fn start(routes: usize) -> Result<Self> {
        let namespace = Namespace::new("bench-control")?;
        namespace.ip_batch("link set lo up\n")?;
        let dir = tempfile::Builder::new().prefix("ingress-bench-").tempdir()?;
        let config = dir.path().join("caddy.json");
        std::fs::write(&config, text(routes, 8443))?;
        let mut command = namespace.command("caddy");
        // What it keeps of its own goes into the directory too.
        command.env("XDG_CONFIG_HOME", dir.path()).env("XDG_DATA_HOME", dir.path());
        command.args(["run", "--config"]).arg(&config);
        let program = Program::server("caddy", command, &dir.path().join("caddy.log"), Duration::from_secs(5))?;
        let mut caddy = Self { program, namespace, dir, routes };
        let deadline = Instant::now() + PATIENCE;
        while caddy.namespace.connect("127.0.0.1:8080".parse()?).is_err() {
            check_interrupt()?;
            caddy.program.check()?;
            anyhow::ensure!(Instant::now() < deadline, "Caddy does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(caddy)
    }

    /// One host goes to another backend.
    pub(super) fn change(&self) -> Result<Changed> {
        let config = self.dir.path().join("caddy.json");
        std::fs::write(&config, text(self.routes, 9443))?;
        let mut command = self.namespace.command("caddy");
        command.args(["reload", "--config"]).arg(&config);
        let began = Instant::now();
        run_to_end(command, PATIENCE).context("caddy reload")?;
        let reload_ms = began.elapsed().as_secs_f64() * 1e3;
        let pid = u32::try_from(self.program.group()).context("Caddy's process")?;
        Ok(Changed { compile_ms: f64::NAN, reload_ms, rss_mb: rss_mb(pid)? })
    }
}

fn text(routes: usize, first: u16) -> String {
    let route = |n| {
        let port = if n == 0 { first } else { 8443 };
        json!({
            "match": [{ "host": [name(n)] }],
            "handle": [{ "handler": "reverse_proxy", "upstreams": [{ "dial": format!("127.0.0.1:{port}") }] }],
        })
    };
    let routes: Vec<_> = (0..routes).map(route).collect();
    json!({ "apps": { "http": { "servers": { "s": { "listen": ["127.0.0.1:8080"], "routes": routes } } } } })
        .to_string()
}
