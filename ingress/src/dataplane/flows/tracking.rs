//! What the host's connection tracking is told of a connection in the kernel.

use ingress_ebpf::connection::Connection;

use super::Flows;
use super::attaching::Attached;
use crate::dataplane::conntrack::{Leg, legs};

impl Flows {
    /// Before the first packet is spliced: from then on conntrack sees one end only of what comes by a bridge.
    pub(super) fn trust(&self, connection: &Connection) {
        self.conntrack.trust(self.tracked(connection, true));
    }

    /// No packet of the connection will be seen any more, but for those that come by a bridge: their entries go with the connection.
    pub(in crate::dataplane) fn untrack(&self, connection: &Connection) {
        self.conntrack.forget(self.tracked(connection, false));
    }

    /// Its legs whose packets conntrack goes on to see, or those of which it does not.
    fn tracked<'a>(&self, connection: &'a Connection, seen: bool) -> Vec<Leg<'a>> {
        let interfaces = self.interfaces.lock();
        let is_seen = |device| interfaces.iter().any(|attached: &Attached| attached.is_tracked(device));
        legs(connection).into_iter().filter(|(_, device)| is_seen(*device) == seen).map(|(leg, _)| leg).collect()
    }

    /// True if there is a device by which conntrack sees what comes.
    pub(super) fn some_are_tracked(&self) -> bool {
        self.interfaces.lock().iter().any(|attached| attached.device.is_tracked)
    }
}
