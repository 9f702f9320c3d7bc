//! Sockets that come, stay and go with the configuration.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::lab::*;
use crate::config::{DefaultRoute, ListenerProtocol};
use crate::route::ListenerName;

#[tokio::test]
async fn a_reload_keeps_connections_and_the_sockets_of_unchanged_listeners() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let (mut client, mut server) = relayed(&lab, &backend).await;
    let before = lab.address("tls");
    lab.reload(|config| {
        let more = listener(ListenerProtocol::Tls { default: DefaultRoute::Reject });
        config.listeners.insert(ListenerName::new("more"), more);
        config.listener("tls").max_connections = 7;
    });
    wait_until("the new listener", || lab.state("more").is_some_and(|state| state.error.is_none())).await;
    assert_eq!(lab.address("tls"), before, "the socket was bound again");
    client.write_all(b"through the reload").await.expect("write");
    assert_eq!(read(&mut server, 18).await, b"through the reload");
    relayed(&lab, &backend).await;
}

#[tokio::test]
async fn a_removed_listener_closes_and_its_connections_go_on() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let address = lab.address("tls");
    let (mut client, mut server) = relayed(&lab, &backend).await;
    lab.reload(|config| drop(config.listeners.remove(&ListenerName::new("tls"))));
    wait_until("the close", || lab.state("tls").is_none()).await;
    // Nobody holds the port any more.
    TcpListener::bind(address).await.expect("a free port");
    client.write_all(b"still").await.expect("write");
    assert_eq!(read(&mut server, 5).await, b"still");
}

#[tokio::test]
async fn a_taken_port_is_degraded_and_served_once_it_is_free() {
    let backend = Backend::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let mut config = config(&[backend.address()]);
    config.listener("tls").bind = vec![taken.local_addr().expect("address")];
    let lab = Lab::start(config).await;
    let state = lab.state("tls").expect("listener");
    assert_eq!(state.error.as_deref(), Some("the port is taken by another process"));
    assert!(lab.state("tcp").is_some_and(|tcp| tcp.error.is_none()), "the other listener is not disturbed");
    drop(taken);
    wait_until("listening", || lab.state("tls").is_some_and(|state| state.error.is_none())).await;
    relayed(&lab, &backend).await;
}

#[tokio::test]
async fn an_address_can_move_from_one_listener_to_another() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let address = lab.address("tls");
    lab.reload(|config| {
        let mut moved = config.listeners.remove(&ListenerName::new("tls")).expect("listener");
        moved.bind = vec![address];
        config.listeners.insert(ListenerName::new("moved"), moved);
    });
    wait_until("the new owner", || lab.state("moved").is_some()).await;
    assert_eq!(lab.state("moved").and_then(|state| state.error), None, "it had to wait for the old one");
}

#[tokio::test]
async fn a_stopping_plane_closes_its_ports_first_and_ends_with_its_last_connection() {
    let backend = Backend::start().await;
    let mut lab = Lab::start(config(&[backend.address()])).await;
    let address = lab.address("tls");
    let (mut client, mut server) = relayed(&lab, &backend).await;
    lab.stop_listening().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    client.write_all(b"draining").await.expect("write");
    assert_eq!(read(&mut server, 8).await, b"draining");
    drop((client, server));
    lab.workers_end().await;
}

#[tokio::test]
async fn ipv6_and_ipv4_share_a_port_and_a_device_can_be_named() {
    let backend = Backend::start().await;
    let free = TcpListener::bind("[::]:0").await.expect("port");
    let port = free.local_addr().expect("address").port();
    drop(free);
    let mut config = config(&[backend.address()]);
    config.listener("tls").bind = vec![([0, 0, 0, 0], port).into(), ([0_u16; 8], port).into()];
    config.listener("tcp").device = Some("lo".to_owned());
    let lab = Lab::start(config).await;
    assert!(lab.states.all().iter().all(|state| state.error.is_none()), "{:?}", lab.states.all());
    let hello = hello("app.example.com");
    let mut open = Vec::new();
    for host in ["127.0.0.1", "::1"] {
        let mut client = tokio::net::TcpStream::connect((host, port)).await.expect("connect");
        client.write_all(&hello).await.expect("hello");
        let mut server = backend.accept().await;
        assert_eq!(read(&mut server, hello.len()).await, hello);
        open.push((client, server));
    }
    let flows = lab.plane.relays.flows();
    assert!(flows.iter().any(|flow| flow.local == ([0, 0, 0, 0, 0, 0, 0, 1], port).into()), "{flows:?}");
    lab.connect("tcp").await;
    backend.accept().await;
}

#[tokio::test]
async fn a_missing_device_degrades_only_its_own_listener() {
    let mut config = config(&[]);
    config.listener("tcp").device = Some("nosuchdevice0".to_owned());
    let lab = Lab::start(config).await;
    assert!(lab.state("tcp").is_some_and(|state| state.error.is_some()));
    assert!(lab.state("tls").is_some_and(|state| state.error.is_none()));
}
