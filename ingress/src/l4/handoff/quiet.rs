//! Hands off a connection that has been relayed: at an instant at which nothing is under way between anybody.
//!
//! Both entries are installed frozen: from then on the programs drop whatever comes for either socket, and whatever either
//! socket says. Then both sockets are looked at. If each has delivered all that it was given and read all that it has
//! acknowledged, nobody waits for anything that only these sockets know, and they can go. A packet that came too late to be
//! seen was not acknowledged on the wire either: its sender sends it again, and the kernel has the connection then.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use tokio::net::TcpStream;

use super::legs::{Notes, Ways, scales};
use super::{Wire, failed};
use crate::dataplane::{Arming, Held, Kernel, Leg, Plan, Server, repair};
use crate::flow::Transferred;
use crate::l4::connect::{BackendSocket, Prepared};
use crate::l4::outcome::{ConnectionInfo, RelayReason};

/// A relay that has been still for a while, and holds no byte.
pub(crate) struct Still<'a> {
    pub(crate) client: &'a TcpStream,
    pub(crate) wire: Wire,
    pub(crate) backend: &'a TcpStream,
    /// Our own address towards the backend.
    pub(crate) source: SocketAddr,
    pub(crate) prepared: &'a Prepared,
    pub(crate) notes: &'a Notes,
    /// Payload that was written to each end so far.
    pub(crate) carried: Transferred,
    pub(crate) idle_timeout: Duration,
    pub(crate) info: &'a ConnectionInfo,
}

/// A connection whose packets are dropped, until it goes on in the kernel or, dropped itself, by its sockets.
pub(crate) struct Frozen(Arming);

/// Why a connection was not frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotNow {
    /// Bytes or acknowledgements are under way, or one end has said its last word.
    Busy,
    /// As at a handoff.
    Reason(RelayReason),
}

/// Freezes the connection if nothing is under way.
pub(crate) fn freeze(kernel: &Kernel, still: &Still<'_>) -> Result<Frozen, NotNow> {
    let flows = kernel.flows_table().ok_or(NotNow::Reason(RelayReason::KernelOff))?;
    // First without harm to anybody.
    all_is_quiet(still)?;
    let backend = still.info.backend_address;
    let (client_fd, backend_fd) = (still.client.as_raw_fd(), still.backend.as_raw_fd());
    let Wire { client, local } = still.wire;
    let to_client = Leg { socket: client_fd, ours: local, theirs: client, server: Server::We };
    let to_backend = Leg { socket: backend_fd, ours: still.source, theirs: backend, server: Server::They };
    let Ways { to_backend, to_client } = still.notes.ways(flows, &to_client, &to_backend)?;
    // Only we read from these sockets and write to them, so these numbers stand.
    let client_numbers = repair::numbers(client_fd).map_err(failed("numbers of the client"))?;
    let backend_numbers = repair::numbers(backend_fd).map_err(failed("numbers of the backend"))?;
    let backend_info = repair::info(backend_fd).map_err(failed("TCP_INFO of the backend"))?;
    let plan = Plan {
        info: still.info,
        client,
        local,
        source: still.source,
        backend,
        client_read: client_numbers.read,
        client_start: client_numbers.read.wrapping_sub(still.carried.to_backend as u32),
        client_write: client_numbers.write,
        backend_read: backend_numbers.read,
        first_flight_end: backend_numbers.write,
        min_ack: backend_numbers.write,
        carried: still.carried,
        scale: scales(still.prepared, &backend_info),
        to_backend,
        to_client,
        idle_timeout: still.idle_timeout,
    };
    let frozen = Frozen(flows.freeze(&plan)?);
    all_is_quiet(still)?;
    Ok(frozen)
}

impl Frozen {
    /// The sockets go, without a word on the wire, and the kernel carries the connection. `told`: bytes that the books have
    /// heard of. `held` is dropped when the connection ends.
    pub(crate) fn go_on(self, client: TcpStream, backend: BackendSocket, told: Transferred, held: Held) {
        let BackendSocket { stream, prepared, .. } = backend;
        let (Ok(client), Ok(backend), Some(Prepared { port, .. })) = (client.into_std(), stream.into_std(), prepared)
        else {
            // Cannot happen to registered sockets with a port; if it does, dropping them resets both ends.
            return;
        };
        repair::close_silently(OwnedFd::from(client));
        self.0.thaw(OwnedFd::from(backend), port, told, held);
    }
}

fn all_is_quiet(still: &Still<'_>) -> Result<(), NotNow> {
    for socket in [still.client, still.backend] {
        if !repair::is_quiet(socket.as_raw_fd()).map_err(failed("queues"))? {
            return Err(NotNow::Busy);
        }
    }
    Ok(())
}

impl From<RelayReason> for NotNow {
    fn from(reason: RelayReason) -> Self {
        Self::Reason(reason)
    }
}
