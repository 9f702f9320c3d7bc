//! The keys of the shared store.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::decode::{Located, OneOrMany};
use crate::config::defaults;
use crate::config::words::{AbsolutePath, EnvName, HostName, HttpUrl, Name, Time, UrlPath};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys `node` and `endpoints`")]
pub(in crate::config) struct FileEtcd {
    /// What the other nodes call this one. Each has a name of its own.
    pub(in crate::config) node: Located<HostName>,
    /// Client URLs of the cluster's members, such as `https://10.0.0.11:2379`. One that fails is left for the next.
    pub(in crate::config) endpoints: OneOrMany<Located<HttpUrl>>,
    /// All keys are below this one.
    #[serde(default = "default_prefix")]
    pub(in crate::config) prefix: UrlPath,
    /// For endpoints with `https://`.
    pub(in crate::config) tls: Option<Located<FileEtcdTls>>,
    /// Who this node is, where etcd has authentication enabled.
    pub(in crate::config) username: Option<Name>,
    /// File with the password.
    pub(in crate::config) password_file: Option<AbsolutePath>,
    /// Environment variable with the password.
    pub(in crate::config) password_env: Option<EnvName>,
    /// For one question to one endpoint. A registration waits for it at most twice, and is then taken without etcd.
    #[serde(default = "default_timeout")]
    pub(in crate::config) timeout: Located<Time>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys `ca_file`, `cert_file` and `key_file`")]
pub(in crate::config) struct FileEtcdTls {
    /// File with the certificates (PEM) to trust instead of the system's.
    pub(in crate::config) ca_file: Option<AbsolutePath>,
    /// File with the certificate (PEM) that this node shows, where etcd asks for one (`--client-cert-auth`).
    pub(in crate::config) cert_file: Option<AbsolutePath>,
    /// File with its key (PEM).
    pub(in crate::config) key_file: Option<AbsolutePath>,
}

fn default_prefix() -> UrlPath {
    UrlPath(defaults::ETCD_PREFIX.to_owned())
}

fn default_timeout() -> Located<Time> {
    Located::unwritten(Time(defaults::ETCD_TIMEOUT))
}
