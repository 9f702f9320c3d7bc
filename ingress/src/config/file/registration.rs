//! The keys of a provider that is told its routes over HTTP.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::ProxyWord;
use crate::config::decode::{Located, OneOrMany};
use crate::config::defaults;
use crate::config::words::{AbsolutePath, Bind, Count, Device, EnvName, Name, Network, PathPattern, Pattern, UrlPath};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys `bind`, `sources`, `upstreams` and `tokens`")]
pub(in crate::config) struct FileRegistration {
    /// Address and port of the API, or a list of them. An address of the private network, or `:9876` with a `device`.
    pub(in crate::config) bind: OneOrMany<Located<Bind>>,
    /// Accept only what arrives on this network device.
    pub(in crate::config) device: Option<Device>,
    /// Networks that may call. Connections from elsewhere are closed without a word.
    pub(in crate::config) sources: OneOrMany<Located<Network>>,
    /// Networks in which registered backends may be. Loopback, link-local and metadata addresses and this daemon's own ports
    /// are refused even there.
    pub(in crate::config) upstreams: OneOrMany<Located<Network>>,
    /// Who may register, by the name that the audit log shows. A registration belongs to the token that made it.
    pub(in crate::config) tokens: BTreeMap<Name, Located<FileToken>>,
    /// Shapes of registrations that bring one address and get several ports and paths, by the name that the caller gives.
    #[serde(default)]
    pub(in crate::config) templates: BTreeMap<Name, Located<FileTemplate>>,
    /// Only on these listeners; on every `tls` listener otherwise.
    #[serde(default)]
    pub(in crate::config) listeners: Vec<Located<Name>>,
    /// Registrations at one time, over all tokens.
    #[serde(default = "default_max_registrations")]
    pub(in crate::config) max_registrations: Count<1, 1_000_000>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the key `file` or `env`")]
pub(in crate::config) struct FileToken {
    /// File with the secret, at least 16 characters; one a line, if several are good while they are exchanged. Read again when
    /// it changes.
    pub(in crate::config) file: Option<AbsolutePath>,
    /// Environment variable with the secret.
    pub(in crate::config) env: Option<EnvName>,
    /// Hosts that it may register: names, or `*.example.com` for names with one label more. Every host otherwise.
    #[serde(default)]
    pub(in crate::config) hosts: Vec<Located<Pattern>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a template: a mapping with `passthrough` or `routes`")]
pub(in crate::config) struct FileTemplate {
    /// Port that takes TLS as the client sends it.
    pub(in crate::config) passthrough: Option<Count<1, 65_535>>,
    /// PROXY protocol header on the passthrough port.
    pub(in crate::config) proxy_protocol: Option<ProxyWord>,
    /// Ports by path, for when TLS ends here. The longest path wins, whatever the order.
    #[serde(default)]
    pub(in crate::config) routes: Vec<Located<FileTemplateRoute>>,
    /// Every request to `routes` is shown to the backend's own authentication first.
    pub(in crate::config) forward_auth: Option<FileForwardAuth>,
    /// Headers that requests to `routes` carry to the backend, each with the name of a secret that the registration brings.
    /// What a client sends under such a name is removed.
    #[serde(default)]
    pub(in crate::config) headers: BTreeMap<Name, Name>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the key `port`")]
pub(in crate::config) struct FileTemplateRoute {
    /// `/ws` for this path, `/api/*` for all below it. Every path otherwise.
    pub(in crate::config) path: Option<PathPattern>,
    /// Port of the backend.
    pub(in crate::config) port: Count<1, 65_535>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the key `port`")]
pub(in crate::config) struct FileForwardAuth {
    /// Port of the backend that is asked.
    pub(in crate::config) port: Count<1, 65_535>,
    /// What it is asked for.
    #[serde(default = "default_auth_path")]
    pub(in crate::config) path: UrlPath,
}

fn default_max_registrations() -> Count<1, 1_000_000> {
    Count(defaults::MAX_REGISTRATIONS)
}

fn default_auth_path() -> UrlPath {
    UrlPath(defaults::AUTH_PATH.to_owned())
}
