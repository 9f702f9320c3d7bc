//! One question over HTTP: bounded in time and size, and never with the token in an error.

use reqwest::header::{ACCEPT, AUTHORIZATION, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, LOCATION};
use reqwest::{Response, StatusCode};

use crate::config::HttpPollConfig;
use crate::outbound::{self, OutboundError};

#[derive(Debug)]
pub(super) struct Client {
    config: HttpPollConfig,
    /// Made at the first question, and again after it could not be made.
    http: Option<reqwest::Client>,
    /// Of the last answer, and of the last one that was of use.
    etag: Option<HeaderValue>,
    accepted: Option<HeaderValue>,
}

#[derive(Debug)]
pub(super) enum Answer {
    Unchanged,
    Text(String),
}

/// Why there is no answer. Texts name the place; none holds the token.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error("answered {status}{}", hint(*.status))]
    Status { status: StatusCode },
    #[error("redirects to {0}; write that URL if it is right")]
    Redirect(String),
    #[error("the answer is larger than {} MiB", MAX_BODY >> 20)]
    TooLarge,
    #[error("the answer is not UTF-8")]
    NotText,
}

impl Client {
    pub(super) fn new(config: HttpPollConfig) -> Self {
        Self { config, http: None, etag: None, accepted: None }
    }

    /// What was answered last was of use: from now on only news are wanted.
    pub(super) fn accepted(&mut self) {
        self.accepted = self.etag.take();
    }

    pub(super) async fn ask(&mut self) -> Result<Answer, AskError> {
        let timeout = self.config.timeout;
        tokio::time::timeout(timeout, self.exchange()).await.unwrap_or(Err(OutboundError::Timeout(timeout).into()))
    }

    async fn exchange(&mut self) -> Result<Answer, AskError> {
        self.etag = None;
        let http = match &self.http {
            Some(http) => http.clone(),
            None => {
                let HttpPollConfig { url, ca_file, timeout, .. } = &self.config;
                let http = outbound::client(url, ca_file.as_deref(), *timeout)?;
                self.http.insert(http).clone()
            }
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, application/yaml;q=0.9"));
        if let Some(path) = &self.config.token_file {
            headers.insert(AUTHORIZATION, outbound::bearer(path)?);
        }
        if let Some(etag) = &self.accepted {
            headers.insert(IF_NONE_MATCH, etag.clone());
        }
        let response = http.get(&self.config.url).headers(headers).send().await.map_err(OutboundError::from)?;
        match response.status() {
            StatusCode::NOT_MODIFIED if self.accepted.is_some() => return Ok(Answer::Unchanged),
            StatusCode::OK => {}
            status if status.is_redirection() => {
                let location = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
                let location = location.map_or("nowhere", |to| to.split('?').next().unwrap_or_default());
                return Err(AskError::Redirect(location.chars().take(200).collect()));
            }
            status => return Err(AskError::Status { status }),
        }
        let etag = response.headers().get(ETAG).cloned();
        let text = body(response).await?;
        self.etag = etag;
        Ok(Answer::Text(text))
    }
}

async fn body(mut response: Response) -> Result<String, AskError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(OutboundError::from)? {
        if bytes.len() + chunk.len() > MAX_BODY {
            return Err(AskError::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| AskError::NotText)
}

fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; is the token in `token_file` right?",
        StatusCode::NOT_FOUND => "; is the path of the `url` right?",
        _ => "",
    }
}

/// 100,000 routers are about 30 MB.
const MAX_BODY: usize = 64 << 20;
