//! One probe: connect, say what the pool's protocol wants, look at the answer, close. Called by the health tasks.
//!
//! A probe ends within its timeout and what it reads is bounded. Cancel-safe: dropping it closes the socket.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::redis::{Client, Refusal, Role};
use super::tls::TlsClients;
use crate::config::{BackendAddress, HealthConfig, HttpProbe, ProbeConfig, ProxyProtocol, RedisProbe, RedisRole};
use crate::secret::SecretError;

/// How one backend is probed.
#[derive(Clone)]
pub struct Probe {
    config: ProbeConfig,
    port: Option<u16>,
    timeout: Duration,
    proxy_header: &'static [u8],
    /// The backend's own name, for SNI and Host unless configured.
    host: Option<String>,
    tls: TlsClients,
    /// For `type: redis`.
    redis: Option<Client>,
}

/// Why a probe failed, in words for `ingress pools`.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("{stage} {address}: {}", plain(source))]
    Io { stage: Stage, address: SocketAddr, source: io::Error },
    #[error("{stage} {address}: no answer within {timeout:?}")]
    TimedOut { stage: Stage, address: SocketAddr, timeout: Duration },
    #[error("{} {address}: {}", Stage::Http, with_causes(source))]
    Http { address: SocketAddr, source: hyper::Error },
    #[error("HTTP status {}, expected {expected}", status.as_u16())]
    Status { status: StatusCode, expected: String },
    #[error("health.server_name {name:?} is not a DNS name or IP address")]
    ServerName { name: String },
    #[error("health.path {path:?} or health.host {host:?} cannot be sent in an HTTP request: {source}")]
    Request { path: String, host: String, source: hyper::http::Error },
    #[error("Redis at {address}: {source}")]
    Redis { address: SocketAddr, source: Refusal },
    #[error("Redis at {address} is {is}; wanted is {wanted}")]
    Role { address: SocketAddr, is: String, wanted: &'static str },
    #[error("Redis at {address} closed the connection without an answer; does it want TLS, or none?")]
    RedisClosed { address: SocketAddr },
    #[error("{address} does not speak Redis' protocol: {said}")]
    NotRedis { address: SocketAddr, said: String },
    #[error("health.redis.tls: {0}")]
    RedisTls(String),
    #[error("health.redis: {0}")]
    Secret(#[from] SecretError),
}

/// What a probe was busy with when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Resolve,
    Connect,
    ProxyHeader,
    Tls,
    Http,
    Redis,
}

impl Probe {
    pub fn new(health: &HealthConfig, proxy: ProxyProtocol, target: &BackendAddress, tls: TlsClients) -> Self {
        let HealthConfig { probe, port, interval: _, timeout, rise: _, fall: _ } = health;
        Self {
            config: probe.clone(),
            port: *port,
            timeout: *timeout,
            proxy_header: proxy_header(proxy),
            host: match target {
                BackendAddress::Socket(_) => None,
                BackendAddress::Dns { host, port: _ } => Some(host.clone()),
            },
            tls,
            redis: match probe {
                ProbeConfig::Redis(redis) => Some(Client::new(redis)),
                ProbeConfig::Tcp | ProbeConfig::Tls { .. } | ProbeConfig::Http(_) | ProbeConfig::Https { .. } => None,
            },
        }
    }

    /// Probes one address of the backend; the time it took.
    pub async fn run(&self, address: SocketAddr) -> Result<Duration, ProbeError> {
        let started = Instant::now();
        let (attempt, stream) = self.connect(address).await?;
        let address = attempt.address;
        match &self.config {
            ProbeConfig::Tcp => {}
            ProbeConfig::Tls { server_name } => {
                let name = self.server_name(server_name.as_deref(), address)?;
                let mut stream = attempt.handshake(&self.tls.plain, name, stream).await?;
                // close_notify, so that the backend logs no truncated connection. The verdict stands without it.
                let _ = timeout_at(attempt.deadline, stream.shutdown()).await;
            }
            ProbeConfig::Http(http) => {
                attempt.http(http, &self.authority(http, address, 80), stream).await?;
            }
            ProbeConfig::Https { http, server_name } => {
                let name = self.server_name(server_name.as_deref(), address)?;
                let stream = attempt.handshake(&self.tls.http, name, stream).await?;
                attempt.http(http, &self.authority(http, address, 443), stream).await?;
            }
            ProbeConfig::Redis(RedisProbe { role: wanted, .. }) => {
                let role = self.role(&attempt, stream).await?;
                if let Some(is) = unfit(&role, *wanted) {
                    return Err(ProbeError::Role { address, is, wanted: wanted.as_str() });
                }
            }
        }
        Ok(started.elapsed())
    }

    /// What a Redis server says that it is, and the time that took.
    pub(super) async fn ask_role(&self, address: SocketAddr) -> Result<(Role, Duration), ProbeError> {
        let started = Instant::now();
        let (attempt, stream) = self.connect(address).await?;
        let role = self.role(&attempt, stream).await?;
        Ok((role, started.elapsed()))
    }

    async fn role(&self, attempt: &Attempt, stream: TcpStream) -> Result<Role, ProbeError> {
        match &self.redis {
            Some(redis) => redis.role(attempt, stream, self.host.as_deref()).await,
            None => Err(ProbeError::RedisClosed { address: attempt.address }),
        }
    }

    async fn connect(&self, mut address: SocketAddr) -> Result<(Attempt, TcpStream), ProbeError> {
        if let Some(port) = self.port {
            address.set_port(port);
        }
        let attempt = Attempt { address, timeout: self.timeout, deadline: Instant::now() + self.timeout };
        let mut stream = attempt.within(Stage::Connect, TcpStream::connect(address)).await?;
        if !self.proxy_header.is_empty() {
            attempt.within(Stage::ProxyHeader, stream.write_all(self.proxy_header)).await?;
        }
        Ok((attempt, stream))
    }

