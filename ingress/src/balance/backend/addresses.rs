//! Where a backend is: the one address of the file, or the last answers for a DNS name, with what their probes said.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwap;

use crate::balance::hash;
use crate::config::BackendAddress;

#[derive(Debug)]
pub(super) struct Addresses {
    /// In ascending order.
    list: ArcSwap<Vec<Address>>,
    /// `list` is not empty; apart, because a pick asks every backend of a pool.
    known: AtomicBool,
    /// Counts picks, so that they go round the addresses.
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Address {
    socket: SocketAddr,
    /// Its last probe failed; passed over while the name has a better one.
    failing: AtomicBool,
}

impl Addresses {
    pub(super) const MOST: usize = 64;

    pub(super) fn new(target: &BackendAddress) -> Self {
        let list = match target {
            BackendAddress::Socket(socket) => vec![Address { socket: *socket, failing: AtomicBool::new(false) }],
            BackendAddress::Dns { .. } => Vec::new(),
        };
        Self { known: AtomicBool::new(!list.is_empty()), list: ArcSwap::from_pointee(list), turn: AtomicUsize::new(0) }
    }

    pub(super) fn is_known(&self) -> bool {
        self.known.load(Relaxed)
    }

    /// See [`Backend::address`](super::Backend::address).
    pub(super) fn first(&self) -> Option<SocketAddr> {
        let list = self.list.load();
        list.iter().find(|a| !a.failing.load(Relaxed)).or(list.first()).map(|a| a.socket)
    }

    pub(super) fn all(&self) -> Vec<SocketAddr> {
        self.list.load().iter().map(|a| a.socket).collect()
    }

    pub(super) fn set(&self, mut sockets: Vec<SocketAddr>) {
        sockets.sort_unstable();
        sockets.dedup();
        sockets.truncate(Self::MOST);
        let old = self.list.load();
        let carried = |socket| old.iter().find(|a| a.socket == socket).is_some_and(|a| a.failing.load(Relaxed));
        let new: Vec<_> =
            sockets.into_iter().map(|s| Address { socket: s, failing: AtomicBool::new(carried(s)) }).collect();
        self.known.store(!new.is_empty(), Relaxed);
        self.list.store(Arc::new(new));
    }

    pub(super) fn checked(&self, socket: SocketAddr, good: bool) {
        if let Some(address) = self.list.load().iter().find(|a| a.socket == socket) {
            address.failing.store(!good, Relaxed);
        }
    }

    pub(super) fn forget_checks(&self) {
        self.list.load().iter().for_each(|address| address.failing.store(false, Relaxed));
    }

    /// Goes round; with a `key` (source hash) always to the same one.
    pub(super) fn next(&self, key: Option<IpAddr>) -> Option<SocketAddr> {
        let list = self.list.load();
        match list.as_slice() {
            [] => return None,
            [only] => return Some(only.socket),
            [..] => {}
        }
        let mut usable: Vec<SocketAddr> = list.iter().filter(|a| !a.failing.load(Relaxed)).map(|a| a.socket).collect();
        if usable.is_empty() {
            usable = list.iter().map(|a| a.socket).collect();
        }
        match key {
            Some(client) => usable.into_iter().max_by_key(|socket| hash::of_address(client, *socket)),
            None => {
                let turn = self.turn.fetch_add(1, Relaxed);
                turn.checked_rem(usable.len()).and_then(|at| usable.get(at).copied())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> Addresses {
        Addresses::new(&BackendAddress::Dns { host: "app.example.com".into(), port: 443 })
    }

    fn socket(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 443))
    }

    #[test]
    fn picks_go_round_the_addresses_of_a_name() {
        let addresses = named();
        assert_eq!(addresses.next(None), None);
        addresses.set(vec![socket(2), socket(1), socket(2)]);
        let picked: Vec<_> = (0..4).filter_map(|_| addresses.next(None)).collect();
        assert_eq!(picked, [socket(1), socket(2), socket(1), socket(2)]);
    }

    #[test]
    fn an_address_that_fails_its_probe_is_passed_over_while_another_is_good() {
        let addresses = named();
        addresses.set(vec![socket(1), socket(2)]);
        addresses.checked(socket(1), false);
        assert!((0..4).all(|_| addresses.next(None) == Some(socket(2))));
        assert_eq!(addresses.first(), Some(socket(2)));
        addresses.set(vec![socket(1), socket(2), socket(3)]);
        assert!((0..4).all(|_| addresses.next(None) != Some(socket(1))), "a new answer does not forget it");
        addresses.set(vec![socket(1)]);
        assert_eq!(addresses.next(None), Some(socket(1)), "the last one is used whatever its probe said");
    }

    #[test]
    fn a_source_hash_key_stays_at_its_address() {
        let addresses = named();
        addresses.set((1..9).map(socket).collect());
        let client = IpAddr::from([192, 0, 2, 1]);
        let first = addresses.next(Some(client));
        assert!((0..8).all(|_| addresses.next(Some(client)) == first));
        let clients = (0..200).map(|i| IpAddr::from([192, 0, 2, i]));
        let used: std::collections::BTreeSet<_> = clients.map(|c| addresses.next(Some(c))).collect();
        assert_eq!(used.len(), 8, "clients spread over all addresses");
    }
}
