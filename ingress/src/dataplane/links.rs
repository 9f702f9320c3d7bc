//! Notices network devices that come, change and go (RTNLGRP_LINK, rtnetlink(7)) while the daemon runs, and routes that change.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::flows::Flows;
use super::path::Paths;
use super::routes::RouteNews;

/// How often connections without a device are looked after, and how long a stopping daemon waits for this thread at most.
const ROUND_MS: u16 = 500;

/// How often to look whether our programs still stand where they were put. Nobody tells.
const LOOK: Duration = Duration::from_secs(1);

/// How often connections are led along routes that change, on a host where some change all the time.
struct Pace {
    /// That are left to do.
    rounds: u32,
    next: Instant,
}

impl Pace {
    /// One at once, one for the handoffs that were under way.
    const ROUNDS: u32 = 2;
    /// Between two rounds, at least.
    const PAUSE: Duration = Duration::from_millis(100);
    /// A round costs a question a connection. This part of the time goes by between rounds.
    const SHARE: u32 = 20;

    fn go(&mut self, round: impl FnOnce()) {
        if self.rounds == 0 {
            return;
        }
        let began = Instant::now();
        round();
        self.rounds -= 1;
        self.next = Instant::now() + Self::PAUSE.max(began.elapsed() * Self::SHARE);
    }
}

/// Devices that may be others than before, though they have the same index and name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Renewed {
    /// Those that were removed since the last look.
    Only(HashSet<u32>),
    /// Nobody knows.
    All,
}

impl Renewed {
    pub(super) fn contains(&self, index: u32) -> bool {
        match self {
            Self::Only(removed) => removed.contains(&index),
            Self::All => true,
        }
    }
}

pub(super) struct Links {
    socket: Socket,
    routes: RouteNews,
    paths: Paths,
}

impl Links {
    /// What happens from now on waits until it is read.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(libc::RTNLGRP_LINK)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, routes: RouteNews::open()?, paths: Paths::open()? })
    }

    /// Tells `flows`, from a thread of its own, until that stops.
    pub(super) fn watch(mut self, flows: Arc<Flows>) -> io::Result<()> {
        std::thread::Builder::new().name("links".to_owned()).spawn(move || self.run(&flows))?;
        Ok(())
    }

    fn run(&mut self, flows: &Flows) {
        flows.find_followers(&mut self.paths);
        // Some may have changed while no daemon ran.
        let mut pace = Pace { rounds: 1, next: Instant::now() };
        let mut changed = false;
        let mut looked = Instant::now();
        while !flows.stopping.load(Ordering::Acquire) {
            let pause = pace.next.saturating_duration_since(Instant::now());
            let mut sockets =
                [&self.socket.as_fd(), &self.routes.as_fd()].map(|socket| PollFd::new(*socket, PollFlags::POLLIN));
            let heard = if pause.is_zero() { &mut sockets[..] } else { &mut sockets[..1] };
            let wait = match pause.is_zero() {
                true if pace.rounds > 0 => 0,
                true => ROUND_MS,
                false => pause.as_millis().saturating_add(1).min(ROUND_MS.into()) as u16,
            };
            if let Err(error) = poll(heard, PollTimeout::from(wait))
                && error != nix::errno::Errno::EINTR
            {
                tracing::error!(%error, "waiting for news of network devices");
                std::thread::sleep(Duration::from_millis(ROUND_MS.into()));
            }
            if let Some(renewed) = self.read() {
                flows.devices_changed(&renewed);
                // With its device, an IPv4 route goes down without a word of its own.
                changed = true;
            } else if looked.elapsed() >= LOOK {
                flows.put_back();
                looked = Instant::now();
            }
            flows.rehome(&mut self.paths);
            if pace.next <= Instant::now() {
                changed |= self.routes.take();
                if changed {
                    pace.rounds = Pace::ROUNDS;
                }
                pace.go(|| {
                    if std::mem::take(&mut changed) {
                        flows.routing.changed();
                    }
                    flows.follow_routes(&mut self.paths);
                });
            }
        }
    }

    /// All that waits. `None`: nothing did.
    fn read(&self) -> Option<Renewed> {
        let mut news = None;
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => {
                    if let Renewed::Only(removed) = news.get_or_insert_with(|| Renewed::Only(HashSet::new())) {
                        removed.extend(removed_in(&datagram));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return news,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: more happened than the socket holds, and some of it is lost.
                Err(error) => {
                    tracing::debug!(%error, "news of network devices were lost: looking at all of them");
                    return Some(Renewed::All);
                }
            }
        }
    }
}

/// Indices of the devices that a datagram says are no more.
fn removed_in(datagram: &[u8]) -> Vec<u32> {
    let mut removed = Vec::new();
    let mut rest = datagram;
    while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
        let length = (message.header.length as usize).next_multiple_of(4).clamp(16, rest.len());
        rest = &rest[length..];
        if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) = message.payload {
            removed.push(link.header.index);
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::link::LinkMessage;

    #[test]
    fn only_removed_devices_are_told_from_a_datagram() {
        let message = |index, message: fn(LinkMessage) -> RouteNetlinkMessage| {
            let mut link = LinkMessage::default();
            link.header.index = index;
            let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message(link)));
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            bytes
        };
        let datagram = [
            message(4, RouteNetlinkMessage::NewLink),
            message(7, RouteNetlinkMessage::DelLink),
            message(8, RouteNetlinkMessage::DelLink),
        ]
        .concat();
        assert_eq!(removed_in(&datagram), [7, 8]);
        assert!(removed_in(&datagram[..40]).is_empty());
    }
}
