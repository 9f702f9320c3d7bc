//! http.net's Partner API, which is hosting.de's: `recordsFind` and `recordsUpdate` of the DNS service, in JSON.
//!
//! Every answer is HTTP 200; how it went stands in `status`.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Api, ApiError, Found, Method, Record, Reply, Request, TokenAt, missing, seconds};

pub(in crate::ddns) struct HttpNet;

impl Api for HttpNet {
    fn find(&self, record: &Record) -> Request {
        let field = |field: &str, value: &str| json!({ "field": field, "value": value });
        let wanted = [field("RecordName", &record.name), field("RecordType", record.kind.as_str())];
        let filter = json!({ "subFilterConnective": "AND", "subFilter": wanted });
        request("/recordsFind", json!({ "filter": filter, "limit": 100, "page": 1 }))
    }

    fn found(&self, record: &Record, reply: &Reply) -> Result<Vec<Found>, ApiError> {
        let response = &good(reply)?["response"];
        let data = response["data"].as_array().ok_or_else(|| missing("response.data"))?;
        record.among(data, &response["totalEntries"])
    }

    fn create(&self, record: &Record, address: IpAddr) -> Request {
        let Record { zone, name, kind, ttl } = record;
        let made = json!({ "name": name, "type": kind.as_str(), "content": address, "ttl": seconds(*ttl) });
        update(zone, json!([made]), json!([]))
    }

    fn replace(&self, record: &Record, found: &[Found], n: usize, address: IpAddr) -> Request {
        let raw = found.get(n).map_or(&Value::Null, |found| &found.raw);
        let mut changed = json!({
            "id": raw["id"], "name": record.name, "type": record.kind.as_str(), "content": address,
            "ttl": seconds(record.ttl),
        });
        for kept in ["ttl", "comments"] {
            if let Some(value) = raw.get(kept).filter(|value| !value.is_null()) {
                changed[kept] = value.clone();
            }
        }
        update(&record.zone, json!([]), json!([changed]))
    }

    fn changed(&self, reply: &Reply) -> Result<(), ApiError> {
        good(reply).map(drop)
    }
}

fn update(zone: &str, add: Value, modify: Value) -> Request {
    let body = json!({ "zoneName": zone, "recordsToAdd": add, "recordsToModify": modify, "recordsToDelete": [] });
    request("/recordsUpdate", body)
}

fn request(path: &str, body: Value) -> Request {
    Request { method: Method::Post, path: path.to_owned(), body: Some(body), token: TokenAt::Body("authToken") }
}

fn good(reply: &Reply) -> Result<&Value, ApiError> {
    let said = |body: &Value| body["errors"][0]["text"].as_str().map(str::to_owned);
    let body = reply.good(said)?;
    match body["status"].as_str() {
        Some("success" | "pending") => Ok(body),
        Some(_) => Err(ApiError::Refused(super::shown(&said(body).unwrap_or_default()))),
        None => Err(missing("status")),
    }
}
