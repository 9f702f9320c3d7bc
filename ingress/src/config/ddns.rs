//! The DNS records that this node keeps.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DdnsConfig {
    /// From one look at our own addresses to the next.
    pub interval: Duration,
    /// So often the provider is asked although nothing changed here.
    pub verify: Duration,
    /// `None`: no A records.
    pub ipv4: Option<AddressSource>,
    /// `None`: no AAAA records.
    pub ipv6: Option<AddressSource>,
    /// Addresses that the world cannot reach may be published too.
    pub allow_private: bool,
    /// By name.
    pub zones: BTreeMap<String, DdnsZone>,
}

/// Where a node learns its public address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressSource {
    Interface(String),
    /// Answers with the address from which it was asked.
    Url(String),
    /// Prints it.
    Command(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DdnsZone {
    pub provider: DdnsProvider,
    /// Names within the zone, `*.` of them too.
    pub names: Vec<String>,
    /// Of records that are made; one that is there keeps its own.
    pub ttl: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DdnsProvider {
    Cloudflare {
        api: DdnsApi,
        zone_id: String,
    },
    Hetzner(DdnsApi),
    HttpNet(DdnsApi),
    /// A program that does what it likes with the words in its environment.
    Exec {
        command: PathBuf,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DdnsApi {
    /// Without a slash at its end.
    pub base_url: String,
    pub token_file: PathBuf,
}

impl DdnsProvider {
    /// The word in the configuration.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Cloudflare { .. } => "cloudflare",
            Self::Hetzner(_) => "hetzner",
            Self::HttpNet(_) => "http_net",
            Self::Exec { .. } => "exec",
        }
    }
}
