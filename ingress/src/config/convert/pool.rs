//! Pools, their backends and their health checks.

use std::collections::HashMap;

use super::redis::convert_redis;
use crate::config::decode::{At, Located};
use crate::config::defaults;
use crate::config::file::{
    FileBackend, FileBalance, FileHandoff, FileHealth, FileOnDown, FilePool, FileProxyProtocol, FileRedis, FileTlv,
    FullBackend, FullHandoff, FullProxyProtocol, HandoffWord, ProbeType, ProxyVersion, ProxyWord,
};
use crate::config::problems::quoted;
use crate::config::report::Report;
use crate::config::yaml::NodeId;
use crate::config::{
    BackendConfig, Balance, HandoffPolicy, HealthConfig, HttpProbe, OnDown, PoolConfig, ProbeConfig, ProxyProtocol,
    ProxyTlvs,
};

pub(super) fn convert_pool(pool: Located<FilePool>, report: &mut Report<'_>) -> PoolConfig {
    let Located { node, value } = pool;
    let FilePool {
        backends,
        fallback,
        balance,
        proxy_protocol,
        connect_timeout,
        connect_retries,
        handoff,
        on_down,
        slow_start,
        health,
    } = value;
    if backends.is_empty() {
        report.refuse_empty(node, "backends", "a pool needs a backend");
    }
    let mut names = HashMap::new();
    let backends: Vec<_> = backends.into_iter().map(|backend| convert_backend(backend, &mut names, report)).collect();
    let fallback = fallback.into_iter().map(|backend| convert_backend(backend, &mut names, report)).collect();
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
        let at = report.value_of(node, "backends");
        report.warning(at, "every backend has weight 0: the pool takes no connection");
    }
    PoolConfig {
        backends,
        fallback,
        balance: match balance {
            FileBalance::RoundRobin => Balance::RoundRobin,
            FileBalance::LeastConnections => Balance::LeastConnections,
            FileBalance::SourceHash => Balance::SourceHash,
        },
        proxy_protocol: convert_proxy_protocol(proxy_protocol, report),
        connect_timeout: report.positive(&connect_timeout),
        connect_retries: connect_retries.0,
        handoff: convert_handoff(&handoff, node, report),
        health: health.map(|health| convert_health(health, report)),
        on_down: match on_down {
            FileOnDown::Cut => OnDown::Cut,
            FileOnDown::Keep => OnDown::Keep,
        },
        slow_start: slow_start.0,
        loop_guard: false,
    }
}

fn convert_handoff(handoff: &FileHandoff, pool: NodeId, report: &mut Report<'_>) -> HandoffPolicy {
    let full = match handoff {
        FileHandoff::Word(HandoffWord::Always) => return HandoffPolicy::Always,
        FileHandoff::Word(HandoffWord::Never) => return HandoffPolicy::Never,
        FileHandoff::Word(HandoffWord::WhenIdle) => return HandoffPolicy::WhenIdle(defaults::HANDOFF_WHEN_IDLE),
        FileHandoff::Full(full) => full,
    };
    match full {
        FullHandoff { rtt_below: Some(limit), when_idle: None } => HandoffPolicy::RttBelow(report.positive(limit)),
        FullHandoff { rtt_below: None, when_idle: Some(after) } => HandoffPolicy::WhenIdle(report.positive(after)),
        FullHandoff { rtt_below: Some(_), when_idle: Some(_) } | FullHandoff { rtt_below: None, when_idle: None } => {
            let at = report.value_of(pool, "handoff");
            report.error(at, "needs either `rtt_below` or `when_idle`", None);
            HandoffPolicy::Always
        }
    }
}

fn convert_backend(
    backend: Located<FileBackend>,
    names: &mut HashMap<String, NodeId>,
    report: &mut Report<'_>,
) -> BackendConfig {
    let Located { node, value } = backend;
    let (address, weight, name) = match value {
        FileBackend::Address(address) => (address, defaults::WEIGHT, None),
        FileBackend::Full(FullBackend { address, weight, name }) => (address, weight.0, name),
    };
    let name = name.map_or_else(|| address.to_string(), |name| name.0);
    if let Some(first) = names.get(&name) {
        let line = report.line(*first);
        let message =
            format!("a backend {} is already in this pool (line {line}); give it another `name`", quoted(&name));
        report.error(At::Value(node), message, None);
    }
    names.entry(name.clone()).or_insert(node);
    BackendConfig { name, address: address.0, weight }
}

