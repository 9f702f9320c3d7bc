//! A connection through the proxy of which a scenario holds both ends: what goes in at one must come out at the other.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};

use anyhow::{Context as _, Result, ensure};

use crate::payload::Random;
use crate::wait::{PATIENCE, here, wait_for};
use crate::wire::read_exactly;

/// Both ends, and what has come out at them.
#[derive(Debug)]
pub struct Talk {
    pub client: TcpStream,
    pub backend: TcpStream,
    carried: Carried,
}

/// Bytes of a connection, as its log line counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    pub to_backend: u64,
    pub to_client: u64,
}

impl Talk {
    /// Accepts the backend's end of a connection whose client has written `opening`.
    pub fn accept(client: TcpStream, backend: &TcpListener, opening: &[u8]) -> Result<Self> {
        let mut talk = Self::of(client, accept(backend)?);
        talk.arrives(opening)?;
        Ok(talk)
    }

    /// Both ends of a connection on which nothing was said that anybody has read.
    pub fn of(client: TcpStream, backend: TcpStream) -> Self {
        Self { client, backend, carried: Carried { to_backend: 0, to_client: 0 } }
    }

    /// What the client has written comes out at the backend.
    pub fn arrives(&mut self, bytes: &[u8]) -> Result<()> {
        ensure!(
            read_exactly(&mut self.backend, bytes.len())? == bytes,
            "the backend did not get what the client wrote"
        );
        self.carried.to_backend += bytes.len() as u64;
        Ok(())
    }

    /// The backend says this, and the client hears it.
    pub fn backend_says(&mut self, bytes: &[u8]) -> Result<()> {
        self.backend.write_all(bytes)?;
        self.returns(bytes)
    }

    /// What the backend has said already comes out at the client.
    pub fn returns(&mut self, bytes: &[u8]) -> Result<()> {
        ensure!(read_exactly(&mut self.client, bytes.len())? == bytes, "the client did not get what the backend wrote");
        self.carried.to_client += bytes.len() as u64;
        Ok(())
    }

    /// Random bytes both ways at once.
    pub fn exchange(&mut self) -> Result<()> {
        let [up, down] = [1, 2].map(random);
        let Self { client, backend, .. } = self;
        let (mut client_writer, mut backend_writer) = (client.try_clone()?, backend.try_clone()?);
        for writer in [&client_writer, &backend_writer] {
            writer.set_write_timeout(Some(here(PATIENCE)))?;
        }
        let (at_backend, at_client) = std::thread::scope(|scope| {
            scope.spawn(|| client_writer.write_all(&up));
            scope.spawn(|| backend_writer.write_all(&down));
            (read_exactly(backend, up.len()), read_exactly(client, down.len()))
        });
        ensure!(at_backend? == up, "bytes changed on their way to the backend");
        ensure!(at_client? == down, "bytes changed on their way to the client");
        self.carried.to_backend += up.len() as u64;
        self.carried.to_client += down.len() as u64;
        Ok(())
    }

    /// Ends the connection in order, the client first, and nothing more may come out.
    pub fn close(mut self) -> Result<Carried> {
        // A client that has said its last word before may say so again.
        self.client.shutdown(Shutdown::Write)?;
        at_end(&mut self.backend).context("the backend's end")?;
        self.backend.shutdown(Shutdown::Write)?;
        at_end(&mut self.client).context("the client's end")?;
        Ok(self.carried)
    }

    /// [`Talk::exchange`], then [`Talk::close`].
    pub fn finish(mut self) -> Result<Carried> {
        self.exchange()?;
        self.close()
    }
}

/// As `listener.accept`, within [`PATIENCE`].
pub fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let (stream, _) = wait_for(PATIENCE, "a connection reaches the backend", || listener.accept().ok())?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn at_end(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(here(PATIENCE)))?;
    let mut rest = [0; 64];
    let n = stream.read(&mut rest)?;
    ensure!(n == 0, "nobody wrote these bytes: {:02x?}", &rest[..n]);
    Ok(())
}

fn random(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; EXCHANGED];
    Random::new(seed).fill(&mut bytes);
    bytes
}

/// More than a relay's buffers hold, and no multiple of anything.
const EXCHANGED: usize = 300_001;
