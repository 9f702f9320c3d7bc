//! `ingress import`: another proxy's configuration as one of ours, printed; and what it could not carry over, beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Failure, Global, Outcome, print_json};
use crate::config::{self, read_yaml};
use crate::import::{self, Draft, LeftOut};
use crate::providers::file::files;
use crate::providers::traefik::Document;

/// As much as a configuration of ours may have.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    #[command(subcommand)]
    source: Source,
}

#[derive(Debug, Subcommand)]
enum Source {
    /// Traefik's dynamic configuration: TCP routers with HostSNI and TLS passthrough, and ports that take everything
    Traefik {
        /// YAML or JSON files, or directories of them
        #[arg(required = true, value_name = "FILE|DIR")]
        paths: Vec<PathBuf>,
        /// Traefik's static configuration, which says where its entry points are
        #[arg(long = "static", value_name = "FILE")]
        static_file: Option<PathBuf>,
        /// Where one entry point is, such as websecure=:443
        #[arg(long = "entry-point", value_name = "NAME=ADDRESS", value_parser = entry_point)]
        entry_points: Vec<(String, String)>,
    },
    /// HAProxy's configuration: sections of mode tcp that route by server name, or pass everything on
    Haproxy {
        /// In the order in which HAProxy reads them
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

pub(super) fn run(args: ImportArgs, global: &Global, out: &mut impl Write) -> Outcome {
    let draft = match args.source {
        Source::Traefik { paths, static_file, entry_points } => traefik(&paths, static_file.as_deref(), entry_points),
        Source::Haproxy { files } => haproxy(&files),
    };
    let draft = draft.map_err(Failure::Config)?;
    let text = draft.to_string();
    if global.json() {
        print_json(out, &json!({ "config": text, "left_out": draft.left_out }))?;
    } else {
        out.write_all(text.as_bytes())?;
        out.flush()?;
        // Beside the text, for whoever sends it into a file.
        for LeftOut { place, why } in &draft.left_out {
            writeln!(io::stderr(), "{place}: {why}")?;
        }
    }
    match config::parse(&text, Path::new("the result")) {
        Ok(_) => Ok(()),
        Err(problems) => Err(Failure::Runtime(anyhow!("what was printed is no configuration yet:\n{problems:#}"))),
    }
}

fn traefik(paths: &[PathBuf], static_file: Option<&Path>, given: Vec<(String, String)>) -> Result<Draft, String> {
    let (mut entry_points, mut left_out) = (BTreeMap::new(), Vec::new());
    if let Some(file) = static_file {
        let value = read_yaml(&read(file)?, file).map_err(|problems| format!("{problems:#}"))?;
        entry_points = import::traefik::entry_points(value, &mut left_out)
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    entry_points.extend(given);
    let mut document = Document::default();
    for path in paths {
        for file in files(path)? {
            let value = read_yaml(&read(&file)?, &file).map_err(|problems| format!("{problems:#}"))?;
            document.add(value).map_err(|error| format!("{}: {error}", file.display()))?;
        }
    }
    let mut draft = import::traefik::import(&document, &entry_points);
    draft.left_out.splice(..0, left_out);
    Ok(draft)
}

fn haproxy(files: &[PathBuf]) -> Result<Draft, String> {
    let texts = files.iter().map(|file| Ok((file.display().to_string(), read(file)?)));
    import::haproxy::import(&texts.collect::<Result<Vec<_>, String>>()?)
}

fn read(file: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("reading {}: {error}", file.display());
    let mut bytes = Vec::new();
    File::open(file).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("{}: larger than {} MiB", file.display(), MAX_BYTES >> 20));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("{}:{line}: this line is not UTF-8", file.display())
    })
}

fn entry_point(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, address)) if !name.is_empty() && !address.is_empty() => Ok((name.to_owned(), address.to_owned())),
        Some(_) | None => Err("expected NAME=ADDRESS, such as websecure=:443".to_owned()),
    }
}
