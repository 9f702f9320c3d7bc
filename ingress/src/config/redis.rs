//! What a check asks of a Redis server.

use std::path::PathBuf;

use super::BackendAddress;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisProbe {
    pub role: RedisRole,
    pub login: RedisLogin,
    /// `None`: without TLS.
    pub tls: Option<RedisTls>,
    /// Who says which server is the primary. `None`: only the servers themselves.
    pub sentinel: Option<SentinelConfig>,
}

/// Which servers of the pool take connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisRole {
    /// One at most: the primary that the pool follows.
    Primary,
    /// Those whose link to their primary is up.
    Replica,
    /// All that answer; their order is the pool's.
    Any,
}

/// How a check proves that it may ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisLogin {
    /// `None`: Redis' user `default`.
    pub username: Option<String>,
    /// `None`: nothing is asked for.
    pub password_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// Certificates that are trusted; `None`: the server's is not judged.
    pub ca_file: Option<PathBuf>,
    /// What the check shows to the server: certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The backend's own name or address unless given.
    pub server_name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentinelConfig {
    pub addresses: Vec<BackendAddress>,
    /// What they call the primary.
    pub service: String,
    pub login: RedisLogin,
}

impl RedisRole {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Any => "any",
        }
    }
}
