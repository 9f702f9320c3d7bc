//! Source ports towards backends. The kernel's own choice will not do: it gives away the port of a closed socket, while the
//! flow that left that socket still lives in the flow table.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::view::PortStatus;

/// How long a backend that closed by itself keeps its TIME_WAIT (RFC 9293 section 3.6.1 asks for 2 MSL; Linux takes 60 s).
const TIME_WAIT: Duration = Duration::from_secs(60);

/// Free ports per backend address, cycling.
pub(super) struct Ports {
    range: (u16, u16),
    backends: Mutex<HashMap<SocketAddr, Backend>>,
}

struct Backend {
    /// One bit a port, set while taken.
    taken: Vec<u64>,
    next: u16,
    count: u32,
    /// Ports that nobody gets for a while, oldest first.
    resting: VecDeque<Resting>,
}

#[derive(Clone, Copy)]
struct Resting {
    until: Instant,
    port: u16,
    why: Rest,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// The backend holds it in TIME_WAIT.
    TimeWait,
    /// A socket of another program stands on it.
    Foreign,
}

/// A taken port; dropping it makes it free.
#[derive(Debug)]
pub(crate) struct PortGuard {
    ports: Arc<Ports>,
    backend: SocketAddr,
    port: u16,
    armed: bool,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").field("range", &self.range).finish_non_exhaustive()
    }
}

impl Ports {
    pub(super) fn new(range: (u16, u16)) -> Arc<Self> {
        Arc::new(Self { range, backends: Mutex::new(HashMap::new()) })
    }

    /// The next free port towards `backend`. When all others are taken, one whose TIME_WAIT at the backend may not be over:
    /// a SYN on it can cost the client a second, a refusal would cost it the connection. `None`: all are taken.
    pub(super) fn take(self: &Arc<Self>, backend: SocketAddr, now: Instant) -> Option<PortGuard> {
        let mut backends = self.backends.lock();
        let entry = backends.entry(backend).or_insert_with(|| Backend::new(self.range));
        entry.wake(self.range, now, false);
        let port = match entry.take_next(self.range) {
            Some(port) => port,
            None => {
                entry.wake(self.range, now, true);
                entry.take_next(self.range)?
            }
        };
        Some(PortGuard { ports: Arc::clone(self), backend, port, armed: true })
    }

    /// Marks a port of an adopted flow as taken.
    pub(super) fn adopt(&self, backend: SocketAddr, port: u16) {
        let mut backends = self.backends.lock();
        backends.entry(backend).or_insert_with(|| Backend::new(self.range)).set(self.range, port);
    }

    /// Frees the port of a flow that has ended; `rest` if the backend holds it in TIME_WAIT.
    pub(super) fn free(&self, backend: SocketAddr, port: u16, rest: bool, now: Instant) {
        let mut backends = self.backends.lock();
        let Some(entry) = backends.get_mut(&backend) else { return };
        if rest {
            entry.resting.push_back(Resting { until: now + TIME_WAIT, port, why: Rest::TimeWait });
        } else {
            entry.clear(self.range, port);
        }
    }

    pub(super) fn status(&self) -> PortStatus {
        let backends = self.backends.lock();
        let most_taken = backends.values().map(|entry| entry.count).max().unwrap_or(0);
        let now = Instant::now();
        let foreign =
            backends.values().flat_map(|entry| &entry.resting).filter(|r| r.why == Rest::Foreign && r.until > now);
        let held_by_others = foreign.map(|resting| resting.port).collect::<HashSet<_>>().len() as u32;
        drop(backends);
        let size = u32::from(self.range.1 - self.range.0) + 1;
        let per_second_if_backend_closes = size / TIME_WAIT.as_secs() as u32;
        PortStatus { range: self.range, most_taken, per_second_if_backend_closes, held_by_others }
    }

    /// Where the host may give our ports to other sockets, and what to do about that. `None`: nowhere.
    pub(super) fn shared_with_host(&self) -> Option<String> {
        let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
        let (local, reserved) = (read("ip_local_port_range"), read("ip_local_reserved_ports"));
        shared(self.range, &local, &reserved).then(|| advice(self.range, &local, &reserved))
    }
}

