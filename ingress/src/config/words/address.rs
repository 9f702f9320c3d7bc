//! Where to listen and where to connect: addresses, networks, host names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::{Backend, Bind, HostName, Ip, Network, Pattern};
use crate::config::problems::quoted;
use crate::config::{BackendAddress, BackendConfig};
use crate::route::{Sni, SniPattern};

impl Bind {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let no_address = word.strip_prefix(':').or_else(|| word.strip_prefix("*:"));
        if let Some(port) = no_address.filter(|port| !port.contains(':')) {
            let port = parse_port(port)?;
            return Ok(Self(vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]));
        }
        if let Ok(address) = word.parse() {
            return Ok(Self(vec![address]));
        }
        let wanted = "write 203.0.113.10:443, [2001:db8::1]:443, or :443 for all addresses";
        Err(match word.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => format!("{word} has no port; write {word}:443"),
            Ok(IpAddr::V6(_)) => format!("{word} has no port; write [{word}]:443"),
            Err(_) if word.parse::<u16>().is_ok() => format!("{word} is only a port; write :{word} for all addresses"),
            Err(_) => format!("{} is not an address to bind; {wanted}", quoted(word)),
        })
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => one.fmt(f),
            [] => Ok(()),
            [first, ..] => write!(f, ":{}", first.port()),
        }
    }
}

impl Backend {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        if let Ok(address) = word.parse::<SocketAddr>() {
            if address.ip().is_unspecified() || address.ip().is_multicast() {
                return Err(format!("{word} is no address that a backend can have"));
            }
            if address.port() == 0 {
                return Err(format!("{word}: port 0 cannot be connected to"));
            }
            return Ok(Self(BackendAddress::Socket(address)));
        }
        let missing_port = |host: &str| format!("{} has no port; write {host}:443", quoted(word));
        match word.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => return Err(missing_port(word)),
            Ok(IpAddr::V6(_)) => return Err(missing_port(&format!("[{word}]"))),
            Err(_) => {}
        }
        let Some((host, port)) = word.rsplit_once(':') else { return Err(missing_port(word)) };
        let host = parse_host(host)?;
        match parse_port(port)? {
            0 => Err(format!("{word}: port 0 cannot be connected to")),
            port => Ok(Self(BackendAddress::Dns { host: host.to_string(), port })),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Dns { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl BackendConfig {
    /// From `address:port` or `name:port`, as in the file. The error says what is wrong with it.
    pub fn parse(address: &str, weight: u32) -> Result<Self, String> {
        let Backend(address) = Backend::parse(address)?;
        Ok(Self { name: address.to_string(), address, weight })
    }
}

impl Network {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        if let Ok(address) = word.parse::<IpAddr>() {
            return Ok(Self(address.into()));
        }
        let network: IpNet =
            word.parse().map_err(|_| format!("{} is not a network; write 10.0.0.0/8", quoted(word)))?;
        if network != network.trunc() {
            return Err(format!("{word} has bits set behind its prefix; did you mean {}?", network.trunc()));
        }
        Ok(Self(network))
    }
}

impl Pattern {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        if word.strip_prefix("*.").unwrap_or(word).contains('*') {
            return Err(format!("{}: a star stands for the whole first label only, as in *.example.com", quoted(word)));
        }
        if word.parse::<IpAddr>().is_ok() {
            return Err(format!("{word} is an address; clients send host names only as SNI (RFC 6066 section 3)"));
        }
        if let Some((host, port)) = word.rsplit_once(':')
            && port.parse::<u16>().is_ok()
        {
            return Err(format!("{} has a port; write {host}, the port belongs to the listener", quoted(word)));
        }
        if !word.is_ascii() {
            return Err(format!("{} is not ASCII; write the name as clients send it (xn--...)", quoted(word)));
        }
        SniPattern::parse(word).map(Self).map_err(|error| error.to_string())
    }
}

impl Ip {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        word.parse().map(Self).map_err(|_| format!("{} is not an IP address", quoted(word)))
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl HostName {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        parse_host(word).map(Self)
    }
}

fn parse_port(word: &str) -> Result<u16, String> {
    word.parse::<u16>().map_err(|_| format!("{} is not a port (0 to 65535)", quoted(word)))
}

/// A host name that cannot be mistaken for an address: the last label is not all digits (RFC 3696 section 2).
fn parse_host(word: &str) -> Result<Sni, String> {
    let name = Sni::parse(word).map_err(|error| error.to_string())?;
    match name.as_str().rsplit('.').next() {
        Some(last) if last.bytes().all(|b| b.is_ascii_digit()) => {
            Err(format!("{} is neither an address nor a host name", quoted(word)))
        }
        Some(_) | None => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_without_address_means_both_families() {
        assert_eq!(
            Bind::parse(":443").map(|b| b.0),
            Ok(vec!["[::]:443".parse().expect("v6"), "0.0.0.0:443".parse().expect("v4")])
        );
        assert_eq!(Bind::parse("443"), Err("443 is only a port; write :443 for all addresses".into()));
        assert_eq!(Bind::parse("10.0.0.1"), Err("10.0.0.1 has no port; write 10.0.0.1:443".into()));
        assert_eq!(Bind::parse("::1"), Err("::1 has no port; write [::1]:443".into()));
        for bad in ["", "example.com:443", ":99999", "10.0.0.1:x", ":"] {
            assert!(Bind::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn backends_have_an_address_or_a_name_and_a_port() {
        for good in ["10.0.0.3:8443", "[2001:db8::3]:8443", "app.internal:8443", "localhost:1"] {
            assert_eq!(Backend::parse(good).map(|b| b.to_string()), Ok(good.to_owned()));
        }
        for bad in ["10.0.0.3", "2001:db8::3", "app.internal", "10.0.0.300:1", "0.0.0.0:80", "10.0.0.3:0", "a:0", ":80"]
        {
            assert!(Backend::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn patterns_have_one_star_in_front() {
        assert!(Pattern::parse("*.example.com").is_ok());
        for bad in ["*", "*.*.example.com", "a.*.example.com", "app*.example.com", "10.0.0.1", "a.example:443", "ä.de"]
        {
            assert!(Pattern::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn networks_have_no_bits_behind_their_prefix() {
        assert_eq!(Network::parse("10.1.2.3").map(|n| n.to_string()), Ok("10.1.2.3/32".into()));
        assert_eq!(
            Network::parse("10.0.0.1/8"),
            Err("10.0.0.1/8 has bits set behind its prefix; did you mean 10.0.0.0/8?".into())
        );
    }
}
