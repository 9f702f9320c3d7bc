//! Opens the connection to a backend, in a form that can be handed off: a source port of our own, a SYN that the programs
//! prepare, segments no larger than the client takes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use ingress_ebpf::names::{PRIORITY_SYN, PRIORITY_SYN_NO_SACK, PRIORITY_SYN_SEGMENT, PRIORITY_SYN_TWICE};
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use crate::config::{HandoffPolicy, PoolConfig};
use crate::dataplane::repair::{self, Info};
use crate::dataplane::{Flows, Kernel, PortGuard};

/// A connected socket towards a backend.
#[derive(Debug)]
pub(crate) struct BackendSocket {
    pub(crate) stream: TcpStream,
    /// Our own address and port.
    pub(crate) source: SocketAddr,
    /// What a handoff needs; without it the connection is relayed.
    pub(crate) prepared: Option<Prepared>,
}

/// How the socket was made ready for a handoff.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// From our own allocator.
    pub(crate) port: PortGuard,
    /// The client's socket, after which the backend's was modelled.
    pub(crate) client: Info,
}

/// The client's end of the connection that a backend is wanted for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller<'a> {
    pub(crate) stream: &'a TcpStream,
    /// On the wire, whatever a PROXY header says.
    pub(crate) address: SocketAddr,
}

/// A client this far away sends its SYN's twin along, so that the backend's first RTT sample is the client's.
const FAR: Duration = Duration::from_millis(5);
/// Ports that are tried where other sockets stand on them. Each costs two system calls, and those of other programs only once a minute.
const PORT_TRIES: usize = 64;

/// Connects as `config` says. `we_speak`: something will be written as soon as the connection stands.
pub(crate) async fn connect(
    kernel: &Kernel,
    client: Caller<'_>,
    backend: SocketAddr,
    config: &PoolConfig,
    we_speak: bool,
) -> io::Result<BackendSocket> {
    let connecting = async {
        let wanted = match config.handoff {
            HandoffPolicy::Always | HandoffPolicy::RttBelow(_) | HandoffPolicy::WhenIdle(_) => true,
            HandoffPolicy::Never => false,
        };
        match kernel.flows_table() {
            Some(flows) if wanted && can_meet(client.address, backend) => {
                for_handoff(flows, client.stream, backend, we_speak).await
            }
            Some(_) | None => connected(TcpStream::connect(backend).await?, None),
        }
    };
    tokio::time::timeout(config.connect_timeout, connecting)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// True if packets of one end can become packets of the other: both speak the same IP version, and neither address means
/// another host on another link (RFC 4291 section 2.5.6), since a flow's key does not name the link.
pub(crate) fn can_meet(client: SocketAddr, backend: SocketAddr) -> bool {
    match (client.ip(), backend.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(client), IpAddr::V6(backend)) => {
            !client.is_unicast_link_local() && !backend.is_unicast_link_local()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

fn connected(stream: TcpStream, prepared: Option<Prepared>) -> io::Result<BackendSocket> {
    let source = stream.local_addr()?;
    Ok(BackendSocket { stream, source, prepared })
}

async fn for_handoff(
    flows: &Arc<Flows>,
    client: &TcpStream,
    backend: SocketAddr,
    we_speak: bool,
) -> io::Result<BackendSocket> {
    let client = repair::info(client.as_raw_fd())?;
    for _ in 0..PORT_TRIES {
        let Some(port) = flows.take_port(backend) else { break };
        let socket = like(&client, backend)?;
        if we_speak {
            // The handshake's last ACK travels with the first flight (tcp(7), TCP_QUICKACK): one packet less, and the backend
            // is woken once.
            SockRef::from(&socket).set_tcp_quickack(false)?;
        }
        match socket.bind(any(backend, port.port())) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                port.leave();
                continue;
            }
            Err(_) => continue,
        }
        match socket.connect(backend).await {
            Ok(stream) => return connected(stream, Some(Prepared { port, client })),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(error) => return Err(error),
        }
    }
    connected(TcpStream::connect(backend).await?, None)
}

/// A socket whose handshake will agree with the one that the client had.
fn like(client: &Info, backend: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if backend.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let mut request = PRIORITY_SYN | client.send_mss.min(PRIORITY_SYN_SEGMENT);
    if !client.sack {
        request |= PRIORITY_SYN_NO_SACK;
    }
    if client.rtt > FAR {
        request |= PRIORITY_SYN_TWICE;
    }
    let options = SockRef::from(&socket);
    options.set_reuse_address(true)?;
    options.set_priority(request)?;
    Ok(socket)
}

/// This port, on whichever of our addresses the route to `backend` prefers.
fn any(backend: SocketAddr, port: u16) -> SocketAddr {
    match backend {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_family_without_link_local_addresses_can_be_handed_off() {
        let ends = ["192.0.2.1:1", "[2001:db8::1]:1", "[fe80::1]:1"].map(|end| end.parse().expect("test address"));
        let met: Vec<_> = ends.iter().flat_map(|client| ends.map(|backend| can_meet(*client, backend))).collect();
        assert_eq!(met, [true, false, false, false, true, false, false, false, false]);
    }
}
