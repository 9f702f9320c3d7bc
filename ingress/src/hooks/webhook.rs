//! One attempt to POST a message: bounded in time and size, and never with a secret in an error.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde_json::json;

use super::queue::Outcome;
use super::signature;
use crate::config::{TokenSource, WebhookBody, WebhookConfig, WebhookUrl};
use crate::events::Message;
use crate::outbound::{self, OutboundError};
use crate::secret::{Secret, SecretError};

#[derive(Debug)]
pub(super) struct Webhook {
    config: WebhookConfig,
    /// For the URL that it was made for.
    client: Mutex<Option<(String, reqwest::Client)>>,
}

/// Why nothing was sent. An operator can mend it meanwhile: it is tried again.
#[derive(Debug, thiserror::Error)]
enum PostError {
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error(transparent)]
    File(#[from] SecretError),
    #[error("the secret in {place}: {why}")]
    Secret { place: String, why: String },
    #[error("the environment has no {0}; a daemon sees what it was started with")]
    NoVariable(String),
}

impl Webhook {
    pub(super) fn new(config: WebhookConfig) -> Self {
        Self { config, client: Mutex::default() }
    }

    pub(super) async fn attempt(&self, message: &Message) -> Outcome {
        let body = match body(&self.config.body, message) {
            Ok(body) => body,
            Err(why) => return Outcome::Refused { why },
        };
        let timeout = self.config.timeout;
        match tokio::time::timeout(timeout, self.post(&message.id, body)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Again { why: error.to_string(), after: None },
            Err(_) => Outcome::Again { why: OutboundError::Timeout(timeout).to_string(), after: None },
        }
    }

    async fn post(&self, id: &str, body: String) -> Result<Outcome, PostError> {
        let url = match &self.config.url {
            WebhookUrl::Plain(url) => url.clone(),
            WebhookUrl::File(path) => Secret::read(path)?.expose().to_owned(),
        };
        let now = SystemTime::now();
        let headers = self.headers(id, now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(), &body)?;
        let request = self.client(&url)?.post(&url).headers(headers).body(body);
        let answer = request.send().await.map_err(OutboundError::from)?;
        Ok(judge(answer, now).await)
    }

    fn client(&self, url: &str) -> Result<reqwest::Client, OutboundError> {
        let mut known = self.client.lock();
        if let Some((made_for, client)) = &*known
            && made_for == url
        {
            return Ok(client.clone());
        }
        let client = outbound::client(url, self.config.ca_file.as_deref(), self.config.timeout)?;
        *known = Some((url.to_owned(), client.clone()));
        Ok(client)
    }

    fn headers(&self, id: &str, timestamp: u64, body: &str) -> Result<HeaderMap, PostError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut insert = |name: &'static str, value: String| {
            // Ids, numbers and base64 are always good values.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        insert("webhook-id", id.to_owned());
        insert("webhook-timestamp", timestamp.to_string());
        if let Some(source) = &self.config.secret {
            let (place, text) = match source {
                TokenSource::File(path) => (path.display().to_string(), Secret::read_lines(path)?.expose().to_owned()),
                TokenSource::Env(name) => {
                    (name.clone(), std::env::var(name).map_err(|_| PostError::NoVariable(name.clone()))?)
                }
            };
            let secrets = signature::secrets(&text).map_err(|why| PostError::Secret { place, why })?;
            insert("webhook-signature", signature::sign(&secrets, id, timestamp, body));
        }
        if let Some(path) = &self.config.token_file {
            headers.insert(AUTHORIZATION, outbound::bearer(path)?);
        }
        Ok(headers)
    }
}

fn body(form: &WebhookBody, message: &Message) -> Result<String, String> {
    let line = || format!("[{}] {}", message.node, message.text);
    match form {
        WebhookBody::Event => serde_json::to_string(message).map_err(|error| error.to_string()),
        WebhookBody::Slack => Ok(json!({ "text": escape(&line()) }).to_string()),
        // Nobody is called by what an error's text holds.
        WebhookBody::Discord => {
            let content: String = line().chars().take(DISCORD_LIMIT).collect();
            Ok(json!({ "content": content, "allowed_mentions": { "parse": [] } }).to_string())
        }
        WebhookBody::Template(template) => template.render(message),
    }
}

/// Slack's control characters, so that no text becomes a link or a mention.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

async fn judge(answer: Response, now: SystemTime) -> Outcome {
    let status = answer.status();
    if status.is_success() {
        return Outcome::Delivered;
    }
    let after = answer.headers().get(RETRY_AFTER).and_then(|wish| retry_after(wish.to_str().ok()?, now));
    let why = match status.is_redirection() {
        true => {
            let location = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
            let location: String = location.split('?').next().unwrap_or_default().chars().take(EXCERPT).collect();
            format!("redirects to {location}; write that URL if it is right")
        }
        false => format!("answered {status}{}{}", hint(status), excerpt(answer).await),
    };
    match is_passing(status) {
        true => Outcome::Again { why, after },
        false => Outcome::Refused { why },
    }
}

/// A matter of the moment: overload, a restart, a lock.
fn is_passing(status: StatusCode) -> bool {
    const PASSING: [StatusCode; 3] =
        [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    status.is_server_error() || PASSING.contains(&status)
}

/// Seconds, or a date (RFC 9110 section 10.2.3).
fn retry_after(wish: &str, now: SystemTime) -> Option<Duration> {
    let seconds = wish.trim().parse().ok().map(Duration::from_secs);
    seconds.or_else(|| httpdate::parse_http_date(wish).ok()?.duration_since(now).ok())
}

/// The beginning of what the receiver says about it.
async fn excerpt(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < EXCERPT
        && let Ok(Some(chunk)) = answer.chunk().await
    {
        bytes.extend_from_slice(&chunk[..chunk.len().min(EXCERPT)]);
    }
    let text = String::from_utf8_lossy(&bytes);
    let text: String = text.trim().chars().take(EXCERPT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; is the token or secret right?",
        StatusCode::NOT_FOUND | StatusCode::GONE => "; is the URL right?",
        _ => "",
    }
}

const EXCERPT: usize = 200;
/// Discord refuses longer ones.
const DISCORD_LIMIT: usize = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_make_what_chats_take_and_no_text_calls_anybody() {
        let mut message = Message::samples().into_iter().next().expect("a sample");
        message.text = "<!channel> & @everyone".into();
        let read =
            |form| serde_json::from_str::<serde_json::Value>(&body(&form, &message).expect("a body")).expect("JSON");
        assert_eq!(read(WebhookBody::Slack), json!({ "text": "[proxy-1] &lt;!channel&gt; &amp; @everyone" }));
        let discord = read(WebhookBody::Discord);
        assert_eq!(discord["allowed_mentions"], json!({ "parse": [] }));
        assert_eq!(discord["content"], "[proxy-1] <!channel> & @everyone");
        assert_eq!(read(WebhookBody::Event)["event"], "backend_down");
    }

    #[test]
    fn a_receiver_may_name_seconds_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        let date = httpdate::fmt_http_date(now + Duration::from_secs(30));
        assert_eq!(retry_after(&date, now), Some(Duration::from_secs(30)));
        assert_eq!(retry_after("soon", now), None);
    }

    #[test]
    fn what_passes_is_tried_again_and_what_stays_is_not() {
        for (status, passes) in
            [(500, true), (503, true), (429, true), (408, true), (400, false), (404, false), (410, false)]
        {
            assert_eq!(is_passing(StatusCode::from_u16(status).expect("a status")), passes, "{status}");
        }
    }
}
