//! What becomes of the way of connections in the kernel when routes change, or devices go.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ingress_ebpf::connection::{Connection, Endpoint, FOLLOWS, Half, Hop as Pinned, STAYS};

use super::Flows;
use super::way::{Server, leaves_by, question};
use crate::dataplane::path::{Hop, Path, Paths, Question};
use crate::dataplane::reset::socket_address;
use crate::l4::outcome::EndReason;

/// How long a connection waits for another device where its own is gone: `wg-quick` and container engines make theirs anew within
/// seconds, and routes come after devices.
const WITHOUT_DEVICE: Duration = Duration::from_secs(30);

/// One direction of a connection in the kernel, as its packets are routed.
#[derive(Clone, Copy)]
struct Course {
    /// But for the port that is another one in each connection.
    any: Question,
    exact: Question,
    device: u32,
    hop: Pinned,
}

/// By [`ingress_ebpf::flow::Direction`].
fn courses(connection: &Connection) -> [Course; 2] {
    let Connection { source, backend, local, client, ifindex, from_client, from_backend, .. } = connection;
    let course = |ours: &Endpoint, theirs: &Endpoint, server, device, sender: &Half| {
        let (ours, theirs) = (socket_address(ours), socket_address(theirs));
        let any = question(ours, theirs, server);
        let exact = Question { source_port: ours.port(), destination_port: theirs.port(), ..any };
        Course { any, exact, device, hop: sender.hop }
    };
    [
        course(source, backend, Server::They, ifindex[0], from_client),
        course(local, client, Server::We, ifindex[1], from_backend),
    ]
}

/// What the handoff wrote into the slot, by direction: whether the connection moves with its route. `None`: nothing, in an earlier build.
pub(super) fn written_down(connection: &Connection) -> Option<[bool; 2]> {
    let of = |half: &Half| match (half.flags & FOLLOWS, half.flags & STAYS) {
        (0, 0) => None,
        (follows, _) => Some(follows != 0),
    };
    Some([of(&connection.from_client)?, of(&connection.from_backend)?])
}

/// As the programs read it.
pub(super) fn hop(address: Option<IpAddr>) -> Pinned {
    let mut hop = Pinned::default();
    match address {
        None => {}
        Some(IpAddr::V4(four)) => {
            hop.family = libc::AF_INET as u32;
            hop.address[..4].copy_from_slice(&four.octets());
        }
        Some(IpAddr::V6(six)) => {
            hop.family = libc::AF_INET6 as u32;
            hop.address = six.octets();
        }
    }
    hop
}

impl Flows {
    /// Which of an earlier build's connections go where any packet with their addresses goes, and so move with the route. That may
    /// have moved while no daemon ran: then no route leads by their device.
    pub(in crate::dataplane) fn find_followers(&self, paths: &mut Paths) {
        let now = Instant::now();
        paths.renew(self.routing.generation());
        for (index, connection) in self.slots.live() {
            if self.live.lock().get(&index).is_none_or(|live| live.follows.is_some()) {
                continue;
            }
            let follows = courses(&connection).map(|Course { any, device, .. }| {
                let mut leads = |question| paths.ask(question, now).is_ok_and(|path| leaves_by(&path, device));
                // Over IPv6, a question with a device says nothing about the routes by it.
                leads(any) || any.destination.is_ipv4() && !leads(Question { device, listed: true, ..any })
            });
            if let Some(live) = self.live.lock().get_mut(&index).filter(|live| live.follows.is_none()) {
                live.follows = Some(follows);
            }
        }
    }

