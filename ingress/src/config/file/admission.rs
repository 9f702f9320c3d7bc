//! `interfaces` and `admission`: who may come in, and by which device.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::decode::Located;
use crate::config::words::{Count, Network};

pub(in crate::config) type Rate = Count<1, 1_000_000>;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "an interface: a mapping with the key `side`")]
pub(in crate::config) struct FileInterface {
    /// Whom it faces. `public`: the world; private ports are dropped on it. `private`: your own machines; nothing that
    /// comes by it is judged.
    pub(in crate::config) side: FileSide,
    /// For `public`: where packets are judged. `auto`: by XDP in the driver, else by generic XDP, else by tc; `native` and
    /// `generic` try that, else tc; `off`: by tc.
    #[serde(default)]
    pub(in crate::config) xdp: FileXdp,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum FileSide {
    Public,
    Private,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum FileXdp {
    #[default]
    Auto,
    Native,
    Generic,
    Off,
}

#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, expecting = "a mapping with the keys of `admission`")]
pub(in crate::config) struct FileAdmission {
    /// TCP and UDP ports that no packet reaches by a `public` interface, whoever listens there.
    pub(in crate::config) private_ports: Vec<Located<Count<1, 65_535>>>,
    /// Networks that may not connect to our listeners. Their live connections are cut.
    pub(in crate::config) deny: Vec<Located<Network>>,
    /// New connections to our listeners of one source, an IPv4 address or an IPv6 /64. Further SYNs are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::config) new_connections_per_source: Option<Located<FileConnectionRate>>,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys `rate` and `burst`")]
pub(in crate::config) struct FileConnectionRate {
    /// A second, for as long as it likes.
    pub(in crate::config) rate: Rate,
    /// At once, after a pause; as many as `rate` otherwise.
    pub(in crate::config) burst: Option<Rate>,
}
