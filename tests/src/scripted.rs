//! A backend whose side of each conversation the scenario writes: plain TCP behind a PROXY header and a ClientHello.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use socket2::SockRef;

use crate::lab::Host;
use crate::payload::Random;

/// Runs its script once for each connection, on a thread of its own; stopped when dropped.
#[derive(Debug)]
pub struct Scripted {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Scripted {
    /// `script` gets the stream right after the ClientHello.
    pub fn start(host: &Host, script: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Result<Self> {
        Self::raw(host, move |stream| read_first_flight(&stream).and_then(|()| script(stream)))
    }

    /// `script` gets the stream as it was accepted.
    pub fn raw(host: &Host, script: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Result<Self> {
        let address = host.socket(443);
        let listener = host.ns.listen(address).with_context(|| format!("listening on {address}"))?;
        // The standard library's backlog is too short for a crowd that comes at once.
        host.ns.exec(|| nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1024)?))?;
        let (listener, script) = (Arc::new(listener), Arc::new(script));
        let accepting = listener.clone();
        let thread = std::thread::spawn(move || {
            for stream in accepting.incoming().map_while(Result::ok) {
                let script = script.clone();
                // What goes wrong at this end shows at the client's, which the scenario looks at.
                std::thread::spawn(move || script(stream));
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        // Wakes the thread that accepts.
        let _ = SockRef::from(&*self.listener).shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read_first_flight(mut stream: &TcpStream) -> io::Result<()> {
    read_proxy_header(stream)?;
    let mut record = [0; 5];
    stream.read_exact(&mut record)?;
    let mut hello = vec![0; usize::from(u16::from_be_bytes([record[3], record[4]]))];
    stream.read_exact(&mut hello)
}

/// Version 2, with all that it holds.
pub fn read_proxy_header(mut stream: &TcpStream) -> io::Result<()> {
    let mut header = [0; 16];
    stream.read_exact(&mut header)?;
    let mut rest = vec![0; usize::from(u16::from_be_bytes([header[14], header[15]]))];
    stream.read_exact(&mut rest)
}

/// A script: answers `ask` until the client closes.
pub fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut question = [0; 16];
    while let Ok(()) = stream.read_exact(&mut question) {
        let (seed, bytes) = question.split_at(8);
        let word = |half: &[u8]| half.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        send_random(&mut stream, word(seed), word(bytes))?;
    }
    Ok(())
}

/// What makes an [`answer`]ing backend send `bytes` bytes that only `seed` determines.
pub fn question(seed: u64, bytes: u64) -> [u8; 16] {
    let mut question = [0; 16];
    question[..8].copy_from_slice(&seed.to_be_bytes());
    question[8..].copy_from_slice(&bytes.to_be_bytes());
    question
}

/// Puts a [`question`].
pub fn ask(stream: &mut TcpStream, seed: u64, bytes: u64) -> io::Result<()> {
    stream.write_all(&question(seed, bytes))
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Every byte of it came, and the right one.
    Complete,
    /// Before the first byte.
    Reset,
    /// FIN before the first byte: no client takes that for an answer.
    Nothing,
}

/// One short connection: hello, question, answer; the client closes first.
///
/// # Errors
/// What no client may ever see: no connection, wrong bytes, an answer that stops in its middle, silence for `patience`.
pub fn exchange(server: SocketAddr, hello: &[u8], seed: u64, bytes: u64, patience: Duration) -> Result<Outcome> {
    let mut stream = TcpStream::connect_timeout(&server, patience).context("connecting")?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let from = stream.local_addr()?;
    let asked = stream.write_all(hello).and_then(|()| ask(&mut stream, seed, bytes));
    asked.with_context(|| format!("{from}: asking"))?;
    check_random(&mut stream, seed, bytes).with_context(|| from.to_string())
}

/// Sends `bytes` bytes that only `seed` determines.
pub fn send_random(stream: &mut impl Write, seed: u64, bytes: u64) -> io::Result<()> {
    let mut random = Random::new(seed);
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(CHUNK as u64) as usize;
        random.fill(&mut chunk[..n]);
        stream.write_all(&chunk[..n])?;
        left -= n as u64;
    }
    Ok(())
}

/// Reads what [`send_random`] sends, and compares.
pub fn check_random(stream: &mut impl Read, seed: u64, bytes: u64) -> Result<Outcome> {
    let mut random = Random::new(seed);
    let (mut expected, mut found) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut came = 0;
    while came < bytes {
        let n = (bytes - came).min(CHUNK as u64) as usize;
        random.fill(&mut expected[..n]);
        let mut filled = 0;
        while filled < n {
            match stream.read(&mut found[filled..n]) {
                Ok(0) if came == 0 && filled == 0 => return Ok(Outcome::Nothing),
                Ok(0) => anyhow::bail!("closed after {} of {bytes} bytes", came + filled as u64),
                Ok(more) => filled += more,
                Err(error) if came == 0 && filled == 0 && error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(Outcome::Reset);
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("after {} of {bytes} bytes", came + filled as u64));
                }
            }
        }
        ensure!(expected[..n] == found[..n], "wrong bytes between {came} and {}", came + n as u64);
        came += n as u64;
    }
    Ok(Outcome::Complete)
}

const CHUNK: usize = 64 * 1024;
