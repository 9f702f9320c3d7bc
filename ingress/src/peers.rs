//! The mesh: a few nodes that tell one another what each was told.
//!
//! ```text
//!  user of a stream --- Seat ---+                            +--- Seat --- the same stream there
//!                               +-- Link: one TLS connection -+
//!  another stream ----- Seat ---+   streams take turns        +--- Seat
//! ```
//! One connection per pair: the node whose name comes first dials. Both show certificates of one authority ([`identity`]);
//! who belongs to the mesh is itself agreed upon ([`members`]). What a stream carries is its users' business; [`sync`] is
//! the pure protocol by which registers become the same everywhere.

pub mod identity;
pub mod invitation;
pub mod join;
pub mod members;
pub mod stamp;
pub mod sync;
pub mod view;

mod dial;
mod frame;
mod link;
mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::config::PeersConfig;
use identity::Identity;
use link::Link;
use members::{Member, Members};
use view::{PeerStatus, PeersStatus};

/// What a stream's user hears. `Up` comes before a link's first message, `Down` after its last.
#[derive(Debug)]
pub enum Event {
    Up(Arc<str>),
    Down(Arc<str>),
    Message(Arc<str>, Vec<u8>),
}

/// This node's end of all links; without configuration, of none.
#[derive(Clone)]
pub struct Mesh(Option<Arc<Shared>>);

struct Shared {
    config: PeersConfig,
    state_dir: PathBuf,
    node: Arc<str>,
    inner: Mutex<Inner>,
    /// Counts changes of the membership.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    members: Members,
    streams: BTreeMap<String, mpsc::Sender<Event>>,
    links: BTreeMap<Arc<str>, Arc<Link>>,
    /// What went wrong last, and when.
    errors: BTreeMap<Arc<str>, (SystemTime, String)>,
    /// By stream and peer.
    lags: BTreeMap<(String, Arc<str>), Lag>,
    /// Why this node is not in the mesh at all.
    trouble: Option<String>,
}

/// How far behind a peer is, as the user of a stream has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// On their way to the peer.
    pub waiting: usize,
    /// Not taken, in either direction, because the clocks differ too much.
    pub refused: usize,
}

/// A place at a stream. Dropping it gives it up.
pub struct Seat {
    mesh: Mesh,
    stream: String,
    events: mpsc::Receiver<Event>,
}

/// A node that a seat's user can tell something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The link is up and has this stream.
    Here,
    /// The link is up, but nobody there listens to this stream.
    NoStream,
    Away,
}

impl Mesh {
    /// `None`: this node has no peers.
    pub fn new(config: Option<PeersConfig>, state_dir: PathBuf) -> Self {
        Self(config.map(|config| {
            let node = config.node.as_str().into();
            let (changed, inner) = (watch::Sender::new(0), Mutex::default());
            Arc::new(Shared { config, state_dir, node, inner, changed })
        }))
    }

    /// What other nodes call this one. Empty: there are none.
    pub fn node(&self) -> Arc<str> {
        self.0.as_ref().map_or_else(|| "".into(), |shared| shared.node.clone())
    }

    /// For how long an acknowledgement is worth waiting for.
    pub fn ack_timeout(&self) -> Duration {
        self.0.as_ref().map_or(Duration::ZERO, |shared| shared.config.ack_timeout)
    }

    /// Takes a place at a stream; links begin anew with it.
    pub fn open(&self, stream: String) -> Seat {
        let (inbox, events) = mpsc::channel(EVENTS);
        if let Some(shared) = &self.0 {
            let mut inner = shared.inner.lock();
            inner.streams.insert(stream.clone(), inbox);
            inner.links.values().for_each(|link| link.close("its streams have changed"));
        }
        Seat { mesh: self.clone(), stream, events }
    }

    /// `None`: no peers are configured.
    pub fn status(&self) -> Option<PeersStatus> {
        let shared = self.0.as_ref()?;
        let inner = shared.inner.lock();
        let peers = inner.members.others(&shared.node).map(|member| inner.status_of(member));
        Some(PeersStatus {
            node: shared.node.to_string(),
            bind: shared.config.bind.clone(),
            trouble: inner.trouble.clone(),
            peers: peers.collect(),
        })
    }

