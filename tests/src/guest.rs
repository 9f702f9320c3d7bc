//! What the host tells the first process of a virtual machine (`src/bin/guest.rs`), and what that says at its end.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the guest finds its [`Plan`], as JSON.
pub const PLAN: &str = "/plan.json";
/// The guest's last line, if every step succeeded.
pub const PASSED: &str = "guest: every step succeeded";
/// How its last line begins otherwise; the reason follows.
pub const FAILED: &str = "guest: failed: ";

/// The addresses of a guest's two NICs, which a hub joins. Their driver has large receive offload.
pub const NICS: [&str; 2] = ["02:19:47:00:00:01", "02:19:47:00:00:02"];

/// What the guest's kernel calls [`NICS`]; `None`: this is no guest.
pub fn nics() -> std::io::Result<Option<[String; 2]>> {
    let mut found = [None, None];
    for entry in std::fs::read_dir("/sys/class/net")? {
        let entry = entry?;
        // Not all that is in there is a device.
        let Ok(address) = std::fs::read_to_string(entry.path().join("address")) else { continue };
        if let Some(at) = NICS.iter().position(|nic| *nic == address.trim()) {
            found[at] = Some(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let [Some(a), Some(b)] = found else { return Ok(None) };
    Ok(Some([a, b]))
}

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
