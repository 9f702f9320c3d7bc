//! Which way a connection's packets leave: as its sockets' packets do, as long as spliced ones would find the same way; and what
//! becomes of that when routes change, or devices go.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use ingress_ebpf::connection::{Connection, Endpoint};
use ingress_ebpf::flow::SynSeen;

use super::Flows;
use crate::dataplane::path::{Hop, Path, Paths, Question, bound_device};
use crate::dataplane::reset::socket_address;
use crate::l4::outcome::{EndReason, RelayReason};

/// How long a connection waits for another device where its own is gone: `wg-quick` and container engines make theirs anew within
/// seconds, and routes come after devices.
const WITHOUT_DEVICE: Duration = Duration::from_secs(30);

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
    /// It is the way of any packet with these addresses, so it moves when the route moves.
    pub(crate) follows: bool,
}

impl Leg {
    fn question(&self) -> Question {
        question(self.ours, self.theirs, self.server)
    }
}

/// As any packet of our stack is routed, but for the port that is another one in each connection.
fn question(ours: SocketAddr, theirs: SocketAddr, server: Server) -> Question {
    let (source_port, destination_port) = match server {
        Server::We => (ours.port(), 0),
        Server::They => (0, theirs.port()),
    };
    Question { source_port, destination_port, ..Question::plain(ours.ip(), theirs.ip()) }
}

/// Both legs of a connection in the kernel, by [`ingress_ebpf::flow::Direction`].
fn questions(connection: &Connection) -> [Question; 2] {
    let question =
        |ours: &Endpoint, theirs: &Endpoint, server| question(socket_address(ours), socket_address(theirs), server);
    [
        question(&connection.source, &connection.backend, Server::They),
        question(&connection.local, &connection.client, Server::We),
    ]
}

