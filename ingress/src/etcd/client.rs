//! Questions to etcd's JSON gateway, at one endpoint as long as it answers, then at the next.

use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Identity, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use super::error::EtcdError;
use super::lines::Lines;
use super::wire;
use crate::config::{EtcdConfig, EtcdIdentity, EtcdLogin, TokenSource};
use crate::outbound::{self, words};
use crate::secret::Secret;

pub(super) struct Client {
    config: EtcdConfig,
    inner: Mutex<Inner>,
    /// Held while a login is under way: it costs etcd a tenth of a second.
    token: tokio::sync::Mutex<Option<HeaderValue>>,
    /// Counts endpoints that were given up; who reads a stream begins anew.
    given_up: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    /// Made at the first question, and again after one that failed: files may have been put right.
    http: Option<reqwest::Client>,
    /// Which endpoint is asked.
    at: usize,
}

/// One endpoint, for one question.
struct Door {
    http: reqwest::Client,
    endpoint: String,
    /// Of [`Client::given_up`], when it was opened.
    epoch: u64,
}

/// Messages that come as long as the endpoint is well.
pub(super) struct Stream {
    response: Response,
    lines: Lines,
    pub(super) endpoint: String,
    given_up: watch::Receiver<u64>,
}

impl Client {
    pub(super) fn new(config: EtcdConfig) -> Self {
        let (inner, given_up) = (Mutex::default(), watch::Sender::new(0));
        Self { config, inner, token: tokio::sync::Mutex::default(), given_up }
    }

    pub(super) fn endpoint(&self) -> &str {
        let at = self.inner.lock().at;
        self.config.endpoints.get(at).map_or("", String::as_str)
    }

    /// One question and its answer, from whichever endpoint has one. `path` is below `/v3/`.
    pub(super) async fn call<A: DeserializeOwned>(&self, path: &str, question: &Value) -> Result<A, EtcdError> {
        let mut left = self.config.endpoints.len();
        loop {
            let door = self.door()?;
            let after = self.config.timeout;
            let asked = tokio::time::timeout(after, async {
                let mut response = self.ask(&door, path, question).await?;
                let body = bounded(&mut response, &door.endpoint).await?;
                serde_json::from_slice(&body)
                    .map_err(|error| EtcdError::Strange { endpoint: door.endpoint.clone(), what: error.to_string() })
            });
            let asked = asked.await;
            let endpoint = door.endpoint.clone();
            match asked.unwrap_or(Err(EtcdError::Timeout { endpoint, after })) {
                Err(error) if error.is_of_endpoint() => {
                    self.give_up(&door);
                    left -= 1;
                    if left == 0 {
                        return Err(error);
                    }
                }
                answer => return answer,
            }
        }
    }

    /// Begins a stream at the endpoint of the day.
    pub(super) async fn stream(&self, path: &str, question: &Value) -> Result<Stream, EtcdError> {
        let door = self.door()?;
        let given_up = self.given_up.subscribe();
        let (endpoint, after) = (door.endpoint.clone(), self.config.timeout);
        let asked = tokio::time::timeout(after, self.ask(&door, path, question)).await;
        match asked.unwrap_or(Err(EtcdError::Timeout { endpoint: endpoint.clone(), after })) {
            Ok(response) => Ok(Stream { response, lines: Lines::default(), endpoint, given_up }),
            Err(error) => {
                if error.is_of_endpoint() {
                    self.give_up(&door);
                }
                Err(error)
            }
        }
    }

    async fn ask(&self, door: &Door, path: &str, question: &Value) -> Result<Response, EtcdError> {
        let mut used = self.login(door, None).await?;
        let mut is_second = false;
        loop {
            let mut request = door.post(path, question);
            if let Some(token) = &used {
                // etcd knows no scheme here, only the token.
                request = request.header(AUTHORIZATION, token.clone());
            }
            match door.send(request).await {
                Err(error) if error.is_bad_token() && used.is_some() && !is_second => {
                    used = self.login(door, used.as_ref()).await?;
                    is_second = true;
                }
                answer => return answer,
            }
        }
    }

    /// The token to send, if there is a login; another one than `refused`.
    async fn login(&self, door: &Door, refused: Option<&HeaderValue>) -> Result<Option<HeaderValue>, EtcdError> {
        let Some(EtcdLogin { username, password }) = &self.config.login else { return Ok(None) };
        let mut token = self.token.lock().await;
        if token.is_some() && token.as_ref() != refused {
            return Ok(token.clone());
        }
        *token = None;
        let question = wire::login(username, &read_password(password)?);
        let mut response = match door.send(door.post("auth/authenticate", &question)).await {
            // Then nobody asks who this is.
            Err(error) if error.is_auth_off() => return Ok(None),
            answer => answer?,
        };
        let strange = |what: &str| EtcdError::Strange { endpoint: door.endpoint.clone(), what: what.to_owned() };
        let body = bounded(&mut response, &door.endpoint).await?;
        let answer: wire::TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| strange("a login without a token"))?;
        let mut header = HeaderValue::try_from(answer.token).map_err(|_| strange("a token that no header can hold"))?;
        header.set_sensitive(true);
        *token = Some(header.clone());
        Ok(Some(header))
    }

    fn door(&self) -> Result<Door, EtcdError> {
        let mut inner = self.inner.lock();
        let http = match &inner.http {
            Some(http) => http.clone(),
            None => inner.http.insert(connectable(&self.config)?).clone(),
        };
        let endpoint = self.config.endpoints.get(inner.at).cloned().unwrap_or_default();
        Ok(Door { http, endpoint, epoch: *self.given_up.borrow() })
    }

    /// Asks the next endpoint from now on, unless somebody else saw to that already.
    fn give_up(&self, door: &Door) {
        let mut inner = self.inner.lock();
        self.given_up.send_if_modified(|epoch| {
            let is_first = *epoch == door.epoch;
            if is_first {
                *epoch += 1;
                inner.at = (inner.at + 1) % self.config.endpoints.len().max(1);
                inner.http = None;
            }
            is_first
        });
    }

    /// Of a stream that failed.
    pub(super) fn give_up_endpoint(&self, endpoint: &str) {
        let epoch = *self.given_up.borrow();
        if self.endpoint() == endpoint
            && let Ok(door) = self.door()
        {
            self.give_up(&Door { epoch, ..door });
        }
    }
}

