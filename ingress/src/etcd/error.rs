//! Why there is no answer, and what to do about it. No text holds a password or a token.

use std::path::PathBuf;
use std::time::Duration;

use crate::outbound::OutboundError;
use crate::secret::SecretError;

#[derive(Debug, thiserror::Error)]
pub(super) enum EtcdError {
    #[error("reading {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{}: {why}", path.display())]
    BadFile { path: PathBuf, why: &'static str },
    #[error("the environment has no {0}; `etcd.password_env` names it")]
    NoVariable(String),
    #[error("cannot prepare TLS: {0}")]
    Tls(String),
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{endpoint}: no answer within {after:?}")]
    Timeout { endpoint: String, after: Duration },
    #[error("no endpoint answered within {0:?}")]
    Patience(Duration),
    #[error("{endpoint}: {why}{}", advice_on_transport(why, endpoint))]
    Transport { endpoint: String, why: String },
    /// In etcd's own words; `code` is gRPC's.
    #[error("{endpoint}: {message}{}", advice(*code, message))]
    Refused { endpoint: String, code: u32, message: String },
    #[error(
        "{endpoint}: this is no answer of etcd's JSON gateway ({what}); is `--enable-grpc-gateway` off, or is something else there?"
    )]
    Strange { endpoint: String, what: String },
    #[error("an answer is larger than allowed")]
    TooLarge,
    #[error("{endpoint}: the stream of changes ended")]
    Ended { endpoint: String },
    /// Another call found the endpoint failing.
    #[error("{endpoint}: it does not answer other questions")]
    GivenUp { endpoint: String },
}

impl EtcdError {
    /// Another member may do better.
    pub(super) fn is_of_endpoint(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Transport { .. } | Self::Strange { .. } | Self::Ended { .. } => true,
            Self::Refused { code, message, .. } => {
                let lost = ["no leader", "request timed out", "server stopped", "too many requests", "learner"];
                *code == UNAVAILABLE || lost.iter().any(|words| message.contains(words))
            }
            Self::File { .. } | Self::BadFile { .. } | Self::NoVariable(_) | Self::Tls(_) => false,
            Self::Outbound(_) | Self::Secret(_) | Self::Patience(_) | Self::TooLarge | Self::GivenUp { .. } => false,
        }
    }

    /// The login is not known any more: a token that is old, or an etcd that was restarted.
    pub(super) fn is_bad_token(&self) -> bool {
        matches!(self, Self::Refused { code: UNAUTHENTICATED, .. }) || self.says("invalid auth token")
    }

    pub(super) fn is_no_lease(&self) -> bool {
        self.says("requested lease not found")
    }

    pub(super) fn is_compacted(&self) -> bool {
        self.says("has been compacted")
    }

    pub(super) fn is_auth_off(&self) -> bool {
        self.says("authentication is not enabled")
    }

    fn says(&self, words: &str) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains(words))
    }
}

fn advice(code: u32, message: &str) -> &'static str {
    let known = [
        ("invalid user ID or password", "; are `etcd.username` and its password right?"),
        ("user name is empty", "; authentication is on there: write `etcd.username` and a password"),
        (
            "permission denied",
            "; give the user's role the prefix: etcdctl role grant-permission ROLE --prefix=true readwrite <prefix>/",
        ),
        (
            "database space exceeded",
            "; free it: etcdctl compact, etcdctl defrag, etcdctl alarm disarm; or raise --quota-backend-bytes",
        ),
        (
            "CommonName",
            "; etcd's gateway takes no certificate with a common name: issue that of `etcd.tls.cert_file` without one",
        ),
        ("no leader", "; most members have to be up"),
        ("request timed out", "; most members have to be up"),
    ];
    let advice = known.iter().find(|(words, _)| message.contains(words)).map(|(_, advice)| *advice);
    advice.unwrap_or(if code == UNAUTHENTICATED { "; are `etcd.username` and its password right?" } else { "" })
}

fn advice_on_transport(why: &str, endpoint: &str) -> &'static str {
    let known = [
        ("UnknownIssuer", "; its certificate is of another authority than `etcd.tls.ca_file`"),
        // The same, where the two authorities have one name.
        ("BadSignature", "; its certificate is of another authority than `etcd.tls.ca_file`"),
        ("NotValidForName", "; its certificate does not name this host: write the endpoint as the certificate has it"),
        ("Expired", "; its certificate has expired"),
        ("CertificateRequired", "; it asks for a certificate: write `etcd.tls.cert_file` and `key_file`"),
        ("BadCertificate", "; it does not take the certificate of `etcd.tls.cert_file`"),
        ("UnknownCA", "; it does not know the authority of `etcd.tls.cert_file`"),
        ("InvalidContentType", "; it speaks no TLS: write http://"),
        ("Connection refused", "; is etcd up, and does it listen there?"),
    ];
    let found = known.iter().find(|(words, _)| why.contains(words)).map(|(_, advice)| *advice);
    let is_plain = endpoint.starts_with("http://");
    found.unwrap_or(if is_plain && why.contains("connection closed") {
        "; if it speaks TLS, write https://"
    } else {
        ""
    })
}

/// gRPC's status codes.
pub(super) const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;
