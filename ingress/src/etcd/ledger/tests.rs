//! A few nodes, a store that orders all writes, and a network that is there or not.

use proptest::prelude::*;

use super::*;
use crate::peers::stamp::{Clock, Stamp};

const NODES: usize = 3;
const START: u64 = 1_800_000_000_000;
const DAY: u64 = 24 * 3600 * 1000;

/// The store: what a key is now, by which write, and all writes in their order.
#[derive(Default)]
struct Etcd {
    keys: BTreeMap<Arc<str>, (i64, Local)>,
    log: Vec<Word>,
    revision: i64,
}

struct Node {
    ledger: Ledger,
    clock: Clock,
    /// What survives a restart.
    disk: BTreeMap<Arc<str>, Local>,
    same: Option<u64>,
    /// Keys whose owner let go of them here, and when.
    released: BTreeMap<(Arc<str>, Arc<str>), Stamp>,
    /// Writes of the log that it has heard; `None`: it has to read all.
    heard: Option<usize>,
    is_connected: bool,
}

struct World {
    etcd: Etcd,
    nodes: Vec<Node>,
    now: u64,
}

/// Both tokens are known everywhere: nobody takes what is the other's.
fn guards(theirs: &str, ours: &str) -> bool {
    theirs != ours
}

fn live_holder(local: &Local) -> Option<Arc<str>> {
    local.holder.clone().filter(|_| !local.version.removed)
}

impl Etcd {
    fn word(&self, key: &Arc<str>) -> Word {
        let what = |(revision, local): &(i64, Local)| {
            let (version, holder) = (local.version.clone(), live_holder(local));
            Word { key: key.clone(), revision: *revision, what: What::Entry { version, holder } }
        };
        let gone = || Word { key: key.clone(), revision: self.revision, what: What::Gone };
        self.keys.get(key).map_or_else(gone, what)
    }

    /// As a transaction that compares the revision; the revision, or what is there instead.
    fn put(
        &mut self,
        key: &Arc<str>,
        based_on: i64,
        local: &Local,
        released: &BTreeMap<(Arc<str>, Arc<str>), Stamp>,
    ) -> Result<i64, Word> {
        let there = self.keys.get(key);
        if there.map_or(0, |(revision, _)| *revision) != based_on {
            return Err(self.word(key));
        }
        if let Some((_, there)) = there
            && let Some((before, now)) = live_holder(there).zip(local.holder.clone())
        {
            let is_released = released.get(&(key.clone(), before.clone())) > Some(&there.version.stamp);
            assert!(before == now || is_released, "{before}'s claim was granted, and is {now}'s");
        }
        self.revision += 1;
        self.keys.insert(key.clone(), (self.revision, local.clone()));
        self.log.push(self.word(key));
        Ok(self.revision)
    }
}

impl World {
    fn new() -> Self {
        let node = |n: usize| Node {
            ledger: Ledger::default(),
            clock: Clock::new(["a", "b", "c"][n].into()),
            disk: BTreeMap::new(),
            same: None,
            released: BTreeMap::new(),
            heard: None,
            is_connected: true,
        };
        Self { etcd: Etcd::default(), nodes: (0..NODES).map(node).collect(), now: START }
    }

    fn done(&mut self, n: usize, key: &Arc<str>, judgement: Judgement) {
        let node = &mut self.nodes[n];
        match (judgement, self.etcd.keys.get(key)) {
            (Judgement::Take { .. }, Some((_, there))) => {
                node.clock.saw(&there.version.stamp);
                node.disk.insert(key.clone(), there.clone());
                node.ledger.settle(key, Some(&there.version));
            }
            (Judgement::Take { .. }, None) => panic!("nothing to take"),
            (Judgement::Nothing | Judgement::Owe, _) => {}
        }
    }

    /// True: the caller reads that the store has it.
    fn say(&mut self, n: usize, key: &str, holder: Option<&str>, by: &str) -> bool {
        let key: Arc<str> = key.into();
        let node = &mut self.nodes[n];
        let before = node.disk.get(&key).and_then(live_holder);
        if before.is_some_and(|before| *before != *by) || (holder.is_none() && !node.disk.contains_key(&key)) {
            return false;
        }
        let version = Version { stamp: node.clock.tick(self.now), removed: holder.is_none() };
        let local = Local { version, holder: Some(by.into()) };
        let base = node.ledger.base(&key).expect("readable");
        if holder.is_none() {
            node.released.insert((key.clone(), by.into()), local.version.stamp.clone());
        }
        if node.is_connected && node.ledger.is_here() {
            match self.etcd.put(&key, base, &local, &node.released) {
                Ok(revision) => node.ledger.wrote(&key, revision, local.version.clone()),
                Err(word) => {
                    // What the world says of a key here is what it is now, as in the answer of a transaction.
                    let judgement = node.ledger.hear(&word, node.disk.get(&key), &guards, self.now);
                    self.done(n, &key, judgement);
                    return false;
                }
            }
        }
        let node = &mut self.nodes[n];
        node.ledger.settle(&key, Some(&local.version));
        node.disk.insert(key.clone(), local);
        !node.ledger.owes(&key)
    }

