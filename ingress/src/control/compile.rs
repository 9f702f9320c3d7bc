//! Configuration -> snapshot. Pure but for the clock: the daemon, `ingress check` and tests run the same code.

use std::sync::Arc;
use std::time::SystemTime;

use crate::balance::Pool;
use crate::config::Config;
use crate::route::RouteTable;
use crate::snapshot::{Generation, Snapshot};

/// The generation after `previous`. Backends that are unchanged keep their health and counters.
pub fn compile(config: Config, previous: Option<&Snapshot>) -> Snapshot {
    let (routes, conflicts) = RouteTable::compile(&config.routes);
    for conflict in conflicts {
        tracing::warn!(%conflict, "route");
    }
    let pool = |(name, pool): (&_, &_)| {
        let before = previous.and_then(|snapshot| snapshot.pools.get(name));
        (Clone::clone(name), Arc::new(Pool::new(Clone::clone(name), Clone::clone(pool), before.map(Arc::as_ref))))
    };
    Snapshot {
        generation: Generation(previous.map_or(1, |snapshot| snapshot.generation.0 + 1)),
        published: SystemTime::now(),
        pools: config.pools.iter().map(pool).collect(),
        routes,
        config: Arc::new(config),
    }
}
