//! Moves an established connection from its two sockets into the kernel path.
//!
//! Both sockets go on receiving all the while; nothing is frozen. What makes that safe is that the differences between the
//! two legs' numbers never change: if late bytes of the client reach our socket after all, its read position and the end of
//! what we write to the backend move by the same amount.

use std::cell::RefCell;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ingress_ebpf::connection::WindowScales;
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connect::{BackendSocket, Prepared, can_meet};
use super::limits::Guards;
use super::outcome::{ConnectionInfo, RelayReason};
use crate::config::HandoffPolicy;
use crate::dataplane::repair::{self, Info, Numbers, Said};
use crate::dataplane::{Arming, Flows, Kernel, Leg, Paths, Plan, Server, Way};

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

/// Both legs at the moment of the handoff.
struct Legs {
    client: SocketAddr,
    local: SocketAddr,
    source: SocketAddr,
    backend: SocketAddr,
    client_numbers: Numbers,
    backend_numbers: Numbers,
    /// Bytes that the backend has room for.
    backend_takes: usize,
    scale: WindowScales,
    to_backend: Way,
    to_client: Way,
}

pub(crate) async fn handoff(kernel: &Kernel, mut request: Handoff) -> HandoffOutcome {
    let reason = match try_handoff(kernel, &mut request) {
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
fn try_handoff(kernel: &Kernel, request: &mut Handoff) -> Result<Arming, RelayReason> {
    match request.policy {
        HandoffPolicy::Always | HandoffPolicy::RttBelow(_) => {}
        HandoffPolicy::Never => return Err(RelayReason::Policy),
    }
    let flows = kernel.flows_table().ok_or(RelayReason::KernelOff)?;
    if let (HandoffPolicy::RttBelow(limit), Some(prepared)) = (request.policy, &request.backend.prepared)
        && prepared.client.rtt >= limit
    {
        return Err(RelayReason::Rtt);
    }
    let legs = Legs::prove(flows, request)?;

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
        to_backend: legs.to_backend,
        to_client: legs.to_client,
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

impl Legs {
    fn prove(flows: &Arc<Flows>, request: &Handoff) -> Result<Self, RelayReason> {
        let Wire { client, local } = request.wire;
        let backend = request.info.backend_address;
        if !can_meet(client, backend) {
            return Err(RelayReason::Family);
        }
        let Some(Prepared { client: client_info, .. }) = &request.backend.prepared else {
            return Err(RelayReason::Ports);
        };
        let (client_fd, backend_fd) = (request.client.as_raw_fd(), request.backend.stream.as_raw_fd());
        let source = request.backend.source;
        let client_syn = flows.handshake(client, local);
        let backend_syn = flows.handshake(backend, source);
        let to_client = Leg { socket: client_fd, ours: local, theirs: client, server: Server::We };
        let to_backend = Leg { socket: backend_fd, ours: source, theirs: backend, server: Server::They };
        let ways = PATHS.with_borrow_mut(|paths| {
            if paths.is_none() {
                *paths = Some(Paths::open().map_err(failed("netlink"))?);
            }
            let paths = paths.as_mut().ok_or(RelayReason::Error)?;
            let now = Instant::now();
            let to_client = flows.way(paths, &to_client, client_syn.as_ref(), now)?;
            let to_backend = flows.way(paths, &to_backend, backend_syn.as_ref(), now)?;
            Ok((to_client, to_backend))
        });
        let (to_client, to_backend) = ways?;
        let (client_syn, backend_syn) = client_syn.zip(backend_syn).ok_or(RelayReason::Unseen)?;

        let backend_info = repair::info(backend_fd).map_err(failed("TCP_INFO of the backend"))?;
        check(client_info, &backend_info)?;
        let backend_takes = match backend_info.send_window {
            // A kernel that does not say.
            0 => usize::MAX,
            window => window as usize,
        };
        if request.first_flight.len() > backend_takes {
            return Err(RelayReason::Window);
        }
        let client_numbers = match client_syn.numbers() {
            Some((write, start)) => Numbers { write, read: start.wrapping_add(request.client_read as u32) },
            None => repair::numbers(client_fd).map_err(failed("numbers of the client"))?,
        };
        let backend_numbers = match backend_syn.numbers() {
            Some((write, read)) => Numbers { write, read },
            None => repair::numbers(backend_fd).map_err(failed("numbers of the backend"))?,
        };
        let scale = WindowScales {
            client: client_info.peer_scale,
            to_client: client_info.own_scale,
            backend: backend_info.peer_scale,
            to_backend: backend_info.own_scale,
        };
        Ok(Self {
            client,
            local,
            source,
            backend,
            client_numbers,
            backend_numbers,
            backend_takes,
            scale,
            to_backend,
            to_client,
        })
    }
}

/// What the two handshakes agreed on must be one and the same.
fn check(client: &Info, backend: &Info) -> Result<(), RelayReason> {
    if !client.established || !backend.established {
        return Err(RelayReason::HalfClosed);
    }
    if client.timestamps || backend.timestamps || client.sack != backend.sack {
        return Err(RelayReason::Options);
    }
    // What the backend sends fits the client: its SYN said so.
    if client.receive_mss > backend.send_mss {
        return Err(RelayReason::Mtu);
    }
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

thread_local! {
    /// One netlink socket a worker.
    static PATHS: RefCell<Option<Paths>> = const { RefCell::new(None) };
}
