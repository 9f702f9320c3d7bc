//! News of routes and rules (RTNLGRP_IPV4_ROUTE and its kin, rtnetlink(7)), and what is known of this host's routing as a whole.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use super::path::has_several_hops;
use super::{dump, rules};

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

    /// Every packet to one destination goes the same way: by the rules ([`rules::are_plain`]), and because no route has several next
    /// hops. Then the way of a handshake is the way of all that follows, and nobody has to ask for it.
    pub(super) fn is_plain(&self) -> bool {
        self.plain.load(Ordering::Acquire)
    }

    /// Counts the changes of routes and rules.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn changed(&self) {
        let plain = rules::are_plain().and_then(|plain| Ok(plain && !may_have_several_hops()?));
        let plain = plain.unwrap_or_else(|error| {
            tracing::debug!(%error, "rules and routes cannot be read: asking the way of each connection");
            false
        });
        self.plain.store(plain, Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

/// Whether some route has several next hops, or there are more routes than anybody should read.
fn may_have_several_hops() -> io::Result<bool> {
    let mut read = 0;
    let mut several = false;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        dump::see(RouteNetlinkMessage::GetRoute(question), |answer| {
            read += 1;
            several |= matches!(&answer, RouteNetlinkMessage::NewRoute(route) if has_several_hops(route));
            if several || read > READ_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
    }
    Ok(several || read > READ_MAX)
}

const READ_MAX: usize = 4_096;

/// Says that something changed, and not what: a host with a whole table of the internet hears more than anybody could look at.
pub(super) struct RouteNews(Socket);

impl RouteNews {
    /// What happens from now on waits until it is read.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in [
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
            libc::RTNLGRP_IPV4_RULE,
            libc::RTNLGRP_IPV6_RULE,
            libc::RTNLGRP_NEXTHOP,
        ] {
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
