//! What all providers' APIs have in common: a request, an answer, and the ways in which one goes wrong. Pure.

mod cloudflare;
mod hetzner;
mod http_net;

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

pub(super) use cloudflare::Cloudflare;
pub(super) use hetzner::Hetzner;
pub(super) use http_net::HttpNet;

use super::plan::{Found, Kind};

/// One record of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) zone: String,
    /// With the zone, in lower case.
    pub(super) name: String,
    pub(super) kind: Kind,
    /// If it is made.
    pub(super) ttl: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Below the base URL, with a slash at its begin.
    pub(super) path: String,
    pub(super) body: Option<Value>,
    pub(super) token: TokenAt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Post,
    Patch,
}

/// Where the token goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenAt {
    /// `Authorization: Bearer`.
    Header,
    /// This key of the body.
    Body(&'static str),
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// `Retry-After`, or what the provider has in its place.
    pub(super) wait: Option<Duration>,
    /// `Null`: it was no JSON.
    pub(super) body: Value,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    #[error("{0}")]
    Transport(String),
    #[error("too many requests; the next one comes after the time that the provider asks for")]
    RateLimited(Option<Duration>),
    #[error("the API refuses the token ({0}); may it edit this zone?")]
    Denied(String),
    #[error("the API has a problem of its own ({0})")]
    Server(String),
    #[error("the API refuses: {0}")]
    Refused(String),
    #[error("the API's answer is not understood: {0}")]
    NotUnderstood(String),
    #[error("{0}")]
    Local(String),
}

/// How a provider is spoken to.
pub(super) trait Api: Send + Sync {
    /// Asks for all records of this name and type.
    fn find(&self, record: &Record) -> Request;
    fn found(&self, record: &Record, reply: &Reply) -> Result<Vec<Found>, ApiError>;
    fn create(&self, record: &Record, address: IpAddr) -> Request;
    /// Puts `address` in the place of `found[n]`; all else of it stays.
    fn replace(&self, record: &Record, found: &[Found], n: usize, address: IpAddr) -> Request;
    /// Whether a change was taken.
    fn changed(&self, reply: &Reply) -> Result<(), ApiError>;
}

impl Record {
    /// Which of a provider's `list` are this record; each has `name`, `type`, `content` and `id`. `total` says how many the
    /// provider knows of, if it does.
    fn among(&self, list: &[Value], total: &Value) -> Result<Vec<Found>, ApiError> {
        if total.as_u64().is_some_and(|total| total > list.len() as u64) {
            return Err(ApiError::NotUnderstood("the list of records is not whole".to_owned()));
        }
        let is_wanted = |found: &&Value| {
            let named = found["name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(&self.name));
            named && found["type"] == self.kind.as_str()
        };
        let read = |found: &Value| {
            let address = found["content"].as_str().ok_or_else(|| missing("content"))?.to_owned();
            found["id"].as_str().ok_or_else(|| missing("id"))?;
            Ok(Found { address, raw: found.clone() })
        };
        list.iter().filter(is_wanted).map(read).collect()
    }
}

impl Reply {
    /// The body of a good answer; else what the status means. `said` finds the provider's own words.
    fn good(&self, said: impl Fn(&Value) -> Option<String>) -> Result<&Value, ApiError> {
        let words = || {
            let said = said(&self.body).map(|said| format!(": {}", shown(&said))).unwrap_or_default();
            format!("HTTP {}{said}", self.status)
        };
        match self.status {
            200..=299 if self.body.is_object() => Ok(&self.body),
            200..=299 => Err(ApiError::NotUnderstood("it is no JSON object".to_owned())),
            429 => Err(ApiError::RateLimited(self.wait)),
            401 | 403 => Err(ApiError::Denied(words())),
            500..=599 => Err(ApiError::Server(words())),
            _ => Err(ApiError::Refused(words())),
        }
    }
}

/// What a stranger said, fit for one line.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

fn missing(what: &str) -> ApiError {
    ApiError::NotUnderstood(format!("`{what}` is missing"))
}

fn seconds(ttl: Duration) -> u64 {
    ttl.as_secs()
}

/// What those who look at the zone see beside a record that was made.
const COMMENT: &str = "kept by ingress";

#[cfg(test)]
mod tests;
