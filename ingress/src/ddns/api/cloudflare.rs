//! Cloudflare, API v4: "DNS Records for a Zone".

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Api, ApiError, COMMENT, Found, Method, Record, Reply, Request, TokenAt, missing, seconds};

pub(in crate::ddns) struct Cloudflare {
    pub(in crate::ddns) zone_id: String,
}

impl Api for Cloudflare {
    fn find(&self, record: &Record) -> Request {
        let Record { name, kind, .. } = record;
        self.request(Method::Get, &format!("?type={kind}&name.exact={name}&per_page=100"), None)
    }

    fn found(&self, record: &Record, reply: &Reply) -> Result<Vec<Found>, ApiError> {
        let body = self.good(reply)?;
        let list = body["result"].as_array().ok_or_else(|| missing("result"))?;
        record.among(list, &body["result_info"]["total_count"])
    }

    fn create(&self, record: &Record, address: IpAddr) -> Request {
        let Record { name, kind, ttl, zone: _ } = record;
        let body = json!({
            "type": kind.as_str(), "name": name, "content": address, "ttl": seconds(*ttl), "proxied": false, "comment": COMMENT,
        });
        self.request(Method::Post, "", Some(body))
    }

    fn replace(&self, record: &Record, found: &[Found], n: usize, address: IpAddr) -> Request {
        let raw = found.get(n).map_or(&Value::Null, |found| &found.raw);
        let mut body = json!({ "type": record.kind.as_str(), "name": record.name, "content": address });
        for kept in ["ttl", "proxied"] {
            if let Some(value) = raw.get(kept) {
                body[kept] = value.clone();
            }
        }
        self.request(Method::Patch, &format!("/{}", raw["id"].as_str().unwrap_or_default()), Some(body))
    }

    fn changed(&self, reply: &Reply) -> Result<(), ApiError> {
        self.good(reply).map(drop)
    }
}

impl Cloudflare {
    fn request(&self, method: Method, rest: &str, body: Option<Value>) -> Request {
        Request { method, path: format!("/zones/{}/dns_records{rest}", self.zone_id), body, token: TokenAt::Header }
    }

    fn good<'r>(&self, reply: &'r Reply) -> Result<&'r Value, ApiError> {
        let said = |body: &Value| body["errors"][0]["message"].as_str().map(str::to_owned);
        let body = reply.good(said)?;
        match body["success"].as_bool() {
            Some(true) => Ok(body),
            Some(false) => Err(ApiError::Refused(said(body).unwrap_or_default())),
            None => Err(missing("success")),
        }
    }
}
