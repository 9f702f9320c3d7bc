use core::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::flow::mapped;

/// A packet in one piece.
struct Whole<'a>(&'a [u8]);

impl Bytes for Whole<'_> {
    fn size(&self) -> usize {
        self.0.len()
    }

    fn load<T: Plain>(&self, offset: usize, into: &mut T) -> Option<()> {
        let bytes = self.0.get(offset..offset + size_of::<T>())?;
        // SAFETY: a value of a type for which every pattern is valid, of exactly this length.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut *into).cast(), bytes.len()) };
        Some(())
    }

    fn is_of_vlan(&self) -> bool {
        false
    }
}

/// Everything is a listener, private, denied, and has had its share.
struct Everything(Cell<u32>);

impl Tables for Everything {
    fn is_listener(&self, _: &Address, _: [u8; 2]) -> bool {
        self.0.set(self.0.get() + 1);
        true
    }

    fn is_private_port(&self, _: [u8; 2]) -> bool {
        true
    }

    fn is_denied(&self, _: &Address) -> bool {
        true
    }

    fn may_connect(&self, _: &Address, _: &Pace) -> bool {
        false
    }
}

const PACE: Policy = Policy { flags: POLICY_PACE, reserved: 0, pace: Pace::new(10, 5) };

fn tcp(flags: u8) -> Vec<u8> {
    let mut bytes = vec![0; 54];
    bytes[12] = 8;
    (bytes[14], bytes[17], bytes[23]) = (0x45, 40, IPPROTO_TCP);
    (bytes[46], bytes[47]) = (5 << 4, flags);
    bytes
}

#[test]
fn a_burst_is_let_in_and_then_the_rate() {
    let pace = Pace::new(10, 5);
    let second = 1_000_000_000;
    let mut due = 0;
    let mut admitted = |now| {
        let next = pace.take(due, now);
        due = next.unwrap_or(due);
        next.is_some()
    };
    assert_eq!((0..20).filter(|_| admitted(7 * second)).count(), 5);
    let per_second = (0..1_000).filter(|ms| admitted(7 * second + ms * 1_000_000)).count();
    assert!((9..=10).contains(&per_second), "{per_second}");
    assert_eq!((0..20).filter(|_| admitted(60 * second)).count(), 5, "a pause gives the burst back, and no more");
}

#[test]
fn a_source_that_was_slowed_down_is_not_when_the_rule_is_relaxed() {
    let (slow, fast) = (Pace::new(1, 100_000), Pace::new(1_000, 10));
    let due = (0..100_000).fold(0, |due, _| slow.take(due, 1).expect("within the burst"));
    assert_eq!(slow.take(due, 1), None);
    assert!(fast.take(due, 1).is_some());
}

#[test]
fn one_ipv6_source_is_its_64() {
    let address = core::array::from_fn(|i| i as u8);
    assert_eq!(source_network(&address), [0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(source_network(&mapped([192, 0, 2, 7])), mapped([192, 0, 2, 7]));
}

#[test]
fn only_flags_that_some_tcp_sends_are_plausible() {
    const PSH: u8 = 8;
    const URG: u8 = 32;
    const ECN: u8 = 0xc0;
    for good in [SYN, SYN | ACK, ACK, ACK | FIN, RST, RST | ACK] {
        for beside in [0, PSH, URG, PSH | URG, ECN] {
            assert!(is_plausible(good | beside), "{:#x}", good | beside);
        }
    }
    for bad in [0, PSH, FIN, FIN | PSH | URG, SYN | FIN, SYN | RST, SYN | ACK | RST, RST | FIN, 0xff] {
        assert!(!is_plausible(bad), "{bad:#x}");
    }
}

#[test]
fn only_a_first_syn_counts_against_its_source() {
    let judge = |flags| judge(&PACE, 0, &Whole(&tcp(flags)), &Everything(Cell::new(0)));
    assert_eq!(judge(SYN), Some(Verdict::DropSourceRate));
    for other in [SYN | ACK, ACK, ACK | FIN, RST] {
        assert_eq!(judge(other), None);
    }
}

#[test]
fn listeners_are_not_looked_up_for_packets_that_nobody_minds() {
    let tables = Everything(Cell::new(0));
    assert_eq!(judge(&PACE, 0, &Whole(&tcp(ACK)), &tables), None);
    assert_eq!(tables.0.get(), 0);
}

proptest! {
    #[test]
    fn no_bytes_confuse_it(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        kind in prop::sample::select(vec![[8u8, 0], [0x86, 0xdd], [0x81, 0], [0x88, 0xa8]]),
        flags in 0u32..8,
        device in 0u32..8,
    ) {
        let mut bytes = bytes;
        if bytes.len() >= 14 {
            bytes[12..14].copy_from_slice(&kind);
        }
        let verdict = judge(&Policy { flags, ..PACE }, device, &Whole(&bytes), &Everything(Cell::new(0)));
        prop_assert!(verdict.is_none_or(|verdict| Verdict::ADMISSION.contains(&verdict)));
    }
}
