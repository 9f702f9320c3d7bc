//! A few nodes, and a network that delivers in any order, twice, or not at all.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const NODES: usize = 3;
const START: u64 = 1_800_000_000_000;
const DAY: u64 = 24 * 3600 * 1000;

type Kept = BTreeMap<Arc<str>, (Stamp, Option<u32>)>;

/// One node. What is in `disk` survives a restart.
struct Node {
    replica: Replica,
    clock: Clock,
    disk: Kept,
    learned: BTreeMap<Arc<str>, u64>,
    same: BTreeMap<Arc<str>, u64>,
    /// By which its clock differs, milliseconds.
    skew: i64,
}

struct Disk<'a>(&'a Kept);

impl Values<u32> for Disk<'_> {
    fn value(&self, key: &str) -> Option<u32> {
        self.0.get(key)?.1
    }
}

struct Net {
    nodes: Vec<Node>,
    now: u64,
    wire: Vec<(usize, usize, Message<u32>)>,
    /// What a number will acknowledge.
    puts: BTreeMap<(usize, usize, u64), Vec<Entry<u32>>>,
    /// The newest version ever written of each key.
    newest: BTreeMap<Arc<str>, (Version, Option<u32>)>,
}

fn name(node: usize) -> Arc<str> {
    ["a", "b", "c"][node].into()
}

fn number(name: &str) -> usize {
    ["a", "b", "c"].iter().position(|known| *known == name).expect("a node")
}

impl Net {
    fn new(skews: [i64; NODES]) -> Self {
        let node = |(n, skew)| Node {
            replica: Replica::default(),
            clock: Clock::new(name(n)),
            disk: Kept::new(),
            learned: BTreeMap::new(),
            same: BTreeMap::new(),
            skew,
        };
        let nodes = skews.into_iter().enumerate().map(node).collect();
        Self { nodes, now: START, wire: Vec::new(), puts: BTreeMap::new(), newest: BTreeMap::new() }
    }

    fn time(&self, node: usize) -> u64 {
        self.now.saturating_add_signed(self.nodes[node].skew)
    }

    fn write(&mut self, node: usize, key: &str, value: Option<u32>) {
        let time = self.time(node);
        let stamp = self.nodes[node].clock.tick(time);
        let entry = Entry { key: key.into(), stamp, value };
        let version = Version::of(&entry);
        let newest = self.newest.entry(entry.key.clone()).or_insert_with(|| (version.clone(), value));
        if newest.0 <= version {
            *newest = (version, value);
        }
        self.keep(node, &entry);
        for (peer, number_of_put, message) in self.nodes[node].replica.put(&[entry]) {
            self.sent(node, &peer, message, number_of_put);
        }
    }

    fn keep(&mut self, node: usize, entry: &Entry<u32>) {
        let time = self.time(node);
        let Node { replica, clock, disk, learned, .. } = &mut self.nodes[node];
        disk.insert(entry.key.clone(), (entry.stamp.clone(), entry.value));
        learned.insert(entry.key.clone(), time);
        clock.saw(&entry.stamp);
        replica.learn(&entry.key, Version::of(entry), time);
    }

    fn sent(&mut self, from: usize, to: &str, message: Message<u32>, put: u64) {
        if let Message::Put { entries, .. } = &message {
            self.puts.insert((from, number(to), put), entries.clone());
        }
        self.wire.push((from, number(to), message));
    }

    fn act(&mut self, node: usize, actions: Vec<Action<u32>>) {
        for action in actions {
            match action {
                Action::Send(peer, message) => {
                    let put = if let Message::Put { number, .. } = &message { *number } else { 0 };
                    self.sent(node, &peer, message, put);
                }
                Action::Store { peer, number, entries, refused } => {
                    for entry in entries {
                        let known = self.nodes[node].disk.get(&entry.key);
                        let is_news = known.is_none_or(|(stamp, value)| {
                            Version { stamp: stamp.clone(), removed: value.is_none() } < Version::of(&entry)
                        });
                        if is_news {
                            self.keep(node, &entry);
                        }
                    }
                    let stored = Replica::stored(&peer, number, refused);
                    self.act(node, vec![stored]);
                }
                Action::Acknowledged { peer, number: put } => {
                    let there = &self.nodes[number(&peer)].disk;
                    for entry in &self.puts[&(node, number(&peer), put)] {
                        let known = there.get(&entry.key).expect("what is acknowledged is on disk there");
                        assert!(known.0 >= entry.stamp, "acknowledged, and older there: {entry:?}");
                    }
                }
                Action::Forget(key) => {
                    self.nodes[node].disk.remove(&key);
                    self.nodes[node].replica.forget(&key);
                }
                Action::Same { peer, at } => {
                    self.nodes[node].same.insert(peer, at);
                }
            }
        }
    }