    /// Routes or rules have changed: sends connections out by the device, and to the one of several next hops, to which the route leads
    /// now. Those that never went where their addresses alone lead (the listener has a device; rules look at marks or ports) stay.
    pub(in crate::dataplane) fn follow_routes(&self, paths: &mut Paths) {
        let now = Instant::now();
        paths.renew(self.routing.generation());
        let mut moved = 0;
        for (index, connection) in self.slots.live() {
            let Some(follows) = self.live.lock().get(&index).and_then(|live| live.follows) else { continue };
            for (direction, course) in courses(&connection).iter().enumerate() {
                let to = match follows[direction] {
                    true => self.leads(paths, course, now),
                    false => self.stays(paths, course, now),
                };
                if let Some((device, hop)) = to.filter(|to| *to != (course.device, course.hop)) {
                    self.slots.set_exit(index, direction, device, hop);
                    moved += 1;
                }
            }
        }
        if moved > 0 {
            tracing::info!(flows = moved, "routes have changed: connections in the kernel leave by other ways now");
        }
    }

    /// Where a connection's sockets would be led now. `None`: nowhere that spliced packets would find.
    fn leads(&self, paths: &mut Paths, course: &Course, now: Instant) -> Option<(u32, Pinned)> {
        let any = course.any;
        let several = !self.routing.is_plain()
            && matches!(paths.ask(Question { listed: true, ..any }, now), Ok(Path::Several(_)));
        let path = if several { paths.ask_once(course.exact) } else { paths.ask(any, now) }.ok()?;
        let Path::Out(Hop { device, gateway }) = path else { return None };
        if !self.carries(device) {
            return None;
        }
        if several {
            return Some((device, hop(Some(gateway.unwrap_or(any.destination)))));
        }
        let spliced = self.splice(paths, any, device, now).ok()?;
        (spliced == path).then_some((device, Pinned::default()))
    }

    /// Of a connection that stays with its device: the next hop there, where there were none to choose from before.
    fn stays(&self, paths: &mut Paths, course: &Course, now: Instant) -> Option<(u32, Pinned)> {
        let Course { any, device, hop: pinned, .. } = *course;
        if self.routing.is_plain() || pinned.family != 0 {
            return None;
        }
        let Ok(Path::Several(hops)) = paths.ask(Question { device, listed: true, ..any }, now) else { return None };
        let there = hops.iter().find(|hop| hop.device == device)?;
        Some((device, hop(Some(there.gateway.unwrap_or(any.destination)))))
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
            for (direction, course) in courses(&connection).iter().enumerate() {
                let Some(since) = gone.get(&course.device) else { continue };
                match self.leads(paths, course, now).or_else(|| self.leads_anew(paths, course, now)) {
                    Some((device, hop)) => self.slots.set_exit(index, direction, device, hop),
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

    /// Whatever is remembered: the device may be younger.
    fn leads_anew(&self, paths: &mut Paths, course: &Course, now: Instant) -> Option<(u32, Pinned)> {
        match paths.ask_anew(course.any, now) {
            Ok(Path::Out(hop)) if self.carries(hop.device) => Some((hop.device, Pinned::default())),
            Ok(Path::Out(_) | Path::Several(_) | Path::NotForwardable) | Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_says_whether_its_connection_follows_and_an_earlier_one_does_not() {
        let connection = |flags: [u32; 2]| {
            let [from_client, from_backend] = flags.map(|flags| Half { flags: flags | 1, ..Half::default() });
            Connection { from_client, from_backend, ..Connection::default() }
        };
        assert_eq!(written_down(&connection([FOLLOWS, STAYS])), Some([true, false]));
        assert_eq!(written_down(&connection([STAYS, FOLLOWS])), Some([false, true]));
        assert_eq!(written_down(&connection([0, 0])), None);
    }

    #[test]
    fn a_next_hop_stands_in_the_slot_as_the_kernel_reads_it() {
        assert_eq!(hop(None).family, 0);
        let four = hop("192.0.2.1".parse().ok());
        assert_eq!((four.family, &four.address[..5]), (2, &[192, 0, 2, 1, 0][..]));
        let six = hop("2001:db8::1".parse().ok());
        assert_eq!((six.family, &six.address[..4], six.address[15]), (10, &[0x20, 1, 0x0d, 0xb8][..], 1));
    }
}
