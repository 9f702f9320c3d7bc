//! Pool state: who the backends are, which are up, and which one takes the next connection.
//!
//! A [`Pool`] belongs to one snapshot; a [`Backend`] outlives it: an unchanged backend is the same `Arc` in the next
//! snapshot, with its health, counters and slow start.

use std::sync::Arc;

use crate::config::PoolConfig;
use crate::route::PoolName;

/// One pool of one snapshot.
#[derive(Debug)]
pub struct Pool {
    pub name: PoolName,
    pub config: PoolConfig,
    pub backends: Vec<Arc<Backend>>,
    pub fallback: Vec<Arc<Backend>>,
}

/// One backend: identity, health and counters. Shared by all snapshots that name it unchanged.
#[derive(Debug)]
pub struct Backend {
    pub pool: PoolName,
    pub name: String,
}
