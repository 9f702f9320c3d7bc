//! Words that several CPUs write at the same moment. Packets of one sender mostly come one after the other; but where its own CPU
//! changes between two of them, where the host spreads packets over its CPUs, or where a container is the neighbour, two are under way
//! at once. A plain store would then take back what the other has just proven: an end, and nobody hears of it again.
//!
//! Each change costs a locked instruction; where there is nothing to change, a load. Without 32-bit arithmetic, the target
//! compares and exchanges 64 bits only: so words go in pairs.

use core::mem::{offset_of, transmute};

use crate::connection::Half;
use crate::rewrite::before;

/// How often one packet tries against others. Each failure is another's success, and a sender has few CPUs.
const TRIES: u32 = 8;

/// Raises `acked` to `ack`, its lower half.
#[inline(always)]
pub fn acknowledge(half: &mut Half, ack: u32) {
    change(&raw mut half.acked, |acked| {
        let further = ack.wrapping_sub(acked as u32);
        if further as i32 > 0 { acked + further as u64 } else { acked }
    });
}

/// Raises `high` and `window_end`.
#[inline(always)]
pub fn reach(half: &mut Half, to: u32, window_to: u32) {
    change_pair(half, offset_of!(Half, high), |[high, window_end]| {
        [if before(high, to) { to } else { high }, if before(window_end, window_to) { window_to } else { window_end }]
    });
}

/// Replaces `fin` and `flags`.
#[inline(always)]
pub fn mark(half: &mut Half, next: impl Fn(u32, u32) -> (u32, u32)) {
    change_pair(half, offset_of!(Half, fin), |[fin, flags]| next(fin, flags).into());
}

/// Adds bits to `flags`.
#[inline(always)]
pub fn set(half: &mut Half, bits: u32) {
    mark(half, |fin, flags| (fin, flags | bits));
}

const _: () = assert!(offset_of!(Half, high) % 8 == 0 && offset_of!(Half, window_end) == offset_of!(Half, high) + 4);
const _: () = assert!(offset_of!(Half, fin) % 8 == 0 && offset_of!(Half, flags) == offset_of!(Half, fin) + 4);

/// `at`: the offset of the first of two words, which is one of 64 bits.
#[inline(always)]
fn change_pair(half: &mut Half, at: usize, next: impl Fn([u32; 2]) -> [u32; 2]) {
    // SAFETY: within `half`, and aligned as asserted above.
    let words = unsafe { (&raw mut *half).byte_add(at) }.cast();
    // SAFETY: 8 bytes each, and every pattern is valid in either.
    change(words, |seen| unsafe { transmute::<[u32; 2], u64>(next(transmute::<u64, [u32; 2]>(seen))) });
}

/// Replaces what stands there by what `next` makes of it.
#[inline(always)]
fn change(word: *mut u64, next: impl Fn(u64) -> u64) {
    // SAFETY: valid and aligned, as all callers have it from a reference.
    let mut seen = unsafe { word.read_volatile() };
    for _ in 0..TRIES {
        let new = next(seen);
        if new == seen {
            return;
        }
        // SAFETY: as above; whoever else writes it, writes it like this.
        match unsafe { compare_exchange(word, seen, new) } {
            Ok(()) => return,
            Err(newer) => seen = newer,
        }
    }
}

/// Writes `new` if the word is still `seen`; else it is the error.
///
/// The target says that it cannot do this, so `core::sync::atomic` has no such thing. Kernels can since 5.12 (commit 5ffa25502b5a),
/// and the compiler's own intrinsic asks nobody.
///
/// # Safety
/// `word` is valid and aligned.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn compare_exchange(word: *mut u64, seen: u64, new: u64) -> Result<(), u64> {
    use core::intrinsics::{AtomicOrdering, atomic_cxchg};
    // SAFETY: the caller's.
    match unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, seen, new) } {
        (_, true) => Ok(()),
        (newer, false) => Err(newer),
    }
}

/// # Safety
/// `word` is valid and aligned.
#[cfg(not(target_arch = "bpf"))]
unsafe fn compare_exchange(word: *mut u64, seen: u64, new: u64) -> Result<(), u64> {
    use core::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: the caller's.
    let word = unsafe { AtomicU64::from_ptr(word) };
    word.compare_exchange(seen, new, Ordering::SeqCst, Ordering::SeqCst).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_only_rise_also_across_the_wrap() {
        let mut half = Half { acked: 0x1_ffff_fff0, high: 0xffff_fff0, window_end: 7, ..Half::default() };
        for (to, high, acked) in [
            (0xffff_ffe0, 0xffff_fff0, 0x1_ffff_fff0),
            (5, 5, 0x2_0000_0005),
            (0xffff_fff8, 5, 0x2_0000_0005),
            (6, 6, 0x2_0000_0006),
        ] {
            reach(&mut half, to, 7);
            acknowledge(&mut half, to);
            assert_eq!((half.high, half.acked, half.window_end), (high, acked, 7), "{to:#x}");
        }
        reach(&mut half, 0, 8);
        assert_eq!((half.high, half.window_end), (6, 8));
    }

    #[test]
    fn bits_come_beside_those_that_stand() {
        let mut half = Half { fin: 9, flags: 0b0101, ..Half::default() };
        set(&mut half, 0b0110);
        assert_eq!((half.fin, half.flags), (9, 0b0111));
    }
}
