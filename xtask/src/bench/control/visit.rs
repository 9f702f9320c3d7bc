//! A client that asks for a name, and the backend that answers it: both as small as can be.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ingress_tests::netns::Namespace;
use ingress_tests::wire::client_hello;

use super::name;
use crate::bench::load::latency::Samples;
use crate::bench::program::check_interrupt;

/// What the backend says; no TLS alert begins so.
const ANSWER: u8 = b'!';
const PATIENCE: Duration = Duration::from_secs(5);
/// Of one measurement.
const VISITS: usize = 1_000;
/// A prime: visits go through the routes in no order that a cache could like.
const STEP: usize = 7_919;
/// Ports of the two pools' backends.
const BACKENDS: [u16; 2] = [8443, 9443];

/// Answers with one byte until the listener's namespace ends.
pub(super) fn serve(backend: TcpListener) {
    std::thread::spawn(move || {
        for mut stream in backend.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                // Nobody is told of a client that is gone.
                let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(&[ANSWER]));
                let _ = stream.read(&mut [0; 1]);
            });
        }
    });
}

/// Until the backend answers: a name that is not known yet gets an alert.
pub(super) fn reach(client: &Namespace, node: SocketAddr, hello: &[u8]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if is_answered(client.connect(node)?, hello)? {
            return Ok(());
        }
    }
    bail!("not routable within {PATIENCE:?}")
}

/// Median of microseconds from a SYN to a backend's first byte, for names from all over `routes`. Client, proxy and backends are in
/// one namespace.
pub(super) fn first_byte_us(host: &Namespace, routes: usize) -> Result<f64> {
    for port in BACKENDS {
        serve(host.listen((Ipv4Addr::LOCALHOST, port).into())?);
    }
    let visits = || {
        let mut samples = Samples::default();
        for n in 0..VISITS {
            check_interrupt()?;
            let name = name(n * STEP % routes);
            let hello = client_hello(Some(&name))?;
            let began = Instant::now();
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 443))?;
            ensure!(is_answered(stream, &hello)?, "{name} is not routed");
            samples.record(began.elapsed());
        }
        samples.microseconds(0.5).context("no visit")
    };
    host.exec(visits)
}

fn is_answered(mut stream: TcpStream, hello: &[u8]) -> Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(hello)?;
    let mut first = [0];
    Ok(stream.read(&mut first)? == 1 && first == [ANSWER])
}
