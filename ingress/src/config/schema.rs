//! The JSON schema of the file, for editors and for `ingress check --schema`. It comes from the types of `file`, so that it
//! cannot say something else than the daemon.

use serde_json::Value;

use super::file::FileConfig;

/// JSON Schema (draft 2020-12) of `ingress.yaml`.
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(FileConfig).to_value();
    simplify(&mut schema);
    schema
}

/// schemars lets `Option` be `null`, which the file may not say, and keeps the line ends of doc comments.
fn simplify(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(simplify),
        Value::Object(members) => {
            members.values_mut().for_each(simplify);
            if let Some(Value::String(description)) = members.get_mut("description") {
                *description = description.replace('\n', " ");
            }
            if let Some(Value::Array(types)) = members.get_mut("type") {
                types.retain(|name| name != "null");
                if let [one] = types.as_slice() {
                    let one = one.clone();
                    members.insert("type".to_owned(), one);
                }
            }
            let null = serde_json::json!({ "type": "null" });
            if let Some(Value::Array(options)) = members.get_mut("anyOf") {
                options.retain(|option| *option != null);
                if let [Value::Object(one)] = options.as_slice() {
                    let one = one.clone();
                    members.remove("anyOf");
                    for (key, value) in one {
                        members.entry(key).or_insert(value);
                    }
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_keys_are_not_nullable() {
        assert!(!schema().to_string().contains("\"null\""));
    }

    #[test]
    fn every_mapping_is_closed() {
        fn check(schema: &Value, path: &str) {
            if schema.get("type").is_some_and(|name| name == "object") {
                assert_eq!(schema.get("additionalProperties"), Some(&Value::Bool(false)), "{path}");
            }
            for (key, value) in schema.as_object().into_iter().flatten() {
                check(value, &format!("{path}/{key}"));
            }
        }
        check(&schema(), "");
    }
}
