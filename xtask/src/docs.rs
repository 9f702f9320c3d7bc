//! Documentation that can be checked by a program is checked by one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::step;

pub(crate) fn run() -> Result<()> {
    check_links()?;
    let mut rustdoc = step::cargo(&["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"]);
    step::run("rustdoc", rustdoc.env("RUSTDOCFLAGS", "-D rustdoc::broken_intra_doc_links"))
}

/// Every relative link in a Markdown file must lead to a file of this repository.
pub(crate) fn check_links() -> Result<()> {
    step::announce("links in the documentation");
    let root = step::root();
    let mut dead = Vec::new();
    for file in markdown_files(&root)? {
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let folder = file.parent().unwrap_or(&root);
        for (line, target) in relative_links(&text) {
            if !folder.join(target).exists() {
                dead.push(format!("{}:{line}: {target}", file.strip_prefix(&root).unwrap_or(&file).display()));
            }
        }
    }
    if dead.is_empty() {
        return Ok(());
    }
    bail!("these links lead nowhere:\n  {}", dead.join("\n  "))
}

/// At the root, and below the folders where people write.
fn markdown_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![(root.to_path_buf(), false)];
    folders.extend(["docs", "examples", "packaging", "tests"].map(|f| (root.join(f), true)));
    while let Some((folder, deep)) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
            if deep && path.is_dir() {
                folders.push((path, true));
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// `[text](target)` outside of code blocks: line number and target, without its `#fragment`.
fn relative_links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (number, line) in text.lines().enumerate() {
        in_code ^= line.trim_start().starts_with("```");
        if in_code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split([')', '#', ' ']).next().unwrap_or("");
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                links.push((number + 1, target));
            }
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_to_files_are_checked() {
        let text = "See [a](docs/a.md#part) and [web](https://example.com/x).\n```\n[no](code.md)\n```\n[here](#below) [b](b.md)";
        assert_eq!(relative_links(text), [(1, "docs/a.md"), (5, "b.md")]);
    }
}
