//! axe-core: rules of accessibility (WCAG 2) that a program can check, run inside of the page.

use std::path::Path;

/// The script; `None`: it is not installed here.
pub fn source() -> Option<String> {
    std::fs::read_to_string(Path::new("/opt/axe-core/axe.min.js")).ok()
}

/// What is wrong with the page, each with its rule and where.
pub const RUN: &str = "axe.run(document, { resultTypes: ['violations'] }).then((found) => found.violations.map((v) => \
    ({ rule: v.id, help: v.help, where: v.nodes.map((n) => `${n.target} ${n.any.map((a) => a.message)}`) })))";
