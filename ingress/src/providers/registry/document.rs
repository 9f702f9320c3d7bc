//! The shape of a registry file.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a registry: a mapping with the keys `version`, `http` and `tcp`")]
pub(super) struct Document {
    pub(super) version: u32,
    /// Further files, by pattern, from the directory of this one. Only the first file has it.
    #[serde(default)]
    pub(super) include: Vec<String>,
    /// By host name.
    #[serde(default)]
    pub(super) http: BTreeMap<String, Http>,
    /// By name of the service.
    #[serde(default)]
    pub(super) tcp: BTreeMap<String, Tcp>,
    /// That nothing is listed is meant.
    #[serde(default)]
    pub(super) empty: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a host: a mapping with the key `backends`")]
pub(super) struct Http {
    pub(super) backends: Vec<Backend>,
    /// Such as `static, 10m`.
    pub(super) cache: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a service: a mapping with the keys `port` and `backends`")]
pub(super) struct Tcp {
    /// Opened on every node.
    pub(super) port: u16,
    pub(super) backends: Vec<Backend>,
    #[serde(default)]
    pub(super) balance: Balance,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Balance {
    #[default]
    RoundRobin,
    LeastConnections,
    SourceHash,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a backend: a mapping with the keys `host` and `port`")]
pub(super) struct Backend {
    /// An address or a name.
    pub(super) host: String,
    pub(super) port: u16,
    #[serde(default = "one")]
    pub(super) weight: u32,
    /// Takes connections only while no other does.
    #[serde(default)]
    pub(super) standby: bool,
}

fn one() -> u32 {
    1
}
