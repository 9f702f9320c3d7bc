//! The shared store that this node and others keep registrations in.

use std::path::PathBuf;
use std::time::Duration;

use super::TokenSource;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// What other nodes call this one.
    pub node: String,
    /// At least one, such as `https://10.0.0.11:2379`: scheme, host and port, nothing behind.
    pub endpoints: Vec<String>,
    /// Begins with `/`, and does not end with one.
    pub prefix: String,
    /// Instead of the system's certificates.
    pub ca_file: Option<PathBuf>,
    /// What this node shows: certificate and key.
    pub identity: Option<EtcdIdentity>,
    pub login: Option<EtcdLogin>,
    /// For one question to one endpoint.
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdIdentity {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdLogin {
    pub username: String,
    pub password: TokenSource,
}
