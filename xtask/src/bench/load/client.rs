//! The client: one mode per measurement, one JSON line of [`Measured`] on stdout.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use socket2::Type;

use super::hello::client_hello;
use super::latency::Samples;
use super::opener::{Opener, Progress, Sources};
use super::{FETCH_BYTES, Order, PING_BYTES, say};
use crate::bench::machine;

/// One read of a stream.
const STREAM_READ: usize = 256 << 10;
/// A blocking read or connect that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Addresses that one client process may use, from `--source` on.
pub(in crate::bench) const ADDRESSES_PER_CLIENT: u32 = 16;
const OPENER_THREADS: u32 = 2;

#[derive(clap::Args)]
pub(in crate::bench) struct ClientArgs {
    #[arg(value_enum)]
    mode: Mode,
    /// Where to connect; several are used in turn.
    #[arg(long, required = true)]
    target: Vec<SocketAddrV4>,
    /// First of the source addresses that belong to this process alone.
    #[arg(long)]
    source: Ipv4Addr,
    /// Bulk streams that run, in `ping` beside the ping-pong.
    #[arg(long, default_value_t = 0)]
    streams: usize,
    /// `connections`: open at once. `idle`: kept. `fetch`: one after the other.
    #[arg(long, default_value_t = 64)]
    count: usize,
    #[arg(long, default_value_t = 300)]
    warmup_ms: u64,
    #[arg(long, default_value_t = 2_000)]
    window_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::bench) enum Mode {
    /// Download as fast as it goes.
    Bulk,
    /// 64 bytes there and back, one after the other.
    Ping,
    /// Connect, hello, one byte, close; many at once.
    Connections,
    /// The same one after the other, each timed to its first byte.
    FirstByte,
    /// Connect and fetch [`FETCH_BYTES`], one after the other; each timed to its first byte, all to their last.
    Fetch,
    /// Open, report, hold until stdin ends.
    Idle,
    /// One ping through the whole path.
    Probe,
}

/// What a window gave; fields that the mode does not fill stay zero.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::bench) struct Measured {
    pub(in crate::bench) seconds: f64,
    /// Busy time of all CPUs in the window.
    pub(in crate::bench) cpu_seconds: f64,
    pub(in crate::bench) bytes: u64,
    /// Completed connections, or samples.
    pub(in crate::bench) count: u64,
    pub(in crate::bench) failed: u64,
    /// Microseconds.
    pub(in crate::bench) p50: f64,
    pub(in crate::bench) p99: f64,
}

pub(in crate::bench) fn run(args: ClientArgs) -> anyhow::Result<()> {
    let client = Client {
        sources: Sources::new(args.source, ADDRESSES_PER_CLIENT),
        warmup: Duration::from_millis(args.warmup_ms),
        window: Duration::from_millis(args.window_ms),
        args,
        next_target: 0,
    };
    let measured = match client.args.mode {
        Mode::Bulk => client.bulk(),
        Mode::Ping => client.ping(),
        Mode::Connections => client.connections(),
        Mode::FirstByte => client.first_byte(),
        Mode::Fetch => client.fetch(),
        Mode::Idle => return client.idle(),
        Mode::Probe => client.probe(),
    }?;
    report(&measured)?;
    // Streams still run in their threads; the end of the process ends them.
    std::process::exit(0);
}

fn report(measured: &Measured) -> anyhow::Result<()> {
    say(&serde_json::to_string(measured)?)
}

struct Client {
    args: ClientArgs,
    sources: Sources,
    warmup: Duration,
    window: Duration,
    next_target: usize,
}

