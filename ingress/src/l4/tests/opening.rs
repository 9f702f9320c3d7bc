//! What clients say first, in every pace and form.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::lab::*;
use crate::config::DefaultRoute;
use crate::config::ListenerProtocol::Tls;
use crate::config::Networks;
use crate::config::{ProxyProtocol, ProxyTlvs};
use crate::l4::client_hello::UNRECOGNIZED_NAME_ALERT;
use crate::l4::proxy_header::{self, Facts};
use crate::route::PoolName;

#[tokio::test]
async fn a_hello_that_drips_in_byte_by_byte_reaches_the_backend_unchanged() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let hello = hello("app.example.com");
    let mut client = lab.connect("tls").await;
    client.set_nodelay(true).expect("nodelay");
    for byte in &hello {
        client.write_all(&[*byte]).await.expect("byte");
        tokio::task::yield_now().await;
    }
    let mut server = backend.accept().await;
    assert_eq!(read(&mut server, hello.len()).await, hello);
}

#[tokio::test]
async fn an_urgent_byte_within_the_hello_is_a_byte_of_the_hello() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let hello = hello("app.example.com");
    let mut client = lab.connect("tls").await;
    client.write_all(&hello[..100]).await.expect("begin");
    socket2::SockRef::from(&client).send_out_of_band(&hello[100..101]).expect("urgent byte");
    client.write_all(&hello[101..]).await.expect("rest");
    assert_eq!(read(&mut backend.accept().await, hello.len()).await, hello);
}

#[tokio::test]
async fn early_data_behind_the_hello_is_not_lost() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let mut sent = hello("app.example.com");
    sent.extend_from_slice(&[42; 50_000]);
    let mut client = lab.connect("tls").await;
    client.write_all(&sent).await.expect("hello and more");
    assert_eq!(read(&mut backend.accept().await, sent.len()).await, sent);
}

#[tokio::test]
async fn a_tcp_listener_connects_before_the_client_says_anything() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let mut client = lab.connect("tcp").await;
    let mut server = backend.accept().await;
    server.write_all(b"220 ready").await.expect("greeting");
    assert_eq!(read(&mut client, 9).await, b"220 ready");
}

#[tokio::test]
async fn an_unknown_name_gets_the_alert_even_if_more_data_follows_the_hello() {
    let lab = Lab::start(config(&[])).await;
    let mut sent = hello("other.example.com");
    sent.extend_from_slice(&[7; 30_000]);
    let mut client = lab.connect("tls").await;
    client.write_all(&sent).await.expect("hello and more");
    assert_eq!(read_all(&mut client).await, UNRECOGNIZED_NAME_ALERT);
    drop(client);
    wait_until("refusal", || lab.refused("tls", "unknown_sni") == 1).await;
}

#[tokio::test]
async fn a_hello_without_name_is_rejected_or_goes_to_the_default_pool() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    // An IP address is not sent as a server name.
    let hello = hello("192.0.2.1");
    let mut client = lab.connect("tls").await;
    client.write_all(&hello).await.expect("hello");
    assert_eq!(read_all(&mut client).await, UNRECOGNIZED_NAME_ALERT);
    drop(client);
    wait_until("refusal", || lab.refused("tls", "no_sni") == 1).await;

    let default = DefaultRoute::Pool(PoolName::new("app"));
    lab.reload(|config| config.listener("tls").protocol = Tls { default });
    let mut client = lab.connect("tls").await;
    client.write_all(&hello).await.expect("hello");
    assert_eq!(read(&mut backend.accept().await, hello.len()).await, hello);
}

#[tokio::test]
async fn what_is_not_tls_is_closed_and_counted() {
    let lab = Lab::start(config(&[])).await;
    let mut client = lab.connect("tls").await;
    client.write_all(b"GET / HTTP/1.1\r\n").await.expect("request");
    wait_until("refusal", || lab.refused("tls", "not_tls") == 1).await;
}

#[tokio::test]
async fn a_client_that_closes_or_resets_before_its_hello_is_counted() {
    let lab = Lab::start(config(&[])).await;
    let mut client = lab.connect("tls").await;
    client.write_all(&hello("app.example.com")[..20]).await.expect("part");
    client.shutdown().await.expect("shutdown");
    wait_until("end of stream", || lab.refused("tls", "hello_eof") == 1).await;
    let client = lab.connect("tls").await;
    wait_until("accept", || lab.counts("tls").accepted_total == 2).await;
    reset(client);
    wait_until("reset", || lab.refused("tls", "client_reset") == 1).await;
}

