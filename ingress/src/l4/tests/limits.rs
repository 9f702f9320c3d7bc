//! How many connections get in.

use std::sync::Arc;

use super::lab::*;
use crate::l4::connection::{self, Entrance};
use crate::route::ListenerName;

#[tokio::test]
async fn connections_above_the_listeners_limit_are_closed_until_one_leaves() {
    let backend = Backend::start().await;
    let mut config = config(&[backend.address()]);
    config.listener("tls").max_connections = 2;
    let lab = Lab::start(config).await;
    let first = relayed(&lab, &backend).await;
    let _second = relayed(&lab, &backend).await;
    let mut third = lab.connect("tls").await;
    assert_eq!(read_all(&mut third).await, b"");
    wait_until("refusal", || lab.refused("tls", "listener_limit") == 1).await;
    drop(first);
    wait_until("a free place", || lab.plane.limits.open() == 1).await;
    relayed(&lab, &backend).await;
}

#[tokio::test]
async fn one_source_cannot_take_all_places() {
    let backend = Backend::start().await;
    let mut config = config(&[backend.address()]);
    config.listener("tls").max_connections_per_source = 1;
    let lab = Lab::start(config).await;
    let _first = relayed(&lab, &backend).await;
    let mut second = lab.connect("tls").await;
    assert_eq!(read_all(&mut second).await, b"");
    wait_until("refusal", || lab.refused("tls", "source_limit") == 1).await;
}

#[tokio::test]
async fn the_global_limit_covers_all_listeners() {
    let backend = Backend::start().await;
    let mut config = config(&[backend.address()]);
    config.limits.max_connections = 1;
    let lab = Lab::start(config).await;
    let _first = relayed(&lab, &backend).await;
    let mut second = lab.connect("tcp").await;
    assert_eq!(read_all(&mut second).await, b"");
    wait_until("refusal", || lab.refused("tcp", "global_limit") == 1).await;
}

#[tokio::test]
async fn the_task_of_a_connection_is_small() {
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[backend.address()])).await;
    let entrance = Arc::new(Entrance {
        name: ListenerName::new("tls"),
        address: None,
        limits: lab.plane.limits.listener(&ListenerName::new("tls")),
        metrics: lab.plane.metrics.listener(&ListenerName::new("tls")),
    });
    let client = lab.connect("tls").await;
    let task = connection::serve(lab.plane.clone(), entrance, client, backend.address());
    let bytes = size_of_val(&task);
    assert!(bytes <= 2048, "{bytes} bytes for every idle relay");
}
