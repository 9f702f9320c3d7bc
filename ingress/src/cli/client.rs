//! HTTP/1.1 over the daemon's Unix socket. Says what to do when there is no daemon to talk to.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::admin::api::{ErrorBody, LOGIN_HEADER};

/// Makes one connection per request: a restarted daemon is found again by `--watch`.
pub(super) struct Client {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error(
        "no ingress is running here: nothing listens on {socket}\n\
         Start it (systemctl start ingress), or name its socket with --socket or its configuration with --config."
    )]
    NotRunning { socket: PathBuf },
    #[error("{socket}: permission denied\nThe admin socket is root's; try again with sudo.")]
    Permission { socket: PathBuf },
    #[error("the daemon on {socket} gave no answer within {} s; its log may say why", TIMEOUT.as_secs())]
    Timeout { socket: PathBuf },
    #[error("{error}")]
    Refused { status: u16, error: String },
    #[error("talking to {socket} failed: {source}")]
    Talk { socket: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the daemon on {socket} answered in a form that this ingress {} does not know; \
             is it another version? ({source})", env!("CARGO_PKG_VERSION"))]
    Form { socket: PathBuf, source: serde_json::Error },
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { socket, runtime })
    }

    /// `path` may carry a query, already encoded.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, Bytes::new())
    }

    pub(super) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| self.talk(e))?;
        self.json(Method::POST, path, body.into())
    }

    fn json<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, ClientError> {
        let exchange = async { timeout(TIMEOUT, self.exchange(method, path, body)).await };
        let (status, body) =
            self.runtime.block_on(exchange).map_err(|_| ClientError::Timeout { socket: self.socket.clone() })??;
        if !status.is_success() {
            let error = serde_json::from_slice::<ErrorBody>(&body).map(|body| body.error);
            let error = error.unwrap_or_else(|_| String::from_utf8_lossy(&body).trim().to_owned());
            return Err(ClientError::Refused { status: status.as_u16(), error });
        }
        serde_json::from_slice(&body).map_err(|source| ClientError::Form { socket: self.socket.clone(), source })
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.connect(e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.talk(e))?;
        let mut request = Request::builder();
        if let Ok(login) = std::env::var("SUDO_USER") {
            request = request.header(LOGIN_HEADER, login);
        }
        let request = request
            .method(method)
            .uri(path)
            .header(header::HOST, "ingress")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| self.talk(e))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, hyper::Error>((status, body))
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer.map_err(|e| self.talk(e)),
            // Ends once the response is whole; whatever it says, the exchange says it better.
            _ = connection => exchange.await.map_err(|e| self.talk(e)),
        }
    }

    fn connect(&self, error: io::Error) -> ClientError {
        let socket = self.socket.clone();
        let kind = error.kind();
        if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            return ClientError::NotRunning { socket };
        }
        if kind == io::ErrorKind::PermissionDenied {
            return ClientError::Permission { socket };
        }
        ClientError::Talk { socket, source: error.into() }
    }

    fn talk(&self, source: impl std::error::Error + Send + Sync + 'static) -> ClientError {
        ClientError::Talk { socket: self.socket.clone(), source: source.into() }
    }
}

/// Above the daemon's own limit for a request, so that its reason arrives first.
const TIMEOUT: Duration = Duration::from_secs(40);
