//! Reads a TLS ClientHello from the first bytes of a connection, however they were split into segments and records. Called
//! by the accept path after each read; pure.
//!
//! Exactly three outcomes: a whole hello, not TLS, or more bytes are needed. The answer depends on the bytes alone, never
//! on how many calls they came in. What is seen is what the client sends in clear: with Encrypted Client Hello that is the
//! outer name, the one that the client wants to be routed by.

mod body;

use std::borrow::Cow;

use super::reader::{Malformed, Reader};
use crate::route::Sni;

/// Longest handshake message that is read, its four bytes of header included.
pub const MAX_HELLO: usize = 64 * 1024;

/// Most bytes that are read for it: the longest message and, because a client may cut it as it likes, the headers of 1024
/// records. [`Outcome::NeedMore`] is only ever answered to fewer bytes than this.
pub const MAX_RECEIVED: usize = MAX_HELLO + 1024 * RECORD_HEADER;

/// Fatal alert `unrecognized_name`: no route claims the client's server name (RFC 6066 section 3, RFC 8446 section 6).
///
/// A TLS record of type alert (21), version 3.3, two bytes long: level fatal (2), description `unrecognized_name` (112).
pub const UNRECOGNIZED_NAME_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// A fatal `internal_error` (RFC 8446 section 6.2).
pub const INTERNAL_ERROR_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// What the bytes that were received so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Hello(ClientHello),
    NeedMore,
    NotTls(NotTls),
}

/// What routing and logs want to know of a ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// `None` also where the client named something that is not a DNS host name: RFC 6066 section 3 allows nothing else
    /// (an IP literal least of all), so that no route could claim it. The connection goes where one without SNI goes.
    pub sni: Option<Sni>,
    /// The client's ALPN offers in its order, joined by `,`: printable names only, as many as fit in 64 bytes.
    pub alpn: Option<String>,
    /// Bytes of the records that hold the hello. What was received beyond them is the client's early data.
    pub length: usize,
}

/// Why the bytes are not a TLS ClientHello.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTls {
    /// Also an SSLv2 hello, whose first byte is 0x80 or above.
    #[error("record type {0} instead of handshake (22)")]
    RecordType(u8),
    #[error("record version {0}.x instead of 3.x")]
    RecordVersion(u8),
    /// RFC 8446 section 5.1: a handshake fragment has 1 to 2^14 bytes.
    #[error("a handshake record of {0} bytes")]
    RecordLength(u16),
    #[error("handshake type {0} instead of client_hello (1)")]
    HandshakeType(u8),
    /// Over [`MAX_HELLO`], or cut into so many records that it exceeds [`MAX_RECEIVED`].
    #[error("a ClientHello that is too large")]
    TooLarge,
    #[error("a malformed ClientHello: {0}")]
    Malformed(&'static str),
}

/// Remembers how far the record layer was examined, so that a hello that drips in byte by byte costs no more than one that
/// comes at once. Holds offsets only; the bytes stay with the caller.
#[derive(Clone, Debug, Default)]
pub struct HelloReader {
    /// Bytes that were examined, from the first byte of the connection.
    offset: usize,
    /// Bytes of the current record that are still to come; zero: a record header is next.
    record_left: usize,
    /// Bytes of the handshake message that were examined.
    collected: usize,
    /// The first four of them: type and length.
    header: [u8; HANDSHAKE_HEADER],
}

/// Judges all bytes that were received so far. Use a [`HelloReader`] where this is asked after each read.
pub fn parse(received: &[u8]) -> Outcome {
    HelloReader::default().parse(received)
}

impl HelloReader {
    /// `received` holds everything since the first byte of the connection: what the last call saw, then what is new.
    pub fn parse(&mut self, received: &[u8]) -> Outcome {
        let hello = self
            .advance(received)
            .and_then(|whole| if whole { self.hello(received).map(Some).map_err(NotTls::from) } else { Ok(None) });
        match hello {
            Ok(Some(hello)) => Outcome::Hello(hello),
            Ok(None) => Outcome::NeedMore,
            Err(reason) => Outcome::NotTls(reason),
        }
    }

