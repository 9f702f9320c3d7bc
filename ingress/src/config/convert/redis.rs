//! `health.redis`.

use crate::config::decode::{At, Located};
use crate::config::file::{FileRedis, FileRedisRole, FileRedisTls, FileSentinel};
use crate::config::report::Report;
use crate::config::words::{AbsolutePath, Name};
use crate::config::{RedisLogin, RedisProbe, RedisRole, RedisTls, SentinelConfig};

pub(super) fn convert_redis(redis: Located<FileRedis>, report: &mut Report<'_>) -> RedisProbe {
    let Located { node, value: FileRedis { role, username, password_file, tls, sentinel } } = redis;
    if password_file.is_none() {
        report.refuse_key(node, "username", "a user has a password; add `password_file`");
    }
    if role != FileRedisRole::Primary {
        report.refuse_key(node, "sentinel", "Sentinels name a primary; this key needs `role: primary`");
    }
    RedisProbe {
        role: match role {
            FileRedisRole::Primary => RedisRole::Primary,
            FileRedisRole::Replica => RedisRole::Replica,
            FileRedisRole::Any => RedisRole::Any,
        },
        login: login(username, password_file),
        tls: tls.map(|tls| convert_tls(tls, report)),
        sentinel: sentinel.map(|sentinel| convert_sentinel(sentinel, report)),
    }
}

fn convert_tls(tls: Located<FileRedisTls>, report: &mut Report<'_>) -> RedisTls {
    let Located { node, value: FileRedisTls { ca_file, cert_file, key_file, server_name } } = tls;
    if ca_file.is_none() {
        report.refuse_key(node, "server_name", "without `ca_file` no certificate is judged; add it");
    }
    let identity = match (cert_file, key_file) {
        (Some(cert), Some(key)) => Some((cert.0, key.0)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            report.error(At::Value(node), "`cert_file` and `key_file` belong together", None);
            None
        }
    };
    RedisTls { ca_file: ca_file.map(|file| file.0), identity, server_name: server_name.map(|name| name.0.to_string()) }
}

fn convert_sentinel(sentinel: Located<FileSentinel>, report: &mut Report<'_>) -> SentinelConfig {
    let Located { node, value: FileSentinel { addresses, service, username, password_file } } = sentinel;
    if addresses.is_empty() {
        report.refuse_empty(node, "addresses", "name the Sentinels");
    }
    for (n, address) in addresses.iter().enumerate() {
        if addresses[..n].contains(address) {
            let at = report.value_of(node, "addresses");
            report.error(at, format!("{address} stands there twice: it would have two votes"), None);
        }
    }
    if password_file.is_none() {
        report.refuse_key(node, "username", "a user has a password; add `password_file`");
    }
    SentinelConfig {
        addresses: addresses.into_iter().map(|address| address.0).collect(),
        service: service.0,
        login: login(username, password_file),
    }
}

fn login(username: Option<Name>, password_file: Option<AbsolutePath>) -> RedisLogin {
    RedisLogin { username: username.map(|name| name.0), password_file: password_file.map(|file| file.0) }
}
