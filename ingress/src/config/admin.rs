//! The doors for operators and their programs.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::defaults;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// The Unix socket that `ingress status` and the other verbs talk to.
    pub socket: PathBuf,
    /// A second one that speaks as HAProxy's.
    pub haproxy_socket: Option<HaproxySocketConfig>,
    /// `/metrics` and the dashboard; `None`: no TCP listener.
    pub http: Option<AdminHttpConfig>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { socket: PathBuf::from(defaults::ADMIN_SOCKET), haproxy_socket: None, http: None }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminHttpConfig {
    pub bind: Vec<SocketAddr>,
    /// HTTP basic auth; the variables' values are read once at start and at reload.
    pub basic_auth: Option<BasicAuthEnv>,
}

impl AdminHttpConfig {
    /// Where the dashboard stands unless told otherwise.
    pub const DEFAULT_BIND: SocketAddr = defaults::ADMIN_HTTP_BIND;
}

/// Names of the environment variables that hold user and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasicAuthEnv {
    pub username_env: String,
    pub password_env: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaproxySocketConfig {
    pub path: PathBuf,
    /// Permission bits of the socket's file.
    pub mode: u32,
    /// The file's group; `None`: the daemon's own.
    pub group: Option<String>,
    pub level: SocketLevel,
}

/// What may be said on HAProxy's socket; each includes the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SocketLevel {
    /// Numbers, no connections.
    User,
    /// All that changes nothing.
    Operator,
    Admin,
}

impl SocketLevel {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}
