//! Small real servers on loopback for the tests of probes and of their runner.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::config::{HealthConfig, HttpProbe, ProbeConfig};

/// Accepts for as long as the test's runtime lives.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    /// Each connection goes to `answer`, then is closed.
    pub(crate) async fn start<F>(answer: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound socket");
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Relaxed);
                tokio::spawn(answer(stream));
            }
        });
        Self { address, accepted }
    }

    /// Reads until the client closes.
    pub(crate) async fn sink() -> Self {
        Self::start(|mut stream| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await
    }

    /// Answers every HTTP request with these bytes.
    pub(crate) async fn http(response: &'static [u8]) -> Self {
        Self::start(move |mut stream| async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(response).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Relaxed)
    }
}

/// A port that refuses connections and that nobody else can take: bound, not listening.
pub(crate) struct ClosedPort {
    pub(crate) address: SocketAddr,
    socket: TcpSocket,
}

impl ClosedPort {
    pub(crate) fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port on loopback");
        Self { address: socket.local_addr().expect("a bound socket"), socket }
    }

    pub(crate) fn open(self) -> TcpListener {
        self.socket.listen(16).expect("a bound socket")
    }
}

/// A request's head, the empty line included.
pub(crate) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// With a certificate that nobody trusts, for a name that nobody asks for.
pub(crate) fn tls_acceptor() -> TlsAcceptor {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["other.example.com".to_owned()]).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("default versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into())
        .expect("a matching key");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

pub(crate) fn health(probe: ProbeConfig) -> HealthConfig {
    HealthConfig {
        probe,
        port: None,
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
        rise: 2,
        fall: 3,
    }
}

pub(crate) fn http_probe(path: &str) -> HttpProbe {
    HttpProbe { path: path.into(), host: None, expect: vec![(200, 399)] }
}
