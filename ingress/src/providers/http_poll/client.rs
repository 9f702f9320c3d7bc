//! One question over HTTP: bounded in time and size, and never with the token in an error.

use std::path::{Path, PathBuf};

use reqwest::header::{ACCEPT, AUTHORIZATION, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, LOCATION};
use reqwest::{Response, StatusCode};

use crate::config::HttpPollConfig;

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
    #[error("reading {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{}: {why}", path.display())]
    BadFile { path: PathBuf, why: &'static str },
    #[error("cannot prepare TLS: {0}")]
    Tls(String),
    #[error("no answer within {0:?}")]
    Timeout(std::time::Duration),
    #[error("{0}")]
    Transport(String),
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
        tokio::time::timeout(timeout, self.exchange()).await.unwrap_or(Err(AskError::Timeout(timeout)))
    }

    async fn exchange(&mut self) -> Result<Answer, AskError> {
        self.etag = None;
        let http = match &self.http {
            Some(http) => http.clone(),
            None => {
                let http = connectable(&self.config)?;
                self.http.insert(http).clone()
            }
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, application/yaml;q=0.9"));
        if let Some(path) = &self.config.token_file {
            headers.insert(AUTHORIZATION, bearer(path)?);
        }
        if let Some(etag) = &self.accepted {
            headers.insert(IF_NONE_MATCH, etag.clone());
        }
        let response = http.get(&self.config.url).headers(headers).send().await.map_err(transport)?;
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
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if bytes.len() + chunk.len() > MAX_BODY {
            return Err(AskError::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| AskError::NotText)
}

fn connectable(config: &HttpPollConfig) -> Result<reqwest::Client, AskError> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("ingress/", env!("CARGO_PKG_VERSION")))
        // A token is for the host that it was given for.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(config.timeout);
    let builder = match &config.ca_file {
        Some(path) => {
            let pem = std::fs::read(path).map_err(|source| AskError::File { path: path.clone(), source })?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|_| AskError::BadFile { path: path.clone(), why: "no certificate in PEM" })?;
            builder.tls_certs_only(certificates)
        }
        // A host without certificates can still speak plain HTTP.
        None if config.url.starts_with("http://") => builder.tls_certs_only([]),
        None => builder,
    };
    builder.build().map_err(|error| AskError::Tls(words(&error)))
}

fn bearer(path: &Path) -> Result<HeaderValue, AskError> {
    let token = std::fs::read_to_string(path).map_err(|source| AskError::File { path: path.to_owned(), source })?;
    let bad = |why| AskError::BadFile { path: path.to_owned(), why };
    if token.trim().is_empty() {
        return Err(bad("the file is empty; write the token into it"));
    }
    let header = HeaderValue::try_from(format!("Bearer {}", token.trim()));
    let mut header = header.map_err(|_| bad("a token is one line of printable characters"))?;
    header.set_sensitive(true);
    Ok(header)
}

fn transport(error: reqwest::Error) -> AskError {
    AskError::Transport(words(&error.without_url()))
}

/// With all that it was caused by.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
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
