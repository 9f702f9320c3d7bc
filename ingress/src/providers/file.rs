//! Traefik's dynamic configuration in files: one file, or all `.yaml`, `.yml` and `.json` files of a directory.
//!
//! A set of files with one that cannot be read is refused as a whole: it may be half written. One that takes routes away
//! has to lie still for a moment first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{EntryPoint, ProviderConfig, TraefikConfig, read_yaml};
use crate::route::Contribution;
use crate::watch::{FileWatch, Signature};

use super::outlet::Outlet;
use super::traefik::{Document, Settings};

/// Each file with its text.
type Texts = Vec<(PathBuf, String)>;

/// Reads the files now and whenever one of them changes.
pub(super) async fn run(config: ProviderConfig, file: TraefikConfig, mut outlet: Outlet) {
    let TraefikConfig { path, entry_points } = file;
    let settings = Settings { entry_points, health: config.health, on_down: config.on_down };
    let mut watch = FileWatch::start([path.as_path()]);
    let mut seen: Option<Signature> = None;
    let mut said: Option<Contribution> = None;
    loop {
        // Both: a directory may come where there was nothing.
        let inside = PathBuf::from(format!("{}/", path.display()));
        watch.follow([path.as_path(), inside.as_path()].into_iter().filter(|at| *at == path || path.is_dir()));
        let (signature, texts) = read(path.clone()).await;
        if seen.as_ref() == Some(&signature) {
            if said.is_some() {
                outlet.unchanged().await;
            }
            watch.settled().await;
            continue;
        }
        match texts.and_then(|texts| Ok((compile(&texts, &settings, outlet.contribution())?, texts))) {
            Ok((contribution, texts)) => {
                if said.as_ref().is_some_and(|said| contribution.lacks_some_of(said)) {
                    tokio::time::sleep(STILL).await;
                    if read(path.clone()).await.0 != signature {
                        continue;
                    }
                }
                outlet.says(contribution.clone(), &serde_json::to_string(&texts).unwrap_or_default()).await;
                said = Some(contribution);
            }
            Err(error) => {
                outlet.failed(error).await;
                if seen.is_none() {
                    let parse = |text: &str| {
                        let texts: Texts = serde_json::from_str(text).map_err(|error| error.to_string())?;
                        compile(&texts, &settings, outlet.contribution())
                    };
                    outlet.last_good(parse).await;
                }
            }
        }
        seen = Some(signature);
        watch.settled().await;
    }
}

/// What the files at `path` would say, or an answer that was put into a file.
pub(super) fn preview(
    config: &ProviderConfig,
    entry_points: &BTreeMap<String, EntryPoint>,
    path: &Path,
    contribution: Contribution,
) -> Result<Contribution, String> {
    let (entry_points, health) = (entry_points.clone(), config.health.clone());
    let settings = Settings { entry_points, health, on_down: config.on_down };
    let texts = files(path)?.into_iter().map(|file| Ok((file.clone(), text(&file)?))).collect::<Result<_, String>>()?;
    compile(&texts, &settings, contribution)
}

fn compile(texts: &Texts, settings: &Settings, contribution: Contribution) -> Result<Contribution, String> {
    let mut document = Document::default();
    for (path, text) in texts {
        let value = read_yaml(text, path).map_err(|problems| format!("{problems:#}"))?;
        document.add(value).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(document.compile(settings, contribution))
}

/// Signature and texts, read where a slow disk disturbs nobody.
async fn read(path: PathBuf) -> (Signature, Result<Texts, String>) {
    let read = move || {
        let files = files(&path);
        // Before the texts: a file that changes while it is read is read again.
        let signature = Signature::of_all(files.as_deref().unwrap_or(&[]).iter().map(PathBuf::as_path));
        let texts = files.and_then(|files| files.into_iter().map(|file| Ok((file.clone(), text(&file)?))).collect());
        (signature, texts)
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|error| (Signature::default(), Err(error.to_string())))
}

fn text(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("reading {}: {error}", file.display()))
}

/// The file itself, or those of a directory in the order of their names.
///
/// # Errors
/// The directory cannot be listed, or has none.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |error: std::io::Error| format!("listing {}: {error}", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let is_ours = file.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known));
        let is_hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if is_ours && !is_hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(format!("{}: no .yaml, .yml or .json file is there", path.display()));
    }
    Ok(files)
}

/// How long files that take something away must not change.
const STILL: Duration = Duration::from_secs(1);
