//! How a section checks its servers, and the pool that its servers become.

use std::time::Duration;

use super::proxy::{Proxy, Settings};
use super::rule::short;
use super::server::{Check, Server};
use super::words::At;
use crate::config::{Balance, HealthConfig, HttpProbe, OnDown, PoolConfig, ProbeConfig};

/// What HAProxy waits from one check to the next, unless told otherwise.
const INTERVAL: Duration = Duration::from_secs(2);
const RISE: u32 = 2;
const FALL: u32 = 3;
/// Statuses that are good unless `http-check expect` says otherwise, in HAProxy as here.
const EXPECT: (u16, u16) = (200, 399);

/// `option httpchk` and its like, `http-check`, `timeout check`.
#[derive(Clone, Debug, Default)]
pub(super) struct Checks {
    kind: Kind,
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    expect: Vec<(u16, u16)>,
    pub(super) timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Tcp,
    Tls,
    Http,
}

impl Checks {
    /// The words behind `option`.
    pub(super) fn option(&mut self, words: &[String], note: &mut impl FnMut(String)) {
        let Some((option, rest)) = words.split_first() else { return };
        match option.as_str() {
            "tcp-check" => self.kind = Kind::Tcp,
            "ssl-hello-chk" => self.kind = Kind::Tls,
            "httpchk" => {
                self.kind = Kind::Http;
                let (method, path, version) = match rest {
                    [] => ("OPTIONS", "/", ""),
                    [path] => ("OPTIONS", path.as_str(), ""),
                    [method, path] => (method.as_str(), path.as_str(), ""),
                    [method, path, version, ..] => (method.as_str(), path.as_str(), version.as_str()),
                };
                self.method = Some(method.to_owned());
                self.path = Some(path.to_owned());
                let host = |line: &str| Some(line.trim().strip_prefix("Host:")?.trim().to_owned());
                if let Some(host) = version.lines().find_map(host) {
                    self.host = Some(host);
                }
            }
            other => note(format!("option {other}: not carried over")),
        }
    }

    /// Whether it was one of these.
    pub(super) fn no_option(&mut self, option: &str) -> bool {
        let known = ["httpchk", "tcp-check", "ssl-hello-chk"].contains(&option);
        if known {
            self.kind = Kind::Tcp;
        }
        known
    }

    /// The words behind `http-check`.
    pub(super) fn http_check(&mut self, words: &[String], note: &mut impl FnMut(String)) {
        match words {
            [what] if what == "disable-on-404" => note("http-check disable-on-404: a 404 is a failed check".to_owned()),
            [what, by, statuses] if what == "expect" && by == "status" => {
                match statuses.split(',').map(read_status).collect() {
                    Some(expect) => self.expect = expect,
                    None => note(format!("http-check expect status {statuses}: not a list of statuses")),
                }
            }
            [what, rest @ ..] if what == "send" => self.send(rest, note),
            words => note(format!("`http-check {}`: not carried over", short(words))),
        }
    }

    fn send(&mut self, words: &[String], note: &mut impl FnMut(String)) {
        let mut rest = words;
        while let Some((word, behind)) = rest.split_first() {
            rest = behind.get(1..).unwrap_or_default();
            let value = behind.first().map_or("", String::as_str);
            match word.as_str() {
                "meth" => self.method = Some(value.to_owned()),
                "uri" => self.path = Some(value.to_owned()),
                "ver" => {}
                "hdr" => {
                    let header = behind.get(1).map_or("", String::as_str);
                    rest = behind.get(2..).unwrap_or_default();
                    if value.eq_ignore_ascii_case("host") {
                        self.host = Some(header.to_owned());
                    } else {
                        note(format!("http-check send hdr {value}: checks send no other header than Host"));
                    }
                }
                other => note(format!("http-check send {other}: not carried over")),
            }
        }
    }

    fn health(&self, server: &Check) -> HealthConfig {
        let server_name = server.server_name.clone();
        let http = || HttpProbe {
            path: self.path.clone().unwrap_or_else(|| "/".to_owned()),
            host: self.host.clone(),
            expect: if self.expect.is_empty() { vec![EXPECT] } else { self.expect.clone() },
        };
        let probe = match (self.kind, server.tls) {
            (Kind::Tcp, false) => ProbeConfig::Tcp,
            (Kind::Tls, _) | (Kind::Tcp, true) => ProbeConfig::Tls { server_name },
            (Kind::Http, false) => ProbeConfig::Http(http()),
            (Kind::Http, true) => ProbeConfig::Https { http: http(), server_name },
        };
        let interval = server.interval.unwrap_or(INTERVAL);
        HealthConfig {
            probe,
            port: server.port,
            interval,
            timeout: self.timeout.unwrap_or(interval).min(interval),
            rise: server.rise.unwrap_or(RISE),
            fall: server.fall.unwrap_or(FALL),
        }
    }
}

/// The pool of a section's servers; `None`: there are none. Where servers differ and a pool is one, the first counts.
pub(super) fn pool(proxy: &Proxy, note: &mut impl FnMut(At, String)) -> Option<PoolConfig> {
    let Settings { checks, connect, retries, balance, all_backups, .. } = &proxy.settings;
    let first = proxy.servers.first()?;
    let checked = proxy.servers.iter().find(|server| server.options.check.on);
    let (backups, servers): (Vec<&Server>, Vec<&Server>) = proxy.servers.iter().partition(|s| s.options.backup);
    for server in &proxy.servers {
        if let Some(what) = difference(server, first, checked) {
            let why = format!("server {}: {what} as the pool's first server has it", server.backend.name);
            note(server.at, why);
        }
    }
    if let ([_, second, ..], false) = (backups.as_slice(), all_backups) {
        note(second.at, "of several backups HAProxy takes the first that is up; here they share".to_owned());
    }
    let configs = |servers: &[&Server]| servers.iter().map(|server| server.backend.clone()).collect::<Vec<_>>();
    // A pool of backups only is as good as one of servers.
    let mut pool = match servers.is_empty() {
        true => PoolConfig::new(configs(&backups), Vec::new()),
        false => PoolConfig::new(configs(&servers), configs(&backups)),
    };
    pool.balance = balance.unwrap_or(Balance::RoundRobin);
    pool.proxy_protocol = first.options.proxy_protocol();
    pool.connect_timeout = connect.unwrap_or(pool.connect_timeout);
    pool.connect_retries = retries.unwrap_or(pool.connect_retries);
    pool.health = checked.map(|server| checks.health(&server.options.check));
    if let (Kind::Http, Some(method), true) = (checks.kind, &checks.method, checked.is_some())
        && method != "GET"
    {
        note(proxy.at, format!("{}: its checks ask with {method}, ours with GET", proxy.name));
    }
    pool.slow_start = first.options.slow_start.unwrap_or(pool.slow_start);
    if first.options.cut_on_down {
        pool.on_down = OnDown::Cut;
    }
    Some(pool)
}

fn difference(server: &Server, first: &Server, checked: Option<&Server>) -> Option<&'static str> {
    let (own, others) = (&server.options, &first.options);
    if own.proxy_protocol() != others.proxy_protocol() {
        Some("the PROXY header is")
    } else if checked.is_some_and(|checked| own.check != checked.options.check) {
        Some("its checks are")
    } else if own.slow_start != others.slow_start || own.cut_on_down != others.cut_on_down {
        Some("what happens when it goes down or comes back is")
    } else {
        None
    }
}

fn read_status(text: &str) -> Option<(u16, u16)> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (low.parse().ok()?, high.parse().ok()?);
    (100 <= low && low <= high && high <= 599).then_some((low, high))
}
