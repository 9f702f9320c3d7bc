use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::super::fixture::{ClosedPort, Server, health, http_probe, read_head, tls_acceptor};
use super::*;
use crate::config::ProxyTlvs;

const SHORT: Duration = Duration::from_millis(50);

fn probe(config: ProbeConfig) -> Probe {
    let target = BackendAddress::Socket(([127, 0, 0, 1], 0).into());
    Probe::new(&health(config), ProxyProtocol::None, &target, TlsClients::new())
}

fn impatient(config: ProbeConfig) -> Probe {
    Probe { timeout: SHORT, ..probe(config) }
}

fn http(path: &str) -> ProbeConfig {
    ProbeConfig::Http(http_probe(path))
}

async fn error(probe: &Probe, address: SocketAddr) -> String {
    probe.run(address).await.expect_err("the probe must fail").to_string()
}

#[tokio::test]
async fn an_open_port_passes_a_tcp_probe_and_is_closed_again() {
    let (closed, mut all_closed) = mpsc::channel(1);
    let server = Server::start(move |mut stream| {
        let closed = closed.clone();
        async move {
            let read = stream.read_to_end(&mut Vec::new()).await;
            let _ = closed.send(read.ok()).await;
        }
    })
    .await;
    probe(ProbeConfig::Tcp).run(server.address).await.expect("somebody listens");
    assert_eq!(all_closed.recv().await, Some(Some(0)), "an orderly close and not one byte");
}

#[tokio::test]
async fn a_closed_port_fails_and_the_error_names_the_place() {
    let closed = ClosedPort::new();
    let address = closed.address;
    assert_eq!(error(&probe(ProbeConfig::Tcp), address).await, format!("connect to {address}: connection refused"));
}

#[tokio::test]
async fn another_port_may_be_probed() {
    let server = Server::sink().await;
    let traffic = SocketAddr::new(server.address.ip(), 1);
    let probe = Probe { port: Some(server.address.port()), ..probe(ProbeConfig::Tcp) };
    probe.run(traffic).await.expect("the port of the checks is open");
}

#[tokio::test]
async fn a_tls_handshake_passes_with_any_certificate_and_names_the_server() {
    let (seen, mut names) = mpsc::channel(4);
    let acceptor = tls_acceptor();
    let server = Server::start(move |stream| {
        let (acceptor, seen) = (acceptor.clone(), seen.clone());
        async move {
            let mut stream = acceptor.accept(stream).await.expect("a TLS client");
            let name = stream.get_ref().1.server_name().map(str::to_owned);
            let ended = stream.read_to_end(&mut Vec::new()).await.is_ok();
            let _ = seen.send((name, ended)).await;
        }
    })
    .await;
    let named = probe(ProbeConfig::Tls { server_name: Some("app.example.com".into()) });
    named.run(server.address).await.expect("a TLS server");
    assert_eq!(names.recv().await, Some((Some("app.example.com".into()), true)), "and ends with close_notify");

    let by_dns = Probe { host: Some("dns.example.com".into()), ..probe(ProbeConfig::Tls { server_name: None }) };
    by_dns.run(server.address).await.expect("a TLS server");
    assert_eq!(names.recv().await, Some((Some("dns.example.com".into()), true)));

    probe(ProbeConfig::Tls { server_name: None }).run(server.address).await.expect("a TLS server");
    assert_eq!(names.recv().await, Some((None, true)), "an IP address is no SNI");
}