    /// An IP address is a server name too; TLS sends no SNI for it (RFC 6066 section 3).
    fn server_name(&self, configured: Option<&str>, address: SocketAddr) -> Result<ServerName<'static>, ProbeError> {
        match configured.or(self.host.as_deref()) {
            None => Ok(ServerName::from(address.ip())),
            Some(name) => {
                ServerName::try_from(name.to_owned()).map_err(|_| ProbeError::ServerName { name: name.to_owned() })
            }
        }
    }

    /// The `Host` header (RFC 9110 section 7.2); the port is named unless it is the scheme's own.
    fn authority(&self, http: &HttpProbe, address: SocketAddr, default_port: u16) -> String {
        let with_port = |host: &str| match address.port() {
            port if port == default_port => host.to_owned(),
            port => format!("{host}:{port}"),
        };
        match (&http.host, &self.host) {
            (Some(host), _) => host.clone(),
            (None, Some(host)) => with_port(host),
            (None, None) => with_port(&match address {
                SocketAddr::V4(v4) => v4.ip().to_string(),
                SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
            }),
        }
    }
}

/// What is in the way of a wanted role.
fn unfit(role: &Role, wanted: RedisRole) -> Option<String> {
    match (role, wanted) {
        (_, RedisRole::Any) | (Role::Primary { .. }, RedisRole::Primary) => None,
        (Role::Replica { of: _, link }, RedisRole::Replica) if link == "connected" => None,
        (Role::Replica { of, link }, RedisRole::Replica | RedisRole::Primary) => {
            Some(format!("a replica of {of} ({link})"))
        }
        (Role::Primary { .. }, RedisRole::Replica) => Some("a primary".to_owned()),
    }
}

/// What a probe says first to a backend that expects the PROXY protocol: that nobody is behind it.
pub fn proxy_header(proxy: ProxyProtocol) -> &'static [u8] {
    match proxy {
        ProxyProtocol::None => b"",
        ProxyProtocol::V1 => PROXY_V1_UNKNOWN,
        ProxyProtocol::V2(_) => &PROXY_V2_LOCAL,
    }
}

/// The running probe's peer and time limit.
pub(super) struct Attempt {
    pub(super) address: SocketAddr,
    pub(super) timeout: Duration,
    pub(super) deadline: Instant,
}

impl Attempt {
    pub(super) async fn within<T>(
        &self,
        stage: Stage,
        step: impl Future<Output = io::Result<T>>,
    ) -> Result<T, ProbeError> {
        let Self { address, timeout, deadline } = *self;
        match timeout_at(deadline, step).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(ProbeError::Io { stage, address, source }),
            Err(_) => Err(ProbeError::TimedOut { stage, address, timeout }),
        }
    }

    pub(super) async fn handshake(
        &self,
        client: &TlsConnector,
        name: ServerName<'static>,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ProbeError> {
        self.within(Stage::Tls, client.connect(name, stream)).await
    }

    async fn http<S>(&self, http: &HttpProbe, authority: &str, stream: S) -> Result<(), ProbeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let HttpProbe { path, host: _, expect } = http;
        let request = Request::get(path.as_str())
            .header(header::HOST, authority)
            .header(header::USER_AGENT, concat!("ingress/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "*/*")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|source| ProbeError::Request { path: path.clone(), host: authority.to_owned(), source })?;
        let Self { address, timeout, deadline } = *self;
        let status = timeout_at(deadline, exchange(stream, request))
            .await
            .map_err(|_| ProbeError::TimedOut { stage: Stage::Http, address, timeout })?
            .map_err(|source| ProbeError::Http { address, source })?;
        if expect.iter().any(|(first, last)| (*first..=*last).contains(&status.as_u16())) {
            return Ok(());
        }
        Err(ProbeError::Status { status, expected: ranges(expect) })
    }
}

/// The status is the answer; the body stays unread.
async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> hyper::Result<StatusCode>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(MAX_RESPONSE).handshake(TokioIo::new(stream)).await?;
    let response = sender.send_request(request);
    tokio::pin!(connection, response);
    // Both in this task, so that nothing of the probe outlives it.
    let response = tokio::select! {
        response = &mut response => response,
        _ = &mut connection => response.await,
    };
    response.map(|response| response.status())
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "finding the address of",
            Self::Connect => "connect to",
            Self::ProxyHeader => "PROXY header to",
            Self::Tls => "TLS handshake with",
            Self::Http => "HTTP request to",
            Self::Redis => "asking Redis at",
        })
    }
}

/// `connection refused` for `Connection refused (os error 111)`.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let Some((text, _)) = text.split_once(" (os error") else { return text };
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// hyper names the kind of an error; what went wrong stands in its source.
fn with_causes(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn ranges(expect: &[(u16, u16)]) -> String {
    let range = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    expect.iter().map(range).collect::<Vec<_>>().join(", ")
}

/// The most that is read of an HTTP response: a larger head is an error, the body is not asked for.
const MAX_RESPONSE: usize = 16 * 1024;

/// PROXY protocol specification (haproxy.org, proxy-protocol.txt) section 2.1: the proxy's own connection.
const PROXY_V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

/// PROXY protocol specification section 2.2: signature, version 2 with command LOCAL, AF_UNSPEC, no addresses.
const PROXY_V2_LOCAL: [u8; 16] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

#[cfg(test)]
mod tests;
