//! Reads what a client says first: a PROXY header where the listener trusts its peer, and the ClientHello.
//!
//! Nothing here decides where a connection goes. All bytes stay in one buffer, because the backend gets them unchanged.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use super::client_hello::{ClientHello, HelloReader, NotTls, Outcome};
use super::outcome::Refusal;
use super::proxy_header::{self, Addresses, HeaderOutcome, Tlvs};

/// What the listener expects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// The peer may say for whom it speaks, and has to.
    pub(super) proxy_header: bool,
    pub(super) client_hello: bool,
    /// Time for all of it.
    pub(super) within: Duration,
}

/// What the client said.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// Client and destination, where a PROXY header names them.
    pub(super) addresses: Option<Addresses>,
    pub(super) passed_on: Option<Tlvs>,
    pub(super) hello: Option<ClientHello>,
    /// Everything that was read.
    received: Vec<u8>,
    /// Where the PROXY header ends in it.
    header: usize,
}

impl Opening {
    /// Reads until all that is expected is there. On refusal, what was read so far is lost with the connection.
    pub(super) async fn read(client: &TcpStream, expected: Expected) -> Result<Self, Refusal> {
        let mut opening = Self::default();
        if !expected.proxy_header && !expected.client_hello {
            return Ok(opening);
        }
        let reading = async {
            if expected.proxy_header {
                opening.read_header(client).await?;
            }
            if expected.client_hello {
                opening.read_hello(client, expected.proxy_header).await?;
            }
            Ok(())
        };
        tokio::time::timeout(expected.within, reading).await.map_err(|_| Refusal::HelloTimeout)??;
        Ok(opening)
    }

    /// What the backend gets: the PROXY header is between us and our peer.
    pub(super) fn payload(&self) -> &[u8] {
        &self.received[self.header..]
    }

    /// Bytes that were read from the client, its PROXY header included.
    pub(super) fn len(&self) -> usize {
        self.received.len()
    }

    async fn read_header(&mut self, client: &TcpStream) -> Result<(), Refusal> {
        loop {
            match proxy_header::parse(&self.received) {
                HeaderOutcome::Header { header, length } => {
                    self.header = length;
                    self.addresses = header.addresses;
                    self.passed_on = Some(header.tlvs);
                    return Ok(());
                }
                HeaderOutcome::NeedMore => self.read_more(client).await?,
                HeaderOutcome::NotProxy | HeaderOutcome::Malformed(_) => return Err(Refusal::BadProxyHeader),
            }
        }
    }

    async fn read_hello(&mut self, client: &TcpStream, trusted: bool) -> Result<(), Refusal> {
        let mut reader = HelloReader::default();
        loop {
            match reader.parse(self.payload()) {
                Outcome::Hello(hello) => {
                    self.hello = Some(hello);
                    return Ok(());
                }
                Outcome::NeedMore => self.read_more(client).await?,
                Outcome::NotTls(NotTls::TooLarge) => return Err(Refusal::HelloTooLarge),
                Outcome::NotTls(_) if trusted => return Err(Refusal::NotTls),
                Outcome::NotTls(_) => {
                    return Err(match proxy_header::parse(self.payload()) {
                        HeaderOutcome::NotProxy => Refusal::NotTls,
                        HeaderOutcome::Header { .. } | HeaderOutcome::NeedMore | HeaderOutcome::Malformed(_) => {
                            Refusal::UntrustedProxyHeader
                        }
                    });
                }
            }
        }
    }

    async fn read_more(&mut self, client: &TcpStream) -> Result<(), Refusal> {
        self.received.reserve(FIRST_READ);
        loop {
            let ready = client.readable().await;
            // Not `read`: it takes a short read for an empty socket, and reads stop at urgent data.
            return match ready.and_then(|()| client.try_read_buf(&mut self.received)) {
                Ok(0) => Err(Refusal::HelloEof),
                Ok(_) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => Err(Refusal::ClientReset),
            };
        }
    }
}

/// A hello with post-quantum key shares and what a trusted peer puts before it fit in one read.
const FIRST_READ: usize = 4096;
