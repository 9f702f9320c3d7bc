//! One connection between two nodes, from hello to its end.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Event;
use super::frame::{Assembly, Broken, Frame, Kind, Outbox, WINDOW};
use super::join::unix_ms;
use super::members::Member;

/// What nodes say about the link itself. A newer node may add kinds once both speak a later protocol.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Control {
    /// First on every link, from both sides.
    Hello(Hello),
    /// Unix milliseconds of the sender.
    Ping(u64),
    Pong {
        ping: u64,
        now: u64,
    },
    /// The membership has changed.
    Members(Vec<Member>),
    /// Why the sender closes.
    Bye(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The oldest and newest version of this protocol that the sender speaks.
    pub(super) protocol: (u32, u32),
    pub(super) node: Arc<str>,
    /// Names of its streams; a stream's number is its place here.
    pub(super) streams: Vec<String>,
    pub(super) members: Vec<Member>,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("{}", super::tls::explain(.0))]
    Io(#[from] io::Error),
    #[error("it sent {0}")]
    Broken(#[from] Broken),
    #[error("nothing was heard for {} s", SILENCE.as_secs())]
    Silent,
    #[error("it closed: {0}")]
    Bye(String),
    #[error("closed here: {0}")]
    Here(String),
}

/// A link that is up, for those who send.
#[derive(Debug)]
pub(super) struct Link {
    outbox: Mutex<Outbox>,
    wake: Notify,
    close: CancellationToken,
    why: Mutex<Option<String>>,
    pub(super) since: Instant,
    /// By which the peer's clock is ahead of ours, milliseconds.
    pub(super) skew: AtomicI64,
    /// Microseconds.
    pub(super) round_trip: AtomicU64,
    /// Our streams that the peer has too: name -> number.
    streams: BTreeMap<String, u8>,
}

/// The halves after the hellos, before anything else was said.
pub(super) struct Greeted<S> {
    reader: tokio::io::ReadHalf<S>,
    writer: tokio::io::WriteHalf<S>,
    ours: Vec<String>,
    pub(super) theirs: Hello,
}

/// Says hello and hears it.
pub(super) async fn greet<S: AsyncRead + AsyncWrite>(stream: S, hello: Hello) -> Result<Greeted<S>, Ended> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let ours = hello.streams.clone();
    let greeting = async {
        write_control(&mut writer, &Control::Hello(hello)).await?;
        let frame = read_frame(&mut reader).await?;
        match (frame.kind, serde_json::from_slice(&frame.payload)) {
            (Kind::Control, Ok(Control::Hello(hello))) => Ok(hello),
            (Kind::Control, Ok(Control::Bye(why))) => Err(Ended::Bye(why)),
            (Kind::Control | Kind::Part | Kind::End | Kind::Credit, _) => Err(Broken::Payload.into()),
        }
    };
    let theirs = timeout(SILENCE, greeting).await.map_err(|_| Ended::Silent)??;
    let (least, most) = theirs.protocol;
    let mut greeted = Greeted { reader, writer, ours, theirs };
    if least > PROTOCOL || most < PROTOCOL {
        let why = format!(
            "it speaks versions {least} to {most} of the peer protocol, this node {PROTOCOL}; upgrade the older"
        );
        return Err(greeted.part(why).await);
    }
    Ok(greeted)
}

impl<S: AsyncRead + AsyncWrite> Greeted<S> {
    /// Ends before it began, and says why.
    pub(super) async fn part(&mut self, why: String) -> Ended {
        let _ = timeout(SILENCE, write_control(&mut self.writer, &Control::Bye(why.clone()))).await;
        let _ = timeout(SILENCE, self.writer.shutdown()).await;
        Ended::Here(why)
    }

    /// As our hello said.
    pub(super) fn ours(&self) -> &[String] {
        &self.ours
    }

