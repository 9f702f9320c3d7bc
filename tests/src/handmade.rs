//! A TCP client written by hand, with the options, windows and segments of any stack that a scenario likes.
//!
//! It is as strict as a client can be: whatever a translated packet may not contain is an error.

use std::collections::VecDeque;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::forge::{ACK, AE, CWR, ECE, FIN, FORGED, Forger, PSH, RST, SYN, Segment, checksum_of_segment};
use crate::lab::Host;
use crate::wait::PATIENCE;

/// What a client's stack says and how.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Of the SYN, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Beside SYN: what asks for ECN.
    pub ecn: u16,
    /// Bytes that it is willing to take at any time.
    pub window: u32,
}

/// What the options of a SYN mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Agreed {
    segment: Option<u16>,
    scale: Option<u8>,
    sack: bool,
    timestamps: bool,
}

/// An established connection.
pub struct Handmade {
    forger: Forger,
    ears: Socket,
    from: SocketAddr,
    to: SocketAddr,
    window: u32,
    offered: Agreed,
    scale: u8,
    /// The first byte that is not acknowledged, and the bytes from there on as they were cut.
    unacknowledged: u32,
    in_flight: VecDeque<(u16, Vec<u8>)>,
    /// Of the next byte that it sends.
    write: u32,
    /// Of the next byte that it expects.
    read: u32,
    got: Vec<u8>,
    closed: bool,
    /// Bytes that came although there was no window for them.
    pub beyond_window: usize,
}

