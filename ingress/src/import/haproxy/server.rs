//! `server` and `default-server` lines: one backend, and how it is spoken to.

use std::time::Duration;

use super::words::At;
use crate::config::{BackendConfig, ProxyProtocol, ProxyTlvs};

/// A backend, and what HAProxy says of each and we of the pool.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) at: At,
    pub(super) backend: BackendConfig,
    pub(super) options: Options,
}

/// The words behind a server's address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) weight: Option<u32>,
    pub(super) backup: bool,
    /// In maintenance from the start.
    disabled: bool,
    /// TLS to the server.
    ssl: bool,
    version: ProxyVersion,
    tlvs: ProxyTlvs,
    pub(super) check: Check,
    pub(super) slow_start: Option<Duration>,
    pub(super) cut_on_down: bool,
}

/// Of the PROXY header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ProxyVersion {
    #[default]
    None,
    V1,
    V2,
}

/// How a server is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) on: bool,
    pub(super) tls: bool,
    pub(super) server_name: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) interval: Option<Duration>,
    pub(super) rise: Option<u32>,
    pub(super) fall: Option<u32>,
}

/// Words that may be dropped, with how many values follow: they say what is so here in any case, or name the server for
/// HAProxy's own use, or belong to TLS and HTTP that are not spoken.
const HARMLESS: &[(&str, usize)] = &[
    ("alpn", 1),
    ("ca-file", 1),
    ("check-send-proxy", 0),
    ("cookie", 1),
    ("enabled", 0),
    ("id", 1),
    ("init-addr", 1),
    ("init-state", 1),
    ("no-check-ssl", 0),
    ("no-ssl", 0),
    ("on-marked-up", 1),
    ("resolve-net", 1),
    ("resolve-opts", 1),
    ("resolve-prefer", 1),
    ("resolvers", 1),
    ("stick", 0),
    ("tcp-ut", 1),
    ("tfo", 0),
    ("verify", 1),
];

/// Words with one value that are named and left behind.
const WITH_VALUE: &[&str] = &[
    "addr",
    "agent-addr",
    "agent-inter",
    "agent-port",
    "agent-send",
    "downinter",
    "error-limit",
    "fastinter",
    "maxconn",
    "maxqueue",
    "minconn",
    "namespace",
    "observe",
    "on-error",
    "socks4",
    "source",
    "track",
];

/// The words behind `server`.
///
/// # Errors
/// Why it cannot be a backend of ours.
pub(super) fn read(
    at: At,
    words: &[String],
    defaults: &Options,
    note: &mut impl FnMut(String),
) -> Result<Server, String> {
    let [name, address, rest @ ..] = words else { return Err("a name and an address were expected".to_owned()) };
    let mut options = defaults.clone();
    options.read(rest, note);
    if options.ssl {
        return Err("TLS to the server (`ssl`): connections are passed on as the client made them".to_owned());
    }
    let mut weight = options.weight.unwrap_or(1);
    if std::mem::take(&mut options.disabled) {
        note("`disabled`: weight 0, so that it takes no connections".to_owned());
        weight = 0;
    }
    let mut backend = BackendConfig::parse(&plain_address(address)?, weight)?;
    backend.name.clone_from(name);
    Ok(Server { at, backend, options })
}

