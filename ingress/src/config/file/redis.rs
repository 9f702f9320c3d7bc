//! `health.redis`: what a check asks of a Redis server.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::decode::Located;
use crate::config::words::{AbsolutePath, Backend, HostName, Name};

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys of `health.redis`")]
pub(in crate::config) struct FileRedis {
    /// Which servers take connections. `primary`: the one primary, whichever it is now. `replica`: replicas whose link to
    /// their primary is up. `any`: all that answer, in the order of `backends` and `fallback`.
    #[serde(default)]
    pub(in crate::config) role: FileRedisRole,
    /// User of Redis; `default` otherwise.
    pub(in crate::config) username: Option<Name>,
    /// File with the password. Only its owner and group may read it.
    pub(in crate::config) password_file: Option<AbsolutePath>,
    /// Ask by TLS; `{}` where nothing more is to be said.
    pub(in crate::config) tls: Option<Located<FileRedisTls>>,
    /// Sentinels that say which server is the primary, for `role: primary`.
    pub(in crate::config) sentinel: Option<Located<FileSentinel>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum FileRedisRole {
    #[default]
    Primary,
    Replica,
    Any,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys of `health.redis.tls`")]
pub(in crate::config) struct FileRedisTls {
    /// File with the certificates (PEM) that the server's has to come from. It is not judged otherwise.
    pub(in crate::config) ca_file: Option<AbsolutePath>,
    /// File with the certificate (PEM) that the check shows, where Redis asks for one.
    pub(in crate::config) cert_file: Option<AbsolutePath>,
    /// File with its key (PEM).
    pub(in crate::config) key_file: Option<AbsolutePath>,
    /// The name that the server's certificate has to have; the backend's own name or address otherwise.
    pub(in crate::config) server_name: Option<HostName>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys `addresses` and `service`")]
pub(in crate::config) struct FileSentinel {
    /// All of them, each `address:port`: what more than half of this list say counts.
    #[schemars(length(min = 1))]
    pub(in crate::config) addresses: Vec<Backend>,
    /// What they call the primary, as in `sentinel monitor`.
    pub(in crate::config) service: Name,
    /// User of the Sentinels; `default` otherwise.
    pub(in crate::config) username: Option<Name>,
    /// File with their password. Only its owner and group may read it.
    pub(in crate::config) password_file: Option<AbsolutePath>,
}
