//! `interfaces` and `admission`, held against the ports that the daemon itself takes.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::decode::{At, Located};
use crate::config::file::{FileAdmission, FileConnectionRate, FileInterface, FileSide, FileXdp};
use crate::config::report::Report;
use crate::config::words::Device;
use crate::config::yaml::Tree;
use crate::config::{
    AdmissionConfig, ConnectionRate, InterfaceConfig, KernelConfig, Networks, Side, XdpChoice, defaults,
};

pub(super) fn convert_interfaces(
    interfaces: BTreeMap<Device, Located<FileInterface>>,
    report: &mut Report<'_>,
) -> BTreeMap<String, InterfaceConfig> {
    let convert = |(name, Located { node, value }): (Device, Located<FileInterface>)| {
        let FileInterface { side, xdp } = value;
        let side = match side {
            FileSide::Public => Side::Public,
            FileSide::Private => {
                report.refuse_key(node, "xdp", "nothing is judged on a `private` interface; remove this key");
                Side::Private
            }
        };
        let xdp = match xdp {
            FileXdp::Auto => XdpChoice::Auto,
            FileXdp::Native => XdpChoice::Native,
            FileXdp::Generic => XdpChoice::Generic,
            FileXdp::Off => XdpChoice::Off,
        };
        (name.0, InterfaceConfig { side, xdp })
    };
    interfaces.into_iter().map(convert).collect()
}

pub(super) fn convert_admission(
    admission: FileAdmission,
    interfaces: &BTreeMap<String, InterfaceConfig>,
    kernel: &KernelConfig,
    report: &mut Report<'_>,
) -> AdmissionConfig {
    let FileAdmission { private_ports, deny, new_connections_per_source } = admission;
    let section = report.tree.child(Tree::ROOT, "admission").unwrap_or(Tree::ROOT);
    let has_public = interfaces.values().any(|interface| interface.side == Side::Public);
    if !private_ports.is_empty() && !has_public {
        let at = report.value_of(section, "private_ports");
        report.error(at, "no interface is public; name one under `interfaces`: `eth0: {side: public}`", None);
    }
    if !kernel.enabled && (!private_ports.is_empty() || new_connections_per_source.is_some()) {
        let message = "kernel.enabled is false: private ports and rates of sources are not guarded";
        report.warning(At::Value(section), message);
    }
    for port in &private_ports {
        check_port(port, kernel, report);
    }
    for network in deny.iter().filter(|network| network.value.0.prefix_len() == 0) {
        report.warning(At::Value(network.node), "nobody of this family may connect any more");
    }
    let denied = Networks::new(deny.into_iter().map(|network| network.value.0));
    if denied.len() > AdmissionConfig::MOST_NETWORKS {
        let at = report.value_of(section, "deny");
        let message = format!("{} networks; {} fit", denied.len(), AdmissionConfig::MOST_NETWORKS);
        report.error(at, message, None);
    }
    let private_ports: BTreeSet<u16> =
        private_ports.into_iter().filter_map(|port| u16::try_from(port.value.0).ok()).collect();
    if private_ports.len() > AdmissionConfig::MOST_PORTS {
        let at = report.value_of(section, "private_ports");
        let message = format!("{} ports; {} fit", private_ports.len(), AdmissionConfig::MOST_PORTS);
        report.error(at, message, None);
    }
    AdmissionConfig {
        private_ports,
        deny: denied,
        new_connections_per_source: new_connections_per_source.map(|limit| {
            let FileConnectionRate { rate, burst } = limit.value;
            ConnectionRate { rate: rate.0, burst: burst.unwrap_or(rate).0 }
        }),
    }
}

/// Replies to what the host itself sends must not be taken for calls to a private port.
fn check_port(port: &Located<crate::config::words::Count<1, 65_535>>, kernel: &KernelConfig, report: &mut Report<'_>) {
    let (first, last) = kernel.port_range;
    let (own_first, own_last) = defaults::HOST_PORT_RANGE;
    let number = port.value.0;
    if (u32::from(first)..=u32::from(last)).contains(&number) {
        let message = format!("{number} is one of kernel.port_range ({first}-{last}), from which backends are called");
        report.error(At::Value(port.node), message, None);
    } else if (u32::from(own_first)..=u32::from(own_last)).contains(&number) {
        let message =
            format!("Linux takes source ports from {own_first}-{own_last}: answers to {number} would be dropped");
        report.warning(At::Value(port.node), message);
    }
}
