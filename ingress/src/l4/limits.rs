//! How many connections may be open: over all listeners, per listener, per client address.
//!
//! `accept` and `connection` ask; what they get is a [`Guards`] that gives the places back when it is dropped. The guards
//! travel with the connection, into the kernel path too.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};

use super::outcome::Refusal;
use crate::route::ListenerName;

/// Open connections of the whole daemon.
#[derive(Debug, Default)]
pub struct Limits {
    open: Arc<AtomicU32>,
    listeners: RwLock<HashMap<ListenerName, Arc<ListenerLimits>>>,
}

/// Open connections of one listener. Outlives reloads, so that counts stay right while limits change.
#[derive(Debug)]
pub struct ListenerLimits {
    all: Arc<AtomicU32>,
    open: AtomicU32,
    sources: Sources,
}

/// The places that one connection takes. Dropping it gives them back.
#[derive(Debug)]
pub struct Guards {
    listener: Arc<ListenerLimits>,
    source: Option<IpAddr>,
}

/// Client addresses with open connections. Sharded: every worker counts every connection here.
#[derive(Debug, Default)]
struct Sources {
    hasher: RandomState,
    shards: [Mutex<HashMap<IpAddr, u32>>; SHARDS],
}

impl Limits {
    pub fn listener(&self, name: &ListenerName) -> Arc<ListenerLimits> {
        if let Some(listener) = self.listeners.read().get(name) {
            return listener.clone();
        }
        let fresh = || {
            Arc::new(ListenerLimits { all: self.open.clone(), open: AtomicU32::new(0), sources: Sources::default() })
        };
        self.listeners.write().entry(name.clone()).or_insert_with(fresh).clone()
    }

    /// Counts a connection that an earlier daemon admitted. Never refuses: it is established.
    pub fn adopt(&self, listener: &ListenerName, client: IpAddr) -> Guards {
        let listener = self.listener(listener);
        let mut guards = listener.admit(u32::MAX, u32::MAX).unwrap_or_else(|_| listener.uncounted());
        guards.source = listener.sources.take(client, u32::MAX).then_some(client);
        guards
    }

    /// Connections open now, over all listeners.
    pub fn open(&self) -> u32 {
        self.open.load(Relaxed)
    }

    /// Connections open now on one listener.
    pub fn open_on(&self, listener: &ListenerName) -> u32 {
        self.listeners.read().get(listener).map_or(0, |l| l.open.load(Relaxed))
    }
}

impl ListenerLimits {
    /// Takes a place under both maxima, or says which one is reached.
    pub fn admit(self: &Arc<Self>, max_all: u32, max_listener: u32) -> Result<Guards, Refusal> {
        if !take(&self.all, max_all) {
            return Err(Refusal::GlobalLimit);
        }
        if !take(&self.open, max_listener) {
            self.all.fetch_sub(1, Relaxed);
            return Err(Refusal::ListenerLimit);
        }
        Ok(Guards { listener: self.clone(), source: None })
    }

    fn uncounted(self: &Arc<Self>) -> Guards {
        self.all.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        Guards { listener: self.clone(), source: None }
    }
}

impl Guards {
    /// Counts the connection under its client's address. Separate from [`ListenerLimits::admit`] because the address may
    /// stand in a PROXY header that is still to be read.
    pub fn count_source(&mut self, client: IpAddr, max: u32) -> Result<(), Refusal> {
        if !self.listener.sources.take(client, max) {
            return Err(Refusal::SourceLimit);
        }
        self.source = Some(client);
        Ok(())
    }
}

impl Drop for Guards {
    fn drop(&mut self) {
        if let Some(client) = self.source {
            self.listener.sources.give_back(client);
        }
        self.listener.open.fetch_sub(1, Relaxed);
        self.listener.all.fetch_sub(1, Relaxed);
    }
}

impl Sources {
    fn take(&self, client: IpAddr, max: u32) -> bool {
        let mut shard = self.shard(&client).lock();
        let open = shard.entry(client).or_insert(0);
        if *open >= max {
            if *open == 0 {
                shard.remove(&client);
            }
            return false;
        }
        *open += 1;
        true
    }

    fn give_back(&self, client: IpAddr) {
        let mut shard = self.shard(&client).lock();
        let Some(open) = shard.get_mut(&client) else { return };
        *open -= 1;
        if *open == 0 {
            shard.remove(&client);
        }
    }

    fn shard(&self, client: &IpAddr) -> &Mutex<HashMap<IpAddr, u32>> {
        &self.shards[self.hasher.hash_one(client) as usize % SHARDS]
    }
}

fn take(open: &AtomicU32, max: u32) -> bool {
    open.fetch_update(Relaxed, Relaxed, |n| (n < max).then_some(n + 1)).is_ok()
}

const SHARDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    fn tls() -> ListenerName {
        ListenerName::new("tls")
    }

    #[test]
    fn a_listener_admits_up_to_its_maximum_and_again_after_one_left() {
        let limits = Limits::default();
        let listener = limits.listener(&tls());
        let first = listener.admit(10, 2).expect("first");
        let _second = listener.admit(10, 2).expect("second");
        assert_eq!(listener.admit(10, 2).err(), Some(Refusal::ListenerLimit));
        drop(first);
        assert!(listener.admit(10, 2).is_ok());
    }

    #[test]
    fn the_global_maximum_counts_all_listeners() {
        let limits = Limits::default();
        let _a = limits.listener(&tls()).admit(1, 9).expect("first");
        assert_eq!(limits.listener(&ListenerName::new("b")).admit(1, 9).err(), Some(Refusal::GlobalLimit));
        assert_eq!(limits.open(), 1, "a refused connection takes no place");
    }

    #[test]
    fn a_source_is_refused_above_its_maximum_and_forgotten_when_it_left() {
        let limits = Limits::default();
        let listener = limits.listener(&tls());
        let mut first = listener.admit(9, 9).expect("place");
        first.count_source(CLIENT, 1).expect("first of this source");
        let mut second = listener.admit(9, 9).expect("place");
        assert_eq!(second.count_source(CLIENT, 1), Err(Refusal::SourceLimit));
        drop((first, second));
        assert_eq!(limits.open(), 0);
        assert!(listener.sources.shards.iter().all(|s| s.lock().is_empty()));
    }

    #[test]
    fn an_adopted_connection_takes_its_places_and_gives_them_back() {
        let limits = Limits::default();
        let adopted = limits.adopt(&tls(), CLIENT);
        assert_eq!((limits.open(), limits.open_on(&tls())), (1, 1));
        let listener = limits.listener(&tls());
        assert_eq!(listener.admit(9, 9).expect("place").count_source(CLIENT, 1), Err(Refusal::SourceLimit));
        drop(adopted);
        assert_eq!((limits.open(), limits.open_on(&tls())), (0, 0));
    }
}
