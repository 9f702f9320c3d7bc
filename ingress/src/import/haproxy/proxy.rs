//! A `defaults`, `frontend`, `backend` or `listen` section, line by line.

use std::time::Duration;

use super::bind::{self, Bind};
use super::check::Checks;
use super::rule::{Acls, Taken, short};
use super::server::{self, Options, Server, number, time};
use super::words::{At, Line};
use crate::config::Balance;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Defaults,
    Frontend,
    Backend,
    Listen,
}

/// What `defaults` may say for the sections behind it.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// `mode http`, or another that is not TCP.
    pub(super) other_mode: Option<String>,
    pub(super) disabled: bool,
    pub(super) max_connections: Option<u32>,
    pub(super) default_backend: Option<(At, String)>,
    pub(super) client: Option<Duration>,
    pub(super) server: Option<(At, Duration)>,
    pub(super) tunnel: Option<Duration>,
    pub(super) connect: Option<Duration>,
    pub(super) retries: Option<u32>,
    pub(super) inspect_delay: Option<Duration>,
    pub(super) balance: Option<Balance>,
    pub(super) all_backups: bool,
    pub(super) checks: Checks,
    default_server: Options,
}

/// One section as far as it was understood.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) kind: Kind,
    pub(super) at: At,
    pub(super) name: String,
    pub(super) settings: Settings,
    pub(super) binds: Vec<Bind>,
    acls: Acls,
    pub(super) rules: Vec<Rule>,
    /// That the rules take, counted as often as they are taken.
    names: usize,
    /// Whether anything asks for the server name, understood or not.
    pub(super) by_name: bool,
    pub(super) servers: Vec<Server>,
    /// Told only if the section is carried over.
    pub(super) notes: Vec<(At, String)>,
}

/// `use_backend`.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) at: At,
    pub(super) backend: String,
    pub(super) taken: Taken,
}

/// Of one section: a short text can name a long ACL very often.
const MAX_NAMES: usize = 1_000_000;

/// What says nothing about where a connection goes or how it is carried: logs, statistics, HTTP, tuning of HAProxy itself.
const HARMLESS: &[&str] = &[
    "backlog",
    "bind-process",
    "capture",
    "compression",
    "description",
    "email-alert",
    "enabled",
    "errorfile",
    "errorfiles",
    "errorloc",
    "errorloc302",
    "errorloc303",
    "fullconn",
    "guid",
    "hash-balance-factor",
    "hash-type",
    "http-after-response",
    "http-error",
    "http-request",
    "http-response",
    "http-reuse",
    "id",
    "load-server-state-from-file",
    "log",
    "log-format",
    "log-format-sd",
    "log-steps",
    "log-tag",
    "max-keep-alive-queue",
    "max-session-srv-conns",
    "monitor-net",
    "monitor-uri",
    "stats",
    "unique-id-format",
    "unique-id-header",
];

/// Options of the same kind; `redispatch` is how a failed connect is answered here in any case.
const HARMLESS_OPTIONS: &[&str] = &[
    "abortonclose",
    "checkcache",
    "clitcpka",
    "contstats",
    "dontlog-normal",
    "dontlognull",
    "forwardfor",
    "forwarded",
    "http-buffer-request",
    "http-drop-response-trailers",
    "http-ignore-probes",
    "http-keep-alive",
    "http-no-delay",
    "http-pretend-keepalive",
    "http-restrict-req-hdr-names",
    "http-server-close",
    "http-use-htx",
    "http-use-proxy-header",
    "httpclose",
    "httplog",
    "httpslog",
    "idle-close-on-response",
    "independent-streams",
    "log-health-checks",
    "log-separate-errors",
    "logasap",
    "nolinger",
    "originalto",
    "persist",
    "prefer-last-server",
    "redispatch",
    "socket-stats",
    "splice-auto",
    "splice-request",
    "splice-response",
    "srvtcpka",
    "tcp-smart-accept",
    "tcp-smart-connect",
    "tcpka",
    "tcplog",
];

/// Timeouts that mean nothing here: of HTTP, and of states that a spliced connection does not have.
const HARMLESS_TIMEOUTS: &[&str] =
    &["client-fin", "http-keep-alive", "http-request", "queue", "server-fin", "tarpit", "client-hs"];

