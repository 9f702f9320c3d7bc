//! A draft as YAML, as one would write it by hand: what has its default is left out.

use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use super::{Draft, LeftOut, Listener, Route};
use crate::config::{
    BackendAddress, BackendConfig, Balance, HealthConfig, HttpProbe, OnDown, PoolConfig, ProbeConfig, ProxyProtocol,
};

impl Display for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        write_draft(self, &mut text)?;
        f.write_str(&text)
    }
}

fn write_draft(draft: &Draft, text: &mut String) -> fmt::Result {
    let Draft { listeners, routes, pools, left_out } = draft;
    if !left_out.is_empty() {
        text.push_str("# Not carried over, or not as it was:\n");
        for LeftOut { place, why } in left_out {
            writeln!(text, "#   {}: {}", one_line(place), one_line(why))?;
        }
    }
    text.push_str("listeners:\n");
    listeners.iter().try_for_each(|listener| write_listener(listener, text))?;
    if !routes.is_empty() {
        text.push_str("routes:\n");
    }
    for Route { sni, pool, listeners } in routes {
        write!(text, "  - {{sni: {}, pool: {}", list(sni), word(pool))?;
        if !listeners.is_empty() {
            write!(text, ", listeners: [{}]", words(listeners))?;
        }
        text.push_str("}\n");
    }
    if !pools.is_empty() {
        text.push_str("pools:\n");
    }
    pools.iter().try_for_each(|(name, pool)| write_pool(name, pool, text))
}

fn write_listener(listener: &Listener, text: &mut String) -> fmt::Result {
    let Listener { name, bind, device, pool, default, hello_timeout, idle_timeout, max_connections } = listener;
    writeln!(text, "  {}:", word(name))?;
    writeln!(text, "    bind: {}", list(bind))?;
    if let Some(device) = device {
        writeln!(text, "    device: {}", word(device))?;
    }
    if let Some(pool) = pool {
        writeln!(text, "    protocol: tcp\n    pool: {}", word(pool))?;
    }
    if let Some(pool) = default {
        writeln!(text, "    default: {{pool: {}}}", word(pool))?;
    }
    for (key, value) in [("hello_timeout", hello_timeout), ("idle_timeout", idle_timeout)] {
        if let Some(value) = value {
            writeln!(text, "    {key}: {}", time(*value))?;
        }
    }
    if let Some(most) = max_connections {
        writeln!(text, "    max_connections: {most}")?;
    }
    Ok(())
}

fn write_pool(name: &str, pool: &PoolConfig, text: &mut String) -> fmt::Result {
    let PoolConfig { backends, fallback, balance, proxy_protocol, connect_timeout, connect_retries, .. } = pool;
    let usual = PoolConfig::new(Vec::new(), Vec::new());
    writeln!(text, "  {}:", word(name))?;
    for (key, backends) in [("backends", backends), ("fallback", fallback)] {
        if !backends.is_empty() {
            writeln!(text, "    {key}:")?;
        }
        for backend in backends {
            writeln!(text, "      - {}", backend_item(backend))?;
        }
    }
    match balance {
        Balance::RoundRobin => {}
        Balance::LeastConnections => text.push_str("    balance: least_connections\n"),
        Balance::SourceHash => text.push_str("    balance: source_hash\n"),
    }
    match proxy_protocol {
        ProxyProtocol::None => {}
        ProxyProtocol::V1 => text.push_str("    proxy_protocol: v1\n"),
        ProxyProtocol::V2(tlvs) => {
            let named = [
                (tlvs.authority, "authority"),
                (tlvs.alpn, "alpn"),
                (tlvs.unique_id, "unique_id"),
                (tlvs.crc32c, "crc32c"),
            ];
            let named: Vec<&str> = named.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
            match named.is_empty() {
                true => text.push_str("    proxy_protocol: v2\n"),
                false => writeln!(text, "    proxy_protocol: {{version: v2, tlvs: [{}]}}", named.join(", "))?,
            }
        }
    }
    if *connect_timeout != usual.connect_timeout {
        writeln!(text, "    connect_timeout: {}", time(*connect_timeout))?;
    }
    if *connect_retries != usual.connect_retries {
        writeln!(text, "    connect_retries: {connect_retries}")?;
    }
    if pool.on_down != usual.on_down {
        let on_down = match pool.on_down {
            OnDown::Cut => "cut",
            OnDown::Keep => "keep",
        };
        writeln!(text, "    on_down: {on_down}")?;
    }
    if pool.slow_start != usual.slow_start {
        writeln!(text, "    slow_start: {}", time(pool.slow_start))?;
    }
    pool.health.as_ref().map_or(Ok(()), |health| write_health(health, text))
}

