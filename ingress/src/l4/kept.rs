//! Listening sockets that outlive the daemon: systemd keeps them (`FDSTORE=1`, sd_notify(3)) and gives them to the next one
//! (`LISTEN_FDS`, sd_listen_fds(3)). Who connects in between waits in a socket's backlog and is refused by nobody. Sockets of a
//! socket unit come the same way.
//!
//! What a socket is for is read from the socket; its name only serves to take it out of the store again.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt};
use sd_notify::NotifyState;
use socket2::Socket;

use super::socket::Binding;

/// Sockets that came with the start and that no listener has taken yet.
#[derive(Debug, Default)]
pub struct Kept(Vec<KeptSocket>);

#[derive(Debug)]
struct KeptSocket {
    binding: Binding,
    /// As systemd gave it; not ours where a socket unit chose it.
    name: String,
    socket: TcpListener,
}

impl Kept {
    /// Takes what systemd passed to this process. Call it once, before anything else opens descriptors.
    pub fn claim() -> Self {
        let passed = match sd_notify::listen_fds_with_names() {
            Ok(passed) => passed,
            Err(error) => {
                tracing::warn!(%error, "cannot take the sockets that systemd passed: listeners open their own");
                return Self::default();
            }
        };
        // SAFETY: by LISTEN_PID, these descriptors were opened for this process, and nobody else here owns them.
        let sockets = passed.map(|(fd, name)| (unsafe { OwnedFd::from_raw_fd(fd) }, name));
        Self(sockets.filter_map(|(fd, name)| KeptSocket::of(fd, name)).collect())
    }

    /// All sockets that listen as `binding` says.
    pub(super) fn take(&mut self, binding: &Binding) -> Vec<TcpListener> {
        self.0.extract_if(.., |kept| kept.binding == *binding).map(|kept| kept.socket).collect()
    }

    /// Closes what no listener wants, so that no client waits in the backlog of a socket on which nobody accepts.
    pub(super) fn drop_unwanted(&mut self) {
        for KeptSocket { binding, name, socket } in self.0.drain(..) {
            drop(socket);
            let address = binding.address;
            if name == self::name(&binding) {
                tracing::info!(%address, "a socket of the earlier daemon is not wanted any more");
                forget(&binding);
            } else {
                tracing::warn!(%address, name, "systemd listens there and no listener of the configuration does: clients wait in vain");
            }
        }
    }
}

impl KeptSocket {
    fn of(fd: OwnedFd, name: String) -> Option<Self> {
        match Self::read(fd, name) {
            Ok(kept) => Some(kept),
            Err(error) => {
                tracing::warn!(%error, "systemd passed something that is not a listening TCP socket");
                None
            }
        }
    }

    fn read(fd: OwnedFd, name: String) -> io::Result<Self> {
        if !getsockopt(&fd, sockopt::AcceptConn)? {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let socket = Socket::from(fd);
        let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        let device = socket.device()?.map(|name| String::from_utf8_lossy(&name).into_owned());
        socket.set_nonblocking(true)?;
        // What `socket::listen` gives its own.
        socket.set_out_of_band_inline(true)?;
        socket.set_tcp_nodelay(true)?;
        Ok(Self { binding: Binding { address, device }, name, socket: socket.into() })
    }
}

/// Asks systemd to keep `sockets`. Without systemd, or where the unit keeps none, nothing comes of it.
pub(super) fn keep(binding: &Binding, sockets: &[TcpListener]) {
    // A port of the kernel's choice is another one the next time.
    if sockets.is_empty() || binding.address.port() == 0 {
        return;
    }
    let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let name = name(binding);
    if let Err(error) = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(&name)], &fds) {
        tracing::warn!(%error, "systemd does not keep our sockets: a restart refuses connections for a moment");
    }
}

/// Asks systemd to close what it keeps for `binding`.
pub(super) fn forget(binding: &Binding) {
    let name = name(binding);
    if let Err(error) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)]) {
        tracing::warn!(%error, "systemd may still keep a socket on which nobody accepts");
    }
}

/// `203.0.113.10_443@eth0`: printable, without the colons that separate names, and another for each binding.
fn name(binding: &Binding) -> String {
    let Binding { address, device } = binding;
    format!("{address}@{}", device.as_deref().unwrap_or_default()).replace(':', "_")
}

/// Each of `count` workers accepts on a socket of its own; where fewer were kept, some share one.
pub(super) fn spread(sockets: Vec<TcpListener>, count: usize) -> io::Result<Vec<TcpListener>> {
    let shared = sockets.iter().cycle().take(count.saturating_sub(sockets.len()));
    let shared = shared.map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?;
    Ok(sockets.into_iter().chain(shared).collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    fn binding(address: &str) -> Binding {
        Binding { address: address.parse().expect("test address"), device: None }
    }

    #[test]
    fn names_differ_by_address_and_device_and_have_no_colon() {
        let plain = binding("[2001:db8::1]:443");
        let on_device = Binding { device: Some("eth0".to_owned()), ..plain.clone() };
        assert_eq!(name(&plain), "[2001_db8__1]_443@");
        assert_eq!(name(&on_device), "[2001_db8__1]_443@eth0");
    }

    #[test]
    fn a_socket_is_known_by_what_it_listens_to() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        // SAFETY: the descriptor was just given up.
        let fd = unsafe { OwnedFd::from_raw_fd(listener.into_raw_fd()) };
        let mut kept = Kept(KeptSocket::of(fd, "whatever".to_owned()).into_iter().collect());
        assert!(kept.take(&binding("127.0.0.1:1")).is_empty());
        let taken = kept.take(&Binding { address, device: None });
        assert_eq!(taken.len(), 1);
        assert!(kept.take(&Binding { address, device: None }).is_empty());
        let spread = spread(taken, 3).expect("copies");
        assert!(spread.iter().all(|socket| socket.local_addr().is_ok_and(|a| a == address)));
        assert_eq!(spread.len(), 3);
    }

    #[test]
    fn what_does_not_listen_is_not_taken() {
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert!(KeptSocket::of(stream.into(), "x".to_owned()).is_none());
    }
}