fn advice((low, high): (u16, u16), local: &str, reserved: &str) -> String {
    let local = local.split_whitespace().collect::<Vec<_>>().join("-");
    let reserved = reserved.trim();
    let comma = if reserved.is_empty() { "" } else { "," };
    let all = format!("{reserved}{comma}{low}-{high}");
    format!(
        "source ports {low}-{high} may be given to other programs too (net.ipv4.ip_local_port_range is {local}): run `sysctl -w \
         net.ipv4.ip_local_reserved_ports={all}` now, and for the next boot put the line \
         `net.ipv4.ip_local_reserved_ports = {all}` into /etc/sysctl.d/30-ingress.conf; or choose another kernel.port_range"
    )
}

/// `local`: "32768\t60999"; `reserved`: "20000-32767,40000" (Documentation/networking/ip-sysctl.rst).
fn shared(range: (u16, u16), local: &str, reserved: &str) -> bool {
    let mut bounds = local.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(low)), Some(Ok(high))) = (bounds.next(), bounds.next()) else { return false };
    let reserved: Vec<(u16, u16)> = reserved
        .trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.parse().ok()?, last.parse().ok()?))
        })
        .collect();
    (range.0.max(low)..=range.1.min(high)).any(|port| !reserved.iter().any(|(a, b)| (*a..=*b).contains(&port)))
}

impl PortGuard {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A socket of another program stands on it: nobody asks for it again for a minute.
    pub(crate) fn leave(mut self) {
        self.armed = false;
        if let Some(entry) = self.ports.backends.lock().get_mut(&self.backend) {
            entry.resting.push_back(Resting { until: Instant::now() + TIME_WAIT, port: self.port, why: Rest::Foreign });
        }
    }

    /// The port now belongs to a kernel flow, whose end frees it.
    pub(crate) fn pass_on(mut self) {
        self.armed = false;
    }
}

impl Drop for PortGuard {
    fn drop(&mut self) {
        if self.armed {
            self.ports.free(self.backend, self.port, false, Instant::now());
        }
    }
}

impl Backend {
    fn new(range: (u16, u16)) -> Self {
        let size = usize::from(range.1 - range.0) + 1;
        Self { taken: vec![0; size.div_ceil(64)], next: range.0, count: 0, resting: VecDeque::new() }
    }

    /// Resting ports whose time is over are free again; with `force`, the one that has rested longest is too.
    fn wake(&mut self, range: (u16, u16), now: Instant, force: bool) {
        let mut force = force;
        while let Some(Resting { until, port, why: _ }) = self.resting.front().copied() {
            if until > now && !force {
                break;
            }
            force = false;
            self.resting.pop_front();
            self.clear(range, port);
        }
    }

    fn take_next(&mut self, range: (u16, u16)) -> Option<u16> {
        let size = u32::from(range.1 - range.0) + 1;
        if self.count >= size {
            return None;
        }
        for _ in 0..size {
            let port = self.next;
            self.next = if port == range.1 { range.0 } else { port + 1 };
            if self.set(range, port) {
                return Some(port);
            }
        }
        None
    }

    /// False: it was taken, or is not in the range.
    fn set(&mut self, range: (u16, u16), port: u16) -> bool {
        let Some((word, bit)) = self.bit(range, port) else { return false };
        let free = self.taken[word] & bit == 0;
        self.taken[word] |= bit;
        self.count += u32::from(free);
        free
    }

    fn clear(&mut self, range: (u16, u16), port: u16) {
        let Some((word, bit)) = self.bit(range, port) else { return };
        self.count -= u32::from(self.taken[word] & bit != 0);
        self.taken[word] &= !bit;
    }