#[tokio::test]
async fn a_silent_client_is_closed_when_its_time_is_up() {
    let mut config = config(&[]);
    config.listener("tls").hello_timeout = Duration::from_millis(50);
    let lab = Lab::start(config).await;
    let mut client = lab.connect("tls").await;
    assert_eq!(read_all(&mut client).await, b"");
    wait_until("timeout", || lab.refused("tls", "hello_timeout") == 1).await;
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client_and_its_header_is_not_passed_on() {
    let backend = Backend::start().await;
    let mut config = config(&[backend.address()]);
    config.listener("tls").accept_proxy_from = vec!["127.0.0.0/8".parse().expect("network")];
    config.pool().proxy_protocol = ProxyProtocol::V1;
    let lab = Lab::start(config).await;
    let hello = hello("app.example.com");
    let (source, destination) = (([192, 0, 2, 7], 4711).into(), ([198, 51, 100, 1], 443).into());
    let v2 = ProxyProtocol::V2(ProxyTlvs::default());
    let mut sent = proxy_header::for_backend(v2, source, destination, &Facts::default());
    sent.extend_from_slice(&hello);
    let mut client = lab.connect("tls").await;
    client.write_all(&sent).await.expect("header and hello");
    let expected = [b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n", &*hello].concat();
    assert_eq!(read(&mut backend.accept().await, expected.len()).await, expected);
}

#[tokio::test]
async fn a_trusted_proxy_without_header_and_an_untrusted_one_with_it_are_refused() {
    let mut config = config(&[]);
    config.listener("tcp").accept_proxy_from = vec!["127.0.0.0/8".parse().expect("network")];
    let lab = Lab::start(config).await;
    let mut client = lab.connect("tcp").await;
    client.write_all(b"SSH-2.0-OpenSSH\r\n").await.expect("no header");
    wait_until("refusal", || lab.refused("tcp", "bad_proxy_header") == 1).await;
    let mut client = lab.connect("tls").await;
    client.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").await.expect("header");
    wait_until("refusal", || lab.refused("tls", "untrusted_proxy_header") == 1).await;
}

#[tokio::test]
async fn a_denied_client_is_refused_and_so_is_one_that_a_proxy_header_names() {
    let backend = Backend::start().await;
    for (deny, peer_is_denied) in [("127.0.0.0/8", true), ("203.0.113.0/24", false)] {
        let mut config = config(&[backend.address()]);
        config.admission.deny = Networks::new([deny.parse().expect("network")]);
        config.listener("tcp").accept_proxy_from = vec!["127.0.0.0/8".parse().expect("network")];
        let lab = Lab::start(config).await;
        let mut client = lab.connect("tcp").await;
        if !peer_is_denied {
            client.write_all(b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\n").await.expect("sent");
        }
        assert_eq!(read_all(&mut client).await, b"");
        wait_until("refusal", || lab.refused("tcp", "denied") == 1).await;
    }
}

#[tokio::test]
async fn the_proxy_header_to_a_backend_is_not_counted_as_payload() {
    let backend = Backend::start().await;
    let mut config = config(&[backend.address()]);
    config.pool().proxy_protocol = ProxyProtocol::V1;
    let lab = Lab::start(config).await;
    let hello = hello("app.example.com");
    let mut client = lab.connect("tls").await;
    client.write_all(&hello).await.expect("hello");
    let mut server = backend.accept().await;
    let header = proxy_header::for_backend(
        ProxyProtocol::V1,
        client.local_addr().expect("address"),
        client.peer_addr().expect("address"),
        &Facts::default(),
    );
    let expected = [header, hello.clone()].concat();
    assert_eq!(read(&mut server, expected.len()).await, expected);
    server.write_all(b"answer").await.expect("answer");
    drop(server);
    assert_eq!(read_all(&mut client).await, b"answer");
    drop(client);
    wait_until("log line", || lab.log.all().len() == 1).await;
    let line = &lab.log.all()[0];
    assert_eq!((&line["bytes_to_backend"], &line["bytes_to_client"]), (&hello.len().into(), &6.into()));
    assert_eq!((&line["alpn"], &line["backend"]), (&"h2,http/1.1".into(), &"b0".into()));
}
