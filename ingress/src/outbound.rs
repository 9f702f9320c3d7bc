//! HTTP to other people's servers: one kind of client, tokens from files, and errors whose words hold none.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::HeaderValue;

use crate::secret::{Secret, SecretError};

/// Why nothing could be asked. Texts name the place and what to do; none holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    #[error("reading {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{}: {why}", path.display())]
    BadFile { path: PathBuf, why: &'static str },
    #[error("cannot prepare TLS: {0}")]
    Tls(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Transport(String),
}

/// A client as of [`builder`], and no more.
pub fn client(url: &str, ca_file: Option<&Path>, connect_timeout: Duration) -> Result<reqwest::Client, OutboundError> {
    let builder = builder(url.starts_with("https://"), ca_file)?.connect_timeout(connect_timeout);
    builder.build().map_err(|error| OutboundError::Tls(words(&error)))
}

/// It follows no redirect and knows no proxy. `ca_file`: trusted instead of the system's certificates; those are loaded only
/// if there is to be TLS.
pub fn builder(tls: bool, ca_file: Option<&Path>) -> Result<reqwest::ClientBuilder, OutboundError> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("ingress/", env!("CARGO_PKG_VERSION")))
        // A token is for the host that it was given for.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy();
    Ok(match ca_file {
        Some(path) => {
            let pem = std::fs::read(path).map_err(|source| OutboundError::File { path: path.to_owned(), source })?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|_| OutboundError::BadFile { path: path.to_owned(), why: "no certificate in PEM" })?;
            builder.tls_certs_only(certificates)
        }
        // A host without certificates can still speak plain HTTP.
        None if !tls => builder.tls_certs_only([]),
        None => builder,
    })
}

/// The token in a file, as `Authorization`.
pub fn bearer(path: &Path) -> Result<HeaderValue, OutboundError> {
    let header = HeaderValue::try_from(format!("Bearer {}", Secret::read(path)?.expose()));
    let why = "a token is one line of printable characters";
    let mut header = header.map_err(|_| OutboundError::BadFile { path: path.to_owned(), why })?;
    header.set_sensitive(true);
    Ok(header)
}

impl From<reqwest::Error> for OutboundError {
    fn from(error: reqwest::Error) -> Self {
        Self::Transport(words(&error.without_url()))
    }
}

/// With all that it was caused by.
pub fn words(error: &dyn std::error::Error) -> String {
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
