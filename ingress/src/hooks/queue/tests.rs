use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::config::{CommandConfig, HookTarget};
use crate::events::{EventFilter, EventKind, Item};
use crate::route::RouteName;

const SECOND: Duration = Duration::from_secs(1);

fn config(limit: usize) -> HookConfig {
    HookConfig {
        target: HookTarget::Command(CommandConfig { argv: vec!["/bin/true".into()], timeout: SECOND }),
        filter: EventFilter::default(),
        gather: SECOND,
        retry_for: 60 * SECOND,
        queue: limit,
    }
}

fn queue(limit: usize) -> Queue {
    Queue::new("proxy-1".into(), &config(limit))
}

fn event(kind: EventKind, name: &str) -> Event {
    let items = Arc::from([Item::Route { route: RouteName::new(name) }]);
    Event { at: SystemTime::UNIX_EPOCH, kind, items }
}

fn again(after: Option<Duration>) -> Outcome {
    Outcome::Again { why: "answered 503".into(), after }
}

/// One message for each name, all of them due.
fn filled(limit: usize, names: &[&str], now: Instant) -> Queue {
    let mut queue = queue(limit);
    for (n, name) in names.iter().enumerate() {
        let kind = if n % 2 == 0 { EventKind::RouteAdded } else { EventKind::RouteRemoved };
        queue.take(&event(kind, name), (*name).to_owned(), now);
    }
    queue.flush(now);
    queue
}

/// The ids of what is delivered, one after the other.
fn deliver_all(queue: &mut Queue, now: Instant) -> Vec<String> {
    let mut ids = Vec::new();
    while let Some(message) = queue.next(now) {
        ids.push(message.id.clone());
        queue.answered(&Outcome::Delivered, now, 0);
    }
    ids
}

#[test]
fn events_of_one_kind_that_come_together_are_one_message_and_another_kind_keeps_its_place() {
    let (mut queue, now) = (queue(10), Instant::now());
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        queue.take(&event(EventKind::RouteAdded, name), format!("added-{n}"), now);
    }
    assert_eq!(queue.next(now), None, "more may come");
    assert_eq!(queue.wake(now), Some(now + SECOND));
    queue.take(&event(EventKind::RouteRemoved, "a"), "removed".into(), now);
    queue.take(&event(EventKind::RouteAdded, "a"), "again".into(), now);
    let first = queue.next(now).expect("what was closed by another kind");
    assert_eq!((first.id.as_str(), first.count), ("added-0", 3));
    queue.answered(&Outcome::Delivered, now, 0);
    assert_eq!(deliver_all(&mut queue, now + SECOND), ["removed", "again"]);
    assert_eq!((queue.len(), queue.wake(now)), (0, None));
}

#[test]
fn a_message_that_fails_keeps_its_id_and_its_place_and_is_tried_less_and_less_often() {
    let now = Instant::now();
    let mut queue = filled(10, &["a", "b"], now);
    let mut at = now;
    for wait in [1, 2, 4, 8] {
        assert_eq!(queue.next(at).expect("due").id, "a");
        assert_eq!(queue.next(at), None, "one at a time");
        queue.answered(&again(None), at, 0);
        assert_eq!(queue.wake(at), Some(at + wait * SECOND));
        assert_eq!(queue.next(at + wait * SECOND - SECOND / 2), None, "too early");
        at += wait * SECOND;
    }
    assert_eq!(deliver_all(&mut queue, at), ["a", "b"]);
    assert_eq!(queue.counts, Counts { delivered: 2, retried: 4, failed: 0, dropped: 0 });
}

#[test]
fn a_receiver_that_asks_for_time_gets_it_and_a_refusal_holds_nobody_up() {
    let now = Instant::now();
    let mut queue = filled(10, &["a", "b"], now);
    queue.next(now).expect("a");
    queue.answered(&again(Some(20 * SECOND)), now, 0);
    assert_eq!(queue.wake(now), Some(now + 20 * SECOND));
    let later = now + 20 * SECOND;
    queue.next(later).expect("a");
    queue.answered(&Outcome::Refused { why: "answered 400".into() }, later, 0);
    assert_eq!(deliver_all(&mut queue, later), ["b"]);
    assert_eq!(queue.counts.failed, 1);
}

