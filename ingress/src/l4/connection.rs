//! One connection from accept to its end: limits, opening, route, backend, then the kernel or a relay.
//!
//! Each stage either goes on or ends in one [`Refusal`]. Called by `accept`; runs as one task of one worker.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Plane;
use super::carry::{self, Kept};
use super::client_hello::{INTERNAL_ERROR_ALERT, UNRECOGNIZED_NAME_ALERT};
use super::connect::{self, BackendSocket, Caller};
use super::handoff::{self, Handoff, HandoffOutcome, Wire};
use super::limits::ListenerLimits;
use super::opening::{Expected, Opening};
use super::outcome::{ConnectionInfo, Refusal};
use super::proxy_header::{self, Addresses, Facts};
use crate::balance::{Backend, Pick, Pool};
use crate::config::{DefaultRoute, ListenerConfig, ListenerProtocol, ProxyProtocol};
use crate::metrics::ListenerMetrics;
use crate::route::{ListenerName, RouteName};
use crate::snapshot::Snapshot;

/// The listener as its connections see it.
#[derive(Debug)]
pub(super) struct Entrance {
    pub(super) name: ListenerName,
    /// What clients call; `None`: any address of this host, each connection knows its own.
    pub(super) address: Option<SocketAddr>,
    pub(super) limits: Arc<ListenerLimits>,
    pub(super) metrics: Arc<ListenerMetrics>,
}

/// A connection with its backend connected and nothing sent yet.
struct Ready {
    backend: Arc<Backend>,
    handoff: Handoff,
}

/// The way to a connected backend: the one that answered, and its socket.
struct Reached {
    backend: Arc<Backend>,
    address: SocketAddr,
    socket: BackendSocket,
}

/// Serves one accepted connection until it ends or the kernel has it.
pub(super) async fn serve(plane: Arc<Plane>, entrance: Arc<Entrance>, client: TcpStream, peer: SocketAddr) {
    let begun = Instant::now();
    entrance.metrics.accepted();
    // No ACK of our own for the hello: the backend's reaches the client once the connection is handed off. Accepted sockets do
    // not inherit it. One that is gone already will say so.
    let _ = SockRef::from(&client).set_tcp_quickack(false);
    // Boxed, because a task is as large as its largest stage, and a relay may stand idle for days.
    if let Some(kept) = Box::pin(establish(&plane, &entrance, client, peer)).await {
        carry::carry(&plane, &entrance.metrics, kept, begun).await;
    }
}

/// All that is done once per connection. `None`: refused, or the kernel has it.
async fn establish(plane: &Plane, entrance: &Entrance, client: TcpStream, peer: SocketAddr) -> Option<Kept> {
    let Ready { backend, handoff } = match prepare(plane, entrance, client, peer).await {
        Ok(ready) => ready,
        Err(refusal) => {
            entrance.metrics.refused(refusal);
            tracing::debug!(listener = %entrance.name, %peer, %refusal, "connection refused");
            return None;
        }
    };
    backend.connection_started();
    plane.ends.started(&handoff.info);
    match handoff::handoff(&plane.kernel, &plane.segments, handoff).await {
        HandoffOutcome::Kernel => {
            entrance.metrics.handed_off();
            None
        }
        HandoffOutcome::Relay { reason, handoff } => {
            entrance.metrics.relayed(reason);
            Some(Kept { backend, reason, handoff })
        }
    }
}

