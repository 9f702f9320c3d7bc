//! Which way a connection's packets leave when it is handed off: as its sockets' packets do, as long as spliced ones would find the
//! same way, or can be told it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::time::Instant;

use ingress_ebpf::flow::SynSeen;

use super::Flows;
use crate::dataplane::path::{Hop, Path, Paths, Question, bound_device};
use crate::l4::outcome::RelayReason;

/// One leg of a connection, as our socket sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leg {
    pub(crate) socket: RawFd,
    pub(crate) ours: SocketAddr,
    pub(crate) theirs: SocketAddr,
    /// Whose port does not change from one connection to the next.
    pub(crate) server: Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    We,
    They,
}

/// Where a leg's packets leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) device: u32,
    /// The next hop, where the route has several; `None`: each packet's lookup finds it.
    pub(crate) hop: Option<IpAddr>,
    /// It is the way of any packet with these addresses, so it moves when the route moves.
    pub(crate) follows: bool,
}

impl Leg {
    fn question(&self) -> Question {
        question(self.ours, self.theirs, self.server)
    }
}

/// As any packet of our stack is routed, but for the port that is another one in each connection.
pub(super) fn question(ours: SocketAddr, theirs: SocketAddr, server: Server) -> Question {
    let (source_port, destination_port) = match server {
        Server::We => (ours.port(), 0),
        Server::They => (0, theirs.port()),
    };
    Question { source_port, destination_port, ..Question::plain(ours.ip(), theirs.ip()) }
}

impl Flows {
    /// The way of a leg whose handshake was noted, or why its packets cannot be spliced.
    ///
    /// The note tells by which device our own packet left, after all that routing rules, a socket's device and the firewall had
    /// to say. Spliced packets find their next hop by a lookup of their own, on that device, and without mark or ports. Where rules
    /// look at those, both are asked for: the same next hop, or a relay. Where a route has several next hops, spliced packets are told
    /// which of them is theirs.
    pub(crate) fn way(
        &self,
        paths: &mut Paths,
        leg: &Leg,
        note: Option<&SynSeen>,
        now: Instant,
    ) -> Result<Way, RelayReason> {
        paths.renew(self.routing.generation());
        let Some(note) = note else { return Err(self.why_unseen(paths, leg, RelayReason::Unseen, now)) };
        if note.left_by == 0 {
            return Err(self.why_unseen(paths, leg, RelayReason::Device, now));
        }
        if !self.interfaces.lock().iter().any(|attached| attached.takes_handoffs(note.left_by)) {
            return Err(RelayReason::Device);
        }
        let bound = bound_device(leg.socket).map_err(failed)?;
        if self.routing.is_plain() {
            return Ok(Way { device: note.left_by, hop: None, follows: bound == 0 });
        }
        let any = leg.question();
        let as_sockets = Question { mark: note.mark, device: bound, ..any };
        let exact = Question { source_port: leg.ours.port(), destination_port: leg.theirs.port(), ..as_sockets };
        let listed = paths.ask(Question { listed: true, ..as_sockets }, now).map_err(failed)?;
        if let Path::Several(hops) = listed {
            return one_of(paths, exact, &hops, note.left_by).ok_or(RelayReason::Route);
        }
        let mut stack = paths.ask(as_sockets, now).map_err(failed)?;
        if !leaves_by(&stack, note.left_by) {
            // Several ways, of which the ports choose one.
            stack = paths.ask_anew(exact, now).map_err(failed)?;
        }
        if !leaves_by(&stack, note.left_by) || self.splice(paths, any, note.left_by, now).map_err(failed)? != stack {
            tracing::debug!(?leg, ?note, ?stack, "spliced packets would take another way");
            return Err(RelayReason::Route);
        }
        let follows = bound == 0 && paths.ask(any, now).map_err(failed)? == stack;
        Ok(Way { device: note.left_by, hop: None, follows })
    }

    /// [`Flows::way`] of a leg whose handshake is long past: routes may have moved since the note was taken.
    pub(crate) fn way_as_before(
        &self,
        paths: &mut Paths,
        leg: &Leg,
        note: &SynSeen,
        now: Instant,
    ) -> Result<Way, RelayReason> {
        let way = self.way(paths, leg, Some(note), now)?;
        if way.hop.is_some() {
            // Asked for a moment ago, of this very connection.
            return Ok(way);
        }
        let device = bound_device(leg.socket).map_err(failed)?;
        let as_sockets = Question { mark: note.mark, device, ..leg.question() };
        match leaves_by(&paths.ask(as_sockets, now).map_err(failed)?, way.device) {
            true => Ok(way),
            false => Err(RelayReason::Route),
        }
    }

    /// The next hop of a spliced packet that is sent out by `device`.
    pub(super) fn splice(&self, paths: &mut Paths, any: Question, device: u32, now: Instant) -> io::Result<Path> {
        paths.ask(Question { device, ..Question::plain(any.source, any.destination) }, now)
    }

    /// Why no packet of ours was noted: where it goes, as far as can be said; else `otherwise`.
    fn why_unseen(&self, paths: &mut Paths, leg: &Leg, otherwise: RelayReason, now: Instant) -> RelayReason {
        match paths.ask_anew(leg.question(), now) {
            Ok(Path::Out(hop)) if self.carries(hop.device) => otherwise,
            Ok(Path::Out(_)) => RelayReason::Device,
            Ok(Path::Several(_)) => otherwise,
            Ok(Path::NotForwardable) => RelayReason::Local,
            Err(error) => failed(error),
        }
    }

    /// True if packets that leave by `device` cross our programs.
    pub(super) fn carries(&self, device: u32) -> bool {
        self.interfaces.lock().iter().any(|attached| attached.carries(device))
    }
}

/// The way of a connection whose route has several next hops: that which the kernel has chosen, by a hash of addresses or ports.
/// `None`: which one that is cannot be said.
fn one_of(paths: &mut Paths, exact: Question, hops: &[Hop], left_by: u32) -> Option<Way> {
    let mut chosen = |question| match paths.ask_once(question) {
        Ok(Path::Out(hop)) if hop.device == left_by => Some(hop),
        Ok(Path::Out(_) | Path::Several(_) | Path::NotForwardable) | Err(_) => None,
    };
    let hop = chosen(exact).or_else(|| only_one_by(left_by, hops))?;
    let any = Question { mark: 0, device: 0, ..exact };
    let follows = exact.device == 0 && (exact == any || chosen(any) == Some(hop));
    Some(Way { device: left_by, hop: Some(hop.gateway.unwrap_or(exact.destination)), follows })
}

/// A socket with a device leaves by no other, whichever hop an IPv6 question is answered with, to which a device is a mere wish.
fn only_one_by(device: u32, hops: &[Hop]) -> Option<Hop> {
    let mut by_device = hops.iter().filter(|hop| hop.device == device);
    by_device.next().filter(|_| by_device.next().is_none()).copied()
}

pub(super) fn leaves_by(path: &Path, device: u32) -> bool {
    matches!(path, Path::Out(hop) if hop.device == device)
}

fn failed(error: io::Error) -> RelayReason {
    tracing::debug!(%error, "asking for a route");
    RelayReason::Error
}