    fn pay(&mut self, n: usize) {
        for key in self.nodes[n].ledger.owed(2) {
            let node = &mut self.nodes[n];
            if !(node.is_connected && node.ledger.is_here()) {
                return;
            }
            let Some(local) = node.disk.get(&key).cloned() else { continue };
            let base = node.ledger.base(&key).expect("readable");
            match self.etcd.put(&key, base, &local, &node.released) {
                Ok(revision) => {
                    node.ledger.wrote(&key, revision, local.version.clone());
                    node.ledger.settle(&key, Some(&local.version));
                }
                Err(word) => {
                    let judgement = node.ledger.hear(&word, Some(&local), &guards, self.now);
                    self.done(n, &key, judgement);
                }
            }
        }
    }

    fn read(&mut self, n: usize) {
        let now = self.now;
        if !self.nodes[n].is_connected {
            return;
        }
        let Some(heard) = self.nodes[n].heard else { return self.list(n) };
        self.nodes[n].ledger.here();
        let Some(word) = self.etcd.log.get(heard).cloned() else { return };
        let node = &mut self.nodes[n];
        node.heard = Some(heard + 1);
        let judgement = node.ledger.hear(&word, node.disk.get(&word.key), &guards, now);
        if let (Judgement::Take { .. }, What::Entry { version, holder }) = (judgement, &word.what) {
            node.clock.saw(&version.stamp);
            node.disk.insert(word.key.clone(), Local { version: version.clone(), holder: holder.clone() });
            node.ledger.settle(&word.key, Some(version));
        }
    }

    fn list(&mut self, n: usize) {
        let keys: Vec<_> = self.etcd.keys.keys().cloned().collect();
        for key in &keys {
            let word = self.etcd.word(key);
            let node = &mut self.nodes[n];
            let judgement = node.ledger.list(&word, node.disk.get(key), &guards, self.now);
            self.done(n, key, judgement);
        }
        let node = &mut self.nodes[n];
        for (key, local) in node.disk.clone() {
            if !keys.contains(&key) && node.ledger.absent(&key, &local.version, START, self.now) {
                node.disk.remove(&key);
            }
        }
        node.ledger.listed();
        node.heard = Some(self.etcd.log.len());
    }

    fn cut(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.ledger.is_same() {
            node.same = Some(self.now);
        }
        node.ledger.away(self.now);
        node.is_connected = false;
    }

    fn restart(&mut self, n: usize) {
        self.cut(n);
        let node = &mut self.nodes[n];
        (node.ledger, node.heard) = (Ledger::new(node.same), None);
    }

    /// All are connected, and everything is heard and written.
    fn heal(&mut self) {
        (0..NODES).for_each(|n| self.nodes[n].is_connected = true);
        for _ in 0..40 {
            for n in 0..NODES {
                (0..200).for_each(|_| self.read(n));
                self.pay(n);
            }
        }
    }

