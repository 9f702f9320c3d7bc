//! From the route to a connected backend.

use super::lab::*;

#[tokio::test]
async fn a_backend_that_refuses_is_skipped_and_counted() {
    let refusing = Backend::start().await;
    let refused = refusing.address();
    drop(refusing);
    let backend = Backend::start().await;
    let lab = Lab::start(config(&[refused, backend.address()])).await;
    let _first = relayed(&lab, &backend).await;
    let _second = relayed(&lab, &backend).await;
    let failures: u64 = failures(&lab);
    assert_eq!(failures, 1, "of two connections one begins with the backend that refuses");
}

#[tokio::test]
async fn a_pool_without_a_living_backend_refuses() {
    let refusing = Backend::start().await;
    let refused = refusing.address();
    drop(refusing);
    let lab = Lab::start(config(&[refused])).await;
    let mut client = lab.connect("tcp").await;
    assert_eq!(read_all(&mut client).await, b"");
    wait_until("refusal", || lab.refused("tcp", "connect_failed") == 1).await;
    lab.reload(|config| config.pool().backends.clear());
    let mut client = lab.connect("tcp").await;
    assert_eq!(read_all(&mut client).await, b"");
    wait_until("refusal", || lab.refused("tcp", "no_backend") == 1).await;
}

fn failures(lab: &Lab) -> u64 {
    let snapshot = lab.plane.snapshot();
    let pools = snapshot.pools.values();
    pools.flat_map(|pool| pool.view(std::time::Instant::now()).backends).map(|backend| backend.connect_failures).sum()
}
