//! Which files a registry is made of: the one that is configured, and those that it includes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::document::Document;
use crate::config::decode_yaml;
use crate::watch::Signature;

/// Each file with its text.
pub(super) type Texts = Vec<(PathBuf, String)>;

pub(super) struct Files {
    /// The files, or why they are of no use.
    pub(super) texts: Result<Texts, String>,
    /// Of all that was looked at.
    pub(super) signature: Signature,
    /// Where a change would show.
    pub(super) watched: Vec<PathBuf>,
}

impl Files {
    /// Reads them where a slow disk disturbs nobody.
    pub(super) async fn read(path: PathBuf) -> Self {
        let first = path.clone();
        tokio::task::spawn_blocking(move || read(&path)).await.unwrap_or_else(|error| Self {
            texts: Err(format!("reading {}: {error}", first.display())),
            signature: Signature::default(),
            watched: vec![first],
        })
    }
}

/// Blocks while the disk is slow.
pub(super) fn read(path: &Path) -> Files {
    // Taken before the texts: a file that changes while it is read is other than its signature, and is read again.
    let mut signed = vec![path.to_owned()];
    let mut before = Signature::of(path);
    let mut watched = vec![path.to_owned()];
    let texts = read_text(path).and_then(|text| {
        let Document { include, .. } = decode_yaml(&text, path).map_err(|problems| format!("{problems:#}"))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut files = BTreeSet::new();
        for pattern in &include {
            let pattern = directory.join(pattern);
            watched.push(PathBuf::from(format!("{}/", pattern.parent().unwrap_or(directory).display())));
            files.extend(matching(&pattern)?);
        }
        files.remove(path);
        signed.extend(files.iter().cloned());
        before = Signature::of_all(signed.iter().map(PathBuf::as_path));
        let included = files.into_iter().map(|file| Ok((file.clone(), read_text(&file)?)));
        std::iter::once(Ok((path.to_owned(), text))).chain(included).collect()
    });
    watched.extend(signed);
    Files { texts, signature: before, watched }
}

fn read_text(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    // What is longer is refused by the parser.
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text));
    read.map_err(|error| format!("reading {}: {error}", path.display()))?;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(format!("{}: the last line has no end; the file is not whole yet", path.display()));
    }
    Ok(text)
}

/// A name without a star must be there; a pattern may match nothing.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    let shown = pattern.display();
    let text = pattern.to_str().ok_or_else(|| format!("include {shown}: not UTF-8"))?;
    if !text.contains(['*', '?', '[']) {
        return Ok(vec![pattern.to_owned()]);
    }
    let found = glob::glob(text).map_err(|error| format!("include {shown}: {error}"))?;
    let mut files = Vec::new();
    for file in found {
        let file = file.map_err(|error| format!("include {shown}: {error}"))?;
        if file.is_file() && !is_passing(&file) {
            files.push(file);
        }
    }
    Ok(files)
}

/// What copying programs and editors put beside a file for a moment (Syncthing: `.syncthing.x.tmp`, `~syncthing~x.tmp`; rsync
/// and vim: names with a dot in front), and Syncthing's copies of a lost conflict.
fn is_passing(file: &Path) -> bool {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let tail = [".tmp", ".swp", ".part", ".bak", "~"].iter().any(|tail| name.ends_with(tail));
    name.starts_with(['.', '~', '#']) || tail || name.contains(".sync-conflict-")
}

/// All files in one text, for the next start.
pub(super) fn to_keep(texts: &Texts) -> String {
    serde_json::to_string(texts).unwrap_or_default()
}

pub(super) fn parse_kept(text: &str) -> Result<Texts, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

const MAX_BYTES: u64 = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_for_a_moment_only_is_not_included() {
        let directory = tempfile::tempdir().expect("a directory");
        let names = [
            "a.yaml",
            "b.yaml",
            ".syncthing.a.yaml.tmp",
            "~syncthing~a.yaml.tmp",
            ".a.yaml.Xy12Zw",
            "a.sync-conflict-20260101-120000-ABCDEFG.yaml",
            "a.yaml~",
            "b.yaml.part",
        ];
        for name in names {
            std::fs::write(directory.path().join(name), "version: 1\n").expect("written");
        }
        let main = directory.path().join("main.yaml");
        std::fs::write(&main, "version: 1\ninclude: ['*']\n").expect("written");
        let texts = read(&main).texts.expect("all are good");
        let found: Vec<_> = texts.iter().filter_map(|(path, _)| path.file_name()?.to_str()).collect();
        assert_eq!(found, ["main.yaml", "a.yaml", "b.yaml"]);
    }

    #[test]
    fn a_named_file_must_be_there_and_a_file_without_its_end_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let main = directory.path().join("main.yaml");
        std::fs::write(&main, "version: 1\ninclude: [none.yaml]\n").expect("written");
        let error = read(&main).texts.expect_err("none.yaml is missing");
        assert!(error.contains("none.yaml") && error.contains("No such file"), "{error}");
        std::fs::write(&main, "version: 1\ninclude: []\nhttp: {").expect("written");
        assert!(read(&main).texts.expect_err("no end").ends_with("the file is not whole yet"));
    }

    #[test]
    fn a_new_included_file_is_another_signature() {
        let directory = tempfile::tempdir().expect("a directory");
        let main = directory.path().join("main.yaml");
        std::fs::write(&main, "version: 1\ninclude: ['d/*.yaml']\n").expect("written");
        let before = read(&main).signature;
        std::fs::create_dir(directory.path().join("d")).expect("a directory");
        std::fs::write(directory.path().join("d/x.yaml"), "version: 1\n").expect("written");
        assert!(read(&main).signature != before);
    }
}
