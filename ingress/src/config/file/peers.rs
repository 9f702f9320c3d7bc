//! The keys of the mesh of nodes.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::decode::{Located, OneOrMany};
use crate::config::defaults;
use crate::config::words::{Bind, Device, HostName, Time};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys `node` and `bind`")]
pub(in crate::config) struct FilePeers {
    /// What the other nodes call this one. It stands in its certificate.
    pub(in crate::config) node: Located<HostName>,
    /// Address and port for the other nodes, or a list of them. An address of the private network, or `:9877` with a `device`.
    pub(in crate::config) bind: OneOrMany<Located<Bind>>,
    /// Accept only what arrives on this network device.
    pub(in crate::config) device: Option<Device>,
    /// Where the other nodes reach this one; the first `bind` otherwise.
    pub(in crate::config) address: Option<Located<Bind>>,
    /// How long the answer to a registration waits for the other nodes to have it too.
    #[serde(default = "default_ack_timeout")]
    pub(in crate::config) ack_timeout: Time,
}

fn default_ack_timeout() -> Time {
    Time(defaults::ACK_TIMEOUT)
}
