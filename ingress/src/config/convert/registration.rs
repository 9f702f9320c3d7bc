//! The registration API: where it listens, who may call, what may be registered.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

use super::{BoundAt, convert_bind, pool};
use crate::config::decode::{At, Located};
use crate::config::file::registration::{
    FileForwardAuth, FileRegistration, FileTemplate, FileTemplateRoute, FileToken,
};
use crate::config::report::Report;
use crate::config::words::{Name, Network};
use crate::config::{
    ForwardAuthConfig, PassthroughConfig, PathMatch, RegistrationConfig, TemplateConfig, TemplateRoute, TokenConfig,
    TokenSource,
};
use crate::route::{ListenerName, ProviderName};

pub(super) fn convert_registration(
    provider: &ProviderName,
    registration: Located<FileRegistration>,
    binds: &mut Vec<BoundAt>,
    report: &mut Report<'_>,
) -> RegistrationConfig {
    let Located { node, value } = registration;
    let FileRegistration { bind, device, sources, upstreams, tokens, templates, listeners, max_registrations } = value;
    for (key, what) in
        [("bind", "name an address"), ("sources", "nobody could call"), ("upstreams", "nothing could be registered")]
    {
        report.refuse_empty(node, key, what);
    }
    let device = device.map(|device| device.0);
    let bind = convert_bind(&format!("provider {provider}"), bind, device.as_deref(), binds);
    if device.is_none() && bind.iter().any(|address| address.ip().is_unspecified()) {
        let at = report.value_of(node, "bind");
        let message = "this would listen on every network; write an address of the private one, or name its `device`";
        report.error(at, message, None);
    }
    if device.is_none() && bind.iter().any(is_public) {
        let at = report.value_of(node, "bind");
        report.warning(at, "this is not an address of a private network: the API belongs behind one");
    }
    for Located { node, value: Network(network) } in sources.0.iter().chain(&upstreams.0) {
        if network.prefix_len() == 0 {
            report.warning(At::Value(*node), "this is every address; name only networks of your own");
        }
    }
    if tokens.is_empty() {
        let at = report.value_of(node, "tokens");
        report.error(at, "there is no token, so nobody could register; write `tokens: {name: {file: ...}}`", None);
    }
    for listener in &listeners {
        report.refer_listener(listener);
    }
    RegistrationConfig {
        bind,
        device,
        sources: sources.0.into_iter().map(|network| network.value.0).collect(),
        upstreams: upstreams.0.into_iter().map(|network| network.value.0).collect(),
        tokens: tokens.into_iter().map(|(name, token)| (name.0, convert_token(token, report))).collect(),
        templates: templates.into_iter().map(|(name, template)| (name.0, convert_template(template, report))).collect(),
        listeners: listeners.into_iter().map(|name| ListenerName::new(name.value.0)).collect(),
        max_registrations: usize::try_from(max_registrations.0).unwrap_or(usize::MAX),
    }
}

fn convert_token(token: Located<FileToken>, report: &mut Report<'_>) -> TokenConfig {
    let Located { node, value: FileToken { file, env, hosts } } = token;
    if file.is_some() && env.is_some() {
        report.refuse_key(node, "env", "a token has one source; write `file` or `env`");
    } else if file.is_none()
        && env.is_none()
        && report.tree.child(node, "file").is_none()
        && report.tree.child(node, "env").is_none()
    {
        report.error(At::Value(node), "this token has no source; write `file: /path`, or `env: NAME`", None);
    }
    TokenConfig {
        source: match (file, env) {
            (Some(file), _) => TokenSource::File(file.0),
            (None, Some(env)) => TokenSource::Env(env.0),
            // Stands in for one that was refused; nothing sees it then.
            (None, None) => TokenSource::Env(String::new()),
        },
        hosts: hosts.into_iter().map(|host| host.value.0).collect(),
    }
}

fn convert_template(template: Located<FileTemplate>, report: &mut Report<'_>) -> TemplateConfig {
    let Located { node, value: FileTemplate { passthrough, proxy_protocol, routes, forward_auth, headers } } = template;
    if passthrough.is_none() {
        report.refuse_key(node, "proxy_protocol", "this key needs `passthrough`");
    }
    if routes.is_empty() {
        if passthrough.is_none() && report.tree.child(node, "passthrough").is_none() {
            report.error(At::Value(node), "this template leads nowhere; write `routes` or `passthrough`", None);
        }
        for key in ["forward_auth", "headers"] {
            report.refuse_key(node, key, "this key needs `routes`");
        }
    }
    let proxy_protocol = proxy_protocol.map_or(crate::config::ProxyProtocol::None, pool::proxy_protocol_of_word);
    TemplateConfig {
        passthrough: passthrough.map(|passthrough| PassthroughConfig { port: port(passthrough.0), proxy_protocol }),
        routes: convert_routes(routes, report),
        forward_auth: forward_auth
            .map(|FileForwardAuth { port: asked, path }| ForwardAuthConfig { port: port(asked.0), path: path.0 }),
        headers: convert_headers(node, headers, report),
    }
}

fn convert_routes(routes: Vec<Located<FileTemplateRoute>>, report: &mut Report<'_>) -> Vec<TemplateRoute> {
    let mut known = HashSet::new();
    let mut converted = Vec::new();
    for Located { node, value: FileTemplateRoute { path, port: wanted } } in routes {
        let path = path.map_or_else(|| PathMatch::Below("/".to_owned()), |path| path.0);
        if !known.insert(path.clone()) {
            let at = report.value_of(node, "path");
            report.error(at, "this path stands in this template already", None);
        }
        converted.push(TemplateRoute { path, port: port(wanted.0) });
    }
    converted
}

/// By lower-case header name.
fn convert_headers(
    node: crate::config::yaml::NodeId,
    headers: BTreeMap<Name, Name>,
    report: &mut Report<'_>,
) -> BTreeMap<String, String> {
    let mut converted = BTreeMap::new();
    for (header, secret) in headers {
        // RFC 9110 section 5.6.2; a name of ours holds nothing else that a token does not.
        let is_token = header.0.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.*".contains(&b));
        let at = report.tree.child(node, "headers").and_then(|map| report.tree.child(map, &header.0));
        let at = At::Key(at.unwrap_or(node));
        if !is_token {
            report.error(at, format!("{header} cannot be the name of a header"), None);
        } else if converted.insert(header.0.to_ascii_lowercase(), secret.0).is_some() {
            report.error(at, "this header stands here twice: their names have no case", None);
        }
    }
    converted
}

/// [`Count`](crate::config::words::Count) has checked the range.
fn port(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// Not by this much: private (RFC 1918, RFC 4193), shared (RFC 6598), link-local, loopback or unspecified.
pub(super) fn is_public(address: &SocketAddr) -> bool {
    match address.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || shared)
        }
        std::net::IpAddr::V6(ip) => {
            !(ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified())
        }
    }
}
