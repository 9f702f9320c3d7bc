//! One table of packets, judged by the XDP program, by tc ingress and by the function that both are made of.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ingress_ebpf::admission::{
    Bytes, DEVICE_PRIVATE, DEVICE_PUBLIC, DEVICE_XDP, POLICY_DENY, POLICY_PRIVATE_PORTS, Pace, Plain, Policy, Tables,
    judge,
};
use ingress_ebpf::flow::{Address, mapped};
use ingress_ebpf::header::{ACK, FIN, SYN};
use ingress_ebpf::verdict::Verdict;

use super::frame::{FROM_THEM, TO_US, with_ip_options};
use super::rig::{Rig, flagged, packet, rig};
use crate::config::{AdmissionConfig, ConnectionRate, Networks};
use crate::dataplane::xdp::Rung;

const CLIENT: &str = "203.0.113.9:50000";
const DENIED: &str = "198.51.100.9:50000";
const LISTENER: &str = "192.0.2.1:443";
const PRIVATE: &str = "192.0.2.1:9876";
const OTHER: &str = "192.0.2.1:22";
const CLIENT6: &str = "[2001:db8:1::9]:50000";
const DENIED6: &str = "[2001:db8:bad::9]:50000";
const LISTENER6: &str = "[2001:db8::1]:443";
const PRIVATE6: &str = "[2001:db8::1]:9876";
const OTHER6: &str = "[2001:db8::1]:22";

const TCP: u8 = 6;
const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

pub(super) fn rules() -> AdmissionConfig {
    let denied = ["198.51.100.0/24", "2001:db8:bad::/48", "10.0.0.0/8"];
    AdmissionConfig {
        private_ports: BTreeSet::from([9876]),
        deny: Networks::new(denied.iter().map(|network| network.parse().expect("a network"))),
        new_connections_per_source: None,
    }
}