fn convert_proxy_protocol(proxy: FileProxyProtocol, report: &mut Report<'_>) -> ProxyProtocol {
    let (version, tlvs) = match proxy {
        FileProxyProtocol::Word(word) => return proxy_protocol_of_word(word),
        FileProxyProtocol::Full(FullProxyProtocol { version, tlvs }) => (version, tlvs),
    };
    let mut flags = ProxyTlvs::default();
    for tlv in &tlvs {
        if version == ProxyVersion::V1 {
            report.error(At::Value(tlv.node), "a v1 header cannot carry TLVs; write `version: v2`", None);
        }
        match tlv.value {
            FileTlv::Authority => flags.authority = true,
            FileTlv::Alpn => flags.alpn = true,
            FileTlv::UniqueId => flags.unique_id = true,
            FileTlv::Crc32c => flags.crc32c = true,
        }
    }
    match version {
        ProxyVersion::V1 => ProxyProtocol::V1,
        ProxyVersion::V2 => ProxyProtocol::V2(flags),
    }
}

pub(super) fn proxy_protocol_of_word(word: ProxyWord) -> ProxyProtocol {
    match word {
        ProxyWord::None => ProxyProtocol::None,
        ProxyWord::V1 => ProxyProtocol::V1,
        ProxyWord::V2 => ProxyProtocol::V2(ProxyTlvs::default()),
    }
}

pub(super) fn convert_health(health: Located<FileHealth>, report: &mut Report<'_>) -> HealthConfig {
    let Located { node, value } = health;
    let FileHealth { r#type, interval, timeout, rise, fall, port, path, host, expect, server_name, redis } = value;
    let (is_http, is_tls) = match r#type {
        ProbeType::Tcp | ProbeType::Redis => (false, false),
        ProbeType::Tls => (false, true),
        ProbeType::Http => (true, false),
        ProbeType::Https => (true, true),
    };
    for key in ["path", "host", "expect"].into_iter().filter(|_| !is_http) {
        report.refuse_key(node, key, "this key needs `type: http` or `type: https`");
    }
    if !is_tls {
        report.refuse_key(node, "server_name", "this key needs `type: tls` or `type: https`");
    }
    if r#type != ProbeType::Redis {
        report.refuse_key(node, "redis", "this key needs `type: redis`");
    }
    if is_http && expect.0.is_empty() {
        report.refuse_empty(node, "expect", "no status would be good");
    }
    if interval.0.is_zero() {
        let at = report.value_of(node, "interval");
        report.error(at, "must be longer than 0s", None);
    } else if timeout.0.is_zero() {
        let at = report.value_of(node, "timeout");
        report.error(at, "must be longer than 0s", None);
    } else if timeout.0 > interval.0 {
        let key = if report.tree.child(node, "timeout").is_some() { "timeout" } else { "interval" };
        let at = report.value_of(node, key);
        let message = format!("the timeout ({timeout}) is longer than the interval ({interval}): checks would overlap");
        report.error(at, message, None);
    }
    let http = HttpProbe {
        path: path.0,
        host: host.map(|host| host.0),
        expect: expect.0.into_iter().map(|status| status.0).collect(),
    };
    let server_name = server_name.map(|name| name.0.to_string());
    let unwritten = Located { node, value: FileRedis::default() };
    HealthConfig {
        probe: match r#type {
            ProbeType::Tcp => ProbeConfig::Tcp,
            ProbeType::Tls => ProbeConfig::Tls { server_name },
            ProbeType::Http => ProbeConfig::Http(http),
            ProbeType::Https => ProbeConfig::Https { http, server_name },
            ProbeType::Redis => ProbeConfig::Redis(convert_redis(redis.unwrap_or(unwritten), report)),
        },
        port: port.and_then(|port| u16::try_from(port.0).ok()),
        interval: interval.0,
        timeout: timeout.0,
        rise: rise.0,
        fall: fall.0,
    }
}
