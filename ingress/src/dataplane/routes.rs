//! News of routes and rules (RTNLGRP_IPV4_ROUTE and its kin, rtnetlink(7)), and what is known of this host's routing as a whole.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use super::rules;

/// Read by every worker, written by the thread that hears the news.
pub(super) struct Routing {
    plain: AtomicBool,
    generation: AtomicU64,
}

impl Routing {
    pub(super) fn new() -> Self {
        let routing = Self { plain: AtomicBool::new(false), generation: AtomicU64::new(0) };
        routing.changed();
        routing
    }

    /// See [`rules::are_plain`].
    pub(super) fn is_plain(&self) -> bool {
        self.plain.load(Ordering::Acquire)
    }

    /// Counts the changes of routes and rules.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn changed(&self) {
        let plain = rules::are_plain().unwrap_or_else(|error| {
            tracing::debug!(%error, "routing rules cannot be read: asking the way of each connection");
            false
        });
        self.plain.store(plain, Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

/// Says that something changed, and not what: a host with a whole table of the internet hears more than anybody could look at.
pub(super) struct RouteNews(Socket);

impl RouteNews {
    /// What happens from now on waits until it is read.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in
            [libc::RTNLGRP_IPV4_ROUTE, libc::RTNLGRP_IPV6_ROUTE, libc::RTNLGRP_IPV4_RULE, libc::RTNLGRP_IPV6_RULE]
        {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Takes all that waits. False: nothing did.
    pub(super) fn take(&self) -> bool {
        let mut any = false;
        // As much as one look may cost; the rest is there at the next.
        for _ in 0..AT_ONCE {
            let mut start = [0; 16];
            match self.0.recv(&mut &mut start[..], 0) {
                Ok(_) => any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: more happened than the socket holds.
                Err(_) => any = true,
            }
        }
        any
    }
}

impl AsFd for RouteNews {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const AT_ONCE: usize = 1_024;