    /// Shuts a node out, here and by and by everywhere. Blocks for the disk.
    ///
    /// # Errors
    /// There is no such member, or it is this node.
    pub fn remove(&self, name: &str) -> Result<(), String> {
        let shared = self.0.as_ref().ok_or("this node has no `peers`")?;
        if name == &*shared.node {
            return Err(format!("{name} is this node; remove it from another one"));
        }
        let changed = shared.change(|members| members.remove(name, &shared.node, join::unix_ms()));
        if !changed? {
            return Err(format!("there is no member {name}; `ingress peer list` shows them"));
        }
        if let Some(link) = shared.inner.lock().links.get(name) {
            link.close(dial::REMOVED);
        }
        Ok(())
    }
}

impl Inner {
    fn status_of(&self, member: &Member) -> PeerStatus {
        let Member { name, address, .. } = member;
        let link = self.links.get(name);
        let error = self.errors.get(name);
        let lags = self.lags.iter().filter(|((_, peer), _)| peer == name);
        let (waiting, refused) = lags.fold((0, 0), |(w, r), (_, lag)| (w + lag.waiting, r + lag.refused));
        let skew = link.map(|link| link.skew.load(Ordering::Relaxed) as f64 / 1e3);
        PeerStatus {
            name: name.to_string(),
            address: *address,
            connected: link.map(|link| link.since.elapsed().as_secs_f64()),
            last_error: error.map(|(_, error)| error.clone()),
            last_error_at: error.map(|(at, _)| view::unix(*at)),
            waiting,
            refused,
            clock_skew: skew,
            round_trip: link.map(|link| link.round_trip.load(Ordering::Relaxed) as f64 / 1e6),
        }
    }
}

impl Shared {
    /// Changes the membership, on disk first. True: it changed.
    fn change(&self, change: impl FnOnce(&mut Members) -> bool) -> Result<bool, String> {
        let mut inner = self.inner.lock();
        let mut members = inner.members.clone();
        if !change(&mut members) {
            return Ok(false);
        }
        members.store(&self.state_dir).map_err(|error| error.to_string())?;
        inner.members = members;
        drop(inner);
        self.changed.send_modify(|version| *version += 1);
        Ok(true)
    }

    /// This node as others are to see it.
    fn own(&self, identity: &Identity, members: &Members) -> Option<Member> {
        let (address, fingerprint) = (self.config.address, identity.fingerprint());
        let known = members.get(&self.node).filter(|own| own.address == address && own.fingerprint == fingerprint);
        let was_removed =
            members.all().any(|member| member.name == self.node && member.removed && member.fingerprint == fingerprint);
        (known.is_none() && !was_removed).then(|| Member {
            stamp: members.stamp(&self.node, join::unix_ms()),
            removed: false,
            name: self.node.clone(),
            address,
            fingerprint,
        })
    }

    fn error(&self, peer: &Arc<str>, error: &str) {
        let mut inner = self.inner.lock();
        let before = inner.errors.insert(peer.clone(), (SystemTime::now(), error.to_owned()));
        drop(inner);
        // Once, and not at each of many attempts.
        if before.is_none_or(|(_, before)| before != error) {
            tracing::warn!(%peer, error, "peer");
        }
    }
}

impl Seat {
    /// Waits for ever where there are no peers.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// What else is there already.
    pub fn more(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// False: it is lost.
    pub fn send(&self, peer: &str, message: Vec<u8>) -> bool {
        let link = self.mesh.0.as_ref().and_then(|shared| shared.inner.lock().links.get(peer).cloned());
        link.is_some_and(|link| link.send(&self.stream, message))
    }

    /// All other members.
    pub fn peers(&self) -> Vec<(Arc<str>, Reach)> {
        let Some(shared) = &self.mesh.0 else { return Vec::new() };
        let inner = shared.inner.lock();
        let reach = |name: &Arc<str>| match inner.links.get(name) {
            Some(link) if link.has(&self.stream) => Reach::Here,
            Some(_) => Reach::NoStream,
            None => Reach::Away,
        };
        inner.members.others(&shared.node).map(|member| (member.name.clone(), reach(&member.name))).collect()
    }

    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// For the status.
    pub fn report(&self, peer: &Arc<str>, lag: Lag) {
        if let Some(shared) = &self.mesh.0 {
            shared.inner.lock().lags.insert((self.stream.clone(), peer.clone()), lag);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(shared) = &self.mesh.0 {
            let mut inner = shared.inner.lock();
            // Its place may be another's by now.
            self.events.close();
            if inner.streams.get(&self.stream).is_some_and(mpsc::Sender::is_closed) {
                inner.streams.remove(&self.stream);
                inner.lags.retain(|(stream, _), _| *stream != self.stream);
                inner.links.values().for_each(|link| link.close("its streams have changed"));
            }
        }
    }
}

/// Messages that may wait for a stream's user; then its stream stands still.
const EVENTS: usize = 256;
