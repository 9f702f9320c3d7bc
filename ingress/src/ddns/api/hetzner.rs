//! Hetzner: the DNS part of its Cloud API, "Zone RRSets". (The older API of dns.hetzner.com is not spoken.)
//!
//! Records of one name and type are a set: it is replaced as a whole, with all others of it as they were.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Api, ApiError, COMMENT, Found, Method, Record, Reply, Request, TokenAt, missing, seconds};

pub(in crate::ddns) struct Hetzner;

impl Api for Hetzner {
    fn find(&self, record: &Record) -> Request {
        request(Method::Get, set(record), None)
    }

    fn found(&self, _record: &Record, reply: &Reply) -> Result<Vec<Found>, ApiError> {
        if reply.status == 404 && reply.body["error"]["code"] == "not_found" {
            // The zone itself may be missing too: then the attempt to make the record says so.
            return Ok(Vec::new());
        }
        let records = good(reply)?["rrset"]["records"].as_array().ok_or_else(|| missing("rrset.records"))?;
        let read = |record: &Value| {
            let address = record["value"].as_str().ok_or_else(|| missing("value"))?.to_owned();
            Ok(Found { address, raw: record.clone() })
        };
        records.iter().map(read).collect()
    }

    fn create(&self, record: &Record, address: IpAddr) -> Request {
        let body = json!({
            "name": relative(record),
            "type": record.kind.as_str(),
            "ttl": seconds(record.ttl),
            "records": [{ "value": address, "comment": COMMENT }],
        });
        request(Method::Post, format!("/zones/{}/rrsets", record.zone), Some(body))
    }

    fn replace(&self, record: &Record, found: &[Found], n: usize, address: IpAddr) -> Request {
        let mut records: Vec<Value> = found.iter().map(|found| found.raw.clone()).collect();
        if let Some(ours) = records.get_mut(n) {
            ours["value"] = json!(address);
        }
        let path = format!("{}/actions/set_records", set(record));
        request(Method::Post, path, Some(json!({ "records": records })))
    }

    fn changed(&self, reply: &Reply) -> Result<(), ApiError> {
        let body = good(reply)?;
        match &body["action"] {
            action if action["status"] == "error" => {
                Err(ApiError::Refused(action["error"]["message"].as_str().unwrap_or("the action failed").to_owned()))
            }
            action if action.is_object() => Ok(()),
            _ => Err(missing("action")),
        }
    }
}

fn request(method: Method, path: String, body: Option<Value>) -> Request {
    Request { method, path, body, token: TokenAt::Header }
}

fn set(record: &Record) -> String {
    format!("/zones/{}/rrsets/{}/{}", record.zone, relative(record), record.kind)
}

/// `@` for the zone itself.
fn relative(record: &Record) -> &str {
    match record.name.strip_suffix(&record.zone).map(|name| name.trim_end_matches('.')) {
        Some("") | None => "@",
        Some(name) => name,
    }
}

fn good(reply: &Reply) -> Result<&Value, ApiError> {
    reply.good(|body| body["error"]["message"].as_str().map(str::to_owned))
}