    fn deliver(&mut self, at: usize) {
        let (from, to, message) = self.wire.remove(at);
        let time = self.time(to);
        let Node { replica, disk, .. } = &mut self.nodes[to];
        let actions = replica.receive(&name(from), message, &Disk(disk), time);
        self.act(to, actions);
    }

    fn cut(&mut self, a: usize, b: usize) {
        self.wire.retain(|(from, to, _)| (*from, *to) != (a, b) && (*from, *to) != (b, a));
        self.nodes[a].replica.disconnected(&name(b));
        self.nodes[b].replica.disconnected(&name(a));
    }

    fn link(&mut self, a: usize, b: usize) {
        if a == b {
            return;
        }
        self.cut(a, b);
        for (one, other) in [(a, b), (b, a)] {
            let time = self.time(one);
            let actions = self.nodes[one].replica.connected(&name(other), time);
            self.act(one, actions);
        }
    }

    /// The daemon is killed, and starts on what is on disk.
    fn restart(&mut self, node: usize) {
        (0..NODES).filter(|other| *other != node).for_each(|other| self.cut(node, other));
        let Node { disk, learned, same, .. } = &self.nodes[node];
        let (mut replica, mut clock) = (Replica::default(), Clock::new(name(node)));
        for (key, (stamp, value)) in disk {
            clock.saw(stamp);
            replica.learn(key, Version { stamp: stamp.clone(), removed: value.is_none() }, learned[key]);
        }
        for (peer, at) in same {
            replica.was_same(peer, *at);
        }
        (self.nodes[node].replica, self.nodes[node].clock) = (replica, clock);
    }

    /// Every link is there, nothing is lost, and time passes.
    fn heal(&mut self) {
        for a in 0..NODES {
            (0..a).for_each(|b| self.link(a, b));
        }
        for _ in 0..60 {
            while !self.wire.is_empty() {
                self.deliver(0);
            }
            self.now += DIGEST_EVERY_MS;
            for node in 0..NODES {
                let time = self.time(node);
                let outdated = self.nodes[node].replica.outdated(time);
                self.act(node, outdated.into_iter().map(Action::Forget).collect());
                let actions = self.nodes[node].replica.tick(time);
                self.act(node, actions);
            }
        }
        while !self.wire.is_empty() {
            self.deliver(0);
        }
    }

    fn live(&self, node: usize) -> BTreeMap<Arc<str>, u32> {
        let disk = &self.nodes[node].disk;
        disk.iter().filter_map(|(key, (_, value))| Some((key.clone(), (*value)?))).collect()
    }

