//! The verbs that need no running daemon. `check` runs the very code that the daemon runs.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use super::text::plural;
use super::{Failure, Global, Outcome, print_json};
use crate::config::{self, AdminConfig, Config, KernelConfig, LoadError, Loaded, Problems};

pub(super) fn check(global: &Global, out: &mut impl Write) -> Outcome {
    match (config::load(&global.config), global.json()) {
        (Ok(Loaded { config: _, warnings, .. }), true) => {
            print_json(out, &json!({ "ok": true, "problems": list(&warnings) }))
        }
        (Ok(Loaded { config, warnings, .. }), false) => {
            if !warnings.is_empty() {
                writeln!(out, "{warnings}")?;
            }
            let Config { listeners, routes, pools, .. } = &config;
            let count = |n: usize, thing| plural(n as u64, thing);
            let (listeners, routes) = (count(listeners.len(), "listener"), count(routes.len(), "route"));
            let pools = count(pools.len(), "pool");
            Ok(writeln!(out, "{}: good ({listeners}, {routes}, {pools})", global.config.display())?)
        }
        (Err(LoadError::Problems(problems)), true) => {
            print_json(out, &json!({ "ok": false, "problems": list(&problems) }))?;
            Err(Failure::Silent(2))
        }
        (Err(error), _) => Err(Failure::Config(error.to_string())),
    }
}

pub(super) fn schema(out: &mut impl Write) -> Outcome {
    print_json(out, &config::schema())
}

/// Needs no valid configuration: an operator who removes `ingress` may have removed its file first.
pub(super) fn detach(
    detach: fn(&KernelConfig) -> anyhow::Result<Vec<String>>,
    global: &Global,
    out: &mut impl Write,
) -> Outcome {
    let kernel = match config::load(&global.config) {
        Ok(loaded) => loaded.config.kernel,
        // No file, no choice of its own. But a file that cannot be read may name another place than the default, where
        // another daemon's connections live.
        Err(LoadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => KernelConfig::default(),
        Err(error) => return Err(Failure::Config(format!("{error:#}"))),
    };
    let removed = detach(&kernel).with_context(|| format!("detaching {}", kernel.pin_dir.display()))?;
    if global.json() {
        return print_json(out, &json!({ "removed": removed }));
    }
    for what in &removed {
        writeln!(out, "removed {what}")?;
    }
    if removed.is_empty() {
        writeln!(out, "nothing was attached, nothing pinned below {}", kernel.pin_dir.display())?;
    }
    Ok(())
}

/// A broken file must not keep an operator from the daemon that runs on its last good one: then it is the default.
pub(super) fn admin_socket(config: &Path) -> PathBuf {
    let admin = config::load(config).map_or_else(|_| AdminConfig::default(), |loaded| loaded.config.admin);
    admin.socket
}

fn list(problems: &Problems) -> Vec<&config::Problem> {
    problems.iter().collect()
}
