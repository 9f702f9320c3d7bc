//! What the host tells the first process of a virtual machine (`src/bin/guest.rs`), and what that says at its end.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the guest finds its [`Plan`], as JSON.
pub const PLAN: &str = "/plan.json";
/// The guest's last line, if every step succeeded.
pub const PASSED: &str = "guest: every step succeeded";
/// How its last line begins otherwise; the reason follows.
pub const FAILED: &str = "guest: failed: ";

/// All that a guest does before it switches itself off.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Kernel modules to load, each after those that it needs.
    pub modules: Vec<PathBuf>,
    /// The environment of every step, and nothing else.
    pub environment: Vec<(String, String)>,
    /// In this order; a failed one does not keep the others from running.
    pub steps: Vec<Step>,
}

/// One program that has to succeed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Step {
    pub program: PathBuf,
    pub arguments: Vec<String>,
}