/// A packet that has arrived.
struct Arrived {
    flags: u16,
    seq: u32,
    ack: u32,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Handmade {
    /// Shakes hands. The host's own stack must be kept from answering: see [`Handmade::mute`].
    pub fn connect(host: &Host, port: u16, to: SocketAddr, stack: &Stack) -> Result<Self> {
        let ears = host.ns.exec(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)))?;
        ears.set_recv_buffer_size(8 << 20)?;
        ears.set_read_timeout(Some(TICK))?;
        let offered = Agreed::read(&stack.options);
        let mut client = Self {
            forger: Forger::new(&host.ns)?,
            ears,
            from: host.socket(port),
            to,
            window: stack.window,
            offered,
            scale: 0,
            unacknowledged: FIRST,
            in_flight: VecDeque::new(),
            write: FIRST,
            read: 0,
            got: Vec::new(),
            closed: false,
            beyond_window: 0,
        };
        // A SYN's window is never scaled.
        let window = u16::try_from(stack.window).unwrap_or(u16::MAX);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            client.send(SYN | stack.ecn, FIRST, window, &stack.options, &[])?;
            let Some(answer) = client.hear()? else { continue };
            ensure!(answer.flags == SYN | ACK, "the SYN was answered with flags {:#x}", answer.flags);
            ensure!(answer.ack == FIRST.wrapping_add(1), "the SYN-ACK acknowledges {}", answer.ack);
            let agreed = Agreed::read(&answer.options);
            ensure!(!agreed.timestamps, "timestamps: {:02x?}", answer.options);
            ensure!(agreed.sack == offered.sack, "SACK: {offered:?}, {agreed:?}");
            ensure!(agreed.scale.is_some() == offered.scale.is_some(), "scale: {offered:?}, {agreed:?}");
            client.scale = offered.scale.unwrap_or(0);
            client.write = FIRST.wrapping_add(1);
            client.unacknowledged = client.write;
            client.read = answer.seq.wrapping_add(1);
            client.acknowledge()?;
            return Ok(client);
        }
        bail!("no SYN-ACK in {PATIENCE:?}")
    }

    /// Keeps a host's stack, which knows of no connection, from resetting those of handmade clients.
    pub fn mute(host: &Host) -> Result<()> {
        host.ns.nft(&format!(
            "table ip mute {{ chain out {{ type filter hook output priority filter; \
             meta mark != {FORGED} tcp flags & rst == rst drop; }}; }}"
        ))
    }

    /// Sends a segment that holds these bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let at = self.write;
        self.lose(bytes);
        self.send(ACK | PSH, at, self.field(), &[], bytes)
    }

    /// As [`Handmade::write`], but the segment does not arrive.
    pub fn lose(&mut self, bytes: &[u8]) {
        self.in_flight.push_back((ACK | PSH, bytes.to_vec()));
        self.write = self.write.wrapping_add(bytes.len() as u32);
    }

    /// Sends a segment that holds these bytes, perhaps none, and says that nothing more follows.
    pub fn finish(&mut self, bytes: &[u8]) -> Result<()> {
        let at = self.write;
        self.in_flight.push_back((ACK | FIN, bytes.to_vec()));
        self.write = at.wrapping_add(bytes.len() as u32 + 1);
        self.send(ACK | FIN, at, self.field(), &[], bytes)
    }

    /// Says that the connection is over, with the number of the next byte, and remembers it all the same.
    pub fn reset(&self) -> Result<()> {
        self.send(ACK | RST, self.write, 0, &[], &[])
    }

    /// Sends again all that is not acknowledged, the last segment first.
    pub fn repeat_backwards(&self) -> Result<()> {
        let mut at = self.unacknowledged;
        let mut segments = Vec::new();
        for (flags, bytes) in &self.in_flight {
            segments.push((at, *flags, bytes));
            at = at.wrapping_add(bytes.len() as u32);
        }
        segments.iter().rev().try_for_each(|(at, flags, bytes)| self.send(*flags, *at, self.field(), &[], bytes))
    }

    /// The next `count` bytes of the other end.
    pub fn read_exactly(&mut self, count: usize) -> Result<Vec<u8>> {
        self.until(&format!("{count} bytes"), |client| client.got.len() >= count)?;
        Ok(self.got.drain(..count).collect())
    }

    /// Waits until the other end has all, and its FIN has come.
    pub fn wait_for_end(&mut self) -> Result<()> {
        self.until("the end", |client| client.closed && client.in_flight.is_empty())?;
        ensure!(self.got.is_empty(), "nobody waits for {} more bytes", self.got.len());
        Ok(())
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            ensure!(
                Instant::now() < deadline,
                "waited {PATIENCE:?} in vain for {what}: {} bytes came, {} segments in flight",
                self.got.len(),
                self.in_flight.len()
            );
            match self.hear()? {
                Some(packet) => self.take(&packet)?,
                // As a retransmission timer.
                None => self.repeat_backwards()?,
            }
        }
        Ok(())
    }

    fn take(&mut self, packet: &Arrived) -> Result<()> {
        ensure!(packet.flags & RST == 0, "reset: {:#x}", packet.flags);
        if packet.flags & SYN != 0 {
            // Our ACK was lost, or the SYN was doubled.
            return self.acknowledge();
        }
        ensure!(packet.flags & (ECE | CWR | AE) == 0, "ECN is off: {:#x}", packet.flags);
        let options = Agreed::read(&packet.options);
        ensure!(!options.timestamps, "timestamps: {:02x?}", packet.options);
        ensure!(self.offered.sack || !packet.options.contains(&SACK), "SACK was not offered: {:02x?}", packet.options);
        let most = usize::from(self.offered.segment.unwrap_or(DEFAULT_MSS));
        ensure!(packet.payload.len() <= most, "a segment of {} bytes, not {most}", packet.payload.len());
        ensure!(
            self.write.wrapping_sub(packet.ack) as i32 >= 0,
            "{} is acknowledged, {} was sent",
            packet.ack,
            self.write
        );
        self.forget(packet.ack);

        let fin = packet.flags & FIN != 0;
        if packet.payload.is_empty() && !fin {
            return Ok(());
        }
        let known = self.read.wrapping_sub(packet.seq);
        if known as i32 >= 0 {
            let new = packet.payload.get(known as usize..).unwrap_or_default();
            let taken = new.len().min(self.window as usize);
            self.beyond_window += new.len() - taken;
            self.got.extend_from_slice(&new[..taken]);
            self.read = self.read.wrapping_add(taken as u32);
            let end = packet.seq.wrapping_add(packet.payload.len() as u32);
            if fin && !self.closed && self.read == end {
                self.read = self.read.wrapping_add(1);
                self.closed = true;
            }
        }
        self.acknowledge()
    }

    fn forget(&mut self, acknowledged: u32) {
        while let Some((flags, bytes)) = self.in_flight.front() {
            let length = bytes.len() as u32 + u32::from(flags & FIN != 0);
            let end = self.unacknowledged.wrapping_add(length);
            if (acknowledged.wrapping_sub(end) as i32) < 0 {
                return;
            }
            self.unacknowledged = end;
            self.in_flight.pop_front();
        }
    }

    fn acknowledge(&self) -> Result<()> {
        self.send(ACK, self.write, self.field(), &[], &[])
    }

    /// The window as it stands in a segment.
    fn field(&self) -> u16 {
        u16::try_from(self.window >> self.scale).unwrap_or(u16::MAX)
    }

    fn send(&self, flags: u16, seq: u32, window: u16, options: &[u8], payload: &[u8]) -> Result<()> {
        let ack = if flags & ACK == 0 { 0 } else { self.read };
        self.forger.send(&Segment { from: self.from, to: self.to, flags, seq, ack, window, options, payload })
    }

    /// The next packet of this connection; `None` after a quiet [`TICK`].
    fn hear(&self) -> Result<Option<Arrived>> {
        let mut buffer = vec![0; 65_536];
        let quiet = Instant::now() + TICK;
        while Instant::now() < quiet {
            let n = match (&self.ears).read(&mut buffer) {
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("reading raw packets"),
            };
            if let Some(packet) = self.parse(&buffer[..n])? {
                return Ok(Some(packet));
            }
        }
        Ok(None)
    }

    /// `None`: of another connection.
    fn parse(&self, packet: &[u8]) -> Result<Option<Arrived>> {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (self.to.ip(), self.from.ip()) else { return Ok(None) };
        let (ip, tcp) = packet.split_at(usize::from(packet[0] & 15) * 4);
        let ports = [self.to.port().to_be_bytes(), self.from.port().to_be_bytes()].concat();
        if ip[12..16] != from.octets() || tcp[..4] != ports {
            return Ok(None);
        }
        ensure!(ip[1] & 3 == 0, "ECN is off: {:#x}", ip[1]);
        ensure!(checksum_of_segment(from, to, tcp)? == 0, "a wrong checksum");
        let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let (head, payload) = tcp.split_at(usize::from(tcp[12] >> 4) * 4);
        Ok(Some(Arrived {
            flags: u16::from_be_bytes([tcp[12] & 1, tcp[13]]),
            seq: word(4),
            ack: word(8),
            options: head[20..].to_vec(),
            payload: payload.to_vec(),
        }))
    }
}

impl Agreed {
    fn read(mut options: &[u8]) -> Self {
        let mut agreed = Self::default();
        loop {
            match *options {
                [2, 4, high, low, ..] => agreed.segment = Some(u16::from_be_bytes([high, low])),
                [3, 3, scale, ..] => agreed.scale = Some(scale),
                [4, 2, ..] => agreed.sack = true,
                [8, 10, ..] => agreed.timestamps = true,
                [] | [0, ..] => return agreed,
                _ => {}
            }
            let length = if options[0] == 1 { 1 } else { options.get(1).map_or(1, |n| usize::from(*n).max(2)) };
            options = options.get(length..).unwrap_or_default();
        }
    }
}

const SACK: u8 = 5;
/// RFC 9293 section 3.7.1.
const DEFAULT_MSS: u16 = 536;
/// About to wrap.
const FIRST: u32 = 0xffff_ff80;
const TICK: Duration = Duration::from_millis(200);
