//! From a path or a text to a configuration: the one way in, for the daemon as for `ingress check`.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::checks::check;
use super::convert::convert;
use super::decode::{At, decode};
use super::file::FileConfig;
use super::problems::{Place, Problem, Problems, Severity};
use super::report::Report;
use super::yaml::{MAX_BYTES, Tree};
use super::{Config, HookTarget, TokenSource, WebhookConfig};

/// An accepted file.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// Accepted all the same; to be shown.
    pub warnings: Problems,
    /// The file as it was read, to be kept as last good.
    pub text: String,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The operator's to mend: missing, a directory, not readable for this user.
    #[error("reading {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Problems(#[from] Problems),
}

/// Reads and checks the file at `path`. Beside the text, warnings look at the environment.
///
/// # Errors
/// The file cannot be read, or has problems (then all of them are in the error).
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let text = read(path)?;
    let (config, mut warnings) = parse_with_warnings(&text, path)?;
    missing_here(&config, &text, &mut warnings);
    Ok(Loaded { config, warnings: warnings.finish(&text), text })
}

/// Checks a text; `file_name` is only named in problems. Pure, and without panic for any text.
///
/// # Errors
/// Every problem that was found, warnings among them.
pub fn parse(text: &str, file_name: &Path) -> Result<Config, Problems> {
    parse_with_warnings(text, file_name).map(|(config, _)| config)
}

fn read(path: &Path) -> Result<String, LoadError> {
    let failed = |source| LoadError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    // One byte more than allowed, so that the parser sees that it is too much.
    let limit = MAX_BYTES as u64 + 1;
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| {
        let good = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
        let line = good.matches('\n').count() + 1;
        let column = good.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let message = "this byte is not UTF-8; save the file as UTF-8";
        let mut problems = Problems::new(path);
        problems.push(Problem::new(Severity::Error, Place { line, column }, String::new(), message));
        problems.finish(&good).into()
    })
}

fn parse_with_warnings(text: &str, file: &Path) -> Result<(Config, Problems), Problems> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (tree, duplicates) = Tree::parse(text).map_err(|fault| {
        let mut problems = Problems::new(file);
        problems.push(Problem::new(Severity::Error, fault.place, fault.path, fault.message));
        problems.finish(text)
    })?;
    let mut report = Report::new(&tree, file);
    for fault in duplicates {
        report.problems.push(Problem::new(Severity::Error, fault.place, fault.path, fault.message));
    }
    let decoded = decode::<FileConfig>(&tree, |at, error| {
        report.error(at, error.message, error.suggestion);
        !report.problems.is_full()
    });
    let Some(file) = decoded else {
        if report.problems.is_full() {
            report.problems.mark_left_out();
        }
        return Err(report.problems.finish(text));
    };
    let converted = convert(file, &mut report);
    check(&converted, &mut report);
    if !text.ends_with('\n') {
        report.warning(At::Value(Tree::ROOT), "the last line has no end; is the file whole?");
    }
    let problems = report.problems.finish(text);
    if problems.has_errors() { Err(problems) } else { Ok((converted.config, problems)) }
}

/// Names of variables and programs are right or wrong for the process that runs, not for the text.
fn missing_here(config: &Config, text: &str, warnings: &mut Problems) {
    let mut warn = |path: &[&str], message: String| {
        let place = Tree::parse(text).ok().and_then(|(tree, _)| {
            let id = path.iter().try_fold(Tree::ROOT, |id, key| tree.child(id, key))?;
            Some(tree.node(id).place)
        });
        let problem = Problem::new(Severity::Warning, place.unwrap_or(Place::START), path.join("."), message);
        warnings.push(problem);
    };
    let is_set = |variable: &str| std::env::var_os(variable).is_some_and(|value| !value.is_empty());
    if let Some(auth) = config.admin.http.as_ref().and_then(|http| http.basic_auth.as_ref()) {
        for (key, variable) in [("username_env", &auth.username_env), ("password_env", &auth.password_env)] {
            if !is_set(variable) {
                let message = format!("the environment has no {variable}: nobody can log in until it is set");
                warn(&["admin", "http", "basic_auth", key], message);
            }
        }
    }
    for (name, hook) in &config.hooks {
        match &hook.target {
            HookTarget::Webhook(WebhookConfig { secret: Some(TokenSource::Env(variable)), .. }) => {
                if !is_set(variable) {
                    let message = format!("the environment has no {variable}: messages wait until it is set");
                    warn(&["hooks", name, "webhook", "secret", "env"], message);
                }
            }
            HookTarget::Webhook(WebhookConfig { secret: Some(TokenSource::File(_)) | None, .. }) => {}
            HookTarget::Command(command) => {
                let program = command.argv.first().map(Path::new).filter(|program| !is_executable(program));
                if let Some(program) = program {
                    let message = format!("{} is no file that can be run; is `chmod +x` missing?", program.display());
                    warn(&["hooks", name, "command", "argv"], message);
                }
            }
        }
    }
}

fn is_executable(program: &Path) -> bool {
    program.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
