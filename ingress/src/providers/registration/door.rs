//! Where the API listens: on the private network, for its networks only, and for nobody too often.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};

use crate::metrics::Metrics;
use crate::route::ProviderName;
use crate::serve::Accept;

pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) sources: Vec<IpNet>,
    pub(super) inside: Arc<Inside>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) provider: ProviderName,
}

/// Connections now, by address: no host can take all places.
#[derive(Debug, Default)]
pub(super) struct Inside(Mutex<HashMap<IpAddr, usize>>);

/// Who is connected. The last copy gives the place back.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    _place: Arc<Place>,
}

#[derive(Debug)]
struct Place {
    ip: IpAddr,
    inside: Arc<Inside>,
}

impl Accept for Door {
    type Io = TcpStream;
    type Peer = Peer;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        loop {
            let (stream, address) = self.listener.accept().await?;
            let ip = address.ip().to_canonical();
            if !self.sources.iter().any(|network| network.contains(&ip)) {
                self.metrics.registration_stranger(&self.provider);
                tracing::debug!(provider = %self.provider, source = %address, "not a network that may register");
                continue;
            }
            if let Some(place) = Inside::enter(&self.inside, ip) {
                return Ok((stream, Peer { address, _place: Arc::new(place) }));
            }
            tracing::debug!(provider = %self.provider, source = %address, "too many connections of one address");
        }
    }
}

impl Inside {
    fn enter(inside: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        let mut counts = inside.0.lock();
        let count = counts.entry(ip).or_default();
        (*count < PER_SOURCE).then(|| {
            *count += 1;
            Place { ip, inside: Arc::clone(inside) }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.inside.0.lock();
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

/// Connections of one address at one time.
const PER_SOURCE: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_places_and_gives_its_own_back() {
        let inside = Arc::new(Inside::default());
        let [one, two]: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let mut places: Vec<_> = (0..PER_SOURCE).map(|_| Inside::enter(&inside, one).expect("a place")).collect();
        assert!(Inside::enter(&inside, one).is_none());
        assert!(Inside::enter(&inside, two).is_some());
        places.pop();
        assert!(Inside::enter(&inside, one).is_some());
        drop(places);
        assert!(inside.0.lock().is_empty());
    }
}
