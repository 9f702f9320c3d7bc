//! Paths that are narrower in their middle than at their ends: the ends have to learn it, through the proxy.

use anyhow::Result;
use ingress_tests::lab::{Host, LabOptions};
use ingress_tests::require;
use ingress_tests::s1::S1;

use super::s1_loss::{Bad, STRICT, transfers_both_ways};

#[test]
fn narrow_path_to_the_client_is_learned_by_client_and_backend() -> Result<()> {
    learned(true, |s1| &s1.lab.clients[0])
}

#[test]
fn narrow_path_to_the_backend_is_learned_by_client_and_backend() -> Result<()> {
    learned(true, |s1| &s1.lab.backends[0])
}

#[test]
fn narrow_path_is_learned_without_offloads_too() -> Result<()> {
    require!("ethtool");
    learned(false, |s1| &s1.lab.clients[0])
}

/// A path that nobody is told of hangs with its first large segment.
fn learned(offloads: bool, far: fn(&S1) -> &Host) -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions { offloads, ..LabOptions::default() })?;
    let _router = s1.lab.put_behind_router(far(&s1), NARROW)?;
    let node = transfers_both_ways(&s1, 4 << 20, Bad { never: &STRICT, loses: false })?;
    // Of the sender beyond the proxy; the one behind the router hears of it without our help.
    assert!(node.verdict("too_big_returned")? > 0, "nobody was told");
    Ok(())
}

/// The bottleneck's MTU.
const NARROW: u32 = 1_300;
