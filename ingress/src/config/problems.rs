//! What is wrong with a configuration, said so that an operator can mend it: the place, the key, the fault, and what was
//! probably meant. All problems of a file are reported together.
//!
//! `{problems}` prints one line per problem, `{problems:#}` adds the line of the file with a mark below it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// Everything that was found in one file, in the order of its lines.
#[derive(Clone, Debug, PartialEq)]
pub struct Problems {
    file: PathBuf,
    list: Vec<Problem>,
    left_out: bool,
}

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    pub severity: Severity,
    #[serde(flatten)]
    pub place: Place,
    /// The key's path, such as `pools.app.health.interval`; empty for the file as a whole.
    pub path: String,
    pub message: String,
    /// What was probably meant, such as `round_robin`.
    pub suggestion: Option<String>,
    /// The line of the file; `{:#}` prints it.
    #[serde(skip)]
    excerpt: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It is accepted, and probably not what was meant.
    Warning,
}

/// Line and column, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

impl Place {
    pub const START: Self = Self { line: 1, column: 1 };
}

impl Problems {
    /// More than this many are cut off: whoever pipes a wrong file in needs no thousand lines about it.
    pub const LIMIT: usize = 100;

    pub fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), list: Vec::new(), left_out: false }
    }

    /// What is written once is told once, also where aliases repeat it under other paths.
    pub(super) fn push(&mut self, problem: Problem) {
        let is_same = |other: &Problem| other.place == problem.place && other.message == problem.message;
        if self.is_full() {
            self.left_out = true;
        } else if !self.list.iter().any(is_same) {
            self.list.push(problem);
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.list.len() >= Self::LIMIT
    }

    /// Says that there may be more than are listed.
    pub(super) fn mark_left_out(&mut self) {
        self.left_out = true;
    }

    /// In the order of the file's lines, and with the line itself for `{:#}`.
    pub(super) fn finish(mut self, text: &str) -> Self {
        self.list.sort_by_key(|problem| problem.place);
        let mut lines = text.lines().enumerate();
        let mut current = None;
        for problem in &mut self.list {
            while current.is_none_or(|(index, _)| index + 1 < problem.place.line) {
                current = lines.next();
                if current.is_none() {
                    return self;
                }
            }
            if let Some((_, line)) = current {
                problem.excerpt = printable(line, 160);
            }
        }
        self
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.list.iter()
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether the configuration must be refused.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|problem| problem.severity == Severity::Error)
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Problem {
    pub(super) fn new(severity: Severity, place: Place, path: String, message: impl Into<String>) -> Self {
        Self { severity, place, path, message: message.into(), suggestion: None, excerpt: String::new() }
    }

    pub(super) fn suggest(mut self, suggestion: Option<impl Into<String>>) -> Self {
        self.suggestion = suggestion.map(Into::into);
        self
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{file}:{problem}")?;
            if f.alternate() && !problem.excerpt.is_empty() {
                problem.write_excerpt(f)?;
            }
        }
        if self.left_out {
            write!(f, "\n{file}: there may be more problems; mend these first")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    /// `12:14: error: pools.app.balance: unknown value "rr"; did you mean "round_robin"?`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.place;
        write!(f, "{line}:{column}: {}: ", self.severity)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean {suggestion:?}?"),
            None => Ok(()),
        }
    }
}

impl Problem {
    fn write_excerpt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.place.line.to_string();
        write!(f, "\n  {number} | {}", self.excerpt)?;
        if self.place.column <= self.excerpt.chars().count() + 1 {
            write!(f, "\n  {:number$} | {:column$}^", "", "", number = number.len(), column = self.place.column - 1)?;
        }
        Ok(())
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

impl Serialize for Problems {
    /// A list of problems, each with its file: what `--output json` prints.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct InFile<'a> {
            file: &'a Path,
            #[serde(flatten)]
            problem: &'a Problem,
        }
        serializer.collect_seq(self.list.iter().map(|problem| InFile { file: &self.file, problem }))
    }
}

