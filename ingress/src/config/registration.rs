//! A provider that is told its routes over HTTP: who may call, and what may be registered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::ProxyProtocol;
use crate::route::{ListenerName, SniPattern};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationConfig {
    pub bind: Vec<SocketAddr>,
    /// `SO_BINDTODEVICE`: accept only what arrives on this device.
    pub device: Option<String>,
    /// Who may connect at all.
    pub sources: Vec<IpNet>,
    /// Where backends may be.
    pub upstreams: Vec<IpNet>,
    /// By the name that owns what the token registers.
    pub tokens: BTreeMap<String, TokenConfig>,
    pub templates: BTreeMap<String, TemplateConfig>,
    /// Empty: every TLS listener.
    pub listeners: Vec<ListenerName>,
    pub max_registrations: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenConfig {
    pub source: TokenSource,
    /// Empty: it may register every host.
    pub hosts: Vec<SniPattern>,
}

/// Where the secret is; never the secret itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    File(PathBuf),
    Env(String),
}

/// What becomes of one registered address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateConfig {
    pub passthrough: Option<PassthroughConfig>,
    /// At least one, or `passthrough` is there.
    pub routes: Vec<TemplateRoute>,
    pub forward_auth: Option<ForwardAuthConfig>,
    /// Header name -> name of the secret.
    pub headers: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassthroughConfig {
    pub port: u16,
    pub proxy_protocol: ProxyProtocol,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateRoute {
    pub path: PathMatch,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathMatch {
    Exact(String),
    /// Begins with `/` and ends with one.
    Below(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardAuthConfig {
    pub port: u16,
    pub path: String,
}