/// `address:port` as we write it.
fn plain_address(text: &str) -> Result<String, String> {
    let rest = match text.split_once('@') {
        Some(("ipv4" | "ipv6", rest)) => rest,
        Some((other, _)) => return Err(format!("{text}: only TCP addresses are served, not `{other}@`")),
        None => text,
    };
    if rest.starts_with('/') {
        return Err(format!("{text}: only TCP addresses are served, not Unix sockets"));
    }
    // What parses as a whole is an IPv6 address only if there can be no port behind its last colon.
    let (host, port) = rest.rsplit_once(':').unwrap_or((rest, ""));
    match port {
        "" => return Err(format!("{text}: no port; HAProxy takes the one on which the client came")),
        port if port.starts_with(['+', '-']) => {
            return Err(format!("{text}: a port that is counted from the client's"));
        }
        _ => {}
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if ["", "*", "0.0.0.0", "::"].contains(&host) {
        return Err(format!("{text}: the address to which the client came"));
    }
    Ok(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

impl Options {
    /// Adds the words of a `server` or `default-server` line; later ones count.
    pub(super) fn read(&mut self, words: &[String], note: &mut impl FnMut(String)) {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().map_or("", String::as_str);
            match word.as_str() {
                "check" => self.check.on = true,
                "no-check" => self.check.on = false,
                "check-ssl" => self.check.tls = true,
                "check-sni" => self.check.server_name = Some(value().to_owned()),
                "backup" => self.backup = true,
                "no-backup" => self.backup = false,
                "disabled" => self.disabled = true,
                "ssl" => self.ssl = true,
                "weight" => number(word, value(), &mut self.weight, note),
                "rise" => number(word, value(), &mut self.check.rise, note),
                "fall" => number(word, value(), &mut self.check.fall, note),
                "port" => number(word, value(), &mut self.check.port, note),
                "inter" => time(word, value(), &mut self.check.interval, note),
                "slowstart" => time(word, value(), &mut self.slow_start, note),
                "send-proxy" => self.version = ProxyVersion::V1,
                "no-send-proxy" | "no-send-proxy-v2" => self.version = ProxyVersion::None,
                "send-proxy-v2" => self.version = ProxyVersion::V2,
                "proxy-v2-options" => self.tlvs(value(), note),
                "on-marked-down" => match value() {
                    "shutdown-sessions" => self.cut_on_down = true,
                    other => note(format!("on-marked-down {other}: not carried over")),
                },
                // Only TLS to the server sends a name; of checks it is `check-sni`.
                "sni" => _ = value(),
                other => {
                    if let Some((_, values)) = HARMLESS.iter().find(|(known, _)| *known == other) {
                        (0..*values).for_each(|_| _ = value());
                    } else if WITH_VALUE.contains(&other) {
                        note(format!("{other} {}: not carried over", value()));
                    } else {
                        // Its values would be taken for words: one line says it all.
                        note(format!("server ... {other}: not carried over from this word on"));
                        return;
                    }
                }
            }
        }
    }

    fn tlvs(&mut self, list: &str, note: &mut impl FnMut(String)) {
        for option in list.split(',') {
            match option {
                "authority" => self.tlvs.authority = true,
                "crc32c" => self.tlvs.crc32c = true,
                "unique-id" => self.tlvs.unique_id = true,
                other => note(format!("proxy-v2-options {other}: TLS does not end here")),
            }
        }
    }

    pub(super) const fn proxy_protocol(&self) -> ProxyProtocol {
        match self.version {
            ProxyVersion::None => ProxyProtocol::None,
            ProxyVersion::V1 => ProxyProtocol::V1,
            ProxyVersion::V2 => ProxyProtocol::V2(self.tlvs),
        }
    }
}

/// A number where one is expected; what is none is told and changes nothing.
pub(super) fn number<T: std::str::FromStr>(
    word: &str,
    value: &str,
    into: &mut Option<T>,
    note: &mut impl FnMut(String),
) {
    match value.parse() {
        Ok(number) => *into = Some(number),
        Err(_) => note(format!("{word} {value}: not a number that can be carried over")),
    }
}

/// Likewise a time.
pub(super) fn time(word: &str, value: &str, into: &mut Option<Duration>, note: &mut impl FnMut(String)) {
    match read_time(value) {
        Some(time) => *into = Some(time),
        None => note(format!("{word} {value}: not a time that can be carried over")),
    }
}

/// `5s`; milliseconds without a unit (manual, section 2.5). Ours are whole milliseconds, so the least is one.
fn read_time(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "us" => number.div_ceil(1_000),
        "" | "ms" => number,
        "s" => number.checked_mul(1_000)?,
        "m" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        "d" => number.checked_mul(86_400_000)?,
        _ => return None,
    };
    Some(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{plain_address, read_time};

    #[test]
    fn times_are_milliseconds_unless_they_say_otherwise() {
        let cases = [("100", 100), ("5s", 5_000), ("1m", 60_000), ("2h", 7_200_000), ("1d", 86_400_000), ("1us", 1)];
        for (text, millis) in cases {
            assert_eq!(read_time(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "5x", "1m30s", "99999999999999999999", "18446744073709551615d"] {
            assert_eq!(read_time(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_of_servers_need_a_port_of_their_own() {
        assert_eq!(plain_address("2001:db8::1:443").as_deref(), Ok("[2001:db8::1]:443"));
        assert_eq!(plain_address("ipv6@[2001:db8::1]:443").as_deref(), Ok("[2001:db8::1]:443"));
        assert_eq!(plain_address("app.example.com:443").as_deref(), Ok("app.example.com:443"));
        for (address, why) in [
            ("10.0.0.1", "no port"),
            ("10.0.0.1:+1", "counted"),
            ("*:443", "client came"),
            ("/run/a.sock", "Unix"),
            ("abns@a:1", "abns@"),
        ] {
            let error = plain_address(address).expect_err(address);
            assert!(error.contains(why), "{error}");
        }
    }
}
