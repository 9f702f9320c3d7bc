//! The dashboard and the alert rules that are shipped: they name metrics and labels that exist, and can be imported anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn dashboard() -> Value {
    serde_json::from_str(&read("packaging/grafana/ingress.json")).expect("JSON")
}

/// Metric -> its labels, as docs/metrics.md has them, which a unit test holds to the code.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let docs = read("docs/metrics.md");
    let rows = docs.lines().filter_map(|line| line.strip_prefix("| `"));
    let metrics = rows.filter(|row| row.starts_with("ingress_") || row.starts_with("process_")).map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[2].split(',').map(|label| label.trim().trim_matches('`').to_owned());
        (cells[0].trim_end_matches('`').to_owned(), labels.filter(|label| !label.is_empty()).collect())
    });
    metrics.collect()
}

/// Everything that is a query: (where, expression).
fn expressions() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((format!("panel {}", panel["title"]), target["expr"].as_str().expect("a query").to_owned()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        if let Some(query) = variable["query"]["query"].as_str() {
            found.push((format!("variable {}", variable["name"]), query.to_owned()));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().expect("annotations") {
        found.extend(annotation["expr"].as_str().map(|expr| ("an annotation".to_owned(), expr.to_owned())));
    }
    let rules = read("packaging/prometheus/alerts.yaml");
    let alerts = rules.split("- alert: ").skip(1).map(|rule| {
        let name = rule.lines().next().unwrap_or_default();
        let expr = rule.split_once("expr: ").expect("an expression").1;
        (format!("alert {name}"), expr.split("\n        for: ").next().unwrap_or_default().to_owned())
    });
    found.extend(alerts);
    found
}

/// Words of a query, outside of quotes.
fn words(expr: &str) -> Vec<String> {
    let outside: String = expr.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    outside.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').map(str::to_owned).collect()
}

#[test]
fn every_metric_of_dashboard_and_alerts_exists() {
    let documented = documented();
    assert!(documented.len() > 40, "the tables of docs/metrics.md: {documented:?}");
    let mut wrong = Vec::new();
    for (place, expr) in expressions() {
        let ours = |word: &String| word.starts_with("ingress_") || word.starts_with("process_");
        let names: Vec<String> = words(&expr).into_iter().filter(ours).collect();
        if names.is_empty() && !expr.starts_with("up{") {
            wrong.push(format!("{place} names none of our metrics: {expr}"));
        }
        for name in names {
            let family = name.trim_end_matches("_bucket");
            if !documented.contains_key(family) {
                wrong.push(format!("{place}: {name} is not in docs/metrics.md"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_label_that_is_selected_or_summed_by_exists() {
    let documented = documented();
    let everywhere = ["instance", "job", "le", "alertname", "alertstate"];
    let known: BTreeSet<&str> = documented.values().flatten().map(String::as_str).chain(everywhere).collect();
    let mut wrong = Vec::new();
    for (place, expr) in expressions() {
        // `metric{label="...", other=~"..."}`: each selector belongs to the metric before it.
        for (name, selector) in selectors(&expr) {
            let Some(labels) = documented.get(name.trim_end_matches("_bucket")) else { continue };
            for label in selector {
                if !labels.contains(&label) && !everywhere.contains(&label.as_str()) {
                    wrong.push(format!("{place}: {name} has no label {label}"));
                }
            }
        }
        for list in expr.split(" by (").chain(expr.split(" on (")).skip(1).filter_map(|rest| rest.split(')').next()) {
            let labels = list
                .split(',')
                .map(str::trim)
                .filter(|label| label.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
            wrong.extend(
                labels.filter(|label| !known.contains(label)).map(|label| format!("{place}: no metric has {label}")),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each `name{...}` of a query, with the names of the labels within.
fn selectors(expr: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (at, _) in expr.match_indices('{') {
        let start = expr[..at].rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(0, |before| before + 1);
        let inner = expr[at + 1..].split('}').next().unwrap_or_default();
        let outside = inner.split('"').step_by(2);
        let labels = outside.map(|part| part.trim_matches(|c: char| !c.is_ascii_lowercase()).to_owned());
        found.push((expr[start..at].to_owned(), labels.filter(|label| !label.is_empty()).collect()));
    }
    found
}

#[test]
fn the_dashboard_can_be_imported_beside_any_data_source() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36));
    assert!(dashboard["id"].is_null(), "Grafana gives it one");
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    assert_eq!((&variables[0]["name"], &variables[0]["type"]), (&"datasource".into(), &"datasource".into()));
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{} twice", panel["id"]);
        assert!(panel["title"].as_str().is_some_and(|title| !title.is_empty()));
    }
    let mut sources = Vec::new();
    collect(&dashboard, "datasource", &mut sources);
    for source in &sources {
        let uid = source["uid"].as_str().unwrap_or_default();
        assert!(["${datasource}", "-- Grafana --"].contains(&uid), "a data source of somebody else's: {source}");
    }
    assert!(sources.len() > 50, "each panel and each query names it");
}

#[test]
fn no_two_panels_share_a_place() {
    let dashboard = dashboard();
    let place = |panel: &Value| ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().expect("a number"));
    let places: Vec<_> = dashboard["panels"].as_array().expect("panels").iter().map(place).collect();
    for (n, [x, y, w, h]) in places.iter().enumerate() {
        assert!(x + w <= 24, "panel {n} is wider than the page");
        for [x2, y2, w2, h2] in &places[..n] {
            let apart = x + w <= *x2 || x2 + w2 <= *x || y + h <= *y2 || y2 + h2 <= *y;
            assert!(apart, "panel {n} lies over another");
        }
    }
}

#[test]
fn every_alert_stands_in_the_runbook_and_has_a_test() {
    let (rules, tests) = (read("packaging/prometheus/alerts.yaml"), read("packaging/prometheus/alerts_test.yaml"));
    let runbook = read("docs/operations.md");
    for name in rules.split("- alert: ").skip(1).filter_map(|rule| rule.lines().next()) {
        assert!(runbook.contains(&format!("`{name}`")), "docs/operations.md says nothing of {name}");
        assert!(tests.contains(name), "alerts_test.yaml has no test of {name}");
    }
}

fn collect(value: &Value, key: &str, found: &mut Vec<Value>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get(key).filter(|source| source.is_object()).cloned());
            members.values().for_each(|value| collect(value, key, found));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, key, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
