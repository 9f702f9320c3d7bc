//! One immutable generation of everything the traffic plane reads. Published by `control`, swapped in place.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::balance::Pool;
use crate::config::Config;
use crate::route::{PoolName, ProviderName, RouteTable};

/// Counts published snapshots, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug)]
pub struct Snapshot {
    pub generation: Generation,
    pub published: SystemTime,
    /// The file with all that providers add to it.
    pub config: Arc<Config>,
    pub routes: Arc<RouteTable>,
    pub pools: BTreeMap<PoolName, Arc<Pool>>,
    /// At a start: providers that have not said anything yet. What is unknown now may be known in a moment.
    pub awaited: Vec<ProviderName>,
}
