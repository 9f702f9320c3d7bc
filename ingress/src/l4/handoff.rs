//! Moves an established connection from its two sockets into the kernel path.
//!
//! Both sockets go on receiving all the while; nothing is frozen. What makes that safe is that the differences between the
//! two legs' numbers never change: if late bytes of the client reach our socket after all, its read position and the end of
//! what we write to the backend move by the same amount.

pub(crate) mod quiet;

mod legs;

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::legs::{Legs, Notes};
use super::connect::{BackendSocket, Prepared};
use super::limits::Guards;
use super::outcome::{ConnectionInfo, RelayReason};
use super::segments::Segments;
use crate::config::HandoffPolicy;
use crate::dataplane::repair::{self, Said};
use crate::dataplane::{Arming, Kernel, Plan};
use crate::flow::Transferred;

/// Everything that belongs to one connection at the moment when its backend is connected.
#[derive(Debug)]
pub(crate) struct Handoff {
    pub(crate) client: TcpStream,
    pub(crate) wire: Wire,
    pub(crate) backend: BackendSocket,
    /// PROXY header and what was read from the client after its own PROXY header. Not yet written.
    pub(crate) first_flight: Vec<u8>,
    /// Bytes of `first_flight`'s tail that came from the client.
    pub(crate) hello_len: usize,
    /// Bytes that were read from the client, its own PROXY header included.
    pub(crate) client_read: usize,
    pub(crate) policy: HandoffPolicy,
    pub(crate) idle_timeout: Duration,
    pub(crate) info: ConnectionInfo,
    pub(crate) guards: Guards,
    /// Of a connection that may be handed off once it is quiet.
    pub(crate) notes: Option<Notes>,
}

/// The addresses in the client's packets, whatever a PROXY header says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    pub(crate) client: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// Who carries the connection from here on.
#[derive(Debug)]
pub(crate) enum HandoffOutcome {
    /// The kernel has it; the dataplane reports its end and drops the guards.
    Kernel,
    Relay {
        reason: RelayReason,
        handoff: Box<Handoff>,
    },
}

pub(crate) async fn handoff(kernel: &Kernel, segments: &Segments, mut request: Handoff) -> HandoffOutcome {
    let reason = match try_handoff(kernel, segments, &mut request) {
        Ok(arming) => match complete(arming, request).await {
            Ok(()) => return HandoffOutcome::Kernel,
            Err(ended) => {
                request = *ended;
                RelayReason::Error
            }
        },
        Err(reason) => reason,
    };
    HandoffOutcome::Relay { reason, handoff: Box::new(request) }
}

