//! The network devices of this namespace (RTM_GETLINK, rtnetlink(7)), and which of them can carry the programs.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd as _;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoPortKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage,
};

use super::dump::dump;
use super::offloads::{Ethtool, Offloads, request};

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
    /// Its packets may come out of large receive offload ([`Offloads::merges`]), its own or that of a device that it stands on.
    pub(super) merges: bool,
    /// Some device of this namespace gathers TCP segments in lists ([`Offloads::lists`]): this one, or one that this stands on.
    pub(super) has_lists: bool,
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
    let mut request = request(&nix::net::if_::if_indextoname(index)?);
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
    let (mut vlan_parents, mut bridges, mut stands_on) = (Vec::new(), Vec::new(), Vec::new());
    for answer in dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        let RouteNetlinkMessage::NewLink(link) = answer else { continue };
        vlan_parents.extend(vlan_parent(&link));
        bridges.extend(bridge(&link).map(|_| link.header.index));
        stands_on.extend(supports(&link));
        devices.extend(device(&link));
    }
    let offloads = offloads(&devices);
    note_offloads(&mut devices, &offloads, &stands_on);
    for device in &mut devices {
        device.has_vlans = vlan_parents.contains(&device.index);
        device.is_tracked |= bridges.contains(&device.index) && all_bridges_are_filtered();
    }
    Ok(devices)
}

/// By index. A device that cannot be asked has none.
fn offloads(devices: &[Device]) -> HashMap<u32, Offloads> {
    let names = devices.iter().filter_map(|device| Some((device.index, CString::new(device.name.as_str()).ok()?)));
    let names: Vec<(u32, CString)> = names.collect();
    let Some(ethtool) = names.iter().find_map(|(_, name)| Ethtool::open(name).ok()) else { return HashMap::new() };
    names.into_iter().filter_map(|(index, name)| Some((index, ethtool.offloads(&name).ok()?))).collect()
}

/// `stands_on`: pairs as of [`supports`].
fn note_offloads(devices: &mut [Device], offloads: &HashMap<u32, Offloads>, stands_on: &[(u32, u32)]) {
    let has_lists = offloads.values().any(|offloads| offloads.lists);
    for device in devices {
        device.merges = merges(device.index, MOST_NESTED, offloads, stands_on);
        device.has_lists = has_lists;
    }
}

/// The kernel's own limit (`MAX_NEST_DEV`).
const MOST_NESTED: u8 = 8;

/// What stands on others merges nothing itself, whatever it says: a bond has it switched on always, as a leave for its members.
fn merges(device: u32, depth: u8, offloads: &HashMap<u32, Offloads>, stands_on: &[(u32, u32)]) -> bool {
    let mut below = stands_on.iter().filter(|(upper, _)| *upper == device).map(|(_, lower)| *lower).peekable();
    match (below.peek(), depth.checked_sub(1)) {
        (Some(_), Some(depth)) => below.any(|lower| merges(lower, depth, offloads, stands_on)),
        (Some(_), None) => false,
        (None, _) => offloads.get(&device).is_some_and(|offloads| offloads.merges),
    }
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
        merges: false,
        has_lists: false,
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
    Some(Device {
        name,
        index: message.header.index,
        link,
        unfit,
        has_vlans: false,
        is_tracked,
        merges: false,
        has_lists: false,
    })
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

/// Pairs of an upper device and a lower one, by whose packets it lives: a VLAN and its parent, a bond or bridge and a member.
fn supports(link: &LinkMessage) -> impl Iterator<Item = (u32, u32)> {
    let index = link.header.index;
    let controllers = link.attributes.iter().filter_map(move |attribute| {
        let LinkAttribute::Controller(upper) = attribute else { return None };
        Some((*upper, index))
    });
    controllers.chain(vlan_parent(link).map(|lower| (index, lower)))
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
    fn merged_packets_reach_what_stands_on_a_device_and_lists_reach_all() {
        let device = |index| Device { index, ..named(&[], "eth0") };
        let mut devices: Vec<Device> = (1..=5).map(device).collect();
        let offloads = |merges, lists| Offloads { merges, lists };
        // 2, a VLAN, stands on 1, a bond that stands on 3 and 4; 5 by itself.
        let stands_on = [(1, 3), (1, 4), (2, 1)];
        let leave = (1, offloads(true, false));
        let mut seen = |known| {
            note_offloads(&mut devices, &HashMap::from_iter(known), &stands_on);
            devices.iter().map(|device| (device.merges, device.has_lists)).collect::<Vec<_>>()
        };
        assert_eq!(seen(vec![leave]), [(false, false); 5]);
        let merging = seen(vec![leave, (4, offloads(true, false))]);
        assert_eq!(merging, [(true, false), (true, false), (false, false), (true, false), (false, false)]);
        assert_eq!(seen(vec![(5, offloads(false, true))]), [(false, true); 5]);
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