    /// Examines the bytes after `offset`; true once the message is whole.
    fn advance(&mut self, received: &[u8]) -> Result<bool, NotTls> {
        loop {
            if self.message_length()? == Some(self.collected) {
                return Ok(true);
            }
            let mut new = received.get(self.offset..).unwrap_or_default();
            if self.record_left == 0 {
                if self.offset + RECORD_HEADER >= MAX_RECEIVED {
                    return Err(NotTls::TooLarge);
                }
                let Some(length) = record_length(new)? else { return Ok(false) };
                if self.offset + RECORD_HEADER + length > MAX_RECEIVED {
                    return Err(NotTls::TooLarge);
                }
                self.record_left = length;
                self.offset += RECORD_HEADER;
                new = &new[RECORD_HEADER..];
            }
            let fragment = &new[..new.len().min(self.record_left)];
            if fragment.is_empty() {
                return Ok(false);
            }
            for (byte, seen) in self.header.iter_mut().skip(self.collected).zip(fragment) {
                *byte = *seen;
            }
            self.offset += fragment.len();
            self.record_left -= fragment.len();
            self.collected += fragment.len();
        }
    }

    /// Length of the handshake message with its header, once that is known.
    fn message_length(&self) -> Result<Option<usize>, NotTls> {
        let [kind, high, middle, low] = self.header;
        if self.collected > 0 && kind != CLIENT_HELLO {
            return Err(NotTls::HandshakeType(kind));
        }
        if self.collected < HANDSHAKE_HEADER {
            return Ok(None);
        }
        let length = HANDSHAKE_HEADER + usize::from(high) * 0x1_0000 + usize::from(middle) * 0x100 + usize::from(low);
        if length > MAX_HELLO {
            return Err(NotTls::TooLarge);
        }
        // Nobody sends a second message before the server has answered, and none may follow in the hello's own record
        // (RFC 8446 section 5.1: keys change on a record boundary).
        if self.collected + self.record_left > length {
            return Err(NotTls::Malformed("bytes after the hello in its record"));
        }
        Ok(Some(length))
    }

    /// The hello in the records before `offset`.
    fn hello(&self, received: &[u8]) -> Result<ClientHello, Malformed> {
        let records = received.get(..self.offset).ok_or(Malformed("records"))?;
        let message = message(records, self.collected)?;
        let mut message = Reader::new(&message);
        message.take(HANDSHAKE_HEADER, "handshake header")?;
        body::parse(message, self.offset)
    }
}

impl From<Malformed> for NotTls {
    fn from(Malformed(field): Malformed) -> Self {
        Self::Malformed(field)
    }
}

/// Payload length of the record that starts here; `None`: its header is not whole yet. What is wrong is said at the first
/// byte that shows it.
fn record_length(record: &[u8]) -> Result<Option<usize>, NotTls> {
    if let Some(&kind) = record.first()
        && kind != HANDSHAKE_RECORD
    {
        return Err(NotTls::RecordType(kind));
    }
    if let Some(&major) = record.get(1)
        && major != MAJOR_VERSION
    {
        return Err(NotTls::RecordVersion(major));
    }
    let Some(&[high, low]) = record.get(3..RECORD_HEADER).and_then(|length| length.first_chunk()) else {
        return Ok(None);
    };
    match u16::from_be_bytes([high, low]) {
        length @ 1..=MAX_FRAGMENT => Ok(Some(usize::from(length))),
        length => Err(NotTls::RecordLength(length)),
    }
}

/// The handshake message without the record headers; copied only where more than one record holds it.
fn message(records: &[u8], length: usize) -> Result<Cow<'_, [u8]>, Malformed> {
    let mut reader = Reader::new(records);
    let mut joined = Vec::new();
    while !reader.is_empty() {
        reader.take(3, "record type and version")?;
        let fragment = reader.vec16("record")?;
        if fragment.len() == length {
            return Ok(Cow::Borrowed(fragment));
        }
        joined.extend_from_slice(fragment);
    }
    Ok(Cow::Owned(joined))
}

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
const HANDSHAKE_RECORD: u8 = 22;
const MAJOR_VERSION: u8 = 3;
const MAX_FRAGMENT: u16 = 1 << 14;
const CLIENT_HELLO: u8 = 1;

#[cfg(test)]
mod tests;
