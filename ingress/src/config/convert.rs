//! `FileConfig` -> `Config`: names meet what they name, and values that depend on one another are held together.
//!
//! Goes on after a problem, to find all of them; what it returns is of use only if no error was reported.

mod admission;
mod ddns;
mod etcd;
mod hooks;
mod peers;
mod pool;
mod provider;
mod redis;
mod registration;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::decode::{At, Located, OneOrMany};
use super::file::{
    DefaultPool, DefaultWord, DrainFor, FileAdmin, FileAdminHttp, FileBasicAuth, FileConfig, FileConnectionLog,
    FileDefault, FileHaproxySocket, FileKeepalive, FileKernel, FileLimits, FileListener, FileLog, FileOnRemove,
    FileProtocol, FileRoute, FileSocketLevel, OnRemoveWord,
};
use super::report::Report;
use super::words::{Bind, Name};
use super::yaml::NodeId;
use super::{
    AdminConfig, AdminHttpConfig, BasicAuthEnv, Config, ConnectionLog, DefaultRoute, HaproxySocketConfig,
    KeepaliveConfig, KernelConfig, Limits, ListenerConfig, ListenerProtocol, LogConfig, SocketLevel,
};
use crate::route::{ListenerName, OnRemove, PoolName, ProviderName, RouteName, RouteSpec};

/// The file as the daemon sees it, and where its parts stand, for the checks that look at several of them.
pub(super) struct Converted {
    pub(super) config: Config,
    pub(super) listener_nodes: BTreeMap<ListenerName, NodeId>,
    pub(super) binds: Vec<BoundAt>,
    /// In the order of `config.routes`.
    pub(super) route_nodes: Vec<RouteNodes>,
    pub(super) pool_nodes: BTreeMap<PoolName, NodeId>,
}

pub(super) struct RouteNodes {
    pub(super) route: NodeId,
    pub(super) sni: Vec<NodeId>,
    pub(super) listeners: Vec<Located<Name>>,
}

/// Who binds an address, and where that is written.
pub(super) struct BoundAt {
    pub(super) node: NodeId,
    pub(super) owner: String,
    pub(super) address: SocketAddr,
    pub(super) device: Option<String>,
}

pub(super) fn convert(file: FileConfig, report: &mut Report<'_>) -> Converted {
    let FileConfig {
        listeners,
        routes,
        pools,
        providers,
        peers,
        ddns,
        etcd,
        hooks,
        limits,
        admin,
        kernel,
        interfaces,
        admission,
        log,
        state_dir,
    } = file;
    let mut binds = Vec::new();
    let mut listener_nodes = BTreeMap::new();
    let listeners = listeners
        .into_iter()
        .map(|(name, listener)| {
            let name = ListenerName::new(name.0);
            listener_nodes.insert(name.clone(), listener.node);
            let listener = convert_listener(&name, listener, &mut binds, report);
            (name, listener)
        })
        .collect();
    let (routes, route_nodes) = routes.into_iter().map(|route| convert_route(route, report)).unzip();
    let mut pool_nodes = BTreeMap::new();
    let pools = pools
        .into_iter()
        .map(|(name, pool)| {
            let name = PoolName::new(name.0);
            pool_nodes.insert(name.clone(), pool.node);
            (name, Arc::new(pool::convert_pool(pool, report)))
        })
        .collect();
    let kernel = convert_kernel(kernel, report);
    let interfaces = admission::convert_interfaces(interfaces, report);
    let admission = admission::convert_admission(admission, &interfaces, &kernel, report);
    let providers = providers
        .into_iter()
        .map(|(name, provider)| {
            let name = ProviderName::new(name.0);
            let provider = provider::convert_provider(&name, provider, &mut binds, report);
            (name, provider)
        })
        .collect();
    if let (Some(etcd), Some(_)) = (&etcd, &peers) {
        let message = "there is `peers` too; registrations have one home: write one of the two";
        report.error(At::Key(etcd.node), message, None);
    }
    let etcd = etcd.map(|etcd| etcd::convert_etcd(etcd, report));
    let peers = peers.and_then(|peers| peers::convert_peers(peers, &mut binds, report));
    let ddns = ddns.map(|ddns| ddns::convert_ddns(ddns, report));
    let hooks = hooks.into_iter().map(|(name, hook)| (name.0, hooks::convert_hook(hook, report))).collect();
    let config = Config {
        listeners,
        routes,
        pools,
        providers,
        peers,
        ddns,
        etcd,
        hooks,
        limits: convert_limits(&limits),
        admin: convert_admin(admin, &mut binds, report),
        kernel,
        interfaces,
        admission,
        log: convert_log(&log),
        state_dir: state_dir.0,
    };
    Converted { config, listener_nodes, binds, route_nodes, pool_nodes }
}

