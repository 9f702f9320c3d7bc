//! Listening sockets: one per worker and address, created together.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

use ingress_ebpf::header::{IPV4_LEN, IPV6_LEN, TCP_LEN};
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

/// What the kernel knows of the paths to backends, each host asked for once: many backends are few hosts.
#[derive(Debug, Default)]
pub(super) struct Paths(HashMap<IpAddr, Option<u32>>);

impl Paths {
    /// The largest MSS that connections towards `backends` can keep on every path (RFC 9293 section 3.7.1: MTU less the
    /// headers). `None`: no path is known.
    ///
    /// A client sizes its segments by our SYN-ACK, and a spliced segment is never cut: it must fit the backend's path whole.
    pub(super) fn largest_segment(&mut self, backends: impl Iterator<Item = SocketAddr>) -> Option<u32> {
        /// The kernel takes 88 to 32767 (`TCP_MIN_MSS`, `MAX_TCP_WINDOW`).
        const KERNEL_RANGE: (u32, u32) = (88, 32_767);
        let fits = |backend: SocketAddr| {
            let ip = if backend.is_ipv4() { IPV4_LEN } else { IPV6_LEN };
            let mtu = *self.0.entry(backend.ip()).or_insert_with(|| path_mtu(backend).ok());
            mtu.map(|mtu| mtu.saturating_sub((ip + TCP_LEN) as u32))
        };
        backends.filter_map(fits).min().map(|segment| segment.clamp(KERNEL_RANGE.0, KERNEL_RANGE.1))
    }
}

/// What the kernel knows of the path to `backend`; asks nobody on the network.
fn path_mtu(backend: SocketAddr) -> io::Result<u32> {
    let socket = Socket::new(Domain::for_address(backend), Type::DGRAM.cloexec(), None)?;
    socket.connect(&backend.into())?;
    let (level, option) = match backend {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut mtu: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut mtu).cast(), &raw mut len) };
    if result == 0 { Ok(mtu as u32) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_leaves_room_for_the_headers_of_its_family() {
        let segment =
            |backend: &str| Paths::default().largest_segment(std::iter::once(backend.parse().expect("test address")));
        // Loopback has 64 KiB: the kernel's own bound is smaller.
        assert_eq!(segment("127.0.0.1:443"), Some(32_767));
        assert_eq!(segment("255.255.255.255:443"), None, "no path");
    }
}
