//! Configuration -> snapshot. Pure but for the clock: the daemon, `ingress check` and tests run the same code.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use crate::balance::Pool;
use crate::config::{Config, PoolConfig};
use crate::route::{PoolName, RouteTable};
use crate::snapshot::{Generation, Snapshot};

/// The generation after `previous`. What did not change is not made again: an unchanged pool is the same object, an
/// unchanged backend keeps its health and counters, unchanged routes keep their table.
pub fn compile(config: Config, previous: Option<&Snapshot>) -> Snapshot {
    let routes = match previous {
        Some(previous) if previous.config.routes == config.routes => Arc::clone(&previous.routes),
        Some(_) | None => Arc::new(RouteTable::compile(&config.routes)),
    };
    Snapshot {
        generation: Generation(previous.map_or(1, |snapshot| snapshot.generation.0 + 1)),
        published: SystemTime::now(),
        pools: pools(&config.pools, previous.map(|snapshot| &snapshot.pools)),
        routes,
        awaited: Vec::new(),
        config: Arc::new(config),
    }
}

/// Walks both maps side by side: they are sorted alike.
fn pools(
    wanted: &BTreeMap<PoolName, Arc<PoolConfig>>,
    previous: Option<&BTreeMap<PoolName, Arc<Pool>>>,
) -> BTreeMap<PoolName, Arc<Pool>> {
    let mut before = previous.into_iter().flatten().peekable();
    let pool = |(name, config): (&PoolName, &Arc<PoolConfig>)| {
        while before.next_if(|(older, _)| *older < name).is_some() {}
        let before = before.next_if(|(older, _)| *older == name).map(|(_, pool)| pool);
        let pool = match before {
            Some(pool) if pool.config == *config => Arc::clone(pool),
            Some(_) | None => Arc::new(Pool::new(name.clone(), config.clone(), before.map(Arc::as_ref))),
        };
        (name.clone(), pool)
    };
    wanted.iter().map(pool).collect()
}