#[tokio::test]
async fn garbage_fails_a_tls_handshake() {
    let server = Server::start(|mut stream| async move {
        let _ = stream.write_all(b"220 mail.example.com ESMTP\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let text = error(&probe(ProbeConfig::Tls { server_name: None }), server.address).await;
    let start = format!("TLS handshake with {}: ", server.address);
    assert!(text.starts_with(&start) && text.len() > start.len(), "{text}");
}

#[tokio::test]
async fn a_silent_server_runs_into_the_timeout_and_the_error_names_the_step() {
    let server = Server::sink().await;
    let address = server.address;
    let tls = impatient(ProbeConfig::Tls { server_name: None });
    assert_eq!(error(&tls, address).await, format!("TLS handshake with {address}: no answer within 50ms"));
    let http = impatient(http("/"));
    assert_eq!(error(&http, address).await, format!("HTTP request to {address}: no answer within 50ms"));
}

#[tokio::test]
async fn a_server_that_drips_is_cut_off_by_the_timeout() {
    let server = Server::start(|mut stream| async move {
        while stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let text = error(&impatient(http("/")), server.address).await;
    assert!(text.starts_with("HTTP request to"), "{text}");
}

#[tokio::test]
async fn an_http_request_has_path_host_and_close() {
    let (seen, mut heads) = mpsc::channel(1);
    let server = Server::start(move |mut stream| {
        let seen = seen.clone();
        async move {
            let _ = seen.send(read_head(&mut stream).await.to_ascii_lowercase()).await;
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    })
    .await;
    probe(http("/healthz?full=1")).run(server.address).await.expect("204 is expected");
    let head = heads.recv().await.expect("a request");
    assert!(head.starts_with("get /healthz?full=1 http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: {}\r\n", server.address)), "{head}");
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");

    let mut with_host = http_probe("/");
    with_host.host = Some("app.example.com".into());
    probe(ProbeConfig::Http(with_host)).run(server.address).await.expect("204 is expected");
    let head = heads.recv().await.expect("a request");
    assert!(head.contains("\r\nhost: app.example.com\r\n"), "{head}");
}

#[tokio::test]
async fn the_host_header_names_the_port_only_where_it_is_unusual() {
    let web: SocketAddr = "[2001:db8::1]:80".parse().expect("an address");
    let http = http_probe("/");
    let plain = probe(ProbeConfig::Tcp);
    assert_eq!(plain.authority(&http, web, 80), "[2001:db8::1]");
    assert_eq!(plain.authority(&http, web, 443), "[2001:db8::1]:80");
    let named = Probe { host: Some("app.example.com".into()), ..plain };
    assert_eq!(named.authority(&http, web, 80), "app.example.com");
}

#[tokio::test]
async fn an_unexpected_status_fails_and_the_error_names_both() {
    let server = Server::http(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(error(&probe(http("/")), server.address).await, "HTTP status 503, expected 200-399");
    let mut strict = http_probe("/");
    strict.expect = vec![(200, 200), (503, 504)];
    probe(ProbeConfig::Http(strict.clone())).run(server.address).await.expect("503 is expected here");
    strict.expect.truncate(1);
    strict.expect.push((404, 404));
    let text = error(&probe(ProbeConfig::Http(strict)), server.address).await;
    assert_eq!(text, "HTTP status 503, expected 200, 404");
}

#[tokio::test]
async fn an_endless_body_is_not_read() {
    let server = Server::start(|mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    })
    .await;
    probe(http("/")).run(server.address).await.expect("the status is enough");
}

#[tokio::test]
async fn an_endless_head_fails_at_the_limit() {
    let server = Server::start(|mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
    })
    .await;
    let text = error(&probe(http("/")), server.address).await;
    assert!(text.contains("too large"), "{text}");
}

#[tokio::test]
async fn garbage_and_early_close_fail_an_http_probe() {
    for response in [&b"\x15\x03\x01\x00\x02\x02\x46"[..], b"", b"HTTP/1.1 "] {
        let server = Server::start(move |mut stream| async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(response).await;
        })
        .await;
        let text = error(&probe(http("/")), server.address).await;
        assert!(text.starts_with(&format!("HTTP request to {}: ", server.address)), "{response:?}: {text}");
    }
}

#[tokio::test]
async fn https_asks_over_tls_and_offers_http_1_1() {
    let acceptor = tls_acceptor();
    let server = Server::start(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await.expect("a TLS client");
            let h1 = stream.get_ref().1.alpn_protocol() == Some(b"http/1.1");
            read_head(&mut stream).await;
            let status: &[u8] = if h1 { b"HTTP/1.1 200 OK\r\n\r\n" } else { b"HTTP/1.1 505 No\r\n\r\n" };
            let _ = stream.write_all(status).await;
            let _ = stream.shutdown().await;
        }
    })
    .await;
    let https = ProbeConfig::Https { http: http_probe("/"), server_name: Some("app.example.com".into()) };
    probe(https).run(server.address).await.expect("200 over TLS");
}

#[tokio::test]
async fn a_pool_that_speaks_proxy_hears_a_local_header_first() {
    let headers: [(ProxyProtocol, &[u8]); 2] = [
        (ProxyProtocol::V1, b"PROXY UNKNOWN\r\n"),
        (
            ProxyProtocol::V2(ProxyTlvs::default()),
            &[0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x20, 0x00, 0x00, 0x00],
        ),
    ];
    for (proxy, expected) in headers {
        let (seen, mut firsts) = mpsc::channel(1);
        let server = Server::start(move |mut stream| {
            let seen = seen.clone();
            async move {
                let mut first = vec![0; expected.len()];
                let _ = stream.read_exact(&mut first).await;
                let request = read_head(&mut stream).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                let _ = seen.send((first, request.starts_with("GET / "))).await;
            }
        })
        .await;
        let probe = Probe { proxy_header: proxy_header(proxy), ..probe(http("/")) };
        probe.run(server.address).await.expect("200 after the header");
        assert_eq!(firsts.recv().await, Some((expected.to_vec(), true)));
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_an_error_and_no_panic() {
    let server = Server::sink().await;
    let text = error(&probe(http("/a b")), server.address).await;
    assert!(text.contains("health.path \"/a b\""), "{text}");
    let text = error(&probe(ProbeConfig::Tls { server_name: Some("a b".into()) }), server.address).await;
    assert_eq!(text, "health.server_name \"a b\" is not a DNS name or IP address");
}
