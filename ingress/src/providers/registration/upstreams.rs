//! Where registered backends may be. Whoever registers chooses an address that *this* host connects to, so an address must
//! not reach what only this host can.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::config::{BackendAddress, Config, ProviderSource};
use crate::providers::registry::local::LocalAddresses;

/// The rule at one moment.
#[derive(Clone, Debug)]
pub(super) struct Upstreams {
    allowed: Vec<IpNet>,
    /// Addresses of this host, and the ports on which this daemon listens.
    own: LocalAddresses,
    ports: HashSet<u16>,
}

impl Upstreams {
    pub(super) fn new(allowed: &[IpNet], config: &Config, own: LocalAddresses) -> Self {
        let listeners = config.listeners.values().flat_map(|listener| &listener.bind);
        let admin = config.admin.http.iter().flat_map(|http| &http.bind);
        let apis = config.providers.values().flat_map(|provider| match &provider.source {
            ProviderSource::Registration(api) => api.bind.as_slice(),
            ProviderSource::Registry(_) | ProviderSource::File(_) | ProviderSource::HttpPoll(_) => &[],
        });
        let ports = listeners.chain(admin).chain(apis).map(SocketAddr::port).collect();
        Self { allowed: allowed.to_vec(), own, ports }
    }

    /// # Errors
    /// Why not, as the caller reads it.
    pub(super) fn judge(&self, address: SocketAddr) -> Result<(), String> {
        // An IPv4 address in IPv6 clothes reaches the same host.
        let ip = address.ip().to_canonical();
        if let Some(what) = forbidden(ip) {
            return Err(format!("{ip} is {what}: no backend of others can be there"));
        }
        if !self.allowed.iter().any(|network| network.contains(&ip)) {
            return Err(format!("{ip} is outside the networks that `upstreams` allows"));
        }
        if address.port() == 0 {
            return Err("port 0 cannot be connected to".to_owned());
        }
        let canonical = SocketAddr::new(ip, address.port());
        if self.ports.contains(&address.port()) && self.own.has(&BackendAddress::Socket(canonical)) {
            return Err(format!("{canonical} is this proxy itself"));
        }
        Ok(())
    }
}

/// Refused whatever the configuration allows.
fn forbidden(ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    match ip {
        _ if ip.is_loopback() => Some("a loopback address"),
        _ if ip.is_unspecified() => Some("no address of a host"),
        _ if ip.is_multicast() => Some("a multicast address"),
        _ if METADATA.contains(&ip) => Some("the metadata service of a cloud"),
        // 169.254.169.254 is among them.
        _ if link_local => Some("a link-local address"),
        IpAddr::V4(ip) if ip.octets()[0] == 0 => Some("no address of a host"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Metadata services outside the link-local range: Alibaba Cloud, Azure, AWS over IPv6.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(std::net::Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(std::net::Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(allowed: &str, address: &str) -> Result<(), String> {
        let text = "listeners: {tls: {bind: ':443'}}\nadmin: {http: {bind: '127.0.0.1:8404'}}\n";
        let config = crate::config::parse(text, std::path::Path::new("ingress.yaml")).expect("a configuration");
        let allowed = [allowed.parse().expect("a network")];
        let own = LocalAddresses { addresses: ["10.0.0.2".parse().expect("ip")].into(), names: Default::default() };
        Upstreams::new(&allowed, &config, own).judge(address.parse().expect("an address"))
    }

    #[test]
    fn only_addresses_of_the_allowed_networks_pass() {
        assert_eq!(judged("10.0.0.0/16", "10.0.1.5:8443"), Ok(()));
        let outside = "10.1.0.1 is outside the networks that `upstreams` allows";
        assert_eq!(judged("10.0.0.0/16", "10.1.0.1:8443"), Err(outside.into()));
        assert_eq!(judged("10.0.0.0/16", "[::ffff:10.0.1.5]:8443"), Ok(()));
        assert!(judged("2001:db8::/32", "10.0.1.5:8443").is_err());
        assert_eq!(judged("2001:db8::/32", "[2001:db8::5]:8443"), Ok(()));
    }

    #[test]
    fn what_only_this_host_reaches_is_refused_even_where_everything_is_allowed() {
        for bad in
            ["127.0.0.1:80", "169.254.169.254:80", "0.0.0.0:80", "0.1.2.3:80", "224.0.0.1:80", "255.255.255.255:80"]
        {
            assert!(judged("0.0.0.0/0", bad).is_err(), "{bad} was allowed");
        }
        for bad in ["100.100.100.200:80", "168.63.129.16:80", "10.0.1.5:0", "10.0.0.2:443", "10.0.0.2:8404"] {
            assert!(judged("0.0.0.0/0", bad).is_err(), "{bad} was allowed");
        }
        let mapped = ["[::ffff:127.0.0.1]:80", "[::ffff:169.254.169.254]:80", "[::ffff:10.0.0.2]:443"];
        for bad in mapped {
            assert!(judged("0.0.0.0/0", bad).is_err(), "{bad} was allowed");
        }
        for bad in ["[::1]:80", "[fe80::1]:80", "[ff02::1]:80", "[::]:80", "[fd00:ec2::254]:80"] {
            assert!(judged("::/0", bad).is_err(), "{bad} was allowed");
        }
    }

    #[test]
    fn another_port_of_this_host_may_be_a_backend() {
        assert_eq!(judged("10.0.0.0/16", "10.0.0.2:8443"), Ok(()));
        assert_eq!(judged("10.0.0.0/16", "10.0.0.2:443"), Err("10.0.0.2:443 is this proxy itself".into()));
    }
}