type Row = (&'static str, Vec<u8>, Option<Verdict>);

fn table() -> Vec<Row> {
    let row = |what, bytes, verdict| (what, bytes, verdict);
    let v4 = |from, to, flags| flagged(flags, packet(from, to, 7, 8, b"0123456789")).bytes();
    let cut = |bytes: Vec<u8>, len: usize| {
        let mut bytes = bytes[..len].to_vec();
        bytes[16..18].copy_from_slice(&(len as u16 - 14).to_be_bytes());
        bytes
    };
    let with = |mut bytes: Vec<u8>, at: usize, value: u8| {
        bytes[at] = value;
        bytes
    };
    let udp = |mut bytes: Vec<u8>| {
        bytes[23] = UDP;
        bytes
    };
    let fragment = |mut bytes: Vec<u8>, flags: u8, offset: u8| {
        (bytes[20], bytes[21]) = (flags, offset);
        bytes
    };
    vec![
        row("data to a listener", v4(CLIENT, LISTENER, ACK), None),
        row("a SYN to a listener", v4(CLIENT, LISTENER, SYN), None),
        row("a SYN to another service", v4(CLIENT, OTHER, SYN), None),
        row("a SYN to a private port", v4(CLIENT, PRIVATE, SYN), Some(Verdict::DropPrivatePort)),
        row("an ACK to a private port", v4(CLIENT, PRIVATE, ACK), Some(Verdict::DropPrivatePort)),
        row("nonsense to a private port", v4(CLIENT, PRIVATE, SYN | FIN), Some(Verdict::DropPrivatePort)),
        row("UDP to a private port", udp(v4(CLIENT, PRIVATE, 0)), Some(Verdict::DropPrivatePort)),
        row("UDP to a listener's port", udp(v4(CLIENT, LISTENER, 0)), None),
        row("from a private port's number", v4("203.0.113.9:9876", LISTENER, ACK), None),
        row(
            "IP options, private port",
            with_ip_options(&v4(CLIENT, PRIVATE, SYN), &[1; 40]),
            Some(Verdict::DropPrivatePort),
        ),
        row("IP options, listener", with_ip_options(&v4(CLIENT, LISTENER, SYN), &[1; 40]), None),
        row(
            "a first fragment, private port",
            fragment(v4(CLIENT, PRIVATE, SYN), 0x20, 0),
            Some(Verdict::DropPrivatePort),
        ),
        row("a later fragment", fragment(v4(CLIENT, PRIVATE, SYN), 0, 3), None),
        row(
            "a first fragment without ports",
            fragment(cut(v4(CLIENT, PRIVATE, SYN), 36), 0x20, 0),
            Some(Verdict::DropUnreadable),
        ),
        row(
            "a first fragment without flags",
            fragment(cut(v4(CLIENT, LISTENER, SYN), 42), 0x20, 0),
            Some(Verdict::DropMalformed),
        ),
        row(
            "a priority tag, private port",
            tagged(&v4(CLIENT, PRIVATE, SYN), &[0xe000]),
            Some(Verdict::DropPrivatePort),
        ),
        row(
            "two priority tags, private port",
            tagged(&v4(CLIENT, PRIVATE, SYN), &[0, 0]),
            Some(Verdict::DropPrivatePort),
        ),
        row("three priority tags", tagged(&v4(CLIENT, PRIVATE, SYN), &[0, 0, 0]), Some(Verdict::DropUnreadable)),
        row("VLAN 5, private port", tagged(&v4(CLIENT, PRIVATE, SYN), &[5]), None),
        row("VLAN 5 behind a priority tag", tagged(&v4(CLIENT, PRIVATE, SYN), &[0, 5]), None),
        row("denied, listener", v4(DENIED, LISTENER, SYN), Some(Verdict::DropDenied)),
        row("denied, listener, established", v4(DENIED, LISTENER, ACK), Some(Verdict::DropDenied)),
        row("denied, another service", v4(DENIED, OTHER, SYN), None),
        row("a backend in a denied network", v4("10.0.0.2:8443", "10.0.0.1:20000", ACK), None),
        row("beside the denied network", v4("198.51.101.9:50000", LISTENER, SYN), None),
        row("no flags", v4(CLIENT, LISTENER, 0), Some(Verdict::DropBadFlags)),
        row("SYN and FIN", v4(CLIENT, LISTENER, SYN | FIN), Some(Verdict::DropBadFlags)),
        row("SYN and FIN, another service", v4(CLIENT, OTHER, SYN | FIN), None),
        row("IHL 4", with(v4(CLIENT, OTHER, SYN), 14, 0x44), Some(Verdict::DropMalformed)),
        row("IP version 5", with(v4(CLIENT, OTHER, SYN), 14, 0x55), Some(Verdict::DropMalformed)),
        row("IHL beyond the packet", with(cut(v4(CLIENT, OTHER, SYN), 54), 14, 0x4f), Some(Verdict::DropMalformed)),
        row("total length beyond the frame", with(v4(CLIENT, OTHER, SYN), 16, 1), Some(Verdict::DropMalformed)),
        row("half a TCP header", cut(v4(CLIENT, LISTENER, SYN), 44), Some(Verdict::DropMalformed)),
        row("half a TCP header, another service", cut(v4(CLIENT, OTHER, SYN), 44), None),
        row("data offset 4", with(v4(CLIENT, LISTENER, SYN), 46, 4 << 4), Some(Verdict::DropMalformed)),
        row("data offset beyond the end", with(v4(CLIENT, LISTENER, SYN), 46, 15 << 4), Some(Verdict::DropMalformed)),
        row("ICMP", with(v4(DENIED, LISTENER, 0), 23, 1), None),
        row("ARP", with(v4(DENIED, LISTENER, 0), 13, 6), None),
        row("IPv6 to a listener", v6(CLIENT6, LISTENER6, SYN, &[]), None),
        row("IPv6 to a private port", v6(CLIENT6, PRIVATE6, SYN, &[]), Some(Verdict::DropPrivatePort)),
        row("IPv6 denied", v6(DENIED6, LISTENER6, ACK, &[]), Some(Verdict::DropDenied)),
        row("IPv6 denied, another service", v6(DENIED6, OTHER6, ACK, &[]), None),
        row(
            "IPv6 behind a priority tag",
            tagged(&v6(CLIENT6, PRIVATE6, SYN, &[]), &[0]),
            Some(Verdict::DropPrivatePort),
        ),
        row(
            "IPv6 with extension headers",
            v6(CLIENT6, PRIVATE6, SYN, &[HOP_BY_HOP, DESTINATION_OPTIONS]),
            Some(Verdict::DropPrivatePort),
        ),
        row(
            "IPv6 with extension headers, listener",
            v6(CLIENT6, LISTENER6, SYN, &[HOP_BY_HOP, DESTINATION_OPTIONS]),
            None,
        ),
        row(
            "IPv6 with seven extension headers",
            v6(CLIENT6, LISTENER6, SYN, &[DESTINATION_OPTIONS; 7]),
            Some(Verdict::DropUnreadable),
        ),
        row("IPv6 first fragment", v6(CLIENT6, PRIVATE6, SYN, &[FRAGMENT]), Some(Verdict::DropPrivatePort)),
        row("IPv6 later fragment", with(v6(CLIENT6, PRIVATE6, SYN, &[FRAGMENT]), 57, 8), None),
        row("IPv6 payload beyond the frame", with(v6(CLIENT6, OTHER6, SYN, &[]), 18, 1), Some(Verdict::DropMalformed)),
    ]
}

/// Tags (their control words) behind the Ethernet addresses.
fn tagged(bytes: &[u8], tags: &[u16]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|control| [[0x81, 0], control.to_be_bytes()].concat());
    bytes[..12].iter().copied().chain(tags).chain(bytes[12..].iter().copied()).collect()
}

