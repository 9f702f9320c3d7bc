//! The backend: checks PROXY header and hello of every connection, then does what the hello orders.
//!
//! One epoll thread per address set carries hellos, echoes and idle connections; a stream gets a thread of its own, so
//! that an echo never waits behind a large write. The backend closes only after its client has closed.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::Context;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

use super::hello;
use super::proxy_header::{self, ProxyHeader};
use super::{FETCH_BYTES, Order, say};
use crate::bench::topology;

/// One write of a stream. Large enough for full GSO packets, small enough to stay in the cache.
const STREAM_WRITE: usize = 256 << 10;
const BACKLOG: i32 = 65_535;
const LISTENER: u64 = 1 << 32;

#[derive(clap::Args)]
pub(in crate::bench) struct BackendArgs {
    #[arg(long)]
    listen: Vec<SocketAddrV4>,
    /// What must stand in front of each hello.
    #[arg(long, value_enum)]
    header: ProxyHeader,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// Serves until stdin ends.
pub(in crate::bench) fn run(args: BackendArgs) -> anyhow::Result<()> {
    let mut listeners: Vec<Vec<TcpListener>> = (0..args.threads.max(1)).map(|_| Vec::new()).collect();
    let workers = listeners.len();
    for (index, &address) in args.listen.iter().enumerate() {
        listeners[index % workers].push(listen(address).with_context(|| format!("listening on {address}"))?);
    }
    for set in listeners {
        let header = args.header;
        std::thread::spawn(move || {
            if let Err(error) = (Worker { header, connections: HashMap::new() }).serve(&set) {
                complain(&format!("{error:#}"));
                std::process::exit(1);
            }
        });
    }
    say("ready")?;
    super::wait_for_end_of_stdin();
    Ok(())
}

fn listen(address: SocketAddrV4) -> anyhow::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn complain(what: &str) {
    eprintln!("backend: {what}");
}

struct Worker {
    header: ProxyHeader,
    connections: HashMap<u64, Connection>,
}

struct Connection {
    stream: TcpStream,
    phase: Phase,
}

enum Phase {
    /// Bytes of PROXY header and hello so far.
    Hello(Vec<u8>),
    Echo,
    /// Nothing more is said; the client closes.
    Close,
}

/// What becomes of a connection after an event.
enum Next {
    Keep,
    Drop,
    /// It moves to a thread of its own, to send as many bytes.
    Stream {
        bytes: usize,
    },
}

impl Worker {
    fn serve(mut self, listeners: &[TcpListener]) -> anyhow::Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (index, listener) in listeners.iter().enumerate() {
            epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER + index as u64))?;
        }
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            for event in &events[..ready] {
                if event.data() >= LISTENER {
                    self.accept(&epoll, &listeners[(event.data() - LISTENER) as usize])?;
                } else {
                    self.advance(&epoll, event.data());
                }
            }
        }
    }

    fn accept(&mut self, epoll: &Epoll, listener: &TcpListener) -> anyhow::Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The client was gone before we came.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accepting"),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let key = stream.as_raw_fd() as u64;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
            self.connections.insert(key, Connection { stream, phase: Phase::Hello(Vec::new()) });
        }
    }

    fn advance(&mut self, epoll: &Epoll, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        match connection.advance(self.header) {
            Ok(Next::Keep) => {}
            // A client that leaves in mid-stream resets the connection; that is not our news.
            Ok(Next::Drop) | Err(_) => {
                self.connections.remove(&key);
            }
            Ok(Next::Stream { bytes }) => {
                let Some(connection) = self.connections.remove(&key) else { return };
                if epoll.delete(&connection.stream).is_ok() {
                    std::thread::spawn(move || stream(connection.stream, bytes));
                }
            }
        }
    }
}

impl Connection {
    fn advance(&mut self, header: ProxyHeader) -> std::io::Result<Next> {
        let mut chunk = [0u8; 4096];
        loop {
            let read = match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Next::Drop),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Next::Keep),
                Err(error) => return Err(error),
            };
            match &mut self.phase {
                Phase::Hello(seen) => {
                    seen.extend_from_slice(&chunk[..read]);
                    let order = match order(header, seen) {
                        Ok(Some(order)) => order,
                        Ok(None) => continue,
                        Err(why) => {
                            complain(why);
                            return Ok(Next::Drop);
                        }
                    };
                    self.phase = match order {
                        Order::Stream => return Ok(Next::Stream { bytes: usize::MAX }),
                        Order::Fetch => return Ok(Next::Stream { bytes: FETCH_BYTES }),
                        Order::Echo => Phase::Echo,
                        Order::Byte => Phase::Close,
                    };
                    self.stream.write_all(b"!")?;
                }
                // A ping is far smaller than the send buffer, so it goes out whole.
                Phase::Echo => self.stream.write_all(&chunk[..read])?,
                Phase::Close => {
                    complain("bytes after a hello that orders one byte");
                    return Ok(Next::Drop);
                }
            }
        }
    }
}

/// The order, once header and hello are there; `Err` says what is wrong with them.
fn order(expected: ProxyHeader, seen: &[u8]) -> Result<Option<Order>, &'static str> {
    let length = match proxy_header::parse(expected, seen) {
        proxy_header::Parsed::NeedMore => return Ok(None),
        proxy_header::Parsed::Invalid(why) => return Err(why),
        proxy_header::Parsed::Header { addresses: None, length } => length,
        proxy_header::Parsed::Header { addresses: Some(addresses), length } => {
            if !topology::is_client(*addresses.source.ip()) || addresses.destination != topology::PROXY_ADDRESS {
                return Err("the PROXY header names other addresses than the client's connection");
            }
            length
        }
    };
    match hello::parse(&seen[length..]) {
        hello::Parsed::NeedMore => Ok(None),
        hello::Parsed::NotOurs => Err("the hello is not byte for byte what the client sent"),
        hello::Parsed::Hello { order, length: hello } if length + hello == seen.len() => Ok(Some(order)),
        hello::Parsed::Hello { .. } => Err("bytes behind the hello before its answer"),
    }
}

/// Writes `bytes`, or until the client leaves, and closes after it.
fn stream(mut stream: TcpStream, mut bytes: usize) {
    if stream.set_nonblocking(false).is_err() {
        return;
    }
    let block = vec![0u8; STREAM_WRITE];
    while bytes > 0 {
        let next = &block[..bytes.min(STREAM_WRITE)];
        if stream.write_all(next).is_err() {
            return;
        }
        bytes -= next.len();
    }
    // The end of the stream, or a reset: either way the client is done.
    let _ = stream.read(&mut [0]);
}
