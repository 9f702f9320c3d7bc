//! Which addresses are this host's own: a backend there is local, whatever publishes its port.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::config::BackendAddress;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::providers) struct LocalAddresses {
    pub(in crate::providers) addresses: BTreeSet<IpAddr>,
    /// Host name, short and whole.
    pub(in crate::providers) names: BTreeSet<String>,
}

impl LocalAddresses {
    /// The addresses of all interfaces. None that can be read: nothing is local.
    pub(in crate::providers) fn of_this_host() -> Self {
        let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        });
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = name.trim().to_ascii_lowercase();
        let short = name.split('.').next().unwrap_or_default().to_owned();
        let names = [name, short, "localhost".to_owned()].into_iter().filter(|name| !name.is_empty());
        Self { addresses: addresses.collect(), names: names.collect() }
    }

    pub(in crate::providers) fn has(&self, address: &BackendAddress) -> bool {
        match address {
            BackendAddress::Socket(address) => {
                let ip = address.ip().to_canonical();
                ip.is_loopback() || self.addresses.contains(&ip)
            }
            BackendAddress::Dns { host, .. } => self.names.contains(&host.to_ascii_lowercase()),
        }
    }
}
