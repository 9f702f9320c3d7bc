//! `docs/configuration.md` says of each key what the schema says: its type, default and meaning.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::config::schema;

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");

/// Rows of each table, by the heading above it.
type Tables = BTreeMap<String, BTreeSet<String>>;

#[test]
fn the_reference_names_every_key_of_the_schema_and_no_other() {
    let schema = schema();
    let defs = schema["$defs"].as_object().expect("the schema has definitions");
    let mut expected = Tables::new();
    Walk { defs, tables: &mut expected, seen: BTreeSet::new() }.mapping("Top level", "", &schema);
    for (name, def) in defs.iter().filter(|(_, def)| def.get("pattern").is_some()) {
        let row = format!("| `{name}` | {} |", text(&def["description"]).replace('|', "\\|"));
        expected.entry("Words".to_owned()).or_default().insert(row);
    }
    let reference = std::fs::read_to_string(REFERENCE).expect("the reference");
    let written = tables(&reference);
    let mut wrong = String::new();
    for heading in expected.keys().chain(written.keys()).collect::<BTreeSet<_>>() {
        let none = BTreeSet::new();
        let expected = expected.get(heading).unwrap_or(&none);
        let written = written.get(heading).unwrap_or(&none);
        let missing = expected.difference(written).map(|row| format!("+{row}\n"));
        let superfluous = written.difference(expected).map(|row| format!("-{row}\n"));
        let rows: String = missing.chain(superfluous).collect();
        if !rows.is_empty() {
            wrong.push_str(&format!("### {heading}\n{rows}"));
        }
    }
    assert!(wrong.is_empty(), "docs/configuration.md needs these changes:\n{wrong}");
}

fn tables(markdown: &str) -> Tables {
    let mut tables = Tables::new();
    let mut heading = String::new();
    for line in markdown.lines() {
        if line.starts_with('#') {
            heading = line.trim_start_matches('#').trim().replace('`', "");
        } else if line.starts_with("| `") {
            tables.entry(heading.clone()).or_default().insert(line.to_owned());
        }
    }
    tables
}

struct Walk<'a> {
    defs: &'a serde_json::Map<String, Value>,
    tables: &'a mut Tables,
    /// A type that stands in two places, such as a backend, has one table.
    seen: BTreeSet<&'a str>,
}

impl<'a> Walk<'a> {
    fn mapping(&mut self, heading: &str, prefix: &str, schema: &'a Value) {
        let required = |key: &String| schema["required"].as_array().is_some_and(|keys| keys.iter().any(|k| k == key));
        for (key, value) in schema["properties"].as_object().expect("a mapping has keys") {
            let default = match value.get("default") {
                _ if required(key) => "required".to_owned(),
                None => String::new(),
                Some(Value::Object(_)) => String::new(),
                Some(Value::Array(items)) if items.is_empty() => String::new(),
                Some(Value::String(word)) => format!("`{word}`"),
                Some(other) => format!("`{other}`"),
            };
            let row = format!("| `{key}` | {} | {default} | {} |", self.kind(value), text(&value["description"]));
            self.tables.entry(heading.to_owned()).or_default().insert(row.replace("|  |", "| |"));
            self.below(&format!("{prefix}{key}"), value);
        }
    }

    /// Tables for the mappings within a value.
    fn below(&mut self, path: &str, schema: &'a Value) {
        if self.name(schema).is_some_and(|name| !self.seen.insert(name)) {
            return;
        }
        let schema = self.resolve(schema);
        if let Some(patterns) = schema.get("patternProperties").and_then(Value::as_object) {
            patterns.values().for_each(|value| self.below(&format!("{path}.<name>"), value));
        } else if schema.get("properties").is_some() {
            self.mapping(path, &format!("{path}."), schema);
        } else if let Some(items) = schema.get("items") {
            self.below(&format!("{path}[]"), items);
        } else {
            schema["anyOf"].as_array().into_iter().flatten().for_each(|option| self.below(path, option));
        }
    }

    fn resolve(&self, schema: &'a Value) -> &'a Value {
        match self.name(schema) {
            Some(name) => &self.defs[name],
            None => schema,
        }
    }

    fn name(&self, schema: &'a Value) -> Option<&'a str> {
        schema.get("$ref")?.as_str()?.strip_prefix("#/$defs/")
    }

    fn kind(&self, schema: &'a Value) -> String {
        let target = self.resolve(schema);
        if let Some(words) = target.get("enum").and_then(Value::as_array) {
            return words.iter().map(|word| format!("`{}`", text(word))).collect::<Vec<_>>().join(", ");
        }
        if let Some(options) = target.get("anyOf").and_then(Value::as_array) {
            let kinds: Vec<_> = options.iter().map(|option| self.kind(option)).collect();
            return match kinds.as_slice() {
                [one, list] if *list == format!("list of {one}") => format!("{one} or list"),
                kinds => kinds.join(" or "),
            };
        }
        match (self.name(schema), target["type"].as_str()) {
            (Some(name), _) if target.get("pattern").is_some() => format!("[{name}](#words)"),
            (_, Some("array")) => format!("list of {}", self.kind(&target["items"])),
            (_, Some("integer")) => format!("{} to {}", target["minimum"], target["maximum"]),
            (_, Some("boolean")) => "`true`, `false`".to_owned(),
            (_, Some("object")) => "mapping".to_owned(),
            (name, kind) => panic!("the reference has no words for {name:?} of type {kind:?}"),
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a description or word")
}