#[test]
fn what_is_too_old_is_given_up_and_the_receiver_keeps_its_rest() {
    let now = Instant::now();
    let mut queue = filled(10, &["a", "b"], now);
    let old = now + 59 * SECOND;
    queue.next(old).expect("a");
    queue.take(&event(EventKind::RouteAdded, "c"), "c".into(), old);
    queue.answered(&again(None), old, 0);
    assert_eq!(queue.counts, Counts { delivered: 0, retried: 0, failed: 2, dropped: 0 }, "a, and b as well");
    assert_eq!(queue.next(old + SECOND / 2), None);
    assert_eq!(deliver_all(&mut queue, old + SECOND), ["c"]);
}

#[test]
fn a_full_queue_loses_the_oldest_but_not_the_one_on_its_way() {
    let now = Instant::now();
    let mut full = filled(3, &["a", "b", "c"], now);
    assert_eq!(full.next(now).expect("a").id, "a");
    full.take(&event(EventKind::RouteAdded, "d"), "d".into(), now);
    full.flush(now);
    full.answered(&Outcome::Delivered, now, 0);
    assert_eq!(deliver_all(&mut full, now), ["c", "d"]);
    assert_eq!((full.counts.delivered, full.counts.dropped), (3, 1));
}

#[test]
fn a_new_configuration_is_tried_at_once_with_what_waits() {
    let now = Instant::now();
    let mut queue = filled(10, &["a"], now);
    queue.next(now).expect("a");
    queue.answered(&again(Some(50 * SECOND)), now, 0);
    assert_eq!(queue.next(now), None);
    queue.follow(&config(10));
    assert_eq!(deliver_all(&mut queue, now), ["a"]);
}

#[test]
fn back_off_has_an_upper_end_and_a_part_left_to_chance() {
    for (failures, seconds) in [(1, 1.0), (2, 2.0), (9, 256.0), (10, 300.0), (u32::MAX, 300.0)] {
        assert_eq!(back_off(failures, 0).as_secs_f64(), seconds);
        assert_eq!(back_off(failures, u64::MAX).as_secs_f64(), seconds / 2.0);
    }
}

proptest! {
    /// Whatever the receiver does: order, no message twice, none forgotten, and no more than the queue holds.
    #[test]
    fn every_message_is_delivered_or_counted_and_never_out_of_order(
        steps in proptest::collection::vec((0u8..5, any::<u64>()), 1..200), limit in 1usize..5,
    ) {
        let (mut queue, mut now) = (queue(limit), Instant::now());
        let (mut sent, mut delivered, mut on_its_way) = (0u64, Vec::new(), None);
        for (step, random) in steps {
            match (step, on_its_way.take()) {
                (0, way) => {
                    on_its_way = way;
                    let kind = if sent % 2 == 0 { EventKind::RouteAdded } else { EventKind::RouteRemoved };
                    queue.take(&event(kind, "x"), sent.to_string(), now);
                    sent += 1;
                }
                (1, None) => on_its_way = queue.next(now),
                (2, Some(message)) => {
                    queue.answered(&Outcome::Delivered, now, random);
                    delivered.push(message.id.parse::<u64>().expect("a number"));
                }
                (3, Some(_)) => queue.answered(&again(None), now, random),
                (4, Some(_)) => queue.answered(&Outcome::Refused { why: String::new() }, now, random),
                (_, way) => {
                    on_its_way = way;
                    now += Duration::from_millis(random % 20_000);
                }
            }
            let Counts { delivered: counted, failed, dropped, .. } = queue.counts;
            prop_assert_eq!(counted + failed + dropped + queue.len() as u64, sent);
            prop_assert!(queue.len() <= limit + 1 + usize::from(on_its_way.is_some()));
        }
        prop_assert!(delivered.is_sorted(), "{:?}", delivered);
    }
}
