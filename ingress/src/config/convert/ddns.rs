//! The DNS records that this node keeps.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::decode::{At, Located};
use crate::config::file::{FileAddressSource, FileDdns, FileDdnsProvider, FileDdnsZone};
use crate::config::report::Report;
use crate::config::words::Pattern;
use crate::config::{AddressSource, DdnsApi, DdnsConfig, DdnsProvider, DdnsZone};

pub(super) fn convert_ddns(ddns: Located<FileDdns>, report: &mut Report<'_>) -> DdnsConfig {
    let Located { node, value: FileDdns { interval, verify, ipv4, ipv6, allow_private, zones } } = ddns;
    if ipv4.is_none() && ipv6.is_none() {
        report.error(
            At::Value(node),
            "where is this node's address from? Write `ipv4: {interface: eth0}`, or `ipv6`",
            None,
        );
    }
    let source = |source: Option<Located<_>>, report: &mut Report<'_>| source.and_then(|s| convert_source(s, report));
    let (ipv4, ipv6) = (source(ipv4, report), source(ipv6, report));
    let zone = |(name, zone): (crate::config::words::Name, _)| {
        let name = name.0.to_ascii_lowercase();
        let converted = convert_zone(&name, zone, report)?;
        Some((name, converted))
    };
    let zones: BTreeMap<_, _> = zones.into_iter().filter_map(zone).collect();
    let (interval, verify) = (report.positive(&interval), report.positive(&verify));
    DdnsConfig { interval, verify, ipv4, ipv6, allow_private, zones }
}

fn convert_source(source: Located<FileAddressSource>, report: &mut Report<'_>) -> Option<AddressSource> {
    let Located { node, value: FileAddressSource { interface, url, command } } = source;
    let sources = [
        interface.map(|device| AddressSource::Interface(device.0)),
        url.map(|url| AddressSource::Url(url.0)),
        command.map(|program| AddressSource::Command(program.0)),
    ];
    let mut given = sources.into_iter().flatten();
    let first = given.next();
    if first.is_none() || given.next().is_some() {
        report.error(At::Value(node), "an address has one source: `interface`, `url` or `command`", None);
    }
    first
}

fn convert_zone(zone: &str, file: Located<FileDdnsZone>, report: &mut Report<'_>) -> Option<DdnsZone> {
    let Located { node, value: FileDdnsZone { provider, names, token_file, zone_id, command, base_url, ttl } } = file;
    if names.0.is_empty() {
        report.refuse_empty(node, "names", "name a record");
    }
    let names = names.0.into_iter().filter_map(|name| convert_name(zone, name, report)).collect();
    if ttl.value.0 < SHORTEST_TTL || ttl.value.0.subsec_nanos() > 0 {
        report.error(At::Value(ttl.node), "the shortest TTL that providers take is 60s, in whole seconds", None);
    }
    let is_exec = provider == FileDdnsProvider::Exec;
    if is_exec {
        for key in ["token_file", "base_url"] {
            report.refuse_key(node, key, "a program of your own has no API");
        }
    } else {
        report.refuse_key(node, "command", "this key needs `provider: exec`");
    }
    if provider != FileDdnsProvider::Cloudflare {
        report.refuse_key(node, "zone_id", "this key needs `provider: cloudflare`");
    }
    let needs = |key: &str, report: &mut Report<'_>| {
        let word = provider_word(provider);
        report.error(At::Value(node), format!("`provider: {word}` needs `{key}`"), None);
    };
    if let Some(url) = &base_url
        && url.value.0.starts_with("http://")
    {
        report.warning(At::Value(url.node), "the token goes over this network unencrypted");
    }
    let base_url = base_url.map_or(default_url(provider), |url| url.value.0.trim_end_matches('/').to_owned());
    let api = token_file.map(|file| DdnsApi { base_url, token_file: file.0 });
    if api.is_none() && !is_exec {
        needs("token_file", report);
    }
    let provider = match provider {
        FileDdnsProvider::Cloudflare => {
            if zone_id.is_none() {
                needs("zone_id", report);
            }
            DdnsProvider::Cloudflare { api: api?, zone_id: zone_id?.0 }
        }
        FileDdnsProvider::Hetzner => DdnsProvider::Hetzner(api?),
        FileDdnsProvider::HttpNet => DdnsProvider::HttpNet(api?),
        FileDdnsProvider::Exec => {
            if command.is_none() {
                needs("command", report);
            }
            DdnsProvider::Exec { command: command?.0 }
        }
    };
    Some(DdnsZone { provider, names, ttl: ttl.value.0 })
}

/// In lower case, and within its zone.
fn convert_name(zone: &str, name: Located<Pattern>, report: &mut Report<'_>) -> Option<String> {
    let written = name.value.0.to_string().to_ascii_lowercase();
    let is_within = written == zone || written.strip_suffix(zone).is_some_and(|host| host.ends_with('.'));
    if !is_within {
        report.error(At::Value(name.node), format!("{written} is not in the zone {zone}"), None);
        return None;
    }
    Some(written)
}

const fn provider_word(provider: FileDdnsProvider) -> &'static str {
    match provider {
        FileDdnsProvider::Cloudflare => "cloudflare",
        FileDdnsProvider::Hetzner => "hetzner",
        FileDdnsProvider::HttpNet => "http_net",
        FileDdnsProvider::Exec => "exec",
    }
}

fn default_url(provider: FileDdnsProvider) -> String {
    match provider {
        FileDdnsProvider::Cloudflare => "https://api.cloudflare.com/client/v4",
        FileDdnsProvider::Hetzner => "https://api.hetzner.cloud/v1",
        FileDdnsProvider::HttpNet => "https://partner.http.net/api/dns/v1/json",
        FileDdnsProvider::Exec => "",
    }
    .to_owned()
}

/// Cloudflare's, Hetzner's and http.net's.
const SHORTEST_TTL: Duration = Duration::from_secs(60);
