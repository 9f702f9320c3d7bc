//! How a node becomes a member: it shows a token, and gets a certificate for the key that it has made.
//!
//! The connection is TLS to the authority whose fingerprint stands in the token; nothing else is trusted, and the key
//! never leaves its node.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::identity::{Identity, IdentityError, PublicKey, fingerprint, sign};
use super::invitation::{Refused, Token, redeem};
use super::members::{Member, Members};
use super::tls::{self, TlsError};

#[derive(Serialize, Deserialize)]
struct Request {
    id: String,
    secret: String,
    node: String,
    address: SocketAddr,
    /// The key's point, P-256.
    public_key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Response {
    Welcome { certificate: String, authority: String, members: Vec<Member> },
    Refused(String),
}

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Token(#[from] Refused),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Tls(#[from] TlsErrorOpaque),
    #[error("{address}: {why}")]
    Connect { address: SocketAddr, why: String },
    #[error("{address} refuses: {why}")]
    Refused { address: SocketAddr, why: String },
}

/// How TLS could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsErrorOpaque(String);

impl From<TlsError> for JoinError {
    fn from(error: TlsError) -> Self {
        Self::Tls(TlsErrorOpaque(error.to_string()))
    }
}

/// Joins the mesh that `token` leads to, as `node`, which listens on `address`. Keeps the identity below `state_dir`.
pub async fn join(state_dir: &Path, node: &str, address: SocketAddr, token: &Token) -> Result<Members, JoinError> {
    token.check_time(unix_seconds())?;
    match Identity::load(state_dir) {
        Err(IdentityError::Missing) => {}
        Ok(_) => return Err(IdentityError::Present { path: super::identity::directory(state_dir) }.into()),
        Err(error) => return Err(error.into()),
    }
    let key = KeyPair::generate().map_err(IdentityError::from)?;
    let connector = TlsConnector::from(Arc::new(tls::joiner(&token.authority)?));
    let name = tls::server_name(&token.node)?;
    let request = Request {
        id: token.id.clone(),
        secret: token.secret.clone(),
        node: node.to_owned(),
        address,
        public_key: URL_SAFE_NO_PAD.encode(key.public_key_raw()),
    };
    let asking = async {
        let stream = TcpStream::connect(token.address).await?;
        let mut stream = connector.connect(name, stream).await?;
        send(&mut stream, &request).await?;
        receive::<Response>(&mut stream).await
    };
    let connect = |why| JoinError::Connect { address: token.address, why };
    let answer = tokio::time::timeout(PATIENCE, asking).await.map_err(|_| connect("no answer".to_owned()))?;
    let refused = |why| JoinError::Refused { address: token.address, why };
    match answer.map_err(|error| connect(tls::explain(&error)))? {
        Response::Refused(why) => Err(refused(why)),
        Response::Welcome { certificate, authority, members: said } => {
            let der = |text: String| URL_SAFE_NO_PAD.decode(text).map(CertificateDer::from);
            let nonsense = |_| refused("its answer means nothing".to_owned());
            let (certificate, authority) = (der(certificate).map_err(nonsense)?, der(authority).map_err(nonsense)?);
            if fingerprint(&authority) != token.authority {
                return Err(refused("its answer is of another authority".to_owned()));
            }
            let mut members = Members::default();
            members.merge(said, unix_ms());
            Identity::adopt(state_dir, &authority, &certificate, &key)?;
            members.store(state_dir)?;
            Ok(members)
        }
    }
}

/// Answers somebody who wants to join; the new member, if it may. `own` is this node.
pub(super) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    state_dir: &Path,
    own: &Arc<str>,
    members: Members,
) -> io::Result<Option<Member>> {
    let request: Request = receive(stream).await?;
    let (state_dir, own) = (state_dir.to_owned(), own.clone());
    let decided = tokio::task::spawn_blocking(move || decide(&request, &state_dir, &own, members));
    let (response, member) = match decided.await? {
        Ok((response, member)) => (response, Some(member)),
        Err(why) => {
            tracing::warn!(why, "a node was not let in");
            (Response::Refused(why), None)
        }
    };
    send(stream, &response).await?;
    stream.shutdown().await?;
    Ok(member)
}

fn decide(
    request: &Request,
    state_dir: &Path,
    own: &Arc<str>,
    mut members: Members,
) -> Result<(Response, Member), String> {
    let Request { id, secret, node, address, public_key } = request;
    redeem(state_dir, own, id, secret, unix_seconds()).map_err(|refused| refused.to_string())?;
    if **own == **node || members.get(node).is_some() {
        return Err(format!(
            "there is a node {node} already; remove that by `ingress peer remove {node}`, or name this one \
                            otherwise, and ask for a new token"
        ));
    }
    let key = URL_SAFE_NO_PAD.decode(public_key).map_err(|_| "the public key means nothing".to_owned())?;
    let said = |error: IdentityError| error.to_string();
    let certificate = sign(state_dir, node, &PublicKey(key)).map_err(said)?;
    let authority = Identity::load(state_dir).map_err(said)?.authority;
    let now = unix_ms();
    let member = Member {
        stamp: members.stamp(own, now),
        removed: false,
        name: node.as_str().into(),
        address: *address,
        fingerprint: fingerprint(&certificate),
    };
    members.merge([member.clone()], now);
    let response = Response::Welcome {
        certificate: URL_SAFE_NO_PAD.encode(&certificate),
        authority: URL_SAFE_NO_PAD.encode(&authority),
        members: members.all().cloned().collect(),
    };
    Ok((response, member))
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    stream.write_u32(u32::try_from(json.len()).unwrap_or(u32::MAX)).await?;
    stream.write_all(&json).await?;
    stream.flush().await
}

async fn receive<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = stream.read_u32().await?;
    if length > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
    }
    let mut json = vec![0; usize::try_from(length).unwrap_or_default()];
    stream.read_exact(&mut json).await?;
    Ok(serde_json::from_slice(&json)?)
}

pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn unix_seconds() -> u64 {
    unix_ms() / 1000
}

/// Bytes.
const LONGEST: u32 = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);
