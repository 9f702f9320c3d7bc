//! etcd's v3 API in JSON: what is asked, and what is answered.
//!
//! Keys and values are base64; numbers of 64 bits may be strings; what has its type's zero value is left out (proto3's
//! JSON mapping).

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    #[serde(deserialize_with = "number")]
    pub(super) cluster_id: u64,
    #[serde(deserialize_with = "number")]
    pub(super) revision: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyValue {
    #[serde(deserialize_with = "bytes")]
    pub(super) key: Vec<u8>,
    #[serde(deserialize_with = "bytes")]
    pub(super) value: Vec<u8>,
    #[serde(deserialize_with = "number")]
    pub(super) mod_revision: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RangeAnswer {
    pub(super) header: Header,
    pub(super) kvs: Vec<KeyValue>,
    /// There are more.
    pub(super) more: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TxnAnswer {
    pub(super) header: Header,
    pub(super) succeeded: bool,
    responses: Vec<OneAnswer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OneAnswer {
    response_range: Option<RangeAnswer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LeaseAnswer {
    #[serde(rename = "ID", deserialize_with = "number")]
    pub(super) id: i64,
    /// Seconds; 0: there is no such lease.
    #[serde(rename = "TTL", deserialize_with = "number")]
    pub(super) ttl: i64,
}

#[derive(Debug, Deserialize)]
pub(super) struct TokenAnswer {
    pub(super) token: String,
}

/// A line of a stream.
#[derive(Debug, Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
pub(super) struct Line<T> {
    pub(super) result: Option<T>,
    pub(super) error: Option<ErrorAnswer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WatchAnswer {
    pub(super) header: Header,
    pub(super) created: bool,
    pub(super) canceled: bool,
    /// Not 0: changes since then are what is left.
    #[serde(deserialize_with = "number")]
    pub(super) compact_revision: i64,
    pub(super) cancel_reason: String,
    pub(super) events: Vec<WatchEvent>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WatchEvent {
    pub(super) r#type: EventType,
    pub(super) kv: KeyValue,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) enum EventType {
    #[default]
    #[serde(rename = "PUT")]
    Put,
    #[serde(rename = "DELETE")]
    Delete,
}

/// What the gateway says of a failure; `code` is gRPC's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ErrorAnswer {
    pub(super) message: String,
    #[serde(alias = "grpc_code")]
    pub(super) code: u32,
}

impl TxnAnswer {
    /// What the question's `failure` branch read.
    pub(super) fn found(self) -> Option<KeyValue> {
        self.responses.into_iter().find_map(|answer| answer.response_range)?.kvs.into_iter().next()
    }
}

/// All keys that begin with `prefix`, from `from` on; `revision` 0: as they are now.
pub(super) fn range(prefix: &str, from: &[u8], revision: i64, limit: usize) -> Value {
    json!({
        "key": BASE64_STANDARD.encode(from),
        "range_end": BASE64_STANDARD.encode(after(prefix)),
        "revision": revision.to_string(),
        "limit": limit.to_string(),
    })
}

pub(super) fn watch(prefix: &str, from_revision: i64) -> Value {
    json!({ "create_request": {
        "key": BASE64_STANDARD.encode(prefix),
        "range_end": BASE64_STANDARD.encode(after(prefix)),
        "start_revision": from_revision.to_string(),
    } })
}

/// Writes `value` if the key's revision is `based_on`; else says what stands there.
pub(super) fn compare_and_put(key: &str, based_on: i64, value: &[u8], lease: i64) -> Value {
    let key = BASE64_STANDARD.encode(key);
    json!({
        "compare": [{ "target": "MOD", "result": "EQUAL", "key": key, "mod_revision": based_on.to_string() }],
        "success": [{ "request_put": {
            "key": key, "value": BASE64_STANDARD.encode(value), "lease": lease.to_string(),
        } }],
        "failure": [{ "request_range": { "key": key } }],
    })
}

pub(super) fn put(key: &str, value: &[u8], lease: i64) -> Value {
    json!({ "key": BASE64_STANDARD.encode(key), "value": BASE64_STANDARD.encode(value), "lease": lease.to_string() })
}

pub(super) fn grant(ttl: Duration) -> Value {
    json!({ "TTL": ttl.as_secs().to_string() })
}

pub(super) fn lease(id: i64) -> Value {
    json!({ "ID": id.to_string() })
}

pub(super) fn login(name: &str, password: &str) -> Value {
    json!({ "name": name, "password": password })
}

/// The first key that does not begin with `prefix`, which ends with a `/`.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText<T> {
    Number(T),
    Text(String),
}

fn number<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr + Deserialize<'de>,
    T::Err: Display,
{
    match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Number(number) => Ok(number),
        NumberOrText::Text(text) => text.parse().map_err(D::Error::custom),
    }
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    BASE64_STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_etcd_writes_them() {
        // Of etcd 3.4.23.
        let refused = r#"{"header":{"cluster_id":"15118495548433857066","revision":"2"},"responses":[{"response_range":
            {"header":{"revision":"2"},"kvs":[{"key":"L3gvYQ==","mod_revision":"2","value":"aGVsbG8="}],"count":"1"}}]}"#;
        let refused: TxnAnswer = serde_json::from_str(refused).expect("a transaction");
        assert!(!refused.succeeded && refused.header.cluster_id > u64::MAX / 2);
        let found = refused.found().expect("what stands there");
        assert_eq!(
            (found.key.as_slice(), found.value.as_slice(), found.mod_revision),
            (&b"/x/a"[..], &b"hello"[..], 2)
        );

        let deleted = r#"{"result":{"header":{"revision":4},"events":[{"type":"DELETE","kv":{"key":"L3gvYg==","mod_revision":"4"}}]}}"#;
        let deleted: Line<WatchAnswer> = serde_json::from_str(deleted).expect("a line");
        let deleted = deleted.result.expect("no error");
        assert_eq!((deleted.header.revision, &deleted.events[0].r#type), (4, &EventType::Delete));
        let compacted = r#"{"result":{"canceled":true,"compact_revision":"4"}}"#;
        let compacted: Line<WatchAnswer> = serde_json::from_str(compacted).expect("a line");
        assert_eq!(compacted.result.map(|answer| (answer.canceled, answer.compact_revision)), Some((true, 4)));
        let error = r#"{"error":"etcdserver: permission denied","message":"etcdserver: permission denied","code":7}"#;
        let error: ErrorAnswer = serde_json::from_str(error).expect("an error");
        assert_eq!((error.message.as_str(), error.code), ("etcdserver: permission denied", 7));
        let error = r#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}}"#;
        let error: Line<WatchAnswer> = serde_json::from_str(error).expect("a line");
        assert_eq!(error.error.map(|error| error.code), Some(14));
        let lease: LeaseAnswer = serde_json::from_str(r#"{"ID":"4111120147648224520","TTL":"30"}"#).expect("a lease");
        assert_eq!((lease.id, lease.ttl), (4_111_120_147_648_224_520, 30));
    }

    #[test]
    fn a_range_ends_where_the_prefix_does() {
        assert_eq!(after("/ingress/v1/x/"), b"/ingress/v1/x0");
    }
}