    pub(super) fn link(&self) -> Link {
        let known = |name: &String| self.theirs.streams.contains(name);
        let numbered = self.ours.iter().enumerate().filter(|(_, name)| known(name));
        Link {
            outbox: Mutex::new(Outbox::new(self.ours.len())),
            wake: Notify::new(),
            close: CancellationToken::new(),
            why: Mutex::default(),
            since: Instant::now(),
            skew: AtomicI64::new(0),
            round_trip: AtomicU64::new(0),
            streams: numbered.filter_map(|(n, name)| Some((name.clone(), u8::try_from(n).ok()?))).collect(),
        }
    }
}

impl Link {
    /// False: it has too much to carry, or the peer has no such stream. What is lost is found by comparing.
    pub(super) fn send(&self, stream: &str, message: Vec<u8>) -> bool {
        let Some(number) = self.streams.get(stream) else { return false };
        let taken = self.outbox.lock().push(*number, message);
        self.wake.notify_one();
        taken
    }

    pub(super) fn has(&self, stream: &str) -> bool {
        self.streams.contains_key(stream)
    }

    /// Ends it; the peer is told why.
    pub(super) fn close(&self, why: &str) {
        self.why.lock().get_or_insert_with(|| why.to_owned());
        self.close.cancel();
    }

    fn why(&self) -> String {
        self.why.lock().clone().unwrap_or_default()
    }

    pub(super) fn control(&self, control: &Control) {
        self.outbox.lock().control(serde_json::to_vec(control).unwrap_or_default());
        self.wake.notify_one();
    }

    fn taken(&self, stream: u8, frames: u32) {
        self.outbox.lock().taken(stream, frames);
        self.wake.notify_one();
    }

    /// Carries everything until one side closes or falls silent. `inboxes` are ours by name.
    pub(super) async fn run<S: AsyncRead + AsyncWrite + Send + 'static>(
        self: Arc<Self>,
        greeted: Greeted<S>,
        inboxes: BTreeMap<String, mpsc::Sender<Event>>,
        members: mpsc::Sender<Vec<Member>>,
    ) -> Ended {
        let Greeted { reader, writer, theirs, .. } = greeted;
        let mut pumps = JoinSet::new();
        let mut streams = Vec::new();
        for (number, name) in theirs.streams.iter().enumerate() {
            let inbox = inboxes.get(name).filter(|_| self.has(name)).zip(u8::try_from(number).ok());
            streams.push(inbox.map(|(inbox, number)| {
                let (queue, waiting) = mpsc::channel(WINDOW as usize);
                pumps.spawn(pump(self.clone(), number, theirs.node.clone(), waiting, inbox.clone()));
                (Assembly::default(), queue)
            }));
        }
        let ended = tokio::select! {
            ended = read(&self, reader, streams, &members) => ended,
            ended = write(&self, writer) => ended,
            () = self.beat() => Ended::Silent,
            // The writer says so first, if it still can.
            () = async {
                self.close.cancelled().await;
                tokio::time::sleep(FAREWELL).await;
            } => Ended::Here(self.why()),
        };
        // Nothing of this link may arrive after its end was told.
        pumps.shutdown().await;
        ended
    }

    async fn beat(&self) {
        let mut ticks = tokio::time::interval(HEARTBEAT);
        loop {
            ticks.tick().await;
            self.control(&Control::Ping(unix_ms()));
        }
    }

    fn heard_pong(&self, ping: u64, peer: u64) {
        let now = unix_ms();
        let round_trip = now.saturating_sub(ping);
        let middle = i64::try_from(ping + round_trip / 2).unwrap_or(i64::MAX);
        self.skew.store(i64::try_from(peer).unwrap_or(i64::MAX) - middle, Ordering::Relaxed);
        self.round_trip.store(round_trip * 1000, Ordering::Relaxed);
    }
}

/// Takes a stream's messages to their reader, at its pace.
async fn pump(
    link: Arc<Link>,
    number: u8,
    peer: Arc<str>,
    mut waiting: mpsc::Receiver<(Vec<u8>, u32)>,
    inbox: mpsc::Sender<Event>,
) {
    while let Some((message, frames)) = waiting.recv().await {
        if inbox.send(Event::Message(peer.clone(), message)).await.is_err() {
            return;
        }
        link.taken(number, frames);
    }
}