/// Proves that the connection can be handed off, installs its entries and takes what the client's socket still holds.
fn try_handoff(kernel: &Kernel, segments: &Segments, request: &mut Handoff) -> Result<Arming, RelayReason> {
    match request.policy {
        HandoffPolicy::Always | HandoffPolicy::RttBelow(_) | HandoffPolicy::WhenIdle(_) => {}
        HandoffPolicy::Never => return Err(RelayReason::Policy),
    }
    let flows = kernel.flows_table().ok_or(RelayReason::KernelOff)?;
    if let (HandoffPolicy::RttBelow(limit), Some(prepared)) = (request.policy, &request.backend.prepared)
        && prepared.client.rtt >= limit
    {
        return Err(RelayReason::Rtt);
    }
    let legs = Legs::prove(flows, segments, request)?;
    if let HandoffPolicy::WhenIdle(_) = request.policy {
        request.notes = Some(legs.notes);
        return Err(RelayReason::WhenIdle);
    }
    if request.first_flight.len() > legs.backend_takes {
        return Err(RelayReason::Window);
    }

    let flight = u32::try_from(request.first_flight.len()).map_err(|_| RelayReason::Window)?;
    let hello = u32::try_from(request.hello_len).map_err(|_| RelayReason::Window)?;
    let first_flight_end = legs.backend_numbers.write.wrapping_add(flight);
    let plan = Plan {
        info: &request.info,
        client: legs.client,
        local: legs.local,
        source: legs.source,
        backend: legs.backend,
        client_read: legs.client_numbers.read,
        client_start: legs.client_numbers.read.wrapping_sub(hello),
        client_write: legs.client_numbers.write,
        backend_read: legs.backend_numbers.read,
        first_flight_end,
        // No acknowledgement reaches this: what the backend says now stays out until it is certain that nothing slipped
        // into our socket before the entries stood.
        min_ack: first_flight_end.wrapping_add(1),
        scale: legs.scale,
        carried: Transferred::default(),
        to_backend: legs.ways.to_backend,
        to_client: legs.ways.to_client,
        idle_timeout: request.idle_timeout,
    };
    let arming = flows.arm(&plan)?;
    match repair::said(request.backend.stream.as_raw_fd()).map_err(failed("state of the backend"))? {
        Said::Nothing => {}
        Said::Something => return Err(RelayReason::ServerFirst),
        Said::End => return Err(RelayReason::HalfClosed),
    }
    let before = request.first_flight.len();
    let drained = drain(&request.client, &mut request.first_flight);
    let late = request.first_flight.len() - before;
    request.hello_len += late;
    request.client_read += late;
    drained?;
    if request.first_flight.len() > legs.backend_takes {
        return Err(RelayReason::Window);
    }
    // Whatever is left now lies beyond a missing segment. The client was told that it arrived (SACK), which would not be
    // true of the backend.
    if repair::holds_out_of_order(request.client.as_raw_fd()).map_err(failed("queues of the client"))? {
        return Err(RelayReason::OutOfOrder);
    }
    let late = u32::try_from(late).map_err(|_| RelayReason::Window)?;
    arming.raise_min_ack(first_flight_end.wrapping_add(late));
    Ok(arming)
}

/// Sends the first flight by the backend's socket and lets both sockets go.
///
/// # Errors
/// The backend did not take it. Nobody knows how much of it arrived, so both ends are reset; the request comes back with
/// its sockets shut, for the books.
async fn complete(arming: Arming, mut request: Handoff) -> Result<(), Box<Handoff>> {
    let sent = timeout(FIRST_FLIGHT_TIMEOUT, request.backend.stream.write_all(&request.first_flight)).await;
    if let Err(error) = sent.map_err(io::Error::from).and_then(|written| written) {
        tracing::debug!(%error, "the backend did not take the first flight");
        drop(arming);
        for stream in [&request.client, &request.backend.stream] {
            let socket = SockRef::from(stream);
            // Both can only fail on a socket that is already dead.
            let _ = socket.set_linger(Some(Duration::ZERO));
            let _ = socket.shutdown(Shutdown::Both);
        }
        request.first_flight.clear();
        request.hello_len = 0;
        return Err(Box::new(request));
    }
    let Handoff { client, backend: BackendSocket { stream, prepared, .. }, first_flight, guards, .. } = request;
    let silent = first_flight.is_empty();
    let (Ok(client), Ok(backend), Some(Prepared { port, .. })) = (client.into_std(), stream.into_std(), prepared)
    else {
        // Neither can happen to a registered socket with a port; if it does, dropping resets both ends.
        return Ok(());
    };
    repair::close_silently(OwnedFd::from(client));
    arming.done(OwnedFd::from(backend), port, Box::new(guards), silent);
    Ok(())
}

/// Reads what the client's socket received before its entry stood.
fn drain(client: &TcpStream, into: &mut Vec<u8>) -> Result<(), RelayReason> {
    loop {
        let mut chunk = [0; 4096];
        // Straight from the socket: tokio's own readiness may lag behind it.
        match nix::sys::socket::recv(client.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(RelayReason::HalfClosed),
            Ok(n) => into.extend_from_slice(&chunk[..n]),
            Err(Errno::EAGAIN) => return Ok(()),
            Err(error) => return Err(failed("draining the client")(error.into())),
        }
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> RelayReason {
    move |error| {
        tracing::debug!(%error, what, "handoff");
        RelayReason::Error
    }
}

const FIRST_FLIGHT_TIMEOUT: Duration = Duration::from_secs(10);
