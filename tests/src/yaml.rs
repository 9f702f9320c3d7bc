//! Writes a configuration as an operator would: block style YAML, from the JSON values that scenarios edit.

use std::fmt::Write as _;

use serde_json::Value;

/// Ends with a line end.
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(_) | Value::Array(_) => block(&mut text, value, 0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => text = scalar(value),
    }
    text.trim_start().to_owned() + "\n"
}

/// Each entry on lines of its own, beginning with a line end.
fn block(text: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => map.iter().for_each(|(key, value)| {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n{pad}{}:", word(key));
            block(text, value, indent + 2);
        }),
        Value::Array(items) if !items.is_empty() => items.iter().for_each(|item| {
            let _ = write!(text, "\n{pad}-");
            if item.is_object() {
                let mut entry = String::new();
                block(&mut entry, item, indent + 2);
                let _ = write!(text, " {}", entry.trim_start());
            } else {
                block(text, item, indent + 2);
            }
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) | Value::Array(_) => {
            let _ = write!(text, " {}", scalar(value));
        }
    }
}

/// Empty lists and mappings too: their JSON is their YAML.
fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), word)
}

/// Plain where nothing can be misread, else quoted as in JSON.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-/.".contains(c);
    let letters = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let reserved = ["true", "false", "null", "yes", "no", "on", "off"].contains(&text.to_ascii_lowercase().as_str());
    if letters && !reserved && text.chars().all(plain) { text.into() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_and_mappings_are_blocks() {
        let value = json!({
            "routes": [{ "pool": "web", "sni": ["a.example.com", "*.b.example.com"] }],
            "state_dir": "/tmp/x",
            "kernel": {},
            "tls": { "bind": "192.0.2.1:443", "default": null, "weight": 3, "word": "off" },
        });
        let expected = "\
kernel: {}
routes:
  - pool: web
    sni:
      - a.example.com
      - \"*.b.example.com\"
state_dir: /tmp/x
tls:
  bind: \"192.0.2.1:443\"
  default: null
  weight: 3
  word: \"off\"
";
        assert_eq!(to_yaml(&value), expected);
    }
}
