//! How large a client's segments may be: a client sizes them by our SYN-ACK, long before anybody knows its backend, and what the
//! splice sends on is never cut.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use ingress_ebpf::header::{IPV4_LEN, IPV6_LEN, TCP_LEN};
use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};
use tokio::sync::Notify;

/// What backends themselves have said of the segments that they take, where that is less than a client may send.
///
/// A backend announces what it believes of the path to us. One client behind a narrow path is enough to change that for ten
/// minutes: the router's "packet too big" is passed on to the backend, whose kernel remembers it of our address, so of all our
/// clients. Who calls next should be told.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    /// By backend host, bytes.
    narrow: Mutex<HashMap<IpAddr, u32>>,
    /// There are any. Most hosts never see one.
    any: AtomicBool,
    changed: Notify,
}

impl Segments {
    /// `backend` takes segments of `takes` bytes, from a client who was told that it may send `told`.
    pub(crate) fn heard(&self, backend: IpAddr, takes: u32, told: u32) {
        let too_small = takes < told;
        if !too_small && !self.any.load(Ordering::Relaxed) {
            return;
        }
        // Nobody shall make everybody's segments tiny: connections to that backend are relayed.
        if takes < SMALLEST {
            return;
        }
        let mut narrow = self.narrow.lock();
        let known = narrow.get(&backend).copied();
        // Larger than what was told before: it has forgotten.
        let news = if too_small { known != Some(takes) } else { known.is_some_and(|known| known < takes) };
        if news {
            narrow.insert(backend, takes);
            self.any.store(true, Ordering::Relaxed);
            drop(narrow);
            tracing::debug!(%backend, takes, told, "the segments that a backend takes");
            self.changed.notify_one();
        }
    }

    /// Returns once a backend has said something new.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Keeps what still says more than the paths themselves.
    fn keep(&self, of_paths: &HashMap<IpAddr, Option<u32>>) {
        let mut narrow = self.narrow.lock();
        narrow.retain(|backend, takes| of_paths.get(backend).is_some_and(|path| path.is_none_or(|path| *takes < path)));
        self.any.store(!narrow.is_empty(), Ordering::Relaxed);
    }
}

/// The least that a path over any IP network takes, less the headers of IPv6 (RFC 8200 section 5).
const SMALLEST: u32 = 1_280 - (IPV6_LEN + TCP_LEN) as u32;

/// What is known of the paths to backends, each host asked for once: many backends are few hosts.
#[derive(Debug)]
pub(super) struct Paths<'a> {
    said: &'a Segments,
    /// The MSS that the path's MTU allows; `None`: no path is known.
    of_paths: HashMap<IpAddr, Option<u32>>,
}

impl<'a> Paths<'a> {
    pub(super) fn new(said: &'a Segments) -> Self {
        Self { said, of_paths: HashMap::new() }
    }

    /// The largest MSS that connections towards `backends` can keep on every path (RFC 9293 section 3.7.1: MTU less the
    /// headers). `None`: no path is known.
    pub(super) fn largest_segment(&mut self, backends: impl Iterator<Item = SocketAddr>) -> Option<u32> {
        /// The kernel takes 88 to 32767 (`TCP_MIN_MSS`, `MAX_TCP_WINDOW`).
        const KERNEL_RANGE: (u32, u32) = (88, 32_767);
        let narrow = self.said.narrow.lock();
        let fits = |backend: SocketAddr| {
            let path = *self.of_paths.entry(backend.ip()).or_insert_with(|| path_segment(backend).ok());
            path.into_iter().chain(narrow.get(&backend.ip()).copied()).min()
        };
        backends.filter_map(fits).min().map(|segment| segment.clamp(KERNEL_RANGE.0, KERNEL_RANGE.1))
    }

    /// After all backends were asked about: forgets what others have said, and what is not news any more.
    pub(super) fn done(self) {
        self.said.keep(&self.of_paths);
    }
}

/// What fits into the path to `backend`, as the kernel knows it; asks nobody on the network.
fn path_segment(backend: SocketAddr) -> io::Result<u32> {
    let socket = Socket::new(Domain::for_address(backend), Type::DGRAM.cloexec(), None)?;
    socket.connect(&backend.into())?;
    let (level, option, ip) = match backend {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU, IPV4_LEN),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU, IPV6_LEN),
    };
    let mut mtu: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut mtu).cast(), &raw mut len) };
    if result == 0 { Ok((mtu as u32).saturating_sub((ip + TCP_LEN) as u32)) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKEND: &str = "127.0.0.1:443";

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("test address")
    }

    fn largest(said: &Segments, backends: &[&str]) -> Option<u32> {
        let mut paths = Paths::new(said);
        let largest = paths.largest_segment(backends.iter().map(|backend| address(backend)));
        paths.done();
        largest
    }

    #[test]
    fn a_segment_fits_the_path_and_no_path_is_none() {
        let said = Segments::default();
        // Loopback has 64 KiB: the kernel's own bound is smaller.
        assert_eq!(largest(&said, &[BACKEND]), Some(32_767));
        assert_eq!(largest(&said, &["255.255.255.255:443"]), None, "no path");
    }

    #[test]
    fn a_backend_that_takes_less_is_believed_until_it_takes_more() {
        let (said, backend) = (Segments::default(), address(BACKEND).ip());
        said.heard(backend, 1_260, 1_460);
        assert_eq!(largest(&said, &[BACKEND, "127.0.0.2:443"]), Some(1_260));
        said.heard(backend, 1_260, 1_260);
        assert_eq!(largest(&said, &[BACKEND]), Some(1_260), "the same again");
        said.heard(backend, 1_460, 1_260);
        assert_eq!(largest(&said, &[BACKEND]), Some(1_460), "as far as it says");
        said.heard(backend, 70_000, 1_460);
        assert_eq!(largest(&said, &[BACKEND]), Some(32_767));
        assert!(said.narrow.lock().is_empty(), "more than the path takes is no news");
    }

    #[test]
    fn what_no_network_is_as_narrow_as_does_not_make_everybodys_segments_small() {
        let (said, backend) = (Segments::default(), address(BACKEND).ip());
        said.heard(backend, SMALLEST - 1, 1_460);
        assert_eq!(largest(&said, &[BACKEND]), Some(32_767));
        said.heard(backend, SMALLEST, 1_460);
        assert_eq!(largest(&said, &[BACKEND]), Some(SMALLEST));
    }

    #[test]
    fn backends_that_are_gone_are_forgotten() {
        let said = Segments::default();
        said.heard(address(BACKEND).ip(), 1_260, 1_460);
        assert_eq!(largest(&said, &["127.0.0.2:443"]), Some(32_767));
        assert_eq!(largest(&said, &[BACKEND]), Some(32_767));
        assert!(!said.any.load(Ordering::Relaxed));
    }
}