impl Flows {
    /// The way of a leg whose handshake was noted, or why its packets cannot be spliced.
    ///
    /// The note tells by which device our own packet left, after all that routing rules, a socket's device and the firewall had
    /// to say. Spliced packets find their next hop by a lookup of their own, on that device, and without mark or ports. Where rules
    /// look at those, both are asked for: the same next hop, or a relay.
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
        if !self.carries(note.left_by) {
            return Err(RelayReason::Device);
        }
        let bound = bound_device(leg.socket).map_err(failed)?;
        if self.routing.is_plain() {
            return Ok(Way { device: note.left_by, follows: bound == 0 });
        }
        let any = leg.question();
        let as_sockets = Question { mark: note.mark, device: bound, ..any };
        let mut stack = paths.ask(as_sockets, now).map_err(failed)?;
        if !leaves_by(stack, note.left_by) {
            // Several ways, of which the ports choose one.
            let exact = Question { source_port: leg.ours.port(), destination_port: leg.theirs.port(), ..as_sockets };
            stack = paths.ask_anew(exact, now).map_err(failed)?;
        }
        if !leaves_by(stack, note.left_by) || self.splice(paths, any, note.left_by, now).map_err(failed)? != stack {
            tracing::debug!(?leg, ?note, ?stack, "spliced packets would take another way");
            return Err(RelayReason::Route);
        }
        let follows = bound == 0 && paths.ask(any, now).map_err(failed)? == stack;
        Ok(Way { device: note.left_by, follows })
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
        let device = bound_device(leg.socket).map_err(failed)?;
        let as_sockets = Question { mark: note.mark, device, ..leg.question() };
        match leaves_by(paths.ask(as_sockets, now).map_err(failed)?, way.device) {
            true => Ok(way),
            false => Err(RelayReason::Route),
        }
    }

    /// The next hop of a spliced packet that is sent out by `device`.
    fn splice(&self, paths: &mut Paths, any: Question, device: u32, now: Instant) -> io::Result<Path> {
        paths.ask(Question { device, ..Question::plain(any.source, any.destination) }, now)
    }

    /// Why no packet of ours was noted: where it goes, as far as can be said; else `otherwise`.
    fn why_unseen(&self, paths: &mut Paths, leg: &Leg, otherwise: RelayReason, now: Instant) -> RelayReason {
        match paths.ask_anew(leg.question(), now) {
            Ok(Path::Out(hop)) if self.carries(hop.device) => otherwise,
            Ok(Path::Out(_)) => RelayReason::Device,
            Ok(Path::NotForwardable) => RelayReason::Local,
            Err(error) => failed(error),
        }
    }

    /// Which of an earlier daemon's connections go where any packet with their addresses goes, and so move with the route. That may
    /// have moved while no daemon ran: then no route leads by their device.
    pub(in crate::dataplane) fn find_followers(&self, paths: &mut Paths) {
        let now = Instant::now();
        paths.renew(self.routing.generation());
        for (index, connection) in self.slots.live() {
            let follows = [0, 1].map(|direction| {
                let (any, device) = (questions(&connection)[direction], connection.ifindex[direction]);
                let mut leads = |question| paths.ask(question, now).is_ok_and(|path| leaves_by(path, device));
                // Over IPv6, a question with a device says nothing about the routes by it.
                leads(any) || any.destination.is_ipv4() && !leads(Question { device, listed: true, ..any })
            });
            if let Some(live) = self.live.lock().get_mut(&index).filter(|live| live.follows.is_none()) {
                live.follows = Some(follows);
            }
        }
    }

    /// Routes or rules have changed: sends connections out by the device to which the route leads now. Those that never went
    /// where their addresses alone lead (the listener has a device; rules look at marks or ports) stay where they are.
    pub(in crate::dataplane) fn follow_routes(&self, paths: &mut Paths) {
        let now = Instant::now();
        paths.renew(self.routing.generation());
        let mut moved = 0;
        for (index, connection) in self.slots.live() {
            let Some(follows) = self.live.lock().get(&index).and_then(|live| live.follows) else { continue };
            for direction in [0, 1].into_iter().filter(|direction| follows[*direction]) {
                let any = questions(&connection)[direction];
                let Ok(path @ Path::Out(Hop { device, .. })) = paths.ask(any, now) else { continue };
                let mut splices = || self.splice(paths, any, device, now).is_ok_and(|spliced| spliced == path);
                if device != connection.ifindex[direction] && self.carries(device) && splices() {
                    self.slots.set_device(index, direction, device);
                    moved += 1;
                }
            }
        }
        if moved > 0 {
            tracing::info!(flows = moved, "routes have changed: connections in the kernel leave by other devices now");
        }
    }

    /// Sends connections whose device is gone out by that which leads to their ends now. Those without one for [`WITHOUT_DEVICE`]
    /// are cut.
    pub(in crate::dataplane) fn rehome(&self, paths: &mut Paths) {
        let mut gone = self.gone.lock();
        if gone.is_empty() {
            return;
        }
        let now = Instant::now();
        paths.renew(self.routing.generation());
        for (index, connection) in self.slots.live() {
            for (direction, any) in questions(&connection).into_iter().enumerate() {
                let Some(since) = gone.get(&connection.ifindex[direction]) else { continue };
                match self.device(paths, any, now) {
                    Some(device) => self.slots.set_device(index, direction, device),
                    None if now.duration_since(*since) > WITHOUT_DEVICE => {
                        self.cut_slot(index, &connection, EndReason::DeviceGone);
                        break;
                    }
                    None => {}
                }
            }
        }
        // Not at once: a handoff may be under way that has asked for its device before.
        gone.retain(|_, since| now.duration_since(*since) <= WITHOUT_DEVICE);
    }

    /// The device by which a packet leaves, if it carries the programs.
    fn device(&self, paths: &mut Paths, any: Question, now: Instant) -> Option<u32> {
        let carried = |path: io::Result<Path>| match path {
            Ok(Path::Out(hop)) if self.carries(hop.device) => Some(hop.device),
            Ok(Path::Out(_) | Path::NotForwardable) | Err(_) => None,
        };
        // The device may be younger than the answer.
        carried(paths.ask(any, now)).or_else(|| carried(paths.ask_anew(any, now)))
    }

    /// True if packets that leave by `device` cross our programs.
    fn carries(&self, device: u32) -> bool {
        self.interfaces.lock().iter().any(|attached| attached.carries(device))
    }
}

fn leaves_by(path: Path, device: u32) -> bool {
    matches!(path, Path::Out(hop) if hop.device == device)
}

fn failed(error: io::Error) -> RelayReason {
    tracing::debug!(%error, "asking for a route");
    RelayReason::Error
}
