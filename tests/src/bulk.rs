//! Bulk bytes over plain TCP: how fast a path is, without the cost of encryption at its ends.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::lab::Host;
use crate::netns::Namespace;

/// Sends zeros to everyone who says anything, until they leave.
#[derive(Debug)]
pub struct BulkServer {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BulkServer {
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let address = host.socket(port);
        let listener = host.ns.listen(address).with_context(|| format!("listening on {address}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    std::thread::spawn(move || send(stream));
                }
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Ends the server; `host` is where it runs.
    pub fn stop(mut self, host: &Host) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = host.ns.connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Bits per second that arrive from a [`BulkServer`] at `to`, reached by sending `opening` first.
pub fn measure(from: &Namespace, to: SocketAddr, opening: &[u8], time: Duration) -> Result<f64> {
    let mut stream = from.connect(to).with_context(|| format!("connecting to {to}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(opening)?;
    let mut buffer = vec![0; BUFFER];
    // Slow start, and a handoff, are over when the first megabytes have come.
    let mut warm_up = WARM_UP;
    while warm_up > 0 {
        let n = stream.read(&mut buffer).context("warming up")?;
        ensure!(n > 0, "{to} closed the connection");
        warm_up = warm_up.saturating_sub(n);
    }
    let started = Instant::now();
    let mut bytes = 0;
    while started.elapsed() < time {
        bytes += stream.read(&mut buffer).context("measuring")?;
    }
    Ok(bytes as f64 * 8.0 / started.elapsed().as_secs_f64())
}

fn send(mut stream: std::net::TcpStream) {
    let mut opening = [0; 4096];
    if stream.read(&mut opening).is_ok_and(|n| n > 0) {
        let zeros = vec![0; BUFFER];
        while stream.write_all(&zeros).is_ok() {}
    }
}

const BUFFER: usize = 256 * 1024;
const WARM_UP: usize = 8 << 20;
