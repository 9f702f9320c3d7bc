//! What has to hold of both legs before a connection can be handed off, whenever that is.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use ingress_ebpf::connection::WindowScales;
use ingress_ebpf::flow::SynSeen;

use super::{Handoff, Wire, failed};
use crate::dataplane::repair::{self, Info, Numbers};
use crate::dataplane::{Flows, Leg, Paths, Server, Way};
use crate::l4::connect::{Prepared, can_meet};
use crate::l4::outcome::RelayReason;
use crate::l4::segments::Segments;

/// Both legs at the moment of the handoff.
pub(super) struct Legs {
    pub(super) client: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) source: SocketAddr,
    pub(super) backend: SocketAddr,
    pub(super) client_numbers: Numbers,
    pub(super) backend_numbers: Numbers,
    /// Bytes that the backend has room for.
    pub(super) backend_takes: usize,
    pub(super) scale: WindowScales,
    pub(super) ways: Ways,
    pub(super) notes: Notes,
}

/// Where packets leave.
#[derive(Clone, Copy)]
pub(super) struct Ways {
    pub(super) to_backend: Way,
    pub(super) to_client: Way,
}

/// What the programs noted of both handshakes. Newer ones push notes out, so who hands off later keeps them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notes {
    client: SynSeen,
    backend: SynSeen,
}

impl Legs {
    /// Of a connection on which nothing was written to the backend yet.
    pub(super) fn prove(flows: &Arc<Flows>, segments: &Segments, request: &Handoff) -> Result<Self, RelayReason> {
        let Wire { client, local } = request.wire;
        let backend = request.info.backend_address;
        if !can_meet(client, backend) {
            return Err(RelayReason::Family);
        }
        let Some(prepared) = &request.backend.prepared else {
            return Err(RelayReason::Ports);
        };
        let (client_fd, backend_fd) = (request.client.as_raw_fd(), request.backend.stream.as_raw_fd());
        let source = request.backend.source;
        let client_syn = flows.handshake(client, local);
        let backend_syn = flows.handshake(backend, source);
        let to_client = Leg { socket: client_fd, ours: local, theirs: client, server: Server::We };
        let to_backend = Leg { socket: backend_fd, ours: source, theirs: backend, server: Server::They };
        let ways = with_paths(|paths| {
            let now = Instant::now();
            let to_client = flows.way(paths, &to_client, client_syn.as_ref(), now)?;
            let to_backend = flows.way(paths, &to_backend, backend_syn.as_ref(), now)?;
            Ok(Ways { to_backend, to_client })
        })?;
        let (client_syn, backend_syn) = client_syn.zip(backend_syn).ok_or(RelayReason::Unseen)?;

        let backend_info = repair::info(backend_fd).map_err(failed("TCP_INFO of the backend"))?;
        segments.heard(backend.ip(), backend_info.send_mss, prepared.client.receive_mss);
        check(&prepared.client, &backend_info)?;
        let backend_takes = match backend_info.send_window {
            // A kernel that does not say.
            0 => usize::MAX,
            window => window as usize,
        };
        let client_numbers = match client_syn.numbers() {
            Some((write, start)) => Numbers { write, read: start.wrapping_add(request.client_read as u32) },
            None => repair::numbers(client_fd).map_err(failed("numbers of the client"))?,
        };
        let backend_numbers = match backend_syn.numbers() {
            Some((write, read)) => Numbers { write, read },
            None => repair::numbers(backend_fd).map_err(failed("numbers of the backend"))?,
        };
        let scale = scales(prepared, &backend_info);
        let notes = Notes { client: client_syn, backend: backend_syn };
        Ok(Self { client, local, source, backend, client_numbers, backend_numbers, backend_takes, scale, ways, notes })
    }
}

impl Notes {
    /// The ways of legs whose handshakes these are of, if the sockets' packets still leave as they did then.
    pub(super) fn ways(&self, flows: &Flows, to_client: &Leg, to_backend: &Leg) -> Result<Ways, RelayReason> {
        with_paths(|paths| {
            let now = Instant::now();
            let to_client = flows.way_as_before(paths, to_client, &self.client, now)?;
            let to_backend = flows.way_as_before(paths, to_backend, &self.backend, now)?;
            Ok(Ways { to_backend, to_client })
        })
    }
}

/// Lends the worker's netlink socket.
fn with_paths<T>(ask: impl FnOnce(&mut Paths) -> Result<T, RelayReason>) -> Result<T, RelayReason> {
    PATHS.with_borrow_mut(|paths| {
        if paths.is_none() {
            *paths = Some(Paths::open().map_err(failed("netlink"))?);
        }
        ask(paths.as_mut().ok_or(RelayReason::Error)?)
    })
}

/// As both handshakes agreed.
pub(super) fn scales(prepared: &Prepared, backend: &Info) -> WindowScales {
    WindowScales {
        client: prepared.client.peer_scale,
        to_client: prepared.client.own_scale,
        backend: backend.peer_scale,
        to_backend: backend.own_scale,
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

thread_local! {
    /// One netlink socket a worker.
    static PATHS: RefCell<Option<Paths>> = const { RefCell::new(None) };
}