impl Door {
    fn post(&self, path: &str, question: &Value) -> RequestBuilder {
        let Self { http, endpoint, epoch: _ } = self;
        http.post(format!("{endpoint}/v3/{path}")).header(CONTENT_TYPE, "application/json").body(question.to_string())
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, EtcdError> {
        let mut response = request.send().await.map_err(|error| transport(&self.endpoint, error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = bounded(&mut response, &self.endpoint).await?;
        let endpoint = self.endpoint.clone();
        Err(match serde_json::from_slice::<wire::ErrorAnswer>(&body) {
            Ok(wire::ErrorAnswer { message, code }) if code != 0 => EtcdError::Refused { endpoint, code, message },
            Ok(_) | Err(_) => {
                let text = String::from_utf8_lossy(&body);
                let line: String = text.trim().chars().filter(|c| !c.is_control()).take(LONGEST_QUOTE).collect();
                match line.contains("CommonName") {
                    true => EtcdError::Refused { endpoint, code: 0, message: line },
                    false => EtcdError::Strange { endpoint, what: format!("status {status}: {line}") },
                }
            }
        })
    }
}

impl Stream {
    /// The next message.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, EtcdError> {
        let endpoint = self.endpoint.clone();
        loop {
            if let Some(line) = self.lines.next()? {
                let strange = |what: String| EtcdError::Strange { endpoint: endpoint.clone(), what };
                let line: wire::Line<T> = serde_json::from_slice(&line).map_err(|error| strange(error.to_string()))?;
                let wire::Line { result, error } = line;
                if let Some(wire::ErrorAnswer { message, code }) = error {
                    return Err(EtcdError::Refused { endpoint, code, message });
                }
                return result.ok_or_else(|| strange("an empty message".to_owned()));
            }
            let chunk = tokio::select! {
                chunk = self.response.chunk() => chunk.map_err(|error| transport(&endpoint, error))?,
                _ = self.given_up.changed() => return Err(EtcdError::GivenUp { endpoint }),
            };
            match chunk {
                Some(chunk) => self.lines.add(&chunk),
                None => return Err(EtcdError::Ended { endpoint }),
            }
        }
    }
}

async fn bounded(response: &mut Response, endpoint: &str) -> Result<Vec<u8>, EtcdError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| transport(endpoint, error))? {
        if bytes.len() + chunk.len() > MAX_BODY {
            return Err(EtcdError::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn connectable(config: &EtcdConfig) -> Result<reqwest::Client, EtcdError> {
    let read = |path: &Path| std::fs::read(path).map_err(|source| EtcdError::File { path: path.to_owned(), source });
    let tls = config.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
    let builder = outbound::builder(tls, config.ca_file.as_deref())?
        // A watch that nobody reads may not stop the questions beside it.
        .http1_only()
        .tcp_keepalive(KEEPALIVE)
        .connect_timeout(config.timeout);
    let builder = match &config.identity {
        Some(EtcdIdentity { cert_file, key_file }) => {
            let both = [read(key_file)?, read(cert_file)?].join(&b'\n');
            let bad = |_| EtcdError::BadFile { path: key_file.clone(), why: "no key in PEM, or none for `cert_file`" };
            builder.identity(Identity::from_pem(&both).map_err(bad)?)
        }
        None => builder,
    };
    builder.build().map_err(|error| EtcdError::Tls(words(&error)))
}

fn read_password(source: &TokenSource) -> Result<String, EtcdError> {
    match source {
        TokenSource::Env(name) => std::env::var(name).map_err(|_| EtcdError::NoVariable(name.clone())),
        TokenSource::File(path) => Ok(Secret::read(path)?.expose().to_owned()),
    }
}

fn transport(endpoint: &str, error: reqwest::Error) -> EtcdError {
    EtcdError::Transport { endpoint: endpoint.to_owned(), why: words(&error.without_url()) }
}

/// Bytes of one answer: a page of registrations, in base64.
const MAX_BODY: usize = 128 << 20;
/// Characters of an answer that is not etcd's.
const LONGEST_QUOTE: usize = 120;
const KEEPALIVE: Duration = Duration::from_secs(10);
