//! `bind` lines: where a frontend listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A `bind` line in our words.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bind {
    /// As a listener's `bind` takes it.
    pub(super) addresses: Vec<String>,
    pub(super) device: Option<String>,
}

/// Words that may be dropped, with how many values follow: how a socket is tuned, and what belongs to TLS that is terminated
/// (which counts only beside `ssl`).
const HARMLESS: &[(&str, usize)] = &[
    ("backlog", 1),
    ("defer-accept", 0),
    ("id", 1),
    ("level", 1),
    ("name", 1),
    ("nice", 1),
    ("process", 1),
    ("shards", 1),
    ("tcp-ut", 1),
    ("tfo", 0),
    ("thread", 1),
];

/// The words behind `bind`. What is not carried over is told to `note`.
///
/// # Errors
/// Why nothing of the line can be.
pub(super) fn read(words: &[String], note: &mut impl FnMut(String)) -> Result<Bind, String> {
    let (addresses, options) = words.split_first().ok_or("no address")?;
    let (mut bind, mut only_v6) = (Bind::default(), false);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match option.as_str() {
            "ssl" => return Err("TLS ends at HAProxy there (`ssl`): needs TLS termination".to_owned()),
            "interface" => bind.device = options.next().cloned(),
            "v6only" => only_v6 = true,
            "v4v6" => only_v6 = false,
            "accept-proxy" => note("`accept-proxy`: say whose header is believed: accept_proxy_from".to_owned()),
            other => match HARMLESS.iter().find(|(known, _)| *known == other) {
                Some((_, values)) => options.by_ref().take(*values).for_each(drop),
                // Values of words that we do not know would be taken for words: one line says it all.
                None => {
                    note(format!("bind ... {other}: not carried over from this word on"));
                    break;
                }
            },
        }
    }
    for address in addresses.split(',') {
        bind.addresses.push(read_address(address, only_v6)?);
    }
    Ok(bind)
}

/// All IPv4 addresses are `*` or nothing; those of IPv6 take IPv4 too, unless told otherwise.
fn read_address(text: &str, only_v6: bool) -> Result<String, String> {
    let (family, rest) = match text.split_once('@') {
        Some(("ipv4", rest)) => (Some(4), rest),
        Some(("ipv6", rest)) => (Some(6), rest),
        Some((other, _)) => return Err(format!("{text}: only TCP addresses are served, not `{other}@`")),
        None => (None, text),
    };
    if rest.starts_with('/') {
        return Err(format!("{text}: only TCP addresses are served, not Unix sockets"));
    }
    let (host, port) = rest.rsplit_once(':').ok_or_else(|| format!("{text}: no port"))?;
    if port.contains('-') {
        return Err(format!("{text}: a range of ports; write a listener for each"));
    }
    let port: u16 = port.parse().map_err(|_| format!("{text}: {port:?} is no port"))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let address: IpAddr = match (host, family) {
        ("" | "*", Some(6)) => Ipv6Addr::UNSPECIFIED.into(),
        ("" | "*", _) => Ipv4Addr::UNSPECIFIED.into(),
        (host, _) => host.parse().map_err(|_| format!("{text}: not an IP address"))?,
    };
    if address == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !only_v6 {
        return Ok(format!(":{port}"));
    }
    Ok(SocketAddr::new(address, port).to_string())
}

/// Without those that another of them covers: `:443` is all addresses.
pub(super) fn distinct(addresses: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for address in &addresses {
        let all = address.rsplit_once(':').map(|(_, port)| format!(":{port}"));
        let covered = all.is_some_and(|all| all != *address && addresses.contains(&all));
        if !covered && !kept.contains(address) {
            kept.push(address.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::{distinct, read, read_address};

    #[test]
    fn addresses_are_those_that_haproxy_listens_on() {
        let cases = [
            ("*:443", "0.0.0.0:443"),
            (":443", "0.0.0.0:443"),
            ("ipv4@:443", "0.0.0.0:443"),
            ("192.0.2.1:443", "192.0.2.1:443"),
            (":::443", ":443"),
            ("[::]:443", ":443"),
            ("ipv6@:443", ":443"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
            ("2001:db8::1:443", "[2001:db8::1]:443"),
        ];
        for (theirs, ours) in cases {
            assert_eq!(read_address(theirs, false).as_deref(), Ok(ours), "{theirs}");
        }
        assert_eq!(read_address("[::]:443", true).as_deref(), Ok("[::]:443"));
    }

    #[test]
    fn what_is_no_tcp_address_is_refused_with_the_reason() {
        for (address, why) in [
            ("/run/a.sock", "Unix"),
            ("unix@a", "unix@"),
            ("quic4@:443", "quic4@"),
            (":1-9", "range"),
            ("192.0.2.1", "no port"),
            ("a.example.com:443", "not an IP"),
            (":99999", "no port"),
        ] {
            let error = read_address(address, false).expect_err(address);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn options_of_a_bind_are_read_dropped_or_named() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mut notes = Vec::new();
        let line = words(":443,[::]:444 name a interface eth0 accept-proxy v6only odd 7");
        let bind = read(&line, &mut |note| notes.push(note)).expect("a bind");
        assert_eq!(bind.addresses, ["0.0.0.0:443", "[::]:444"]);
        assert_eq!(bind.device.as_deref(), Some("eth0"));
        assert!(notes[0].contains("accept_proxy_from") && notes[1].contains("odd"), "{notes:?}");
        assert!(read(&words(":443 ssl crt a.pem"), &mut |_| {}).is_err());
    }

    #[test]
    fn an_address_that_is_covered_by_all_addresses_goes() {
        let addresses = ["0.0.0.0:443", ":443", "192.0.2.1:80", "192.0.2.1:80"].map(str::to_owned);
        assert_eq!(distinct(addresses.into()), [":443", "192.0.2.1:80"]);
    }
}
