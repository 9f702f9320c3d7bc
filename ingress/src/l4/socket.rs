//! Listening sockets: one per worker and address, created together.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Binding {
    pub(super) address: SocketAddr,
    /// `SO_BINDTODEVICE`.
    pub(super) device: Option<String>,
}

/// Binds `count` sockets to one address, among which the kernel spreads the connections. All of them or none.
pub(super) fn listen(binding: &Binding, count: usize) -> io::Result<Vec<TcpListener>> {
    probe(binding)?;
    let mut binding = binding.clone();
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = open(&binding)?;
        socket.set_reuse_port(true)?;
        // Accepted sockets inherit both. Urgent data stays in the stream: the relay carries it as any other byte.
        socket.set_out_of_band_inline(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&binding.address.into())?;
        socket.listen(BACKLOG)?;
        let socket = TcpListener::from(socket);
        // Port 0: what the kernel chose for the first is the port of all.
        binding.address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Fails where another process listens. Sockets that share a port would not notice: a second daemon, started by mistake,
/// would silently take half of the connections.
fn probe(binding: &Binding) -> io::Result<()> {
    if binding.address.port() == 0 {
        return Ok(());
    }
    open(binding)?.bind(&binding.address.into())
}

fn open(binding: &Binding) -> io::Result<Socket> {
    let domain = Domain::for_address(binding.address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    if let Some(device) = &binding.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Connections that wait for `accept`. The kernel caps it at `net.core.somaxconn`, 4096 on Debian.
const BACKLOG: i32 = 4096;
