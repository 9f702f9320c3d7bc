//! Bytes, ends and resets through a relay.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::lab::*;
use crate::flow::FlowFilter;
use crate::l4::outcome::EndReason;

#[tokio::test]
async fn the_clients_end_of_stream_is_passed_on_and_the_answer_still_arrives() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let (mut client, mut server) = relayed(&lab, &backend).await;
    client.write_all(b"question").await.expect("question");
    client.shutdown().await.expect("shutdown");
    assert_eq!(read_all(&mut server).await, b"question");
    server.write_all(b"answer").await.expect("answer");
    drop(server);
    assert_eq!(read_all(&mut client).await, b"answer");
    wait_until("end", || lab.ended("tls", "closed") == 1).await;
}

#[tokio::test]
async fn the_backends_end_of_stream_is_passed_on_and_the_client_may_go_on_sending() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let (mut client, mut server) = relayed(&lab, &backend).await;
    server.write_all(b"bye").await.expect("bye");
    server.shutdown().await.expect("shutdown");
    assert_eq!(read_all(&mut client).await, b"bye");
    client.write_all(b"still here").await.expect("more");
    client.shutdown().await.expect("shutdown");
    assert_eq!(read_all(&mut server).await, b"still here");
    wait_until("end", || lab.ended("tls", "closed") == 1).await;
    assert_eq!(lab.plane.limits.open(), 0);
}

#[tokio::test]
async fn large_transfers_both_ways_at_once_arrive_byte_for_byte() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let (client, server) = relayed(&lab, &backend).await;
    let (up, down) = (noise(1, 24 << 20), noise(2, 32 << 20));
    let (client, server) = tokio::join!(exchange(client, &up), exchange(server, &down));
    assert!(client == down, "what the client received differs from what the backend sent");
    assert!(server == up, "what the backend received differs from what the client sent");
}

#[tokio::test]
async fn a_slow_reader_holds_the_sender_back_and_loses_nothing() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let (mut client, mut server) = relayed(&lab, &backend).await;
    let sent = noise(3, 64 << 20);
    let mut written = 0;
    // Nobody reads: the sender must come to a halt long before all is sent.
    while let Ok(n) = tokio::time::timeout(Duration::from_millis(300), server.write(&sent[written..])).await {
        written += n.expect("write");
    }
    assert!(written < sent.len(), "everything was taken although nobody reads");
    let sending = async {
        server.write_all(&sent[written..]).await.expect("the rest");
        drop(server);
    };
    let (received, ()) = tokio::join!(read_all(&mut client), sending);
    assert!(received == sent, "bytes differ");
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset_both_ways() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let (client, mut server) = relayed(&lab, &backend).await;
    reset(client);
    assert_reset(&mut server).await;
    let (mut client, server) = relayed(&lab, &backend).await;
    reset(server);
    assert_reset(&mut client).await;
    wait_until("both ends", || (lab.ended("tls", "client_reset"), lab.ended("tls", "backend_reset")) == (1, 1)).await;
}

#[tokio::test]
async fn a_client_that_resets_while_the_backend_sends_ends_the_relay() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let (client, mut server) = relayed(&lab, &backend).await;
    let sending = async { while server.write_all(&[0; 65_536]).await.is_ok() {} };
    let resetting = async {
        let mut client = client;
        client.read_exact(&mut [0; 100_000]).await.expect("some");
        reset(client);
    };
    tokio::time::timeout(DEADLINE, async { tokio::join!(sending, resetting) }).await.expect("end in time");
    wait_until("end", || lab.ended("tls", "client_reset") == 1).await;
}

#[tokio::test]
async fn a_connection_without_bytes_is_reset_after_the_idle_timeout() {
    let backend = Backend::start().await;
    let mut config = config(&[backend.address()]);
    config.listener("tls").idle_timeout = Duration::from_millis(60);
    let lab = Lab::start(config).await;
    let (mut client, mut server) = relayed(&lab, &backend).await;
    assert_reset(&mut client).await;
    assert_reset(&mut server).await;
    wait_until("end", || lab.ended("tls", "idle_timeout") == 1).await;
}

#[tokio::test]
async fn bytes_in_one_direction_keep_an_idle_other_direction_alive() {
    let backend = Backend::start().await;
    let mut config = config(&[backend.address()]);
    // Far above what a busy machine may pause between two beats.
    let idle = Duration::from_secs(1);
    config.listener("tls").idle_timeout = idle;
    let lab = Lab::start(config).await;
    let (mut client, mut server) = relayed(&lab, &backend).await;
    let begun = Instant::now();
    while begun.elapsed() < idle * 2 {
        server.write_all(b"beat").await.expect("beat");
        assert_eq!(read(&mut client, 4).await, b"beat");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(lab.ended("tls", "idle_timeout"), 0);
}

#[tokio::test]
async fn a_listed_relay_can_be_found_and_cut() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let (mut client, mut server) = relayed(&lab, &backend).await;
    let (mut other, _other_server) = relayed(&lab, &backend).await;
    let flows = lab.plane.relays.flows();
    let ours = client.local_addr().expect("address");
    let flow = flows.iter().find(|flow| flow.client == ours).expect("our flow");
    assert_eq!((flow.sni.as_deref(), flow.backend_address), (Some("app.example.com"), backend.address()));
    assert_eq!(flow.source, server.peer_addr().expect("address"));
    let filter = FlowFilter { id: Some(flow.id), ..FlowFilter::default() };
    assert_eq!(lab.plane.relays.cut(&filter, EndReason::Killed), 1);
    assert_reset(&mut client).await;
    assert_reset(&mut server).await;
    wait_until("end", || lab.ended("tls", "killed") == 1).await;
    other.write_all(b"untouched").await.expect("the other goes on");
    assert_eq!(lab.plane.relays.len(), 1);
}

#[tokio::test]
async fn bytes_of_a_relay_are_counted_while_it_runs_and_only_once() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let (mut client, mut server) = relayed(&lab, &backend).await;
    server.write_all(&[7; 100]).await.expect("write");
    read(&mut client, 100).await;
    let counted = || lab.counts("tls").bytes.to_client;
    assert_eq!(counted(), 0);
    let tell = || {
        lab.plane.relays.tell_progress(&*lab.plane.ends);
        counted() == 100
    };
    wait_until("count", tell).await;
    assert!(tell(), "told once");
    server.write_all(&[7; 50]).await.expect("write");
    drop(server);
    read(&mut client, 50).await;
    drop(client);
    wait_until("end", || lab.ended("tls", "closed") == 1).await;
    assert_eq!(counted(), 150);
}

#[tokio::test]
async fn urgent_data_stays_in_the_stream() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let (mut client, mut server) = relayed(&lab, &backend).await;
    client.write_all(b"a").await.expect("write");
    socket2::SockRef::from(&client).send_out_of_band(b"b").expect("urgent");
    client.write_all(b"c").await.expect("write");
    assert_eq!(read(&mut server, 3).await, b"abc");
}

/// Sends and receives at once; closes its side when all is sent.
async fn exchange(stream: TcpStream, send: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = stream.into_split();
    let mut received = Vec::new();
    let sending = async {
        writer.write_all(send).await.expect("write");
        writer.shutdown().await.expect("shutdown");
    };
    let (end, ()) = tokio::join!(reader.read_to_end(&mut received), sending);
    end.expect("read");
    received
}

/// Bytes that never repeat in a pattern which a lost or doubled buffer could hide in (xorshift64).
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(bytes / 8).flatten().collect()
}
