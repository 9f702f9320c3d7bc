//! Hooks: whom to tell, of what, and how.

use crate::config::decode::{At, Located};
use crate::config::file::FileHook;
use crate::config::file::hooks::{FileCommand, FileFormat, FileSecret, FileWebhook};
use crate::config::report::Report;
use crate::config::yaml::NodeId;
use crate::config::{CommandConfig, HookConfig, HookTarget, TokenSource, WebhookBody, WebhookConfig, WebhookUrl};
use crate::events::{EventFilter, EventKind, Template};

pub(super) fn convert_hook(hook: Located<FileHook>, report: &mut Report<'_>) -> HookConfig {
    let Located { node, value } = hook;
    let FileHook { webhook, command, events, pools, routes, gather, retry_for, queue } = value;
    let filter = EventFilter {
        kinds: events,
        pools: pools.into_iter().map(|pattern| pattern.0).collect(),
        routes: routes.into_iter().map(|pattern| pattern.0).collect(),
    };
    let backends = filter.wants(EventKind::BackendDown) || filter.wants(EventKind::BackendUp);
    let about_routes = filter.wants(EventKind::RouteAdded) || filter.wants(EventKind::RouteRemoved);
    for (key, has_meaning) in [("pools", backends), ("routes", about_routes)] {
        if !has_meaning {
            report.refuse_key(node, key, "`events` names nothing that this could be about");
        }
    }
    match exclusive(node, ["webhook", "command"], report) {
        Written::One => {}
        Written::None => {
            let message = "this hook tells nobody; write `webhook: {url: ...}` or `command: {argv: [...]}`";
            report.error(At::Value(node), message, None);
        }
        Written::Both(key) => report.refuse_key(node, key, "a hook has one target; write each under a name of its own"),
    }
    let webhook = webhook.map(|webhook| HookTarget::Webhook(convert_webhook(webhook, report)));
    let command = command.map(|command| HookTarget::Command(convert_command(command, report)));
    // Stands in for one that was refused; nothing sees it then.
    let nothing = HookTarget::Command(CommandConfig { argv: Vec::new(), timeout: retry_for.0 });
    HookConfig {
        target: webhook.or(command).unwrap_or(nothing),
        filter,
        gather: gather.0,
        retry_for: retry_for.0,
        queue: usize::try_from(queue.0).unwrap_or(usize::MAX),
    }
}

fn convert_webhook(webhook: Located<FileWebhook>, report: &mut Report<'_>) -> WebhookConfig {
    let Located { node, value } = webhook;
    let FileWebhook { url, url_file, secret, token_file, ca_file, timeout, format, template } = value;
    match exclusive(node, ["url", "url_file"], report) {
        Written::One => {}
        Written::None => report.error(At::Value(node), "write `url: https://...`, or `url_file: /path`", None),
        Written::Both(key) => report.refuse_key(node, key, "a webhook has one URL; write `url` or `url_file`"),
    }
    if let Some(url) = url.as_ref().filter(|url| url.value.0.starts_with("http://")) {
        if ca_file.is_some() {
            report.error(At::Value(url.node), "`ca_file` has no meaning without https://", None);
        }
        if token_file.is_some() {
            report.warning(At::Value(url.node), "the token would go over the network in the clear; use https://");
        }
    }
    let body = match (format, template) {
        (_, Some(template)) => {
            report.refuse_key(node, "format", "`template` takes its place; write one of them");
            convert_template(template, report)
        }
        (FileFormat::Event, None) => WebhookBody::Event,
        (FileFormat::Slack, None) => WebhookBody::Slack,
        (FileFormat::Discord, None) => WebhookBody::Discord,
    };
    WebhookConfig {
        url: match (url, url_file) {
            (Some(url), _) => WebhookUrl::Plain(url.value.0),
            // Without either it was refused.
            (None, file) => WebhookUrl::File(file.map(|file| file.0).unwrap_or_default()),
        },
        secret: secret.map(|secret| convert_secret(secret, report)),
        token_file: token_file.map(|file| file.0),
        ca_file: ca_file.map(|file| file.0),
        timeout: report.positive(&timeout),
        body,
    }
}

fn convert_template(template: Located<crate::config::words::Body>, report: &mut Report<'_>) -> WebhookBody {
    match Template::parse(&template.value.0) {
        Ok(template) => WebhookBody::Template(template),
        Err(error) => {
            report.error(At::Value(template.node), error.to_string(), None);
            WebhookBody::Event
        }
    }
}

fn convert_secret(secret: Located<FileSecret>, report: &mut Report<'_>) -> TokenSource {
    let Located { node, value: FileSecret { file, env } } = secret;
    match exclusive(node, ["file", "env"], report) {
        Written::One => {}
        Written::None => report.error(At::Value(node), "write `file: /path`, or `env: NAME`", None),
        Written::Both(key) => report.refuse_key(node, key, "a secret has one source; write `file` or `env`"),
    }
    match (file, env) {
        (Some(file), _) => TokenSource::File(file.0),
        // Without either it was refused.
        (None, env) => TokenSource::Env(env.map(|env| env.0).unwrap_or_default()),
    }
}

fn convert_command(command: Located<FileCommand>, report: &mut Report<'_>) -> CommandConfig {
    let Located { node, value: FileCommand { argv, timeout } } = command;
    report.refuse_empty(node, "argv", "name a program");
    if let Some(program) = argv.first().filter(|program| !program.value.0.starts_with('/')) {
        let message = "write the program's absolute path: a hook has no shell, and no search path that you know";
        report.error(At::Value(program.node), message, None);
    }
    CommandConfig {
        argv: argv.into_iter().map(|argument| argument.value.0).collect(),
        timeout: report.positive(&timeout),
    }
}

/// Which of two keys are written, also with problems of their own.
enum Written {
    None,
    One,
    /// The second of them.
    Both(&'static str),
}

fn exclusive(node: NodeId, [first, second]: [&'static str; 2], report: &Report<'_>) -> Written {
    let is_written = |key| report.tree.child(node, key).is_some();
    match (is_written(first), is_written(second)) {
        (false, false) => Written::None,
        (true, true) => Written::Both(second),
        (true, false) | (false, true) => Written::One,
    }
}
