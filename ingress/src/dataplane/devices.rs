//! The network devices of this namespace (RTM_GETLINK, rtnetlink(7)), and which of them can carry the programs.

use std::io;
use std::os::fd::AsRawFd as _;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoPortKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage,
};

use super::dump::dump;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) link: Link,
    /// Why the programs do not belong on it; `None`: they do.
    pub(super) unfit: Option<&'static str>,
    /// VLAN devices stand on it. Drivers may take their tags out of a packet before XDP sees it.
    pub(super) has_vlans: bool,
    /// A bridge whose frames pass the chains for IP before they come to us (br_netfilter): conntrack goes on to see them.
    pub(super) is_tracked: bool,
}

/// What stands before the IP header in a device's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Ethernet,
    /// Nothing: tun, WireGuard.
    Bare,
}

/// The MTU of a device, bytes (netdevice(7), SIOCGIFMTU).
pub(super) fn mtu(index: u32) -> io::Result<u32> {
    let name = nix::net::if_::if_indextoname(index)?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
        *to = *from as libc::c_char;
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM.cloexec(), None)?;
    // SAFETY: the kernel reads the name, which ends with a zero, and writes one int.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: that is what this request writes.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// All of them, in the kernel's order.
pub(super) fn all() -> io::Result<Vec<Device>> {
    let mut devices: Vec<Device> = Vec::new();
    let (mut vlan_parents, mut bridges) = (Vec::new(), Vec::new());
    for answer in dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        let RouteNetlinkMessage::NewLink(link) = answer else { continue };
        vlan_parents.extend(vlan_parent(&link));
        bridges.extend(bridge(&link).map(|_| link.header.index));
        devices.extend(device(&link));
    }
    for device in &mut devices {
        device.has_vlans = vlan_parents.contains(&device.index);
        device.is_tracked |= bridges.contains(&device.index) && all_bridges_are_filtered();
    }
    Ok(devices)
}

/// One of `all`, or a device that stands for its absence.
pub(super) fn named(all: &[Device], name: &str) -> Device {
    let found = all.iter().find(|device| device.name == name).cloned();
    found.unwrap_or_else(|| Device {
        name: name.to_owned(),
        index: 0,
        link: Link::Ethernet,
        unfit: Some("no such device"),
        has_vlans: false,
        is_tracked: false,
    })
}

fn device(message: &LinkMessage) -> Option<Device> {
    let name = message.attributes.iter().find_map(|attribute| {
        let LinkAttribute::IfName(name) = attribute else { return None };
        Some(name.clone())
    })?;
    // A VRF takes nothing from its members: packets come and leave by these.
    let enslaved = message.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Controller(_)))
        && !is(message, &LinkInfo::PortKind(InfoPortKind::Vrf));
    let kind = message.header.link_layer_type;
    let link = if kind == LinkLayerType::None { Link::Bare } else { Link::Ethernet };
    let unfit = if kind == LinkLayerType::Loopback {
        Some("loopback: connections to this host itself are relayed")
    } else if kind != LinkLayerType::Ether && kind != LinkLayerType::None {
        Some("neither an Ethernet device nor one of bare IP packets as tun and WireGuard are")
    } else if is(message, &LinkInfo::Kind(InfoKind::Vrf)) {
        Some("a VRF: the programs belong on its members")
    } else if enslaved {
        Some("part of a bond or bridge: the programs belong on that")
    } else {
        None
    };
    let is_tracked = bridge(message).is_some_and(|options| options.iter().any(calls_ip_chains));
    Some(Device { name, index: message.header.index, link, unfit, has_vlans: false, is_tracked })
}

/// `None`: it is none.
fn bridge(link: &LinkMessage) -> Option<&[InfoBridge]> {
    link.attributes.iter().find_map(|attribute| {
        let LinkAttribute::LinkInfo(infos) = attribute else { return None };
        infos.iter().find_map(|info| {
            let LinkInfo::Data(InfoData::Bridge(options)) = info else { return None };
            Some(&options[..])
        })
    })
}

/// This bridge alone (ip-link(8), `nf_call_iptables`).
fn calls_ip_chains(option: &InfoBridge) -> bool {
    matches!(option, InfoBridge::NfCallIpTables(true) | InfoBridge::NfCallIp6Tables(true))
}

/// All bridges of this namespace. Without br_netfilter there is no such setting.
fn all_bridges_are_filtered() -> bool {
    let is_on = |family: &str| {
        std::fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"))
            .is_ok_and(|value| value.trim() != "0")
    };
    is_on("iptables") || is_on("ip6tables")
}

fn is(message: &LinkMessage, what: &LinkInfo) -> bool {
    message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.contains(what)))
}

/// The device that this one, a VLAN, stands on.
fn vlan_parent(link: &LinkMessage) -> Option<u32> {
    let parent = link.attributes.iter().find_map(|attribute| {
        let LinkAttribute::Link(parent) = attribute else { return None };
        Some(*parent)
    });
    parent.filter(|_| is(link, &LinkInfo::Kind(InfoKind::Vlan)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_and_unfit() {
        let devices = all().expect("a netlink socket");
        let loopback = devices.iter().find(|device| device.name == "lo").expect("every namespace has one");
        assert_eq!(loopback.index, 1);
        assert!(loopback.unfit.is_some());
    }

    #[test]
    fn the_programs_belong_on_the_members_of_a_vrf_but_not_of_a_bridge() {
        let link = |info| {
            let mut link = LinkMessage::default();
            link.header.link_layer_type = LinkLayerType::Ether;
            let infos = LinkAttribute::LinkInfo(vec![info]);
            link.attributes = vec![LinkAttribute::IfName("eth0".into()), LinkAttribute::Controller(7), infos];
            device(&link).expect("it has a name").unfit
        };
        assert_eq!(link(LinkInfo::PortKind(InfoPortKind::Vrf)), None);
        assert!(link(LinkInfo::PortKind(InfoPortKind::Bridge)).is_some_and(|why| why.contains("bridge")));
        assert!(link(LinkInfo::Kind(InfoKind::Vrf)).is_some_and(|why| why.contains("VRF")));
    }

    #[test]
    fn a_vlan_names_its_parent_and_a_veth_does_not() {
        let link = |kind| {
            let mut link = LinkMessage::default();
            link.attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]), LinkAttribute::Link(7)];
            link
        };
        assert_eq!(vlan_parent(&link(InfoKind::Vlan)), Some(7));
        assert_eq!(vlan_parent(&link(InfoKind::Veth)), None);
    }
}
