//! Who connects to whom: dials, accepts, and keeps one link to each peer.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::identity::{Identity, fingerprint};
use super::join::{self, unix_ms};
use super::link::{Control, Ended, Greeted, Hello, PROTOCOL, greet};
use super::members::Members;
use super::{Event, Mesh, Shared, tls};
use crate::serve::bind_tcp;

/// What every connection needs.
struct Node {
    shared: Arc<Shared>,
    connector: TlsConnector,
    acceptor: TlsAcceptor,
    /// One link of each peer at a time.
    turns: parking_lot::Mutex<BTreeMap<Arc<str>, Arc<Mutex<()>>>>,
    strangers: Arc<Semaphore>,
}

impl Mesh {
    /// Keeps links to all peers until `shutdown`. Without an identity it waits for one.
    pub async fn run(self, shutdown: CancellationToken) {
        let Some(shared) = self.0 else { return shutdown.cancelled().await };
        let _ = shutdown.run_until_cancelled(keep(shared)).await;
    }
}

async fn keep(shared: Arc<Shared>) {
    let node = Arc::new(prepare(shared).await);
    let mut tasks = JoinSet::new();
    for bind in node.shared.config.bind.clone() {
        tasks.spawn(accept(node.clone(), bind));
    }
    let mut changes = node.shared.changed.subscribe();
    let mut dialling: BTreeMap<(Arc<str>, SocketAddr), AbortOnDropHandle<()>> = BTreeMap::new();
    loop {
        changes.mark_unchanged();
        let members = node.shared.inner.lock().members.clone();
        let own = node.shared.node.clone();
        // The pair has one link: the first by name makes it.
        let wanted: Vec<_> =
            members.others(&own).filter(|peer| own < peer.name).map(|peer| (peer.name.clone(), peer.address)).collect();
        // Those who are not wanted any more rest: to end one by force would leave its link behind.
        for peer in wanted {
            let task = || AbortOnDropHandle::new(tokio::spawn(dial(node.clone(), peer.0.clone(), peer.1)));
            dialling.entry(peer.clone()).or_insert_with(task);
        }
        let all: Vec<_> = members.all().cloned().collect();
        let links: Vec<_> = node.shared.inner.lock().links.values().cloned().collect();
        links.iter().for_each(|link| link.control(&Control::Members(all.clone())));
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until this node has an identity and knows its members.
async fn prepare(shared: Arc<Shared>) -> Node {
    loop {
        let loading = shared.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&loading)).await;
        let trouble = match loaded {
            Ok(Ok((identity, connector, acceptor))) => {
                shared.inner.lock().trouble = None;
                tracing::info!(node = %shared.node, fingerprint = identity.fingerprint(), "peers: this node has its identity");
                let strangers = Arc::new(Semaphore::new(STRANGERS));
                return Node { shared, connector, acceptor, turns: parking_lot::Mutex::default(), strangers };
            }
            Ok(Err(trouble)) => trouble,
            Err(error) => error.to_string(),
        };
        let before = shared.inner.lock().trouble.replace(trouble.clone());
        if before.as_ref() != Some(&trouble) {
            tracing::warn!(node = %shared.node, trouble, "peers");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn load(shared: &Shared) -> Result<(Identity, TlsConnector, TlsAcceptor), String> {
    let identity = Identity::load(&shared.state_dir).map_err(|error| error.to_string())?;
    if !tls::is_of(&identity.certificate, &shared.node) {
        return Err(format!(
            "the certificate in {} is not of {}; peers.node is not the name that this node was made with",
            shared.state_dir.join("peers").display(),
            shared.node
        ));
    }
    let connector = tls::client(&identity).map_err(|error| error.to_string())?;
    let acceptor = tls::server(&identity).map_err(|error| error.to_string())?;
    let members = Members::load(&shared.state_dir).map_err(|error| error.to_string())?;
    shared.inner.lock().members = members.clone();
    if let Some(own) = shared.own(&identity, &members) {
        shared.change(|members| members.merge([own], unix_ms()))?;
    }
    Ok((identity, TlsConnector::from(Arc::new(connector)), TlsAcceptor::from(Arc::new(acceptor))))
}

async fn dial(node: Arc<Node>, peer: Arc<str>, address: SocketAddr) {
    let (mut pause, mut changes) = (SHORTEST_PAUSE, node.shared.changed.subscribe());
    let is_wanted = || {
        let inner = node.shared.inner.lock();
        inner.members.get(&peer).is_some_and(|member| member.address == address)
    };
    loop {
        changes.mark_unchanged();
        if !is_wanted() {
            let _ = changes.changed().await;
            continue;
        }
        let start = Instant::now();
        let ended = match timeout(PATIENCE, connect(&node, &peer, address)).await {
            Err(_) => format!("{address} does not answer"),
            Ok(Err(error)) => format!("{address}: {}", tls::explain(&error)),
            Ok(Ok(stream)) => converse(&node, stream.into(), Some(&peer)).await.to_string(),
        };
        node.shared.error(&peer, &ended);
        if start.elapsed() > LONGEST_PAUSE {
            pause = SHORTEST_PAUSE;
        }
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn connect(
    node: &Node,
    peer: &str,
    address: SocketAddr,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = tls::server_name(peer).map_err(io::Error::other)?;
    node.connector.connect(name, stream).await
}

async fn accept(node: Arc<Node>, bind: SocketAddr) {
    let listener = listen(&node, bind).await;
    let mut guests = JoinSet::new();
    loop {
        // Those that have not proved who they are yet.
        let Ok(place) = node.strangers.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = guests.join_next() => continue,
        };
        let Ok((stream, source)) = accepted else {
            tokio::time::sleep(SHORTEST_PAUSE).await;
            continue;
        };
        let node = node.clone();
        guests.spawn(async move {
            let shaken = timeout(PATIENCE, async {
                stream.set_nodelay(true)?;
                node.acceptor.accept(stream).await
            });
            match shaken.await {
                Err(_) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%source, error = tls::explain(&error), "peers: a connection was refused")
                }
                Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(tls::JOIN) => {
                    let _ = timeout(PATIENCE, welcome(&node, stream)).await;
                }
                Ok(Ok(stream)) => {
                    drop(place);
                    let ended = converse(&node, stream.into(), None).await;
                    tracing::debug!(%source, %ended, "peers: a connection ended");
                }
            }
        });
    }
}

async fn listen(node: &Node, bind: SocketAddr) -> TcpListener {
    loop {
        match bind_tcp(bind, node.shared.config.device.as_deref()) {
            Ok(listener) => {
                node.shared.inner.lock().trouble = None;
                tracing::info!(%bind, "peers: listening");
                return listener;
            }
            Err(error) => {
                let trouble = format!("cannot listen on {bind}: {error}");
                let before = node.shared.inner.lock().trouble.replace(trouble.clone());
                if before.as_ref() != Some(&trouble) {
                    tracing::warn!(trouble, "peers");
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Somebody who has a token.
async fn welcome(node: &Node, mut stream: tokio_rustls::server::TlsStream<TcpStream>) -> io::Result<()> {
    let shared = &node.shared;
    let members = shared.inner.lock().members.clone();
    let joined = join::answer(&mut stream, &shared.state_dir, &shared.node, members).await?;
    if let Some(member) = joined {
        tracing::info!(peer = %member.name, address = %member.address, "a node joined the mesh");
        shared.change(|members| members.merge([member], unix_ms())).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Carries a link from hello to its end.
async fn converse(node: &Node, stream: TlsStream<TcpStream>, expected: Option<&Arc<str>>) -> Ended {
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    let Some(certificate) = certificate.map(CertificateDer::into_owned) else {
        return Ended::Here("it showed no certificate".to_owned());
    };
    let shared = &node.shared;
    let hello = {
        let inner = shared.inner.lock();
        Hello {
            protocol: (PROTOCOL, PROTOCOL),
            node: shared.node.clone(),
            streams: inner.streams.keys().cloned().collect(),
            members: inner.members.all().cloned().collect(),
        }
    };
    let mut greeted = match greet(stream, hello).await {
        Ok(greeted) => greeted,
        Err(ended) => return ended,
    };
    let peer = greeted.theirs.node.clone();
    if !tls::is_of(&certificate, &peer) || expected.is_some_and(|expected| *expected != peer) || peer == shared.node {
        return greeted.part(format!("the certificate is not that of {peer}")).await;
    }
    let said = std::mem::take(&mut greeted.theirs.members);
    if let Err(error) = shared.change(|members| members.merge(said, unix_ms())) {
        return greeted.part(error).await;
    }
    let admitted = shared.inner.lock().members.admit(&peer, &fingerprint(&certificate));
    match admitted {
        Ok(()) => carry(node, &peer, greeted).await,
        Err(refused) => {
            tracing::warn!(%peer, why = %refused, "peers: a node was not let in");
            greeted.part(refused.to_string()).await
        }
    }
}

async fn carry(node: &Node, peer: &Arc<str>, greeted: Greeted<TlsStream<TcpStream>>) -> Ended {
    let shared = &node.shared;
    let turn = node.turns.lock().entry(peer.clone()).or_default().clone();
    // A peer that comes again has lost the link that we may still believe in.
    if let Some(before) = shared.inner.lock().links.get(peer) {
        before.close("you connected again");
    }
    let _turn = turn.lock().await;
    let link = Arc::new(greeted.link());
    let inboxes: BTreeMap<_, _> = {
        let mut inner = shared.inner.lock();
        inner.links.insert(peer.clone(), link.clone());
        if !inner.streams.keys().eq(greeted.ours()) {
            // One came or went since our hello.
            link.close("its streams have changed");
        }
        inner
            .streams
            .iter()
            .filter(|(name, _)| link.has(name))
            .map(|(name, inbox)| (name.clone(), inbox.clone()))
            .collect()
    };
    tracing::info!(%peer, "peer connected");
    for inbox in inboxes.values() {
        let _ = inbox.send(Event::Up(peer.clone())).await;
    }
    let (say, mut said) = mpsc::channel(1);
    let running = link.clone().run(greeted, inboxes.clone(), say);
    tokio::pin!(running);
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            Some(members) = said.recv() => {
                let _ = shared.change(|known| known.merge(members, unix_ms()));
                if shared.inner.lock().members.get(peer).is_none() {
                    link.close(REMOVED);
                }
            }
        }
    };
    shared.inner.lock().links.remove(peer);
    for inbox in inboxes.values() {
        let _ = inbox.send(Event::Down(peer.clone())).await;
    }
    shared.error(peer, &ended.to_string());
    tracing::info!(%peer, %ended, "peer disconnected");
    ended
}

/// Between half and one and a half times as long, so that nodes do not meet at every attempt.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    let _ = aws_lc_rs::rand::fill(&mut byte);
    pause / 2 + pause * u32::from(byte[0]) / 256
}

/// To a node that is shut out while it is connected.
pub(super) const REMOVED: &str = "this node was removed from the mesh";
/// For connecting, or for a handshake.
const PATIENCE: Duration = Duration::from_secs(5);
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// For an identity that is not there yet, or an address that is taken.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Connections in their handshake at one time.
const STRANGERS: usize = 64;
