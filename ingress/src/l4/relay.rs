//! Carries the bytes of one connection in userspace, both ways, until both ends are done.
//!
//! One task, one buffer per direction, and that only while bytes wait for a slow reader: an idle relay holds none. End of
//! stream is passed on as a shutdown, so half-closed connections work; a reset is passed on as a reset. Cancel-safe: all
//! state is in [`Relay`].

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::outcome::EndReason;
use super::relays::Relayed;

/// The two sockets and what is under way between them.
pub(crate) struct Relay<'a> {
    client: &'a mut TcpStream,
    backend: &'a mut TcpStream,
    to_backend: Direction,
    to_client: Direction,
}

/// One way of a relay.
#[derive(Default)]
struct Direction {
    /// Read and not yet written. Its size bounds what one direction holds.
    pending: Option<Pending>,
    /// Bytes at the head of `pending` that are ours (a PROXY header) and not the peer's.
    uncounted: usize,
    /// The reader said it is done.
    ended: bool,
    /// And the writer was told.
    closed: bool,
}

struct Pending {
    buffer: Vec<u8>,
    written: usize,
    end: usize,
}

/// Why a relay stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    Ended(EndReason),
    /// Nothing moved for as long as was asked for, and no byte is held here. It may go on.
    Still,
}

/// How long a relay waits for what.
struct Patience {
    /// Without a byte until it ends.
    idle: Duration,
    /// Without a byte until it stops, and since when at the earliest.
    still: Option<(Duration, Instant)>,
}

/// Which socket failed.
enum Failed {
    Reader(io::Error),
    Writer(io::Error),
}

impl<'a> Relay<'a> {
    /// `first_flight` goes to the backend before anything else; its last `payload` bytes came from the client.
    pub(crate) fn new(
        client: &'a mut TcpStream,
        backend: &'a mut TcpStream,
        first_flight: Vec<u8>,
        payload: usize,
    ) -> Self {
        let mut to_backend = Direction::default();
        if !first_flight.is_empty() {
            let end = first_flight.len();
            to_backend.uncounted = end.saturating_sub(payload);
            to_backend.pending = Some(Pending { buffer: first_flight, written: 0, end });
        }
        Self { client, backend, to_backend, to_client: Direction::default() }
    }

    /// Runs until both directions are closed, one end fails, nothing moved for `idle`, or somebody cuts the relay; or until nothing
    /// moved for `still`.
    pub(crate) async fn run(&mut self, relayed: &Relayed, idle: Duration, still: Option<Duration>) -> Stopped {
        let mut timer = std::pin::pin!(tokio::time::sleep(still.map_or(idle, |still| still.min(idle))));
        let patience = Patience { idle, still: still.map(|still| (still, Instant::now())) };
        let stopped = std::future::poll_fn(|cx| self.poll(cx, relayed, timer.as_mut(), &patience)).await;
        match stopped {
            Stopped::Ended(EndReason::Closed) | Stopped::Still => {}
            Stopped::Ended(_) => self.reset(relayed),
        }
        stopped
    }