/// TCP without payload, behind these extension headers of 8 bytes each.
fn v6(from: &str, to: &str, flags: u8, extensions: &[u8]) -> Vec<u8> {
    let parse = |text: &str| match text.parse().expect("a test address") {
        SocketAddr::V6(address) => (address.ip().octets(), address.port().to_be_bytes()),
        SocketAddr::V4(_) => panic!("{text} is IPv6"),
    };
    let ((source, source_port), (destination, destination_port)) = (parse(from), parse(to));
    let mut bytes = [&TO_US[..], &FROM_THEM, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    bytes.extend((20 + 8 * extensions.len() as u16).to_be_bytes());
    bytes.extend([extensions.first().copied().unwrap_or(TCP), 64]);
    bytes.extend(source);
    bytes.extend(destination);
    for next in extensions.iter().skip(1).copied().chain(extensions.last().map(|_| TCP)) {
        bytes.extend([next, 0, 0, 0, 0, 0, 0, 0]);
    }
    bytes.extend(source_port);
    bytes.extend(destination_port);
    bytes.extend([0, 0, 0, 7, 0, 0, 0, 8, 5 << 4, flags, 4, 0, 0, 0, 0, 0]);
    bytes
}

/// The rules without maps.
struct Lists {
    rules: AdmissionConfig,
}

impl Tables for Lists {
    fn is_listener(&self, address: &Address, port: [u8; 2]) -> bool {
        let v6: std::net::Ipv6Addr = "2001:db8::1".parse().expect("a test address");
        (*address == mapped([192, 0, 2, 1]) || *address == v6.octets()) && port == 443u16.to_be_bytes()
    }

    fn is_private_port(&self, port: [u8; 2]) -> bool {
        self.rules.private_ports.contains(&u16::from_be_bytes(port))
    }

    fn is_denied(&self, source: &Address) -> bool {
        self.rules.deny.contains(IpAddr::from(*source))
    }

    fn may_connect(&self, _source: &Address, _pace: &Pace) -> bool {
        true
    }
}

struct Whole<'a>(&'a [u8]);

impl Bytes for Whole<'_> {
    fn size(&self) -> usize {
        self.0.len()
    }

    fn load<T: Plain>(&self, offset: usize, into: &mut T) -> Option<()> {
        let bytes = self.0.get(offset..offset + size_of::<T>())?;
        // SAFETY: a value of a type for which every pattern is valid, of exactly this length.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut *into).cast(), bytes.len()) };
        Some(())
    }

    fn is_of_vlan(&self) -> bool {
        false
    }
}

fn set_up(rig: &mut Rig, rules: &AdmissionConfig, device: u32) {
    rig.admit(rules, device);
    for listener in [LISTENER, LISTENER6] {
        rig.listen(listener);
    }
}

#[test]
fn the_function_judges_the_table() {
    let policy = Policy { flags: POLICY_PRIVATE_PORTS | POLICY_DENY, ..Policy::default() };
    let lists = Lists { rules: rules() };
    for (what, bytes, expected) in table() {
        assert_eq!(judge(&policy, DEVICE_PUBLIC, &Whole(&bytes), &lists), expected, "{what}");
    }
}

#[test]
fn xdp_and_tc_judge_alike() {
    let Some(mut rig) = rig() else { return };
    set_up(&mut rig, &rules(), DEVICE_PUBLIC);
    for (what, bytes, expected) in table() {
        for rung in [Rung::Native, Rung::Generic] {
            assert_eq!(rig.enters_by(rung, &bytes), expected, "{} XDP: {what}", rung.as_str());
        }
        let by_tc = rig.arrives(&bytes).verdict.filter(|verdict| Verdict::ADMISSION.contains(verdict));
        assert_eq!(by_tc, expected, "tc: {what}");
    }
}