    fn bit(&self, range: (u16, u16), port: u16) -> Option<(usize, u64)> {
        let at = usize::from(port.checked_sub(range.0)?);
        (port <= range.1).then_some((at / 64, 1 << (at % 64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_shared_unless_reserved_or_outside_the_host_range() {
        for (range, reserved, expected) in [
            ((20_000, 32_767), "", false),
            ((20_000, 32_768), "", true),
            ((40_000, 49_999), "40000-49999\n", false),
            ((40_000, 49_999), "22,40000-44999,45000-50000", false),
            ((40_000, 49_999), "40000-49998", true),
        ] {
            assert_eq!(shared(range, "32768\t60999\n", reserved), expected, "{range:?} {reserved:?}");
        }
    }

    #[test]
    fn advice_keeps_what_is_reserved_already() {
        let said = advice((40_000, 49_999), "32768\t60999\n", "\n");
        assert!(said.contains("sysctl -w net.ipv4.ip_local_reserved_ports=40000-49999`"), "{said}");
        assert!(said.contains("is 32768-60999"), "{said}");
        let said = advice((40_000, 49_999), "32768\t60999\n", "22,50000-50003\n");
        assert!(said.contains("sysctl -w net.ipv4.ip_local_reserved_ports=22,50000-50003,40000-49999`"), "{said}");
    }

    #[test]
    fn a_port_of_another_program_is_counted_and_comes_last() {
        let ports = Ports::new(RANGE);
        let now = Instant::now();
        let foreign = ports.take(backend(), now).expect("free");
        let held = foreign.port();
        foreign.leave();
        assert_eq!(ports.status().held_by_others, 1);
        let taken: Vec<_> = (0..4).filter_map(|_| ports.take(backend(), now)).collect();
        assert_eq!(taken.iter().map(PortGuard::port).collect::<Vec<_>>(), [20_001, 20_002, 20_003, held]);
    }

    const RANGE: (u16, u16) = (20_000, 20_003);

    fn backend() -> SocketAddr {
        "10.0.0.3:443".parse().expect("test address")
    }

    #[test]
    fn ports_cycle_and_a_dropped_guard_frees_its_port_last() {
        let ports = Ports::new(RANGE);
        let now = Instant::now();
        let first = ports.take(backend(), now).expect("free");
        assert_eq!(first.port(), 20_000);
        drop(first);
        assert_eq!(ports.take(backend(), now).map(|g| g.port()), Some(20_001));
    }

    #[test]
    fn all_taken_means_none_and_other_backends_do_not_care() {
        let ports = Ports::new(RANGE);
        let now = Instant::now();
        let held: Vec<_> = (0..4).map(|_| ports.take(backend(), now).expect("free")).collect();
        assert!(ports.take(backend(), now).is_none());
        assert!(ports.take("10.0.0.4:443".parse().expect("test address"), now).is_some());
        drop(held);
        assert!(ports.take(backend(), now).is_some());
    }

    #[test]
    fn a_port_in_time_wait_rests_unless_nothing_else_is_left() {
        let ports = Ports::new(RANGE);
        let now = Instant::now();
        let guard = ports.take(backend(), now).expect("free");
        let resting = guard.port();
        guard.pass_on();
        ports.free(backend(), resting, true, now);
        let held: Vec<_> = (0..3).map(|_| ports.take(backend(), now).expect("free")).collect();
        assert!(held.iter().all(|g| g.port() != resting));
        let forced = ports.take(backend(), now).expect("the resting one");
        assert_eq!(forced.port(), resting);
        drop(held);
        drop(forced);
        let rested = now + TIME_WAIT;
        ports.adopt(backend(), resting);
        ports.free(backend(), resting, true, now);
        let held: Vec<_> = (0..4).filter_map(|_| ports.take(backend(), rested)).collect();
        assert_eq!(held.len(), 4);
    }

    #[test]
    fn an_adopted_port_is_not_given_out() {
        let ports = Ports::new(RANGE);
        ports.adopt(backend(), 20_001);
        let held: Vec<_> = (0..4).filter_map(|_| ports.take(backend(), Instant::now())).collect();
        assert_eq!(held.iter().map(PortGuard::port).collect::<Vec<_>>(), [20_000, 20_002, 20_003]);
    }
}
