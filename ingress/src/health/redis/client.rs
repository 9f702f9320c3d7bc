//! One question to Redis or Sentinel: log in, ask, read as many replies as there were questions. Bounded in bytes, and in
//! time by the [`Attempt`].

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::answer::{self, Refusal, Role};
use super::resp::{self, Value};
use crate::config::{RedisLogin, RedisProbe, RedisTls};
use crate::health::probe::{Attempt, ProbeError, Stage};
use crate::health::tls;
use crate::secret::Secret;

/// How the servers of one pool are asked. Clones share the TLS files' content.
#[derive(Clone)]
pub(in crate::health) struct Client {
    login: RedisLogin,
    tls: Option<Arc<Tls>>,
}

struct Tls {
    config: RedisTls,
    /// Read at the first question, and again after a handshake that failed: files are exchanged.
    connector: Mutex<Option<TlsConnector>>,
}

impl Client {
    pub(in crate::health) fn new(redis: &RedisProbe) -> Self {
        let tls = |config: &RedisTls| Arc::new(Tls { config: config.clone(), connector: Mutex::default() });
        Self { login: redis.login.clone(), tls: redis.tls.as_ref().map(tls) }
    }

    /// The same TLS, another login.
    pub(super) fn with_login(&self, login: &RedisLogin) -> Self {
        Self { login: login.clone(), tls: self.tls.clone() }
    }

    /// What the server says that it is, if it serves anybody at all.
    pub(in crate::health) async fn role(
        &self,
        attempt: &Attempt,
        stream: TcpStream,
        host: Option<&str>,
    ) -> Result<Role, ProbeError> {
        let replies = self.ask(attempt, stream, host, &[&["ROLE"], &["PING"]]).await?;
        let judge = || {
            let [role, ready] = replies.as_slice() else { return Err(refused_early(&replies)) };
            answer::ready(ready)?;
            answer::role(role)
        };
        judge().map_err(|source| ProbeError::Redis { address: attempt.address, source })
    }

    /// Host and port of the primary, as a Sentinel knows it.
    pub(super) async fn named(
        &self,
        attempt: &Attempt,
        stream: TcpStream,
        host: Option<&str>,
        service: &str,
    ) -> Result<(String, u16), ProbeError> {
        let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", service];
        let replies = self.ask(attempt, stream, host, &[&question]).await?;
        let named = match replies.as_slice() {
            [reply] => answer::named(reply, service),
            _ => Err(refused_early(&replies)),
        };
        named.map_err(|source| ProbeError::Redis { address: attempt.address, source })
    }

    /// The replies to `questions`; only the first one if the server said no and closed.
    async fn ask(
        &self,
        attempt: &Attempt,
        stream: TcpStream,
        host: Option<&str>,
        questions: &[&[&str]],
    ) -> Result<Vec<Value>, ProbeError> {
        let mut bytes = Vec::new();
        let secret = self.login.password_file.as_deref().map(Secret::read).transpose()?;
        if let Some(secret) = &secret {
            match &self.login.username {
                Some(user) => bytes.extend(resp::command(&["AUTH", user, secret.expose()])),
                None => bytes.extend(resp::command(&["AUTH", secret.expose()])),
            }
        }
        questions.iter().for_each(|question| bytes.extend(resp::command(question)));
        let wanted = questions.len() + usize::from(secret.is_some());
        let mut replies = match &self.tls {
            None => exchange(attempt, stream, &bytes, wanted).await?,
            Some(tls) => {
                let stream = tls.handshake(attempt, stream, host).await?;
                exchange(attempt, stream, &bytes, wanted).await?
            }
        };
        if secret.is_some() && !replies.is_empty() {
            let address = attempt.address;
            answer::login(&replies.remove(0)).map_err(|source| ProbeError::Redis { address, source })?;
        }
        Ok(replies)
    }
}

/// Fewer replies than questions: the first is the reason.
fn refused_early(replies: &[Value]) -> Refusal {
    let first = replies.first().map(answer::ready);
    first.and_then(Result::err).unwrap_or_else(|| Refusal::Unknown("fewer answers than questions".into()))
}

async fn exchange<S>(attempt: &Attempt, mut stream: S, question: &[u8], wanted: usize) -> Result<Vec<Value>, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let address = attempt.address;
    attempt.within(Stage::Redis, stream.write_all(question)).await?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let n = attempt.within(Stage::Redis, stream.read(&mut chunk)).await?;
        bytes.extend_from_slice(&chunk[..n]);
        let Ok(replies) = resp::replies(&bytes, wanted) else { return Err(stranger(address, &bytes)) };
        match replies {
            Some(replies) => return Ok(replies),
            None if bytes.len() > resp::MAX_REPLY => return Err(stranger(address, &bytes)),
            None if n > 0 => {}
            // In protected mode, and where there are too many clients, Redis says so and closes.
            None => match resp::replies(&bytes, 1) {
                Ok(Some(replies)) => return Ok(replies),
                Ok(None) | Err(resp::Malformed) => return Err(ProbeError::RedisClosed { address }),
            },
        }
    }
}

fn stranger(address: SocketAddr, bytes: &[u8]) -> ProbeError {
    let said = match bytes.first() {
        // A TLS record of the type `alert` (RFC 8446 section 5.1).
        Some(0x15) => "it wants TLS; write `tls: {}` under `health.redis`".to_owned(),
        Some(_) | None => {
            let begin = bytes.get(..bytes.len().min(60)).unwrap_or_default();
            format!("it says {:?}", answer::shown(&String::from_utf8_lossy(begin)))
        }
    };
    ProbeError::NotRedis { address, said }
}

impl Tls {
    async fn handshake(
        &self,
        attempt: &Attempt,
        stream: TcpStream,
        host: Option<&str>,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ProbeError> {
        let name = match self.config.server_name.as_deref().or(host) {
            None => ServerName::from(attempt.address.ip()),
            Some(name) => {
                ServerName::try_from(name.to_owned()).map_err(|_| ProbeError::ServerName { name: name.to_owned() })?
            }
        };
        let known = self.connector.lock().clone();
        let connector = match known {
            Some(connector) => connector,
            None => {
                let connector = connector(&self.config).map_err(ProbeError::RedisTls)?;
                self.connector.lock().insert(connector).clone()
            }
        };
        let shaken = attempt.handshake(&connector, name, stream).await;
        if shaken.is_err() {
            *self.connector.lock() = None;
        }
        shaken
    }
}

/// The error names the file.
fn connector(config: &RedisTls) -> Result<TlsConnector, String> {
    let RedisTls { ca_file, identity, server_name: _ } = config;
    let verifier = ca_file.as_deref().map(verifier).transpose()?;
    let identity = match identity {
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
            Some((certificates(cert)?, key))
        }
        None => None,
    };
    tls::connector_with(verifier, identity).map_err(|error| error.to_string())
}

fn verifier(ca_file: &Path) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_file)? {
        roots.add(certificate).map_err(|error| format!("{}: {error}", ca_file.display()))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), tls::provider()).build();
    verifier.map(|verifier| verifier as _).map_err(|error| format!("{}: {error}", ca_file.display()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bad = |error| format!("{}: {error}", file.display());
    let read: Vec<_> = CertificateDer::pem_file_iter(file).map_err(bad)?.collect::<Result<_, _>>().map_err(bad)?;
    if read.is_empty() {
        return Err(format!("{}: no certificate in PEM", file.display()));
    }
    Ok(read)
}