    fn all_same(&self) -> bool {
        let view = |local: &Local| (local.version.clone(), live_holder(local));
        let there: BTreeMap<_, _> = self.etcd.keys.iter().map(|(key, (_, local))| (key, view(local))).collect();
        let same = |node: &Node| node.disk.iter().map(|(key, local)| (key, view(local))).eq(there.clone());
        self.nodes.iter().all(|node| same(node) && node.ledger.is_same())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Register(usize, u8, bool),
    Remove(usize, u8, bool),
    Read(usize),
    Pay(usize),
    Cut(usize),
    Join(usize),
    Compact(usize),
    Restart(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = || 0..NODES;
    let step = prop_oneof![
        6 => (node(), 0..4u8, any::<bool>()).prop_map(|(n, key, one)| Step::Register(n, key, one)),
        2 => (node(), 0..4u8, any::<bool>()).prop_map(|(n, key, one)| Step::Remove(n, key, one)),
        8 => node().prop_map(Step::Read),
        3 => node().prop_map(Step::Pay),
        2 => node().prop_map(Step::Cut),
        3 => node().prop_map(Step::Join),
        1 => node().prop_map(Step::Compact),
        1 => node().prop_map(Step::Restart),
    ];
    prop::collection::vec(step, 0..120)
}

fn run(world: &mut World, steps: &[Step]) {
    let actor = |is_one: bool| if is_one { "one" } else { "two" };
    for step in steps {
        world.now += 7;
        match *step {
            Step::Register(n, key, by) => drop(world.say(n, &format!("k{key}"), Some(actor(by)), actor(by))),
            Step::Remove(n, key, by) => drop(world.say(n, &format!("k{key}"), None, actor(by))),
            Step::Read(n) => world.read(n),
            Step::Pay(n) => world.pay(n),
            Step::Cut(n) => world.cut(n),
            Step::Join(n) => world.nodes[n].is_connected = true,
            // What this node had not heard is gone: it reads all.
            Step::Compact(n) => world.nodes[n].heard = None,
            Step::Restart(n) => world.restart(n),
        }
    }
}

proptest! {
    /// However often the store was away: all come to have what it has, and nobody takes what it granted another.
    #[test]
    fn nodes_that_reach_the_store_come_to_have_what_it_has(steps in steps()) {
        let mut world = World::new();
        run(&mut world, &steps);
        world.heal();
        prop_assert!(world.all_same());
    }
}

#[test]
fn of_two_that_claimed_a_key_while_the_store_was_away_the_first_to_reach_it_keeps_it() {
    let mut world = World::new();
    world.heal();
    world.cut(0);
    world.cut(1);
    assert!(!world.say(0, "k", Some("one"), "one"), "the store does not have it yet");
    world.now += 1000;
    assert!(!world.say(1, "k", Some("two"), "two"));
    world.nodes[0].is_connected = true;
    world.read(0);
    world.nodes[0].ledger.here();
    world.pay(0);
    world.heal();
    assert!(world.all_same());
    assert_eq!(world.etcd.keys["k"].1.holder.as_deref(), Some("one"));
}

#[test]
fn what_is_written_here_while_the_store_is_away_is_written_there_once_it_is_back() {
    let mut world = World::new();
    world.heal();
    assert!(world.say(0, "k", Some("one"), "one"), "the store has it");
    world.heal();
    world.cut(1);
    assert!(!world.say(1, "k", None, "one"));
    world.restart(1);
    world.heal();
    assert!(world.all_same() && world.etcd.keys["k"].1.version.removed);
}

#[test]
fn a_store_that_lost_everything_is_filled_again_by_its_nodes() {
    let mut world = World::new();
    world.heal();
    world.say(0, "k", Some("one"), "one");
    world.heal();
    world.etcd = Etcd::default();
    (0..NODES).for_each(|n| world.restart(n));
    world.heal();
    assert!(world.all_same());
    assert_eq!(world.etcd.keys["k"].1.holder.as_deref(), Some("one"));
}

#[test]
fn a_node_that_was_away_for_longer_than_removals_are_kept_brings_nothing_back() {
    let mut world = World::new();
    world.heal();
    world.say(0, "k", Some("one"), "one");
    world.now += 1000;
    world.heal();
    world.cut(2);
    world.say(0, "k", None, "one");
    (0..2).for_each(|n| (0..9).for_each(|_| world.read(n)));
    world.now += 9 * DAY;
    // The removal has faded, and the others have forgotten it.
    world.etcd.keys.clear();
    (0..2).for_each(|n| world.nodes[n].disk.clear());
    (0..NODES).for_each(|n| world.restart(n));
    world.heal();
    assert!(world.all_same() && world.etcd.keys.is_empty());
}

#[test]
fn what_a_newer_build_wrote_is_not_overwritten() {
    let mut ledger = Ledger::default();
    ledger.listed();
    let key: Arc<str> = "k".into();
    let local = Local { version: Version { stamp: Stamp::default(), removed: false }, holder: Some("one".into()) };
    ledger.settle(&key, Some(&local.version));
    let word = Word { key: key.clone(), revision: 7, what: What::Unreadable };
    assert_eq!(ledger.hear(&word, Some(&local), &guards, START), Judgement::Nothing);
    assert_eq!((ledger.base("k"), ledger.owed(9), ledger.owes_something()), (None, vec![], false));
}
