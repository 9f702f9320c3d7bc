//! The mesh: what this node is called, and where it is reached.

use super::registration::is_public;
use super::{BoundAt, convert_bind};
use crate::config::PeersConfig;
use crate::config::decode::{At, Located};
use crate::config::file::FilePeers;
use crate::config::report::Report;

pub(super) fn convert_peers(
    peers: Located<FilePeers>,
    binds: &mut Vec<BoundAt>,
    report: &mut Report<'_>,
) -> Option<PeersConfig> {
    let Located { node, value: FilePeers { node: name, bind, device, address, ack_timeout } } = peers;
    report.refuse_empty(node, "bind", "name an address");
    let device = device.map(|device| device.0);
    let bind = convert_bind("peers", bind, device.as_deref(), binds);
    let bind_at = report.value_of(node, "bind");
    if device.is_none() && bind.iter().any(|address| address.ip().is_unspecified()) {
        let message = "this would listen on every network; write an address of the private one, or name its `device`";
        report.error(bind_at, message, None);
    } else if device.is_none() && bind.iter().any(is_public) {
        report.warning(bind_at, "this is not an address of a private network: peers belong on one");
    }
    let written = address.map(|Located { node, value }| (At::Value(node), value.0));
    let (at, address) = match written {
        Some((at, addresses)) => (at, addresses.into_iter().next()),
        None => (bind_at, bind.first().copied()),
    };
    if let Some(address) = address
        && (address.ip().is_unspecified() || address.port() == 0)
    {
        report.error(at, "no other node can connect to this; write `address: 10.0.0.1:9877`", None);
    }
    Some(PeersConfig { node: name.value.0.to_string(), bind, device, address: address?, ack_timeout: ack_timeout.0 })
}
