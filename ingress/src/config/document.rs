//! YAML documents of other shapes than ours, read by the same parser: with places, and bounded.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value as Json};

use super::decode::decode;
use super::problems::{Place, Problem, Problems, Severity};
use super::report::Report;
use super::yaml::{NodeId, Tree, Value};

/// Decodes a text; `file` is only named in problems.
///
/// # Errors
/// Every problem that was found. An unknown key is one only if `T` says so.
pub fn decode_yaml<T: DeserializeOwned>(text: &str, file: &Path) -> Result<T, Problems> {
    let (tree, mut report) = (parse(text, file)?, Problems::new(file));
    let mut reporting = Report::new(&tree, file);
    let decoded = decode::<T>(&tree, |at, error| {
        reporting.error(at, error.message, error.suggestion);
        !reporting.problems.is_full()
    });
    std::mem::swap(&mut report, &mut reporting.problems);
    let problems = report.finish(text);
    decoded.filter(|_| !problems.has_errors()).ok_or(problems)
}

/// Reads a text without any idea of its shape: for formats that are not ours, where one wrong item must not spoil the rest.
///
/// # Errors
/// The first place where the text is not YAML, or where a key stands twice.
pub fn read_yaml(text: &str, file: &Path) -> Result<Json, Problems> {
    let tree = parse(text, file)?;
    Ok(plain(&tree, Tree::ROOT))
}

fn parse<'a>(text: &'a str, file: &Path) -> Result<Tree<'a>, Problems> {
    let refuse = |place: Place, path: String, message: String| {
        let mut problems = Problems::new(file);
        problems.push(Problem::new(Severity::Error, place, path, message));
        problems.finish(text)
    };
    let (tree, duplicates) =
        Tree::parse(text.strip_prefix('\u{feff}').unwrap_or(text)).map_err(|f| refuse(f.place, f.path, f.message))?;
    match duplicates.into_iter().next() {
        Some(fault) => Err(refuse(fault.place, fault.path, fault.message)),
        None => Ok(tree),
    }
}

/// Depth is bounded by the parser.
fn plain(tree: &Tree<'_>, id: NodeId) -> Json {
    match &tree.node(id).value {
        Value::Sequence(items) => items.iter().map(|id| plain(tree, *id)).collect(),
        Value::Mapping(entries) => {
            let entry = |id: &NodeId| (tree.key(*id).unwrap_or_default().to_owned(), plain(tree, *id));
            Json::Object(entries.iter().map(entry).collect::<Map<_, _>>())
        }
        Value::Scalar(scalar) if scalar.is_null() => Json::Null,
        Value::Scalar(scalar) => {
            let number = scalar.as_integer().map(Number::from).or_else(|| Number::from_f64(scalar.as_float()?));
            let value = scalar.as_bool().map(Json::Bool).or(number.map(Json::Number));
            value.unwrap_or_else(|| Json::String(scalar.text.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plain_document_keeps_its_shape_and_the_quoted_stays_text() {
        let read = read_yaml("a: [1, '1', true, 'true', ~, 1.5]\nb: {c: x}\n", Path::new("f.yaml")).expect("YAML");
        assert_eq!(read, json!({ "a": [1, "1", true, "true", null, 1.5], "b": { "c": "x" } }));
    }

    #[test]
    fn a_key_that_stands_twice_and_a_broken_text_are_told_with_their_place() {
        for (text, place) in [("a: 1\na: 2\n", "f.yaml:2:1"), ("a: [\n", "f.yaml:2:1")] {
            let problems = read_yaml(text, Path::new("f.yaml")).expect_err("refused").to_string();
            assert!(problems.starts_with(place), "{problems}");
        }
    }
}