fn convert_listener(
    name: &ListenerName,
    listener: Located<FileListener>,
    binds: &mut Vec<BoundAt>,
    report: &mut Report<'_>,
) -> ListenerConfig {
    let Located { node, value } = listener;
    let FileListener {
        bind,
        device,
        protocol,
        default,
        pool,
        accept_proxy_from,
        hello_timeout,
        idle_timeout,
        max_connections,
        max_connections_per_source,
    } = value;
    let device = device.map(|device| device.0);
    let bind = convert_bind(&format!("listener {name}"), bind, device.as_deref(), binds);
    if bind.is_empty() {
        report.refuse_empty(node, "bind", "name an address");
    }
    let protocol = match (protocol, pool) {
        (FileProtocol::Tls, pool) => {
            if let Some(pool) = pool {
                let key = "a `tls` listener finds its pool by SNI; write `default: {pool: ...}` for the rest";
                report.refuse_key(node, "pool", key);
                report.refer_pool(&pool);
            }
            ListenerProtocol::Tls { default: convert_default(default, report) }
        }
        (FileProtocol::Tcp, pool) => {
            report.refuse_key(node, "default", "a `tcp` listener has no SNI and so no default; write `pool: ...`");
            if let Some(pool) = &pool {
                report.refer_pool(pool);
            } else if report.tree.child(node, "pool").is_none() {
                let at = report.value_of(node, "protocol");
                report.error(at, "a `tcp` listener needs a pool; add `pool: ...`", None);
            }
            ListenerProtocol::Tcp { pool: PoolName::new(pool.map_or_else(String::new, |pool| pool.value.0)) }
        }
    };
    for network in &accept_proxy_from {
        if network.value.0.prefix_len() == 0 {
            let warning = "everybody may claim any client address; name only the networks of your own proxies";
            report.warning(At::Value(network.node), warning);
        }
    }
    ListenerConfig {
        bind,
        device,
        protocol,
        accept_proxy_from: accept_proxy_from.into_iter().map(|network| network.value.0).collect(),
        hello_timeout: report.positive(&hello_timeout),
        idle_timeout: report.positive(&idle_timeout),
        max_connections: max_connections.0,
        max_connections_per_source: max_connections_per_source.0,
    }
}

fn convert_default(default: FileDefault, report: &mut Report<'_>) -> DefaultRoute {
    match default {
        FileDefault::Word(DefaultWord::Reject) => DefaultRoute::Reject,
        FileDefault::Pool(DefaultPool { pool }) => {
            report.refer_pool(&pool);
            DefaultRoute::Pool(PoolName::new(pool.value.0))
        }
    }
}

fn convert_bind(
    owner: &str,
    bind: OneOrMany<Located<Bind>>,
    device: Option<&str>,
    binds: &mut Vec<BoundAt>,
) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for Located { node, value: Bind(word) } in bind.0 {
        for address in word {
            let bound = BoundAt { node, owner: owner.to_owned(), address, device: device.map(str::to_owned) };
            binds.push(bound);
            addresses.push(address);
        }
    }
    addresses
}

fn convert_route(route: Located<FileRoute>, report: &mut Report<'_>) -> (Arc<RouteSpec>, RouteNodes) {
    let Located { node, value: FileRoute { sni, pool, name, listeners, on_remove } } = route;
    report.refer_pool(&pool);
    for listener in &listeners {
        report.refer_listener(listener);
    }
    if sni.0.is_empty() {
        report.refuse_empty(node, "sni", "name a host");
    }
    let first = sni.0.first().map(|pattern| pattern.value.to_string());
    let nodes = RouteNodes { route: node, sni: sni.0.iter().map(|pattern| pattern.node).collect(), listeners };
    let spec = RouteSpec {
        name: RouteName::new(name.map(|name| name.value.0).or(first).unwrap_or_default()),
        sni: sni.0.into_iter().map(|pattern| pattern.value.0).collect(),
        pool: PoolName::new(pool.value.0),
        listeners: nodes.listeners.iter().map(|listener| ListenerName::new(listener.value.0.as_str())).collect(),
        priority: 0,
        on_remove: convert_on_remove(on_remove),
    };
    (Arc::new(spec), nodes)
}