#[test]
fn half_an_ip_header_is_malformed() {
    let Some(mut rig) = rig() else { return };
    set_up(&mut rig, &rules(), DEVICE_PUBLIC);
    let whole = flagged(SYN, packet(CLIENT, OTHER, 7, 0, b"")).bytes();
    // tc cannot be asked: BPF_PROG_TEST_RUN refuses such a frame for it.
    assert_eq!(rig.enters(&whole[..24]), Some(Verdict::DropMalformed));
}

#[test]
fn a_packet_in_several_buffers_is_read_all_the_same() {
    let Some(mut rig) = rig() else { return };
    set_up(&mut rig, &rules(), DEVICE_PUBLIC);
    for (to, expected) in [(PRIVATE, Some(Verdict::DropPrivatePort)), (LISTENER, None)] {
        let long = flagged(ACK, packet(CLIENT, to, 7, 8, &[0; 9_000])).bytes();
        assert_eq!(rig.enters(&long), expected, "to {to}");
    }
}

#[test]
fn tc_leaves_a_device_to_its_xdp_program() {
    let Some(mut rig) = rig() else { return };
    set_up(&mut rig, &rules(), DEVICE_PUBLIC | DEVICE_XDP);
    let bytes = flagged(SYN, packet(CLIENT, PRIVATE, 7, 0, b"")).bytes();
    assert_eq!(rig.arrives(&bytes).verdict, Some(Verdict::Miss));
    assert_eq!(rig.enters(&bytes), Some(Verdict::DropPrivatePort));
}

#[test]
fn private_ports_are_guarded_on_public_devices_only() {
    let Some(mut rig) = rig() else { return };
    let private_port = flagged(SYN, packet(CLIENT, PRIVATE, 7, 0, b"")).bytes();
    let denied = flagged(SYN, packet(DENIED, LISTENER, 7, 0, b"")).bytes();
    for (device, on_port, on_denied) in [
        (DEVICE_PUBLIC, Verdict::DropPrivatePort, Verdict::DropDenied),
        (0, Verdict::Miss, Verdict::DropDenied),
        (DEVICE_PRIVATE, Verdict::Miss, Verdict::SynPrepared),
    ] {
        set_up(&mut rig, &rules(), device);
        assert_eq!(rig.arrives(&private_port).verdict, Some(on_port), "device {device}");
        assert_eq!(rig.arrives(&denied).verdict, Some(on_denied), "device {device}");
    }
}

#[test]
fn without_rules_nothing_is_judged() {
    let Some(mut rig) = rig() else { return };
    set_up(&mut rig, &AdmissionConfig::default(), DEVICE_PUBLIC);
    for (what, bytes, _) in table() {
        assert_eq!(rig.enters(&bytes), None, "{what}");
        let verdict = rig.arrives(&bytes).verdict;
        assert!(verdict.is_none_or(|verdict| !Verdict::ADMISSION.contains(&verdict)), "{what}: {verdict:?}");
    }
}

#[test]
fn a_source_gets_its_burst_and_another_is_not_held_up() {
    let Some(mut rig) = rig() else { return };
    let limit = Some(ConnectionRate { rate: 1, burst: 3 });
    set_up(&mut rig, &AdmissionConfig { new_connections_per_source: limit, ..AdmissionConfig::default() }, 0);
    let syn = |from: &str| flagged(SYN, packet(from, LISTENER, 7, 0, b"")).bytes();
    // Each from another port; XDP and tc count together.
    let mut admitted = 0;
    for port in 0..10 {
        let bytes = syn(&format!("203.0.113.77:{}", 40_000 + port));
        let verdict = if port % 2 == 0 { rig.enters(&bytes) } else { rig.arrives(&bytes).verdict };
        if verdict != Some(Verdict::DropSourceRate) {
            admitted += 1;
        }
    }
    assert!((3..=4).contains(&admitted), "{admitted}");
    assert_eq!(rig.enters(&syn("203.0.113.78:40000")), None);
    assert_eq!(rig.enters(&flagged(ACK, packet("203.0.113.77:40000", LISTENER, 7, 0, b"")).bytes()), None);
    assert_eq!(rig.enters(&flagged(SYN, packet("203.0.113.77:40000", OTHER, 7, 0, b"")).bytes()), None);
}