type Inbound = Option<(Assembly, mpsc::Sender<(Vec<u8>, u32)>)>;

async fn read(
    link: &Link,
    mut reader: impl AsyncRead + Unpin,
    mut streams: Vec<Inbound>,
    members: &mpsc::Sender<Vec<Member>>,
) -> Ended {
    loop {
        let frame = match timeout(SILENCE, read_frame(&mut reader)).await {
            Err(_) => return Ended::Silent,
            Ok(Err(ended)) => return ended,
            Ok(Ok(frame)) => frame,
        };
        let Frame { kind, stream, payload } = frame;
        let done = match kind {
            Kind::Credit => {
                let credited = link.outbox.lock().credit(stream, &payload);
                link.wake.notify_one();
                credited.map_err(Ended::from)
            }
            Kind::Part | Kind::End => deliver(&mut streams, stream, &payload, kind == Kind::End).map_err(Ended::from),
            Kind::Control => match serde_json::from_slice(&payload) {
                Ok(Control::Ping(ping)) => {
                    link.control(&Control::Pong { ping, now: unix_ms() });
                    Ok(())
                }
                Ok(Control::Pong { ping, now }) => {
                    link.heard_pong(ping, now);
                    Ok(())
                }
                Ok(Control::Members(said)) => {
                    let _ = members.send(said).await;
                    Ok(())
                }
                Ok(Control::Bye(why)) => Err(Ended::Bye(why)),
                Ok(Control::Hello(_)) | Err(_) => Err(Broken::Payload.into()),
            },
        };
        if let Err(ended) = done {
            return ended;
        }
    }
}

fn deliver(streams: &mut [Inbound], stream: u8, part: &[u8], is_last: bool) -> Result<(), Broken> {
    let inbound = streams.get_mut(usize::from(stream)).and_then(Option::as_mut);
    let (assembly, queue) = inbound.ok_or(Broken::Stream(stream))?;
    match assembly.add(part, is_last)? {
        // As many messages as there is credit for frames fit; somebody who sends more breaks the rules.
        Some(whole) => queue.try_send(whole).map_err(|_| Broken::Stream(stream)),
        None => Ok(()),
    }
}

async fn write(link: &Link, mut writer: impl AsyncWrite + Unpin) -> Ended {
    let mut bytes = Vec::new();
    loop {
        let woken = link.wake.notified();
        {
            let mut outbox = link.outbox.lock();
            while let Some(frame) = outbox.next() {
                frame.encode(&mut bytes);
                if bytes.len() >= AT_ONCE {
                    break;
                }
            }
        }
        if link.close.is_cancelled() {
            let why = link.why();
            let _ = write_control(&mut writer, &Control::Bye(why.clone())).await;
            let _ = writer.shutdown().await;
            return Ended::Here(why);
        }
        if bytes.is_empty() {
            tokio::select! {
                () = woken => {}
                () = link.close.cancelled() => {}
            }
            continue;
        }
        let sent = async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        };
        if let Err(error) = sent.await {
            return error.into();
        }
        bytes.clear();
    }
}

async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> Result<Frame, Ended> {
    let mut header = [0; 4];
    reader.read_exact(&mut header).await?;
    let mut bytes = vec![0; Frame::length(header)?];
    reader.read_exact(&mut bytes).await?;
    Ok(Frame::decode(&bytes)?)
}

async fn write_control(writer: &mut (impl AsyncWrite + Unpin), control: &Control) -> io::Result<()> {
    let mut bytes = Vec::new();
    let payload = serde_json::to_vec(control)?;
    Frame { kind: Kind::Control, stream: 0, payload }.encode(&mut bytes);
    writer.write_all(&bytes).await?;
    writer.flush().await
}

/// Versions: 1 since there are peers.
pub(super) const PROTOCOL: u32 = 1;
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Without a word of the peer: it is gone.
const SILENCE: Duration = Duration::from_secs(4);
/// For the last word to a peer that may not read any more.
const FAREWELL: Duration = Duration::from_millis(500);
/// Bytes of one write; what has priority waits for no more than that.
const AT_ONCE: usize = 64 * 1024;