impl Client {
    /// A connection that has sent its hello.
    fn connect(&mut self, order: Order) -> anyhow::Result<TcpStream> {
        let target = self.args.target[self.next_target % self.args.target.len()];
        self.next_target += 1;
        let socket = self.sources.socket(Type::STREAM)?;
        socket.connect_timeout(&target.into(), PATIENCE).with_context(|| format!("connecting to {target}"))?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&client_hello(order))?;
        Ok(stream)
    }

    /// A connection that echoes, past the first byte: a TLS client would wait for the ServerHello too.
    fn echo(&mut self) -> anyhow::Result<TcpStream> {
        let mut stream = self.connect(Order::Echo)?;
        stream.read_exact(&mut [0u8; 1]).context("waiting for the first byte")?;
        Ok(stream)
    }

    fn bulk(mut self) -> anyhow::Result<Measured> {
        let received = self.start_streams()?;
        std::thread::sleep(self.warmup);
        let window = Window::open(&received)?;
        std::thread::sleep(self.window);
        let measured = window.close(&received)?;
        ensure!(measured.bytes > 0, "the streams stand still");
        Ok(measured)
    }

    /// Returns the counter of all streams' bytes.
    fn start_streams(&mut self) -> anyhow::Result<Arc<AtomicU64>> {
        let received = Arc::new(AtomicU64::new(0));
        for _ in 0..self.args.streams {
            let mut stream = self.connect(Order::Stream)?;
            let received = Arc::clone(&received);
            std::thread::spawn(move || {
                let mut block = vec![0u8; STREAM_READ];
                loop {
                    match stream.read(&mut block) {
                        Ok(read) if read > 0 => received.fetch_add(read as u64, Ordering::Relaxed),
                        // A stream that ends early would make the others look good: no result at all then.
                        Ok(_) => fail("a stream ended before its time"),
                        Err(error) => fail(&format!("a stream broke: {error}")),
                    };
                }
            });
        }
        Ok(received)
    }

    fn ping(mut self) -> anyhow::Result<Measured> {
        let received = self.start_streams()?;
        let mut stream = self.echo()?;
        let warm = Instant::now() + self.warmup;
        while Instant::now() < warm {
            ping_once(&mut stream)?;
        }
        let mut samples = Samples::default();
        let window = Window::open(&received)?;
        let end = Instant::now() + self.window;
        while Instant::now() < end {
            samples.record(ping_once(&mut stream)?);
        }
        with_percentiles(window.close(&received)?, samples)
    }

    fn connections(self) -> anyhow::Result<Measured> {
        let (warmup, window) = (self.warmup, self.window);
        self.with_openers(None, |progress| {
            std::thread::sleep(warmup);
            let measuring = Window::open(&progress.completed)?;
            let failed = progress.failed.load(Ordering::Relaxed);
            std::thread::sleep(window);
            let mut measured = measuring.close(&progress.completed)?;
            (measured.count, measured.bytes) = (measured.bytes, 0);
            measured.failed = progress.failed.load(Ordering::Relaxed) - failed;
            progress.stop.store(true, Ordering::Relaxed);
            Ok(measured)
        })
    }

    fn first_byte(mut self) -> anyhow::Result<Measured> {
        let hello = client_hello(Order::Byte);
        let mut samples = Samples::default();
        let warm = Instant::now() + self.warmup;
        let end = warm + self.window;
        let mut window = None;
        while Instant::now() < end {
            if window.is_none() && Instant::now() >= warm {
                window = Some(Window::open(&AtomicU64::new(0))?);
            }
            let target = self.args.target[self.next_target % self.args.target.len()];
            self.next_target += 1;
            let socket = self.sources.socket(Type::STREAM)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let started = Instant::now();
            socket.connect(&target.into())?;
            let mut stream = TcpStream::from(socket);
            stream.write_all(&hello)?;
            stream.read_exact(&mut [0u8; 1]).context("waiting for the first byte")?;
            if window.is_some() {
                samples.record(started.elapsed());
            }
        }
        let window = window.context("the window is shorter than one connection")?;
        with_percentiles(window.close(&AtomicU64::new(0))?, samples)
    }

    /// `seconds` is the sum over all fetches, connecting included.
    fn fetch(mut self) -> anyhow::Result<Measured> {
        let mut first_bytes = Samples::default();
        let mut block = vec![0u8; STREAM_READ];
        let mut measured = Measured::default();
        for _ in 0..self.args.count {
            let started = Instant::now();
            let mut stream = self.connect(Order::Fetch)?;
            let mut received = 0;
            while received < FETCH_BYTES {
                let read = stream.read(&mut block).context("fetching")?;
                ensure!(read > 0, "the backend closed after {received} bytes");
                if received == 0 {
                    first_bytes.record(started.elapsed());
                }
                received += read;
            }
            measured.seconds += started.elapsed().as_secs_f64();
            measured.bytes += received as u64;
        }
        with_percentiles(measured, first_bytes)
    }

    fn idle(self) -> anyhow::Result<()> {
        let count = self.args.count as u64;
        self.with_openers(Some(self.args.count), |progress| {
            let started = Instant::now();
            let completed = loop {
                let completed = progress.completed.load(Ordering::Relaxed);
                if completed >= count {
                    break completed;
                }
                let failed = progress.failed.load(Ordering::Relaxed);
                let why = || progress.why.lock().map_or_else(|e| e.into_inner().clone(), |why| why.clone());
                ensure!(failed <= count / 10, "{failed} connections failed ({}), {completed} of {count} open", why());
                std::thread::sleep(Duration::from_millis(5));
            };
            let failed = progress.failed.load(Ordering::Relaxed);
            let seconds = started.elapsed().as_secs_f64();
            report(&Measured { seconds, count: completed, failed, ..Measured::default() })?;
            super::wait_for_end_of_stdin();
            // Closing each with a FIN would outlast the run; the namespace goes next.
            std::process::exit(0);
        })
    }

    /// Runs the opening threads beside `body`; an error of either ends the process.
    fn with_openers<T>(
        &self,
        keep: Option<usize>,
        body: impl FnOnce(&Progress) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let progress = Progress::default();
        let each = ADDRESSES_PER_CLIENT / OPENER_THREADS;
        let share = |total: usize, thread: u32| (total + thread as usize) / OPENER_THREADS as usize;
        let (args, progress) = (&self.args, &progress);
        std::thread::scope(|scope| {
            for thread in 0..OPENER_THREADS {
                let opener = Opener {
                    sources: Sources::new(Ipv4Addr::from(u32::from(args.source) + thread * each), each),
                    targets: &args.target,
                    concurrency: share(if keep.is_some() { 64 } else { args.count }, thread),
                    keep: keep.map(|total| share(total, thread)),
                    progress,
                };
                scope.spawn(move || match opener.run() {
                    // Kept connections stay open for as long as the process lives.
                    Ok(kept) => std::mem::forget(kept),
                    Err(error) => fail(&format!("{error:#}")),
                });
            }
            body(progress).inspect_err(|error| fail(&format!("{error:#}")))
        })
    }

    fn probe(mut self) -> anyhow::Result<Measured> {
        let deadline = Instant::now() + self.window;
        loop {
            match self.echo().and_then(|mut stream| ping_once(&mut stream)) {
                Ok(_) => return Ok(Measured { count: 1, ..Measured::default() }),
                Err(error) if Instant::now() > deadline => bail!("no answer through the proxy: {error:#}"),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// A thread has no one to return an error to; half a measurement must not look like a whole one.
fn fail(why: &str) -> ! {
    eprintln!("client: {why}");
    std::process::exit(1)
}

fn ping_once(stream: &mut TcpStream) -> anyhow::Result<Duration> {
    let mut answer = [0u8; PING_BYTES];
    let started = Instant::now();
    stream.write_all(&[7u8; PING_BYTES])?;
    stream.read_exact(&mut answer).context("waiting for an echo")?;
    Ok(started.elapsed())
}

fn with_percentiles(measured: Measured, mut samples: Samples) -> anyhow::Result<Measured> {
    let (Some(p50), Some(p99)) = (samples.microseconds(0.5), samples.microseconds(0.99)) else {
        bail!("no sample in the window")
    };
    Ok(Measured { count: samples.len() as u64, p50, p99, ..measured })
}

/// Time, CPU time and a counter at the start of a window.
struct Window {
    started: Instant,
    cpu: Duration,
    counter: u64,
}

impl Window {
    fn open(counter: &AtomicU64) -> anyhow::Result<Self> {
        let cpu = machine::busy()?;
        Ok(Self { started: Instant::now(), cpu, counter: counter.load(Ordering::Relaxed) })
    }

    fn close(self, counter: &AtomicU64) -> anyhow::Result<Measured> {
        let bytes = counter.load(Ordering::Relaxed) - self.counter;
        let seconds = self.started.elapsed().as_secs_f64();
        let cpu_seconds = machine::busy()?.saturating_sub(self.cpu).as_secs_f64();
        Ok(Measured { seconds, cpu_seconds, bytes, ..Measured::default() })
    }
}
