//! Bytes as a client puts them on the wire, where curl and openssl would not: split, strange or by hand.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::wait::{PATIENCE, here, wait_until};

/// TLS alert `unrecognized_name`: RFC 6066 section 3.
pub const UNRECOGNIZED_NAME: u8 = 112;

/// A client that trusts `ca` and nothing else.
pub fn tls_config(ca: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).with_context(|| format!("reading {}", ca.display()))?)?;
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

/// TLS over anything that reads and writes; the handshake happens with the first byte.
pub fn tls<S: Read + Write>(config: Arc<ClientConfig>, name: &str, stream: S) -> Result<Tls<S>> {
    Ok(StreamOwned::new(ClientConnection::new(config, ServerName::try_from(name.to_owned())?)?, stream))
}

pub type Tls<S> = StreamOwned<ClientConnection, S>;

/// The first flight of a TLS client; `None` leaves the SNI extension out.
pub fn client_hello(name: Option<&str>) -> Result<Vec<u8>> {
    let mut config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.enable_sni = name.is_some();
    let name = ServerName::try_from(name.unwrap_or("nobody.invalid").to_owned())?;
    let mut hello = Vec::new();
    ClientConnection::new(Arc::new(config), name)?.write_tls(&mut hello)?;
    Ok(hello)
}

/// Writes at most `step` bytes per segment.
pub struct Drip {
    stream: TcpStream,
    step: usize,
}

impl Drip {
    pub fn new(stream: TcpStream, step: usize) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, step })
    }
}

impl Read for Drip {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Drip {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.write(&bytes[..bytes.len().min(self.step)])
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

/// How a peer ended a connection on which nothing more is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A fatal TLS alert, then close.
    Alert(u8),
    /// Bytes (perhaps none) that are no alert, then FIN.
    Closed(Vec<u8>),
    Reset,
    /// Still open when the time was over.
    Open,
}

/// Reads until the peer ends the connection.
pub fn ending(stream: &mut TcpStream, patience: Duration) -> Result<Ending> {
    stream.set_read_timeout(Some(patience))?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Ok(Ending::Reset),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(Ending::Open),
            Err(e) => return Err(e).context("reading to the end of a connection"),
        }
    }
    // ContentType 21, a version, length 2, level fatal: RFC 8446 section 6.
    Ok(match bytes.as_slice() {
        [21, 3, _, 0, 2, 2, description] => Ending::Alert(*description),
        _ => Ending::Closed(bytes),
    })
}

/// Exactly `count` bytes, or an error that shows how what came instead begins.
pub fn read_exactly(stream: &mut TcpStream, count: usize) -> Result<Vec<u8>> {
    stream.set_read_timeout(Some(here(PATIENCE)))?;
    let mut bytes = Vec::with_capacity(count);
    let read = stream.take(count as u64).read_to_end(&mut bytes);
    let begin = &bytes[..bytes.len().min(100)];
    ensure!(bytes.len() == count, "expected {count} bytes, got {} ({read:?}), which begin {begin:02x?}", bytes.len());
    Ok(bytes)
}

/// Waits until the other side's kernel has all that was written.
pub fn wait_until_acknowledged(stream: &TcpStream) -> Result<()> {
    wait_until(PATIENCE, "all that was written is acknowledged", || {
        let mut queued: libc::c_int = -1;
        // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int.
        unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
        queued == 0
    })
}

/// Waits until the other side's kernel has a segment beyond one that it lacks.
pub fn wait_until_sacked(stream: &TcpStream) -> Result<()> {
    wait_until(PATIENCE, "a segment is acknowledged out of order", || {
        // SAFETY: all zeroes is a valid tcp_info.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut len = size_of_val(&info) as libc::socklen_t;
        let at = (&raw mut info).cast();
        // SAFETY: the kernel writes at most `len` bytes.
        unsafe { libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, at, &raw mut len) };
        info.tcpi_sacked > 0
    })
}

/// Where a socket's own stream and that of its peer stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Of the next byte that it sends.
    pub write: u32,
    /// Of the next byte that it expects.
    pub read: u32,
}

/// What only the two ends know.
pub fn numbers(stream: &TcpStream) -> Result<Numbers> {
    let fd = stream.as_raw_fd();
    let set = |option, value: libc::c_int| {
        let len = size_of_val(&value) as libc::socklen_t;
        // SAFETY: an int option with its own size.
        let result = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, (&raw const value).cast(), len) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    let stand = |queue| {
        set(libc::TCP_REPAIR_QUEUE, queue)?;
        let mut number: libc::c_int = 0;
        let mut len = size_of_val(&number) as libc::socklen_t;
        let at = (&raw mut number).cast();
        // SAFETY: the kernel writes at most `len` bytes.
        let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, at, &raw mut len) };
        if result == 0 { Ok(number as u32) } else { Err(std::io::Error::last_os_error()) }
    };
    const RECEIVE: libc::c_int = 1;
    const SEND: libc::c_int = 2;
    /// Without a window probe.
    const OFF: libc::c_int = -1;
    set(libc::TCP_REPAIR, 1)?;
    let both = stand(SEND).and_then(|write| Ok(Numbers { write, read: stand(RECEIVE)? }));
    set(libc::TCP_REPAIR, OFF)?;
    both.context("TCP_QUEUE_SEQ")
}

/// A PROXY v2 header for TCP over IPv4, written from the specification's section 2.2.
pub fn proxy_v2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend(if source.is_ipv4() { [0x21, 0x11, 0, 12] } else { [0x21, 0x21, 0, 36] });
    for address in [source.ip(), destination.ip()] {
        match address {
            IpAddr::V4(address) => header.extend(address.octets()),
            IpAddr::V6(address) => header.extend(address.octets()),
        }
    }
    for port in [source.port(), destination.port()] {
        header.extend(port.to_be_bytes());
    }
    header
}

/// One HTTP/1.1 request on an open stream; the body of the answer.
pub fn http_get(stream: &mut (impl Read + Write), host: &str, path: &str) -> Result<Vec<u8>> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        // A server may close TCP without close_notify after the last byte that it announced.
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {}
        Err(e) => return Err(e).context("reading an HTTP answer"),
    }
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n").context("the answer has no header")?;
    Ok(answer.split_off(head + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_without_a_name_does_not_contain_one() -> Result<()> {
        let contains = |hello: &[u8], name: &str| hello.windows(name.len()).any(|w| w == name.as_bytes());
        assert!(contains(&client_hello(Some("app.example.com"))?, "app.example.com"));
        assert!(!contains(&client_hello(None)?, "nobody.invalid"));
        Ok(())
    }

    #[test]
    fn proxy_header_has_the_bytes_of_the_specification() {
        let header = proxy_v2(([192, 0, 2, 101], 0x1234).into(), ([192, 0, 2, 1], 443).into());
        let expected = [
            0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, // signature
            0x21, 0x11, 0x00, 0x0c, // version 2 PROXY, TCP over IPv4, 12 bytes
            192, 0, 2, 101, 192, 0, 2, 1, 0x12, 0x34, 0x01, 0xbb,
        ];
        assert_eq!(header, expected);
    }
}