    /// The client's and the backend's.
    pub(crate) fn sockets(&self) -> (&TcpStream, &TcpStream) {
        (self.client, self.backend)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        relayed: &Relayed,
        mut timer: Pin<&mut Sleep>,
        patience: &Patience,
    ) -> Poll<Stopped> {
        relayed.waker.register(cx.waker());
        if let Some(reason) = relayed.cut_reason() {
            return Poll::Ready(Stopped::Ended(reason));
        }
        let before = self.moved(relayed);
        // To the client first: what a backend sent before it reset the connection still arrives.
        let to_client = self.to_client.poll(cx, self.backend, self.client, &relayed.to_client, self.to_backend.closed);
        let to_backend =
            self.to_backend.poll(cx, self.client, self.backend, &relayed.to_backend, self.to_client.closed);
        let progress = self.moved(relayed) != before;
        if progress {
            relayed.touch(Instant::now());
        }
        match (to_client, to_backend) {
            (Poll::Ready(Err(Failed::Reader(e))), _) | (_, Poll::Ready(Err(Failed::Writer(e)))) => {
                return Poll::Ready(Stopped::Ended(end_reason(&e, EndReason::BackendReset)));
            }
            (Poll::Ready(Err(Failed::Writer(e))), _) | (_, Poll::Ready(Err(Failed::Reader(e)))) => {
                return Poll::Ready(Stopped::Ended(end_reason(&e, EndReason::ClientReset)));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Stopped::Ended(EndReason::Closed)),
            (Poll::Pending, _) | (_, Poll::Pending) => {}
        }
        // The timer is only moved when it fires: busy relays never touch the timer wheel.
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let mut due = relayed.last_active() + patience.idle;
            if due <= now {
                return Poll::Ready(Stopped::Ended(EndReason::IdleTimeout));
            }
            if let Some((still, since)) = patience.still {
                let at = relayed.last_active().max(since) + still;
                if at <= now && self.holds_nothing() {
                    return Poll::Ready(Stopped::Still);
                }
                due = due.min(if at <= now { now + still } else { at });
            }
            timer.as_mut().reset(due.into());
        }
        Poll::Pending
    }

    /// And neither end has said its last word.
    fn holds_nothing(&self) -> bool {
        [&self.to_backend, &self.to_client].iter().all(|direction| direction.pending.is_none() && !direction.ended)
    }

    fn moved(&self, relayed: &Relayed) -> (u64, u64, bool, bool) {
        let bytes = (relayed.to_backend.load(Relaxed), relayed.to_client.load(Relaxed));
        (bytes.0, bytes.1, self.to_backend.ended, self.to_client.ended)
    }

    /// RST to both ends, after taking back from the counters what they never acknowledged.
    fn reset(&self, relayed: &Relayed) {
        for (socket, direction, count) in [
            (&*self.backend, &self.to_backend, &relayed.to_backend),
            (&*self.client, &self.to_client, &relayed.to_client),
        ] {
            let fin = u64::from(direction.closed);
            let unacked = unacknowledged(socket).saturating_sub(fin);
            count.fetch_sub(unacked.min(count.load(Relaxed)), Relaxed);
            // A socket that is gone already needs no reset.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
}

impl Direction {
    /// Moves what can be moved now. Ready when the reader's end of stream was passed on; for the `last` direction of a
    /// relay, the close of the sockets does that.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut TcpStream,
        writer: &mut TcpStream,
        count: &AtomicU64,
        last: bool,
    ) -> Poll<Result<(), Failed>> {
        loop {
            if let Some(pending) = &mut self.pending {
                let waiting = &pending.buffer[pending.written..pending.end];
                let n = std::task::ready!(Pin::new(&mut *writer).poll_write(cx, waiting)).map_err(Failed::Writer)?;
                pending.written += n;
                let ours = self.uncounted.min(n);
                self.uncounted -= ours;
                count.fetch_add((n - ours) as u64, Relaxed);
                if pending.written == pending.end
                    && let Some(done) = self.pending.take()
                {
                    give_back(done.buffer);
                }
            } else if self.closed {
                return Poll::Ready(Ok(()));
            } else if self.ended && last {
                self.closed = true;
            } else if self.ended {
                std::task::ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Failed::Writer)?;
                self.closed = true;
            } else {
                std::task::ready!(reader.poll_read_ready(cx)).map_err(Failed::Reader)?;
                let mut buffer = take_buffer();
                // Until it would block: a short read says nothing, because reads stop at urgent data.
                match reader.try_read(&mut buffer) {
                    Ok(0) => self.ended = true,
                    Ok(end) => {
                        self.pending = Some(Pending { buffer, written: 0, end });
                        continue;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(Failed::Reader(error))),
                }
                give_back(buffer);
            }
        }
    }
}

fn end_reason(error: &io::Error, reset: EndReason) -> EndReason {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    if matches!(error.kind(), ConnectionReset | BrokenPipe | NotConnected) { reset } else { EndReason::Error }
}

/// Bytes (and a FIN) that stand in the send queue or are in flight.
fn unacknowledged(socket: &TcpStream) -> u64 {
    use std::os::fd::AsRawFd;
    let mut queued: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int to the address given, which outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut queued) };
    if answer == 0 { u64::try_from(queued).unwrap_or(0) } else { 0 }
}

thread_local! {
    /// Buffers that no relay of this worker uses now.
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn take_buffer() -> Vec<u8> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER])
}

fn give_back(buffer: Vec<u8>) {
    BUFFERS.with_borrow_mut(|free| {
        if buffer.len() == BUFFER && free.len() < BUFFERS_KEPT {
            free.push(buffer);
        }
    });
}

/// Bytes that one direction holds at most.
const BUFFER: usize = 32 * 1024;
const BUFFERS_KEPT: usize = 64;
