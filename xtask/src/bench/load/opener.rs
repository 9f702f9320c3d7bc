//! Opens connections from an epoll loop: connect, hello, one byte, and then close or keep.
//!
//! The client closes first, so that TIME_WAIT stays on its side, where there are addresses to spare; each connection
//! leaves from a tuple that this run has not used before.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

use super::Order;
use super::hello::client_hello;

const FIRST_PORT: u16 = 1_024;
const PORTS: u32 = 64_000;
/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);
const SWEEP: Duration = Duration::from_millis(500);

/// Source addresses and ports, each used once.
pub(super) struct Sources {
    first: Ipv4Addr,
    addresses: u32,
    used: u32,
}

impl Sources {
    pub(super) fn new(first: Ipv4Addr, addresses: u32) -> Self {
        Self { first, addresses, used: 0 }
    }

    fn next(&mut self) -> SocketAddrV4 {
        let address = u32::from(self.first) + self.used / PORTS % self.addresses;
        let port = FIRST_PORT + (self.used % PORTS) as u16;
        self.used += 1;
        SocketAddrV4::new(Ipv4Addr::from(address), port)
    }

    /// An unconnected socket on the next free tuple.
    pub(super) fn socket(&mut self, kind: Type) -> anyhow::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, kind, None)?;
        // Without it, bind() refuses a port that another address of ours still has in TIME_WAIT.
        socket.set_reuse_address(true)?;
        let source = self.next();
        socket.bind(&source.into()).with_context(|| format!("binding {source}"))?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket)
    }
}

/// What all opening threads report to.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) completed: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Why the last one failed.
    pub(super) why: Mutex<String>,
    pub(super) stop: AtomicBool,
}

impl Progress {
    fn fail(&self, why: &std::io::Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why.to_string();
    }
}

pub(super) struct Opener<'a> {
    pub(super) sources: Sources,
    pub(super) targets: &'a [SocketAddrV4],
    /// Connections that are being opened at any time.
    pub(super) concurrency: usize,
    /// Keep this many open instead of closing each.
    pub(super) keep: Option<usize>,
    pub(super) progress: &'a Progress,
}

struct Opening {
    stream: TcpStream,
    hello_sent: bool,
    since: Instant,
}

/// Whether a connection has come to its byte.
enum Step {
    Waiting,
    Done,
}

impl Opener<'_> {
    /// Until [`Progress::stop`], or until all that are to be kept are open. Returns the kept ones.
    ///
    /// A stop lets those that are being opened come to their end: cut short, they would look like the proxy's failures.
    pub(super) fn run(mut self) -> anyhow::Result<Vec<TcpStream>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let hello = client_hello(Order::Byte);
        let mut kept = Vec::with_capacity(self.keep.unwrap_or(0));
        let mut slots = (0..self.concurrency).map(|_| None).collect::<Vec<Option<Opening>>>();
        let mut swept = Instant::now();
        let mut events = [EpollEvent::empty(); 256];
        for slot in 0..slots.len() {
            self.fill(&epoll, &mut slots, slot, kept.len())?;
        }
        while slots.iter().any(Option::is_some) {
            let ready = match epoll.wait(&mut events, EpollTimeout::from(100u8)) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            for event in &events[..ready] {
                let slot = event.data() as usize;
                let Some(opening) = slots[slot].as_mut() else { continue };
                match opening.advance(&hello) {
                    Ok(Step::Waiting) => continue,
                    Ok(Step::Done) => {
                        self.progress.completed.fetch_add(1, Ordering::Relaxed);
                        let done = slots[slot].take();
                        kept.extend(done.filter(|_| self.keep.is_some()).map(|opening| opening.stream));
                    }
                    Err(why) => {
                        self.progress.fail(&why);
                        slots[slot] = None;
                    }
                }
                self.fill(&epoll, &mut slots, slot, kept.len())?;
            }
            if swept.elapsed() > SWEEP {
                swept = Instant::now();
                for slot in 0..slots.len() {
                    // Gives up on connections that hang, and opens others in their place.
                    if slots[slot].as_ref().is_some_and(|opening| opening.since.elapsed() > PATIENCE) {
                        self.progress.fail(&ErrorKind::TimedOut.into());
                        slots[slot] = None;
                        self.fill(&epoll, &mut slots, slot, kept.len())?;
                    }
                }
            }
        }
        Ok(kept)
    }

    /// Opens the next connection in an empty slot, if there is to be one more.
    fn fill(&mut self, epoll: &Epoll, slots: &mut [Option<Opening>], slot: usize, kept: usize) -> anyhow::Result<()> {
        let enough = self.keep.is_some_and(|wanted| kept + slots.iter().flatten().count() >= wanted);
        if !enough && !self.progress.stop.load(Ordering::Relaxed) {
            slots[slot] = Some(self.open(epoll, slot)?);
        }
        Ok(())
    }

    fn open(&mut self, epoll: &Epoll, slot: usize) -> anyhow::Result<Opening> {
        let socket = self.sources.socket(Type::STREAM.nonblocking())?;
        let target = self.targets[self.sources.used as usize % self.targets.len()];
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                return Err(error).with_context(|| format!("connecting to {target}"));
            }
            Ok(()) | Err(_) => {}
        }
        let stream = TcpStream::from(socket);
        // Edge-triggered for both: one registration per connection; close() takes it back.
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&stream, EpollEvent::new(interest, slot as u64))?;
        Ok(Opening { stream, hello_sent: false, since: Instant::now() })
    }
}

impl Opening {
    fn advance(&mut self, hello: &[u8]) -> std::io::Result<Step> {
        if !self.hello_sent {
            match self.stream.write(hello) {
                Ok(written) if written == hello.len() => self.hello_sent = true,
                Ok(_) => return Err(ErrorKind::WriteZero.into()),
                // Not connected yet.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(Step::Waiting);
                }
                Err(error) => return Err(error),
            }
        }
        match self.stream.read(&mut [0u8; 2]) {
            Ok(1) => Ok(Step::Done),
            // The end before the answer, or more than was ordered.
            Ok(_) => Err(ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Step::Waiting),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tuple_comes_twice_before_all_addresses_are_used() {
        let mut sources = Sources::new(Ipv4Addr::new(192, 0, 2, 16), 2);
        let all: std::collections::HashSet<_> = (0..2 * PORTS).map(|_| sources.next()).collect();
        assert_eq!(all.len(), 2 * PORTS as usize);
        assert!(all.iter().all(|tuple| [16, 17].contains(&tuple.ip().octets()[3])));
        assert_eq!(sources.next(), SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 16), FIRST_PORT));
    }
}