impl Proxy {
    pub(super) fn new(kind: Kind, at: At, name: String, settings: Settings) -> Self {
        let (binds, rules, servers, notes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { kind, at, name, settings, binds, acls: Acls::default(), rules, names: 0, by_name: false, servers, notes }
    }

    pub(super) fn line(&mut self, line: &Line) {
        let Some((directive, rest)) = line.words.split_first() else { return };
        if line.variable && !HARMLESS.contains(&directive.as_str()) {
            return self.note(line.at, format!("`{}`: environment variables are not carried over", short(&line.words)));
        }
        let settings = &mut self.settings;
        let mut note = |why: String| self.notes.push((line.at, why));
        let first = rest.first().map_or("", String::as_str);
        match directive.as_str() {
            "mode" => settings.other_mode = (first != "tcp").then(|| first.to_owned()),
            "disabled" => settings.disabled = true,
            "enabled" => settings.disabled = false,
            "maxconn" => number(directive, first, &mut settings.max_connections, &mut note),
            "retries" => number(directive, first, &mut settings.retries, &mut note),
            "default_backend" => settings.default_backend = Some((line.at, first.to_owned())),
            "timeout" => settings.timeout(line.at, rest, &mut note),
            "balance" => settings.balance(rest, &mut note),
            "default-server" => settings.default_server.read(rest, &mut note),
            "option" => settings.option(rest, &mut note),
            "no" if first == "option" => settings.no_option(rest, &mut note),
            "no" if HARMLESS.contains(&first) => {}
            "http-check" => settings.checks.http_check(rest, &mut note),
            "tcp-request" => self.tcp_request(line.at, rest),
            "bind" => match bind::read(rest, &mut note) {
                Ok(bind) => self.binds.push(bind),
                Err(why) => note(format!("bind {why}")),
            },
            "acl" => self.acls.define(rest, &mut note),
            "use_backend" => self.use_backend(line.at, rest),
            "server" => match server::read(line.at, rest, &settings.default_server, &mut note) {
                Ok(server) => self.servers.push(server),
                Err(why) => note(format!("server {first}: {why}")),
            },
            other if HARMLESS.contains(&other) => {}
            _ => note(format!("`{}`: not carried over", short(&line.words))),
        }
    }

    fn note(&mut self, at: At, why: String) {
        self.notes.push((at, why));
    }

    fn use_backend(&mut self, at: At, words: &[String]) {
        let Some((backend, condition)) = words.split_first() else { return };
        self.by_name |= backend.contains("ssl_sni") || self.acls.is_about_names(condition);
        if backend.contains("%[") {
            return self.note(at, format!("use_backend {backend}: a map or an expression chooses the backend"));
        }
        if self.names > MAX_NAMES {
            return self.note(at, format!("use_backend {backend}: behind more than {MAX_NAMES} names"));
        }
        let taken = self.acls.condition(condition, &mut |why| self.notes.push((at, why)));
        self.names += taken.names.len();
        for why in &taken.left_out {
            self.notes.push((at, format!("use_backend {backend}: {why}")));
        }
        self.rules.push(Rule { at, backend: backend.clone(), taken });
    }

    /// Waiting for the ClientHello is what a listener does; other rules are named.
    fn tcp_request(&mut self, at: At, words: &[String]) {
        let mut note = |why| self.notes.push((at, why));
        match words {
            [what, delay] if what == "inspect-delay" => {
                time("inspect-delay", delay, &mut self.settings.inspect_delay, &mut note);
            }
            [what, action, condition @ ..] if what == "content" && action == "accept" => {
                let taken = self.acls.condition(condition, &mut |_| {});
                if !taken.tls && !taken.all || !taken.left_out.is_empty() || !taken.names.is_empty() {
                    note(format!("`tcp-request {}`: not carried over", short(words)));
                }
            }
            // A listener that reads TLS refuses everything else by itself.
            [what, action, condition @ ..]
                if what == "content" && action == "reject" && self.acls.is_not_tls(condition) => {}
            words => note(format!("`tcp-request {}`: not carried over", short(words))),
        }
    }
}

impl Settings {
    fn timeout(&mut self, at: At, words: &[String], note: &mut impl FnMut(String)) {
        let [which, value, ..] = words else { return note("a timeout without a time".to_owned()) };
        match which.as_str() {
            "client" => time(which, value, &mut self.client, note),
            "tunnel" => time(which, value, &mut self.tunnel, note),
            "connect" => time(which, value, &mut self.connect, note),
            "check" => time(which, value, &mut self.checks.timeout, note),
            "server" => {
                let mut server = None;
                time(which, value, &mut server, note);
                self.server = server.map(|time| (at, time)).or(self.server);
            }
            other if HARMLESS_TIMEOUTS.contains(&other) => {}
            other => note(format!("timeout {other}: not carried over")),
        }
    }

    fn balance(&mut self, words: &[String], note: &mut impl FnMut(String)) {
        let how = words.first().map_or("", String::as_str);
        self.balance = Some(match how {
            "roundrobin" | "static-rr" => Balance::RoundRobin,
            "leastconn" => Balance::LeastConnections,
            "source" => Balance::SourceHash,
            other => {
                note(format!("balance {other}: there is round_robin instead; least_connections, source_hash too"));
                Balance::RoundRobin
            }
        });
    }

    fn option(&mut self, words: &[String], note: &mut impl FnMut(String)) {
        match words {
            [option, ..] if option == "allbackups" => self.all_backups = true,
            [option, ..] if HARMLESS_OPTIONS.contains(&option.as_str()) => {}
            words => self.checks.option(words, note),
        }
    }

    /// `no option ...`.
    fn no_option(&mut self, words: &[String], note: &mut impl FnMut(String)) {
        match words.get(1).map_or("", String::as_str) {
            "allbackups" => self.all_backups = false,
            option if HARMLESS_OPTIONS.contains(&option) => {}
            option if self.checks.no_option(option) => {}
            option => note(format!("no option {option}: not carried over")),
        }
    }
}