fn convert_on_remove(on_remove: FileOnRemove) -> OnRemove {
    match on_remove {
        FileOnRemove::Word(OnRemoveWord::Drain) => OnRemove::Drain(None),
        FileOnRemove::Drain(DrainFor { drain }) => OnRemove::Drain(Some(drain.0)),
        FileOnRemove::Word(OnRemoveWord::Cut) => OnRemove::Cut,
    }
}

fn convert_limits(limits: &FileLimits) -> Limits {
    let FileLimits { max_connections, drain_timeout } = limits;
    Limits { max_connections: max_connections.0, drain_timeout: drain_timeout.0 }
}

fn convert_admin(admin: FileAdmin, binds: &mut Vec<BoundAt>, report: &mut Report<'_>) -> AdminConfig {
    let FileAdmin { socket, haproxy_socket, http } = admin;
    let haproxy_socket = haproxy_socket.map(|socket_at| convert_haproxy_socket(socket_at, &socket.0, report));
    let http = http.map(|Located { node, value: FileAdminHttp { bind, basic_auth } }| {
        let bind = convert_bind("admin.http", bind, None, binds);
        if bind.is_empty() {
            report.refuse_empty(node, "bind", "name an address");
        }
        if basic_auth.is_none() && bind.iter().any(|address| !address.ip().is_loopback()) {
            let at = report.value_of(node, "bind");
            report.warning(at, "everybody who reaches this address can read the statistics; add `basic_auth`");
        }
        let basic_auth = basic_auth.map(|auth| {
            let FileBasicAuth { username_env, password_env } = auth.value;
            BasicAuthEnv { username_env: username_env.value.0, password_env: password_env.value.0 }
        });
        AdminHttpConfig { bind, basic_auth }
    });
    AdminConfig { socket: socket.0, haproxy_socket, http }
}

fn convert_haproxy_socket(
    socket: Located<FileHaproxySocket>,
    admin_socket: &Path,
    report: &mut Report<'_>,
) -> HaproxySocketConfig {
    let Located { node, value: FileHaproxySocket { path, mode, group, level } } = socket;
    if path.value.0 == admin_socket {
        report.error(At::Value(path.node), "is `admin.socket` already; two sockets need two paths", None);
    }
    let level = match level {
        FileSocketLevel::User => SocketLevel::User,
        FileSocketLevel::Operator => SocketLevel::Operator,
        FileSocketLevel::Admin => SocketLevel::Admin,
    };
    if mode.0 & 0o002 != 0 && level == SocketLevel::Admin {
        let at = report.value_of(node, "mode");
        report.warning(at, "everybody on this host may drain backends and cut connections; take a `group` and 0660");
    }
    HaproxySocketConfig { path: path.value.0, mode: mode.0, group: group.map(|name| name.0), level }
}

fn convert_kernel(kernel: FileKernel, report: &mut Report<'_>) -> KernelConfig {
    let FileKernel { enabled, interfaces, port_range, max_connections, keepalive, pin_dir } = kernel;
    KernelConfig {
        enabled,
        interfaces: interfaces.into_iter().map(|device| device.0).collect(),
        port_range: port_range.0,
        max_connections: max_connections.map(|connections| connections.0),
        keepalive: keepalive.map(|FileKeepalive { after, interval, probes }| KeepaliveConfig {
            after: report.positive(&after),
            interval: report.positive(&interval),
            probes: probes.0,
        }),
        pin_dir: pin_dir.0,
    }
}

fn convert_log(log: &FileLog) -> LogConfig {
    let FileLog { connections } = log;
    LogConfig {
        connections: match connections {
            FileConnectionLog::End => ConnectionLog::End,
            FileConnectionLog::Both => ConnectionLog::Both,
            FileConnectionLog::None => ConnectionLog::None,
        },
    }
}
