//! Where cargo put what it built.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::step;

/// The programs that go into a guest.
pub(super) struct Built {
    /// Its first process.
    pub(super) guest: PathBuf,
    pub(super) daemon: PathBuf,
    /// The daemon's unit tests, those of the kernel programs among them.
    pub(super) programs: PathBuf,
    pub(super) scenarios: PathBuf,
}

impl Built {
    /// Builds the workspace if it is not, and asks cargo for the paths.
    pub(super) fn build() -> Result<Self> {
        let mut cargo = step::cargo(&["build", "--locked", "--workspace", "--all-targets", "--message-format", "json"]);
        let output = cargo.stderr(Stdio::inherit()).output().context("starting cargo")?;
        ensure!(output.status.success(), "the build failed");
        let messages: Vec<Value> =
            output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let find = |kind: &str, name: &str, is_test: bool| {
            let found = messages.iter().find(|message| {
                message["executable"].is_string()
                    && message["target"]["kind"][0] == kind
                    && message["target"]["name"] == name
                    && message["profile"]["test"] == is_test
            });
            let path = found.and_then(|message| message["executable"].as_str()).map(PathBuf::from);
            path.with_context(|| format!("cargo built no {kind} {name}"))
        };
        Ok(Self {
            guest: find("bin", "guest", false)?,
            daemon: find("bin", "ingress", false)?,
            programs: find("lib", "ingress", true)?,
            scenarios: find("test", "scenarios", true)?,
        })
    }

    /// Their full names.
    pub(super) fn list_scenarios(&self) -> Result<Vec<String>> {
        let output = Command::new(&self.scenarios).args(["--list", "--format", "terse"]).output();
        let list = output.context("listing the scenarios")?.stdout;
        let list = String::from_utf8_lossy(&list).into_owned();
        Ok(list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }
}