fn write_health(health: &HealthConfig, text: &mut String) -> fmt::Result {
    let HealthConfig { probe, port, interval, timeout, rise, fall } = health;
    let (kind, http, server_name) = match probe {
        ProbeConfig::Tcp => ("tcp", None, None),
        ProbeConfig::Tls { server_name } => ("tls", None, server_name.as_ref()),
        ProbeConfig::Http(http) => ("http", Some(http), None),
        ProbeConfig::Https { http, server_name } => ("https", Some(http), server_name.as_ref()),
        // No importer makes one with more than the defaults.
        ProbeConfig::Redis(_) => ("redis", None, None),
    };
    writeln!(text, "    health:\n      type: {kind}")?;
    writeln!(text, "      interval: {}\n      timeout: {}", time(*interval), time(*timeout))?;
    writeln!(text, "      rise: {rise}\n      fall: {fall}")?;
    if let Some(port) = port {
        writeln!(text, "      port: {port}")?;
    }
    if let Some(HttpProbe { path, host, expect }) = http {
        writeln!(text, "      path: {}", word(path))?;
        if let Some(host) = host {
            writeln!(text, "      host: {}", word(host))?;
        }
        let expect: Vec<String> = expect
            .iter()
            .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
            .collect();
        writeln!(text, "      expect: {}", list(&expect))?;
    }
    server_name.map_or(Ok(()), |name| writeln!(text, "      server_name: {}", word(name)))
}

fn backend_item(backend: &BackendConfig) -> String {
    let BackendConfig { name, address, weight } = backend;
    let address = match address {
        BackendAddress::Socket(address) => address.to_string(),
        BackendAddress::Dns { host, port } => format!("{host}:{port}"),
    };
    let mut more = String::new();
    if *weight != 1 {
        more.push_str(&format!(", weight: {weight}"));
    }
    if *name != address {
        more.push_str(&format!(", name: {}", word(name)));
    }
    if more.is_empty() { word(&address) } else { format!("{{address: {}{more}}}", word(&address)) }
}

/// One word stands for itself.
fn list(items: &[String]) -> String {
    match items {
        [one] => word(one),
        items => format!("[{}]", words(items)),
    }
}

fn words(items: &[String]) -> String {
    items.iter().map(|item| word(item)).collect::<Vec<_>>().join(", ")
}

/// Plain where YAML reads it as the same word, in quotes otherwise.
fn word(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !["true", "false", "null"].contains(&text.to_ascii_lowercase().as_str())
        && !["0x", "0o"].iter().any(|base| text.starts_with(base))
        && text.parse::<f64>().is_err();
    // Digits with a colon are words in YAML 1.2, and look odd to whoever knows 1.1.
    if plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

fn time(time: Duration) -> String {
    match time.as_millis() {
        ms if ms % 1_000 != 0 => format!("{ms}ms"),
        ms if ms % 3_600_000 == 0 && ms > 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 && ms > 0 => format!("{}m", ms / 60_000),
        ms => format!("{}s", ms / 1_000),
    }
}

/// A comment ends with its line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
