//! The API as a document, and as it answers over HTTP.

use std::collections::BTreeSet;

use serde_json::Value;

use super::api::OPENAPI;
use super::problem::Kind;

fn document() -> Value {
    serde_json::from_str(OPENAPI).expect("the document is JSON")
}

/// Every kind of problem; the match makes a new one fail to compile until it stands here.
fn kinds() -> Vec<Kind> {
    use Kind::*;
    let next = |kind| match kind {
        NotJson => Some(Unauthorized),
        Unauthorized => Some(OutOfScope),
        OutOfScope => Some(NotFound),
        NotFound => Some(NoSuchRegistration),
        NoSuchRegistration => Some(MethodNotAllowed),
        MethodNotAllowed => Some(Timeout),
        Timeout => Some(HostTaken),
        HostTaken => Some(TooLarge),
        TooLarge => Some(InvalidField),
        InvalidField => Some(ForbiddenUpstream),
        ForbiddenUpstream => Some(Unavailable),
        Unavailable => Some(Full),
        Full => None,
    };
    std::iter::successors(Some(NotJson), |kind| next(*kind)).collect()
}

#[test]
fn the_document_names_every_problem_and_no_other() {
    let document = document();
    let named = document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"].as_array().expect("codes");
    let named: BTreeSet<_> = named.iter().filter_map(Value::as_str).collect();
    assert_eq!(named, kinds().into_iter().map(Kind::code).collect());
}

#[test]
fn every_reference_of_the_document_leads_somewhere() {
    fn walk(value: &Value, document: &Value) {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            let pointer = reference.strip_prefix('#').expect("a reference within the document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        match value {
            Value::Object(map) => map.values().for_each(|value| walk(value, document)),
            Value::Array(items) => items.iter().for_each(|value| walk(value, document)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    walk(&document(), &document());
}