    fn all_same(&self) -> bool {
        (1..NODES).all(|n| {
            self.nodes[n].disk == self.nodes[0].disk && self.nodes[n].replica.digest == self.nodes[0].replica.digest
        })
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u8, u32),
    Remove(usize, u8),
    Deliver(Index),
    Lose(Index),
    Twice(Index),
    Link(usize, usize),
    Cut(usize, usize),
    Restart(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = || 0..NODES;
    let step = prop_oneof![
        6 => (node(), 0..6u8, any::<u32>()).prop_map(|(node, key, value)| Step::Write(node, key, value)),
        2 => (node(), 0..6u8).prop_map(|(node, key)| Step::Remove(node, key)),
        12 => any::<Index>().prop_map(Step::Deliver),
        2 => any::<Index>().prop_map(Step::Lose),
        2 => any::<Index>().prop_map(Step::Twice),
        4 => (node(), node()).prop_map(|(a, b)| Step::Link(a, b)),
        1 => (node(), node()).prop_map(|(a, b)| Step::Cut(a, b)),
        1 => node().prop_map(Step::Restart),
        2 => (0..20_000u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..120)
}

fn run(net: &mut Net, steps: &[Step]) {
    for step in steps {
        let waiting = net.wire.len();
        match step {
            Step::Write(node, key, value) => net.write(*node, &format!("k{key}"), Some(*value)),
            Step::Remove(node, key) => net.write(*node, &format!("k{key}"), None),
            Step::Deliver(_) | Step::Lose(_) | Step::Twice(_) if waiting == 0 => {}
            Step::Deliver(at) => net.deliver(at.index(waiting)),
            Step::Lose(at) => drop(net.wire.remove(at.index(waiting))),
            Step::Twice(at) => net.wire.push(net.wire[at.index(waiting)].clone()),
            Step::Link(a, b) => net.link(*a, *b),
            Step::Cut(a, b) => net.cut(*a, *b),
            Step::Restart(node) => net.restart(*node),
            Step::Pass(ms) => net.now += ms,
        }
    }
}

proptest! {
    /// Whatever happened before, and however the clocks differ: all come to say what was written last.
    #[test]
    fn nodes_that_reach_one_another_come_to_say_the_same(
        steps in steps(),
        skews in prop::array::uniform3(-120_000..120_000i64),
    ) {
        let mut net = Net::new(skews);
        run(&mut net, &steps);
        net.heal();
        prop_assert!(net.all_same());
        let newest = net.newest.iter().filter_map(|(key, (_, value))| Some((key.clone(), (*value)?)));
        prop_assert_eq!(net.live(0), newest.collect::<BTreeMap<_, _>>());
    }
}

#[test]
fn what_comes_from_a_peer_is_not_put_on() {
    let mut net = Net::new([0; NODES]);
    net.heal();
    net.write(0, "k", Some(1));
    net.deliver(0);
    net.deliver(0);
    let all_acknowledgements = net.wire.iter().all(|(_, _, message)| matches!(message, Message::Stored { .. }));
    assert!(all_acknowledgements, "{:?}", net.wire);
}

#[test]
fn an_end_by_time_loses_to_whoever_renewed_it_elsewhere() {
    let mut net = Net::new([0; NODES]);
    net.write(0, "k", Some(1));
    net.heal();
    net.cut(0, 1);
    net.cut(0, 2);
    let ended = Entry { key: "k".into(), stamp: net.nodes[0].disk["k"].0.clone(), value: None };
    net.write(1, "k", Some(2));
    // The owner is far behind the renewal, and ends what it knows.
    net.now += 60_000;
    net.keep(0, &ended);
    net.heal();
    assert!(net.all_same());
    assert_eq!(net.live(0), [("k".into(), 2)].into());
}

#[test]
fn a_node_that_was_away_for_longer_than_removals_are_kept_brings_nothing_back() {
    let mut net = Net::new([0; NODES]);
    for key in ["stays", "removed"] {
        net.write(0, key, Some(1));
    }
    net.heal();
    assert!(net.all_same());
    (0..2).for_each(|other| net.cut(2, other));
    net.write(0, "removed", None);
    net.write(2, "new", Some(3));
    while !net.wire.is_empty() {
        net.deliver(0);
    }
    net.now += 8 * DAY;
    for node in 0..2 {
        let outdated = net.nodes[node].replica.outdated(net.now);
        assert_eq!(outdated, ["removed".into()]);
        net.act(node, outdated.into_iter().map(Action::Forget).collect());
    }
    net.restart(2);
    net.heal();
    assert!(net.all_same());
    assert_eq!(net.live(0), [("new".into(), 3), ("stays".into(), 1)].into());
}

#[test]
fn what_a_node_writes_with_a_clock_far_ahead_waits_until_its_time_has_come() {
    let mut net = Net::new([3_600_000, 0, 0]);
    net.heal();
    net.write(0, "k", Some(1));
    while !net.wire.is_empty() {
        net.deliver(0);
    }
    assert_eq!((net.live(1).len(), net.nodes[0].replica.refused("b")), (0, 1));
    assert!(net.nodes[1].replica.refused("a") > 0);
    net.nodes[0].skew = 0;
    net.now += 3_600_000;
    net.heal();
    assert!(net.all_same());
    assert_eq!(net.live(1), [("k".into(), 1)].into());
}
