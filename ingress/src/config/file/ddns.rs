//! `ddns`: the DNS records that this node keeps.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::decode::{Located, OneOrMany};
use crate::config::defaults;
use crate::config::words::{AbsolutePath, Device, HttpUrl, Name, Pattern, Time};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the keys `zones`, and `ipv4` or `ipv6`")]
pub(in crate::config) struct FileDdns {
    /// From one look at this node's own addresses to the next.
    #[serde(default = "default_interval")]
    pub(in crate::config) interval: Located<Time>,
    /// How often the provider is asked what it has, although nothing changed here.
    #[serde(default = "default_verify")]
    pub(in crate::config) verify: Located<Time>,
    /// Where this node's IPv4 address is from. Without it there are no A records.
    pub(in crate::config) ipv4: Option<Located<FileAddressSource>>,
    /// Where its IPv6 address is from. Without it there are no AAAA records.
    pub(in crate::config) ipv6: Option<Located<FileAddressSource>>,
    /// Publish addresses that the world cannot reach too: of private networks, or for documentation.
    #[serde(default)]
    pub(in crate::config) allow_private: bool,
    /// The zones, by name.
    pub(in crate::config) zones: BTreeMap<Name, Located<FileDdnsZone>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with one of the keys `interface`, `url` and `command`")]
pub(in crate::config) struct FileAddressSource {
    /// The address of this network device.
    pub(in crate::config) interface: Option<Device>,
    /// What this URL answers: the address from which it was asked, and nothing else.
    pub(in crate::config) url: Option<HttpUrl>,
    /// What this program prints. It has 10 s.
    pub(in crate::config) command: Option<AbsolutePath>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a zone: a mapping with the keys `provider` and `names`")]
pub(in crate::config) struct FileDdnsZone {
    /// Who serves the zone.
    pub(in crate::config) provider: FileDdnsProvider,
    /// The names that get this node's addresses, or one. A wildcard such as `*.example.com` is a name too.
    pub(in crate::config) names: OneOrMany<Located<Pattern>>,
    /// File with the token of the API. Only its owner and group may read it.
    pub(in crate::config) token_file: Option<AbsolutePath>,
    /// For `cloudflare`: the zone's ID, from its overview page.
    pub(in crate::config) zone_id: Option<Name>,
    /// For `exec`: the program that is run for each change.
    pub(in crate::config) command: Option<AbsolutePath>,
    /// Another address of the API, such as that of a proxy.
    pub(in crate::config) base_url: Option<Located<HttpUrl>>,
    /// Of records that are made. One that is there keeps its own.
    #[serde(default = "default_ttl")]
    pub(in crate::config) ttl: Located<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum FileDdnsProvider {
    Cloudflare,
    Hetzner,
    HttpNet,
    Exec,
}

default_functions! {
    default_interval() -> Located<Time> = Located::unwritten(Time(defaults::DDNS_INTERVAL));
    default_verify() -> Located<Time> = Located::unwritten(Time(defaults::DDNS_VERIFY));
    default_ttl() -> Located<Time> = Located::unwritten(Time(defaults::DDNS_TTL));
}
