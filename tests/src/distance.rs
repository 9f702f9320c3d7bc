//! A long, bad line to a client: frames between two TAP devices, late, lost, doubled or out of order. Or a tunnel: bare IP
//! packets between two TUN devices.
//!
//! Neither kind offers offloads, so every frame is one segment with a checksum of its own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Namespace;
use crate::payload::Random;
use crate::wait::{PATIENCE, wait_until};

/// What happens to frames, each direction for itself. Chances are in 1,000 frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distance {
    /// One way.
    pub delay: Duration,
    pub lost: u64,
    pub doubled: u64,
    /// Held back by another quarter of `delay`, so that later frames overtake.
    pub late: u64,
    /// `None`: as fast as the machine carries it.
    pub bottleneck: Option<Bottleneck>,
}

/// The slowest hop of a line, with the queue in front of it.
#[derive(Clone, Copy, Debug)]
pub struct Bottleneck {
    pub bytes_per_second: u64,
    /// How long a frame may have to wait; what would wait longer is lost.
    pub queue: Duration,
}

/// The line while it stands; dropping it cuts it.
#[derive(Debug)]
pub struct Line {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Line {
    /// Joins a new device in each of two namespaces.
    pub fn between(a: (&Namespace, &str), b: (&Namespace, &str), distance: Distance) -> Result<Self> {
        Self::of((device(a.0, a.1, libc::IFF_TAP)?, device(b.0, b.1, libc::IFF_TAP)?), distance)
    }

    /// The same without Ethernet, as WireGuard's devices are.
    pub fn tunnel(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<Self> {
        Self::of((device(a.0, a.1, libc::IFF_TUN)?, device(b.0, b.1, libc::IFF_TUN)?), Distance::default())
    }

    fn of((a, b): (File, File), distance: Distance) -> Result<Self> {
        let mut line = Self { over: Arc::default(), threads: Vec::new() };
        let ways = [(a.try_clone()?, b.try_clone()?, 1), (b, a, 2)];
        for (mut from, to, seed) in ways {
            let (sender, receiver) = channel();
            let over = line.over.clone();
            line.threads.push(std::thread::spawn(move || take(&mut from, &sender, distance, seed, &over)));
            line.threads.push(std::thread::spawn(move || deliver(to, &receiver)));
        }
        Ok(line)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// When a frame is due, in order of arrival where that is the same.
type Due = (Instant, u64, Vec<u8>);

fn take(from: &mut File, queue: &Sender<Due>, distance: Distance, seed: u64, over: &AtomicBool) {
    let mut random = Random::new(seed);
    let mut buffer = vec![0; 65_536];
    let mut count = 0;
    let mut free = Instant::now();
    while !over.load(Ordering::Acquire) {
        let ready =
            poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(from), PollFlags::POLLIN)], PollTimeout::from(50u8));
        if !ready.is_ok_and(|n| n > 0) {
            continue;
        }
        let Ok(n) = from.read(&mut buffer) else { continue };
        let mut happens = |chance: u64| random.next_u64() % 1_000 < chance;
        let (lost, doubled, late) = (happens(distance.lost), happens(distance.doubled), happens(distance.late));
        let now = Instant::now();
        let mut sent = now;
        if let Some(Bottleneck { bytes_per_second, queue }) = distance.bottleneck {
            if free > now + queue {
                continue;
            }
            free = free.max(now) + Duration::from_nanos(n as u64 * 1_000_000_000 / bytes_per_second.max(1));
            sent = free;
        }
        let due = sent + distance.delay + if late { distance.delay / 4 } else { Duration::ZERO };
        let copies = if lost { 0 } else { 1 + usize::from(doubled) };
        for _ in 0..copies {
            count += 1;
            if queue.send((due, count, buffer[..n].to_vec())).is_err() {
                return;
            }
        }
    }
}

/// Until the other end of the queue is gone.
fn deliver(mut to: File, queue: &Receiver<Due>) {
    let mut waiting = BinaryHeap::new();
    loop {
        let now = Instant::now();
        while waiting.peek().is_some_and(|Reverse((due, ..)): &Reverse<Due>| *due <= now) {
            if let Some(Reverse((_, _, frame))) = waiting.pop() {
                // A device that is down loses frames, as cables do.
                let _ = to.write_all(&frame);
            }
        }
        let wait =
            waiting.peek().map_or(Duration::from_secs(1), |Reverse((due, ..))| due.saturating_duration_since(now));
        match queue.recv_timeout(wait) {
            Ok(frame) => waiting.push(Reverse(frame)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// `kind`: IFF_TAP or IFF_TUN.
fn device(ns: &Namespace, name: &str, kind: libc::c_int) -> Result<File> {
    let open = || -> std::io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: all zeroes is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the request outlives the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(file)
    };
    let mut device = ns.exec(open);
    // A process that another test is just starting may still hold the last device of this name.
    let _ = wait_until(PATIENCE, "the name is free", || {
        let busy = device.as_ref().is_err_and(|error| error.kind() == ErrorKind::ResourceBusy);
        if busy {
            device = ns.exec(open);
        }
        !busy
    });
    device.with_context(|| format!("making the device {name}"))
}
