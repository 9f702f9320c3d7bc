//! Words for log lines in `ingress_labels`, so that a connection's last line is whole even when the daemon that accepted it is
//! long dead. Connections with the same words share an entry.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use aya::maps::{HashMap as BpfHashMap, MapData};
use ingress_ebpf::connection::Label;

use crate::l4::outcome::ConnectionInfo;
use crate::route::{ListenerName, PoolName, RouteName, Sni};

/// The words of one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Words {
    pub listener: ListenerName,
    pub sni: Option<Sni>,
    pub alpn: Option<String>,
    pub route: Option<RouteName>,
    pub pool: PoolName,
    pub backend: String,
    /// Only where an accepted PROXY header names another client than the wire does.
    pub client: Option<SocketAddr>,
}

pub(super) struct Labels {
    map: BpfHashMap<MapData, u32, Label>,
    by_words: HashMap<Arc<Words>, u32>,
    by_id: HashMap<u32, Entry>,
    next: u32,
}

struct Entry {
    words: Arc<Words>,
    users: u32,
}

impl Labels {
    /// Reads what an earlier daemon left. Users are counted as slots are adopted.
    pub(super) fn adopt(map: BpfHashMap<MapData, u32, Label>) -> Self {
        let mut labels = Self { map, by_words: HashMap::new(), by_id: HashMap::new(), next: 1 };
        let found: Vec<(u32, Label)> = labels.map.iter().flatten().collect();
        for (id, label) in found {
            let words = Arc::new(decode(&label));
            labels.next = labels.next.max(id.wrapping_add(1));
            labels.by_words.insert(Arc::clone(&words), id);
            labels.by_id.insert(id, Entry { words, users: 0 });
        }
        labels
    }

    /// One more user of an adopted label.
    pub(super) fn use_again(&mut self, id: u32) {
        if let Some(entry) = self.by_id.get_mut(&id) {
            entry.users += 1;
        }
    }

    /// Deletes adopted labels that nobody uses.
    pub(super) fn sweep(&mut self) {
        let unused: Vec<u32> = self.by_id.iter().filter(|(_, entry)| entry.users == 0).map(|(id, _)| *id).collect();
        for id in unused {
            self.delete(id);
        }
    }

    /// The label for these words; `None` when the map is full or refuses.
    pub(super) fn intern(&mut self, words: Words) -> Option<u32> {
        if let Some(id) = self.by_words.get(&words).copied() {
            self.use_again(id);
            return Some(id);
        }
        let id = (self.next..=u32::MAX).chain(1..self.next).find(|id| !self.by_id.contains_key(id))?;
        self.map.insert(id, encode(&words), 0).ok()?;
        self.next = id.wrapping_add(1).max(1);
        let words = Arc::new(words);
        self.by_words.insert(Arc::clone(&words), id);
        self.by_id.insert(id, Entry { words, users: 1 });
        Some(id)
    }

    pub(super) fn words(&self, id: u32) -> Arc<Words> {
        self.by_id.get(&id).map_or_else(|| Arc::new(Words::lost()), |entry| Arc::clone(&entry.words))
    }

    pub(super) fn release(&mut self, id: u32) {
        let Some(entry) = self.by_id.get_mut(&id) else { return };
        entry.users = entry.users.saturating_sub(1);
        if entry.users == 0 {
            self.delete(id);
        }
    }

    fn delete(&mut self, id: u32) {
        if let Some(entry) = self.by_id.remove(&id) {
            self.by_words.remove(&entry.words);
        }
        let _ = self.map.remove(&id);
    }
}

impl Words {
    /// `wire_client` is the socket's peer.
    pub(super) fn of(info: &ConnectionInfo, wire_client: SocketAddr) -> Self {
        Self {
            listener: info.listener.clone(),
            sni: info.sni.clone(),
            alpn: info.alpn.clone(),
            route: info.route.clone(),
            pool: info.pool.clone(),
            backend: info.backend.clone(),
            client: (info.client != wire_client).then_some(info.client),
        }
    }

    /// Of a connection whose label is not there: an older daemon left its slot without one.
    fn lost() -> Self {
        Self {
            listener: ListenerName::new(""),
            sni: None,
            alpn: None,
            route: None,
            pool: PoolName::new(""),
            backend: String::new(),
            client: None,
        }
    }
}

/// Every field may be cut so that all fit; names and a SNI of the allowed length always fit whole.
fn encode(words: &Words) -> Label {
    let mut label = Label { length: 0, text: [0; 948] };
    let client = words.client.map(|client| client.to_string());
    let fields = [
        (words.sni.as_ref().map_or("", Sni::as_str), 253),
        (words.listener.as_str(), 63),
        (words.alpn.as_deref().unwrap_or(""), 64),
        (words.route.as_ref().map_or("", RouteName::as_str), 253),
        (words.pool.as_str(), 63),
        (&words.backend, 190),
        (client.as_deref().unwrap_or(""), 47),
    ];
    let mut at = 0;
    for (field, most) in fields {
        let mut end = field.len().min(most);
        while !field.is_char_boundary(end) {
            end -= 1;
        }
        let bytes = &field.as_bytes()[..end];
        label.text[at..at + end].copy_from_slice(bytes);
        at += end + 1;
    }
    label.length = at as u32;
    label
}

fn decode(label: &Label) -> Words {
    let length = (label.length as usize).min(label.text.len());
    let mut fields = label.text[..length].split(|b| *b == 0).map(|f| String::from_utf8_lossy(f).into_owned());
    let mut next = || fields.next().unwrap_or_default();
    let some = |text: String| (!text.is_empty()).then_some(text);
    let (sni, listener, alpn, route, pool, backend) = (next(), next(), next(), next(), next(), next());
    Words {
        listener: ListenerName::new(listener),
        sni: Sni::parse(&sni).ok(),
        alpn: some(alpn),
        route: some(route).map(RouteName::new),
        pool: PoolName::new(pool),
        backend,
        client: next().parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_label() {
        let words = Words {
            listener: ListenerName::new("https"),
            sni: Sni::parse("app.example.com").ok(),
            alpn: Some("h2,http/1.1".into()),
            route: None,
            pool: PoolName::new("app"),
            backend: "10.0.0.3:8443".into(),
            client: "[2001:db8::1]:40000".parse().ok(),
        };
        assert_eq!(decode(&encode(&words)), words);
    }

    #[test]
    fn overlong_words_are_cut_between_characters_and_still_fit() {
        let long = "ä".repeat(300);
        let words = Words {
            listener: ListenerName::new(long.clone()),
            sni: Sni::parse(&["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".")).ok(),
            alpn: Some(long.clone()),
            route: Some(RouteName::new(long.clone())),
            pool: PoolName::new(long.clone()),
            backend: long,
            client: "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().ok(),
        };
        let decoded = decode(&encode(&words));
        assert!(decoded.backend.len() <= 190 && decoded.backend.chars().all(|c| c == 'ä'));
        assert_eq!(decoded.route.map(|route| route.as_str().len()), Some(252));
        assert_eq!((decoded.sni, decoded.client), (words.sni, words.client), "what is bounded anyway stays whole");
    }
}
