//! The load programs: a client and a backend that speak just enough TLS to be routed by SNI.
//!
//! No handshake takes place. The client sends a valid ClientHello and the backend answers with what the hello orders
//! ([`Order`]), so that a run measures the proxy and not a TLS library. Both are this very binary, started again inside
//! a network namespace.

use std::io::Write;

pub(super) mod backend;
pub(super) mod client;
pub(super) mod hello;
pub(super) mod latency;
pub(super) mod log_sink;
pub(super) mod opener;
pub(super) mod proxy_header;

/// The name that every client asks for and every proxy routes by.
pub(super) const SERVER_NAME: &str = "app.example.com";

/// Payload of one ping and of its answer.
pub(super) const PING_BYTES: usize = 64;

/// A large page, or a small download.
pub(super) const FETCH_BYTES: usize = 3 << 20;

/// What the backend does after the hello; it travels in the hello's random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Write as fast as the connection takes it, until the client leaves.
    Stream,
    /// Send one byte, then send back whatever arrives.
    Echo,
    /// Send one byte and wait for the client to close.
    Byte,
    /// Send [`FETCH_BYTES`] and wait for the client to close.
    Fetch,
}

impl Order {
    fn code(self) -> u8 {
        match self {
            Self::Stream => 1,
            Self::Echo => 2,
            Self::Byte => 3,
            Self::Fetch => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Stream, Self::Echo, Self::Byte, Self::Fetch].into_iter().find(|order| order.code() == code)
    }
}

/// One line on stdout, where the bench reads it.
fn say(line: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}

/// The bench closes our stdin when we are to stop; its death does the same.
fn wait_for_end_of_stdin() {
    // An error means as much as the end: nobody is there.
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
}
