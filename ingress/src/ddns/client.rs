//! Sends requests: bounded in time and size, and never with the token in an error.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::Response;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use serde_json::Value;

use super::api::{ApiError, Method, Reply, Request, TokenAt};
use crate::config::DdnsApi;
use crate::outbound;
use crate::secret::Secret;

#[derive(Debug)]
pub(super) struct Client {
    api: DdnsApi,
    http: Option<reqwest::Client>,
}

impl Client {
    pub(super) fn new(api: &DdnsApi) -> Self {
        Self { api: api.clone(), http: None }
    }

    pub(super) async fn send(&mut self, request: Request) -> Result<Reply, ApiError> {
        let http = match &self.http {
            Some(http) => http.clone(),
            None => {
                let http = connectable(&self.api.base_url, None)?;
                self.http.insert(http).clone()
            }
        };
        let token = Secret::read(&self.api.token_file).map_err(|error| ApiError::Local(error.to_string()))?;
        let exchange = exchange(http, &self.api.base_url, request, &token);
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .unwrap_or_else(|_| Err(ApiError::Transport(format!("no whole answer within {TIMEOUT:?}"))))
    }
}

async fn exchange(http: reqwest::Client, base: &str, request: Request, token: &Secret) -> Result<Reply, ApiError> {
    let Request { method, path, mut body, token: at } = request;
    let url = format!("{base}{path}");
    let builder = match method {
        Method::Get => http.get(url),
        Method::Post => http.post(url),
        Method::Patch => http.patch(url),
    };
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    match at {
        TokenAt::Header => {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose()));
            let mut value = value.map_err(|_| ApiError::Local("the token cannot be sent in a header".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        TokenAt::Body(key) => {
            if let Some(body) = &mut body {
                body[key] = Value::from(token.expose());
            }
        }
    }
    let builder = match body {
        Some(body) => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            builder.body(body.to_string())
        }
        None => builder,
    };
    let response = builder.headers(headers).send().await.map_err(transport)?;
    let (status, wait) = (response.status().as_u16(), wait(response.headers()));
    let text = read(response, MAX_ANSWER).await?;
    Ok(Reply { status, wait, body: serde_json::from_slice(&text).unwrap_or(Value::Null) })
}

/// Up to `most` bytes; more are an error.
pub(super) async fn read(mut response: Response, most: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if bytes.len() + chunk.len() > most {
            return Err(ApiError::NotUnderstood(format!("it is larger than {most} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// `local`: from which family of addresses it speaks.
pub(super) fn connectable(url: &str, local: Option<std::net::IpAddr>) -> Result<reqwest::Client, ApiError> {
    let builder = outbound::builder(url.starts_with("https://"), None);
    let builder = builder.map_err(|error| ApiError::Local(error.to_string()))?;
    builder.local_address(local).connect_timeout(TIMEOUT).build().map_err(transport)
}

/// `Retry-After` in seconds (RFC 9110 section 10.2.3), or `RateLimit-Reset` as Hetzner sends it: a Unix time.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    let until = |at: u64| UNIX_EPOCH.checked_add(Duration::from_secs(at))?.duration_since(SystemTime::now()).ok();
    let wait = number(RETRY_AFTER.as_str()).map(Duration::from_secs).or_else(|| until(number("ratelimit-reset")?));
    wait.map(|wait| wait.min(LONGEST_WAIT))
}

pub(super) fn transport(error: reqwest::Error) -> ApiError {
    ApiError::Transport(outbound::words(&error.without_url()))
}

pub(super) const TIMEOUT: Duration = Duration::from_secs(20);
/// A hundred records are about 50 KB.
const MAX_ANSWER: usize = 1 << 20;
/// Whatever a provider asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