/// The candidate that `written` was probably meant to be: a slip of the fingers, the beginning of a word, or its initials
/// (`rr` for `round_robin`).
pub(super) fn closest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const ALIKE: f64 = 0.8;
    let written = written.to_ascii_lowercase().replace('-', "_");
    let initials = |candidate: &str| candidate.split('_').filter_map(|word| word.chars().next()).collect::<String>();
    candidates
        .into_iter()
        .map(|candidate| {
            let lower = candidate.to_ascii_lowercase().replace('-', "_");
            let is_abbreviation = written.len() >= 2 && (lower.starts_with(&written) || initials(&lower) == written);
            let is_slip = written.len() >= 3 && strsim::damerau_levenshtein(&written, &lower) == 1;
            let alike = match is_abbreviation || is_slip {
                true => 1.0,
                false => strsim::jaro_winkler(&written, &lower),
            };
            (candidate, alike)
        })
        .filter(|(_, alike)| *alike >= ALIKE)
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(candidate, _)| candidate)
}

/// `text` without what could confuse a terminal, at most `limit` characters.
pub(super) fn printable(text: &str, limit: usize) -> String {
    text.chars().take(limit).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A value from the file, quoted and cut for a message.
pub(super) fn quoted(text: &str) -> String {
    const LIMIT: usize = 60;
    if text.chars().count() <= LIMIT {
        return format!("{text:?}");
    }
    format!("{:?}...", text.chars().take(LIMIT).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_a_beginning_and_initials_are_understood() {
        let balance = ["round_robin", "least_connections", "source_hash"];
        for (written, meant) in [
            ("rr", "round_robin"),
            ("round-robin", "round_robin"),
            ("roundrobin", "round_robin"),
            ("leastconn", "least_connections"),
            ("source", "source_hash"),
            ("LEAST_CONECTIONS", "least_connections"),
        ] {
            assert_eq!(closest(written, balance), Some(meant), "{written}");
        }
        assert_eq!(closest("zebra", balance), None);
        assert_eq!(closest("tsl", ["tcp", "tls"]), Some("tls"));
        assert_eq!(closest("intervall", ["interval", "timeout", "rise"]), Some("interval"));
    }

    #[test]
    fn excerpts_mark_the_column() {
        let mut problems = Problems::new(Path::new("f.yaml"));
        let place = Place { line: 2, column: 4 };
        problems.push(Problem::new(Severity::Error, place, "a.b".into(), "is wrong").suggest(Some("c")));
        let problems = problems.finish("a:\n b: x\n");
        assert_eq!(problems.to_string(), r#"f.yaml:2:4: error: a.b: is wrong; did you mean "c"?"#);
        assert_eq!(
            format!("{problems:#}"),
            "f.yaml:2:4: error: a.b: is wrong; did you mean \"c\"?\n  2 |  b: x\n    |    ^"
        );
    }

    #[test]
    fn json_names_file_place_and_path() {
        let mut problems = Problems::new(Path::new("f.yaml"));
        problems.push(Problem::new(Severity::Warning, Place::START, "routes".into(), "odd"));
        let json = serde_json::to_value(&problems).expect("problems are plain data");
        let expected = serde_json::json!([{
            "file": "f.yaml", "severity": "warning", "line": 1, "column": 1, "path": "routes", "message": "odd",
            "suggestion": null,
        }]);
        assert_eq!(json, expected);
    }

    #[test]
    fn a_flood_of_problems_is_cut_off() {
        let mut problems = Problems::new(Path::new("f.yaml"));
        for line in 1..1000 {
            problems.push(Problem::new(Severity::Error, Place { line, column: 1 }, String::new(), "x"));
        }
        assert_eq!(problems.len(), Problems::LIMIT);
        assert!(problems.to_string().ends_with("there may be more problems; mend these first"));
    }
}