/// Everything before the first byte to a backend.
async fn prepare(
    plane: &Plane,
    entrance: &Entrance,
    mut client: TcpStream,
    peer: SocketAddr,
) -> Result<Ready, Refusal> {
    let snapshot = plane.snapshot();
    // Only between a reload and the close of the listener's socket is it not there.
    let listener = snapshot.config.listeners.get(&entrance.name).ok_or(Refusal::Draining)?;
    let mut guards = entrance.limits.admit(snapshot.config.limits.max_connections, listener.max_connections)?;

    let denied = &snapshot.config.admission.deny;
    if denied.contains(peer.ip()) {
        return Err(Refusal::Denied);
    }
    let trusted = listener.accept_proxy_from.iter().any(|network| network.contains(&peer.ip()));
    if !trusted {
        guards.count_source(peer.ip(), listener.max_connections_per_source)?;
    }
    let started = SystemTime::now();
    let expected = Expected {
        proxy_header: trusted,
        client_hello: matches!(listener.protocol, ListenerProtocol::Tls { .. }),
        within: listener.hello_timeout,
    };
    let opening = Opening::read(&client, expected).await?;
    let called = match entrance.address {
        Some(address) => address,
        None => client.local_addr().map_err(|_| Refusal::ClientReset)?,
    };
    let Addresses { source, destination: local } =
        opening.addresses.unwrap_or(Addresses { source: peer, destination: called });
    if trusted {
        if denied.contains(source.ip()) {
            return Err(Refusal::Denied);
        }
        guards.count_source(source.ip(), listener.max_connections_per_source)?;
    }

    let (route, pool) = match destination(&snapshot, &entrance.name, listener, &opening) {
        Ok(destination) => destination,
        Err(refusal) => {
            // Nobody should remember that a name does not exist while it is not known yet.
            let alert = if refusal == Refusal::NoRoutesYet { INTERNAL_ERROR_ALERT } else { UNRECOGNIZED_NAME_ALERT };
            reject(&mut client, alert).await;
            return Err(refusal);
        }
    };
    let we_speak = !opening.payload().is_empty() || pool.config.proxy_protocol != ProxyProtocol::None;
    let reached = reach(plane, pool, Caller { stream: &client, address: peer }, source, we_speak).await?;
    let Opening { hello, passed_on, .. } = &opening;
    let info = ConnectionInfo {
        id: plane.ids.next(),
        listener: entrance.name.clone(),
        client: source,
        local,
        started,
        sni: hello.as_ref().and_then(|hello| hello.sni.clone()),
        alpn: hello.as_ref().and_then(|hello| hello.alpn.clone()),
        route,
        pool: pool.name.clone(),
        backend: reached.backend.name.clone(),
        backend_address: reached.address,
    };
    let facts = Facts {
        authority: info.sni.as_ref().map(|sni| sni.as_str()),
        alpn: info.alpn.as_deref(),
        unique_id: Some(info.id),
        passed_on: passed_on.as_ref(),
    };
    let mut first_flight = proxy_header::for_backend(pool.config.proxy_protocol, source, local, &facts);
    first_flight.extend_from_slice(opening.payload());
    let handoff = Handoff {
        client,
        wire: Wire { client: peer, local: called },
        backend: reached.socket,
        first_flight,
        hello_len: opening.payload().len(),
        client_read: opening.len(),
        policy: pool.config.handoff,
        idle_timeout: listener.idle_timeout,
        info,
        guards,
        notes: None,
    };
    Ok(Ready { backend: reached.backend, handoff })
}

/// The route of the connection's SNI, or the listener's default.
fn destination<'a>(
    snapshot: &'a Snapshot,
    name: &ListenerName,
    listener: &ListenerConfig,
    opening: &Opening,
) -> Result<(Option<RouteName>, &'a Pool), Refusal> {
    let (route, pool) = match &listener.protocol {
        ListenerProtocol::Tcp { pool } => (None, pool),
        ListenerProtocol::Tls { default } => {
            let sni = opening.hello.as_ref().and_then(|hello| hello.sni.as_ref());
            match (sni.and_then(|sni| snapshot.routes.by_sni(name, sni)), default) {
                (Some(target), _) => (Some(target.route.clone()), &target.pool),
                (None, DefaultRoute::Pool(pool)) => (None, pool),
                (None, DefaultRoute::Reject) if !snapshot.awaited.is_empty() => return Err(Refusal::NoRoutesYet),
                (None, DefaultRoute::Reject) if sni.is_some() => return Err(Refusal::UnknownSni),
                (None, DefaultRoute::Reject) => return Err(Refusal::NoSni),
            }
        }
    };
    // A valid configuration names no pool that it does not have.
    let pool = snapshot.pools.get(pool).ok_or(Refusal::NoBackend)?;
    Ok((route, pool))
}

/// Connects to the pool's choice, and after a failure to further ones as often as the pool allows.
async fn reach(
    plane: &Plane,
    pool: &Pool,
    client: Caller<'_>,
    source: SocketAddr,
    we_speak: bool,
) -> Result<Reached, Refusal> {
    let config = &pool.config;
    let mut tried = Vec::new();
    while let Some(Pick { backend, address }) = pool.pick(source.ip(), &tried, Instant::now()) {
        match connect::connect(&plane.kernel, client, address, config, we_speak).await {
            Ok(socket) if pool.still_wants(&backend) => return Ok(Reached { backend, address, socket }),
            Ok(_) => tracing::debug!(pool = %pool.name, backend = backend.name, "not the primary any more"),
            Err(error) => {
                tracing::debug!(pool = %pool.name, backend = backend.name, %address, %error, "connect failed");
                backend.connect_failed();
            }
        }
        tried.push(backend);
        if tried.len() > config.connect_retries as usize {
            return Err(Refusal::ConnectFailed);
        }
    }
    Err(if tried.is_empty() { Refusal::NoBackend } else { Refusal::ConnectFailed })
}

/// Tells a client that nobody here answers to that name, or cannot tell, and waits until it had a chance to read it: closing a socket with
/// unread data would send a reset that overtakes the alert.
async fn reject(client: &mut TcpStream, alert: [u8; 7]) {
    let telling = async {
        client.write_all(&alert).await?;
        client.shutdown().await?;
        tokio::io::copy(&mut client.take(REJECTED_READ), &mut tokio::io::sink()).await
    };
    // A client that is gone, or that does not close, has no more claims.
    let _ = tokio::time::timeout(REJECTED_LINGER, telling).await;
}

/// What a rejected client may still send before it reads the alert: early data, a second flight.
const REJECTED_READ: u64 = 64 * 1024;
const REJECTED_LINGER: Duration = Duration::from_secs(1);
