//! A set of networks that can be asked for an address in the time of a binary search, however many there are.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Networks of both families; those that lie in another are left out. An IPv4 network has no IPv6 addresses in it, not even
/// mapped ones, and the other way round.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Networks {
    /// In the order of their addresses, without overlap.
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
}

impl Networks {
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match network {
                IpNet::V4(network) => v4.push(network.trunc()),
                IpNet::V6(network) => v6.push(network.trunc()),
            }
        }
        let (mut v4, mut v6) = (Ipv4Net::aggregate(&v4), Ipv6Net::aggregate(&v6));
        v4.sort_unstable();
        v6.sort_unstable();
        Self { v4, v6 }
    }

    /// An IPv4 address that comes mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => contains(&self.v4, address, |network| network.network()..=network.broadcast()),
            IpAddr::V6(address) => contains(&self.v6, address, |network| network.network()..=network.broadcast()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Address and length of each prefix.
    pub fn v4(&self) -> impl Iterator<Item = (Ipv4Addr, u8)> {
        self.v4.iter().map(|network| (network.network(), network.prefix_len()))
    }

    /// As [`Networks::v4`].
    pub fn v6(&self) -> impl Iterator<Item = (Ipv6Addr, u8)> {
        self.v6.iter().map(|network| (network.network(), network.prefix_len()))
    }
}

fn contains<N, A: Ord>(networks: &[N], address: A, range: impl Fn(&N) -> RangeInclusive<A>) -> bool {
    // The last network that does not begin above the address is the only one that can hold it.
    let above = networks.partition_point(|network| *range(network).start() <= address);
    above > 0 && range(&networks[above - 1]).contains(&address)
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.v4).entries(&self.v6).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(words: &[&str]) -> Networks {
        Networks::new(words.iter().map(|word| word.parse::<IpNet>().expect("a network")))
    }

    #[test]
    fn families_do_not_mix() {
        let all_v6 = networks(&["::/0"]);
        assert!(all_v6.contains("2001:db8::1".parse().expect("an address")));
        for v4 in ["192.0.2.1", "::ffff:192.0.2.1"] {
            assert!(!all_v6.contains(v4.parse().expect("an address")), "{v4}");
            assert!(networks(&["192.0.2.0/24"]).contains(v4.parse().expect("an address")), "{v4}");
        }
    }

    #[test]
    fn a_network_within_another_is_left_out() {
        assert_eq!(networks(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"]).len(), 1);
        assert!(networks(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn the_set_has_what_any_of_its_networks_has(
            nets in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..20),
            near in any::<prop::sample::Index>(),
            other in any::<u32>(),
        ) {
            let nets: Vec<Ipv4Net> = nets.into_iter()
                .map(|(bits, len)| Ipv4Net::new(Ipv4Addr::from_bits(bits), len).expect("at most 32").trunc())
                .collect();
            let set = Networks::new(nets.iter().copied().map(IpNet::V4));
            let mut asked = vec![Ipv4Addr::from_bits(other)];
            if !nets.is_empty() {
                let net = nets[near.index(nets.len())];
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                asked.extend([first.wrapping_sub(1), first, last, last.wrapping_add(1)].map(Ipv4Addr::from_bits));
            }
            for address in asked {
                let expected = nets.iter().any(|net| net.contains(&address));
                prop_assert_eq!(set.contains(address.into()), expected, "{}", address);
            }
        }
    }
}
