//! Walks TCP options in place: removes what a handoff cannot keep from a SYN, translates SACK blocks.
//!
//! `bpf_loop` verifies the body once; a plain loop over 40 bytes of options exceeds the verifier's million instructions.

use core::ffi::{c_long, c_void};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_csum_diff, bpf_l4_csum_replace, bpf_loop};
use ingress_ebpf::header::{
    OPTION_END, OPTION_NOP, OPTION_SACK, OPTION_SACK_PERMITTED, OPTION_SEGMENT, OPTION_TIMESTAMP, TCP_LEN,
};
use ingress_ebpf::rewrite::{Sum, at_odd_offset, sack_block};

use super::packet::{TCP_CHECK, load, store};

const TIMESTAMP_LEN: u8 = 10;
/// 40 bytes of options hold at most 40.
const STEPS: u32 = 40;
const STOP: c_long = 1;
const CONTINUE: c_long = 0;

/// Where a TCP header stands: at an even distance from the packet's start.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) skb: *mut __sk_buff,
    pub(super) tcp: u32,
}

impl Place {
    /// Where the options start, of which the verifier does not know that it is there. Linux 6.1 verifies a callback of `bpf_loop` for its
    /// first call only, and removes the branches that this call cannot take: whatever treats odd offsets would be gone.
    #[inline(always)]
    fn options(self) -> u32 {
        // SAFETY: the kernel hands every program a valid context.
        let len = || unsafe { (&raw const (*self.skb).len).read_volatile() };
        // The same number twice, which compiler and verifier cannot know.
        self.tcp + TCP_LEN as u32 + (len() ^ len())
    }
}

/// What a walk found and did.
#[derive(Clone, Copy, Default)]
pub(super) struct Found {
    pub(super) timestamp: bool,
    pub(super) sack_permitted: bool,
    pub(super) segment: bool,
}

/// What a SYN shall not offer.
#[derive(Clone, Copy, Default)]
pub(super) struct Limits {
    pub(super) no_sack: bool,
    /// The largest segment, bytes; 0: any.
    pub(super) segment: u32,
}

struct SynWalk {
    place: Place,
    offset: u32,
    end: u32,
    remove_sack: u32,
    largest_segment: u32,
    found_timestamp: u32,
    found_sack: u32,
    found_segment: u32,
    failed: u32,
}

/// Overwrites the timestamp option (and SACK-permitted if asked) with NOPs, and lowers the MSS to the limit. `header_len` is
/// TCP's.
#[inline(always)]
pub(super) fn prepare_syn(place: Place, header_len: usize, limits: Limits) -> Option<Found> {
    let mut walk = SynWalk {
        place,
        offset: place.options(),
        end: place.tcp + header_len as u32,
        remove_sack: limits.no_sack as u32,
        largest_segment: limits.segment,
        found_timestamp: 0,
        found_sack: 0,
        found_segment: 0,
        failed: 0,
    };
    // SAFETY: the callback has the kernel's signature and `walk` outlives the call.
    unsafe { bpf_loop(STEPS, syn_step as *mut c_void, (&raw mut walk).cast(), 0) };
    (walk.failed == 0).then_some(Found {
        timestamp: walk.found_timestamp != 0,
        sack_permitted: walk.found_sack != 0,
        segment: walk.found_segment != 0,
    })
}

extern "C" fn syn_step(_index: u32, walk: *mut c_void) -> c_long {
    // SAFETY: bpf_loop passes the pointer it was given.
    let walk = unsafe { &mut *walk.cast::<SynWalk>() };
    let Some((kind, len)) = option_at(walk.place, &mut walk.offset, walk.end) else { return STOP };
    if len == 0 {
        return CONTINUE;
    }
    let at = walk.offset;
    walk.offset += len as u32;
    if kind == OPTION_TIMESTAMP && len == TIMESTAMP_LEN {
        walk.found_timestamp = 1;
        if nop_timestamp(walk.place, at).is_none() {
            walk.failed = 1;
            return STOP;
        }
    } else if kind == OPTION_SACK_PERMITTED && len == 2 {
        walk.found_sack = 1;
        if walk.remove_sack != 0 && replace16(walk.place, at, [OPTION_NOP; 2]).is_none() {
            walk.failed = 1;
            return STOP;
        }
    } else if kind == OPTION_SEGMENT && len == 4 {
        walk.found_segment = 1;
        if walk.largest_segment != 0 && lower_segment(walk.place, at + 2, walk.largest_segment as u16).is_none() {
            walk.failed = 1;
            return STOP;
        }
    }
    CONTINUE
}

struct SackWalk {
    place: Place,
    offset: u32,
    end: u32,
    delta: u32,
    start: u32,
    ack: u32,
    failed: u32,
}

/// Translates every SACK block. `start` and `ack` as [`sack_block`] wants them, in the receiver's numbers.
#[inline(always)]
pub(super) fn translate_sack(place: Place, header_len: usize, delta: u32, start: u32, ack: u32) -> Option<()> {
    let (offset, end) = (place.options(), place.tcp + header_len as u32);
    let mut walk = SackWalk { place, offset, end, delta, start, ack, failed: 0 };
    // SAFETY: the callback has the kernel's signature and `walk` outlives the call.
    unsafe { bpf_loop(STEPS, sack_step as *mut c_void, (&raw mut walk).cast(), 0) };
    (walk.failed == 0).then_some(())
}

extern "C" fn sack_step(_index: u32, walk: *mut c_void) -> c_long {
    // SAFETY: bpf_loop passes the pointer it was given.
    let walk = unsafe { &mut *walk.cast::<SackWalk>() };
    let Some((kind, len)) = option_at(walk.place, &mut walk.offset, walk.end) else { return STOP };
    if len == 0 {
        return CONTINUE;
    }
    let at = walk.offset;
    walk.offset += len as u32;
    if kind != OPTION_SACK || len < 10 {
        return CONTINUE;
    }
    let blocks = (len as u32 - 2) / 8;
    let mut index = 0u32;
    while index < 4 {
        if index >= blocks {
            break;
        }
        if translate_block(walk, at, at + 2 + index * 8, blocks).is_none() {
            walk.failed = 1;
            return STOP;
        }
        index += 1;
    }
    CONTINUE
}

#[inline(always)]
fn translate_block(walk: &SackWalk, option: u32, at: u32, blocks: u32) -> Option<()> {
    let mut old = [0u32; 2];
    load(walk.place.skb, at, &mut old)?;
    let block = sack_block(u32::from_be(old[0]), u32::from_be(old[1]), walk.delta, walk.start, walk.ack);
    let new = match block {
        Some((left, right)) => [left.to_be(), right.to_be()],
        // Alone it goes, option and all; beside others an empty block at the acknowledgement says nothing.
        None if blocks == 1 => return nop_single_sack(walk.place, option, old),
        None => [walk.ack.to_be(); 2],
    };
    let mut sum = Sum::default();
    sum.replace32(old[0], new[0]);
    sum.replace32(old[1], new[1]);
    store(walk.place.skb, at, &new)?;
    fix(walk.place, at, sum.fold32())
}

/// The option at `offset`. NOPs are stepped over (length 0); `None` at the end or at nonsense.
#[inline(always)]
fn option_at(place: Place, offset: &mut u32, end: u32) -> Option<(u8, u8)> {
    if *offset >= end {
        return None;
    }
    let mut kind = 0u8;
    load(place.skb, *offset, &mut kind)?;
    if kind == OPTION_END {
        return None;
    }
    if kind == OPTION_NOP {
        *offset += 1;
        return Some((kind, 0));
    }
    let mut len = 0u8;
    load(place.skb, *offset + 1, &mut len)?;
    (len >= 2 && *offset + len as u32 <= end).then_some((kind, len))
}

/// Ten NOPs. The checksum needs an even start: an option at an odd offset is replaced with its two neighbours.
#[inline(always)]
fn nop_timestamp(place: Place, at: u32) -> Option<()> {
    let mut old = [0u32; 3];
    let mut new = [u32::from_ne_bytes([OPTION_NOP; 4]); 3];
    let odd = at & 1 != 0;
    if odd {
        load(place.skb, at - 1, &mut old)?;
        let [first, ..] = old[0].to_ne_bytes();
        let [.., last] = old[2].to_ne_bytes();
        new[0] = u32::from_ne_bytes([first, OPTION_NOP, OPTION_NOP, OPTION_NOP]);
        new[2] = u32::from_ne_bytes([OPTION_NOP, OPTION_NOP, OPTION_NOP, last]);
    } else {
        let mut ten = [0u16; 5];
        load(place.skb, at, &mut ten)?;
        old = [pair(ten[0], ten[1]), pair(ten[2], ten[3]), pair(ten[4], 0)];
        new[2] = pair(u16::from_ne_bytes([OPTION_NOP; 2]), 0);
    }
    store(place.skb, at, &[OPTION_NOP; TIMESTAMP_LEN as usize])?;
    // SAFETY: both buffers are 12 bytes.
    let difference = unsafe { bpf_csum_diff(old.as_mut_ptr(), 12, new.as_mut_ptr(), 12, 0) };
    fix_even(place, difference as u32)
}

#[inline(always)]
fn nop_single_sack(place: Place, option: u32, block: [u32; 2]) -> Option<()> {
    const NOPS: u32 = u32::from_ne_bytes([OPTION_NOP; 4]);
    let mut sum = Sum::default();
    sum.replace32(block[0], NOPS);
    sum.replace32(block[1], NOPS);
    store(place.skb, option + 2, &[NOPS; 2])?;
    fix(place, option + 2, sum.fold32())?;
    replace16(place, option, [OPTION_NOP; 2])
}

#[inline(always)]
fn lower_segment(place: Place, at: u32, limit: u16) -> Option<()> {
    let mut announced = [0u8; 2];
    load(place.skb, at, &mut announced)?;
    if u16::from_be_bytes(announced) <= limit {
        return Some(());
    }
    replace16(place, at, limit.to_be_bytes())
}

#[inline(always)]
fn replace16(place: Place, at: u32, new: [u8; 2]) -> Option<()> {
    let mut old = [0u8; 2];
    load(place.skb, at, &mut old)?;
    let mut sum = Sum::default();
    sum.replace16(u16::from_ne_bytes(old), u16::from_ne_bytes(new));
    store(place.skb, at, &new)?;
    fix(place, at, sum.fold32())
}

/// Repairs the checksum after a change at `at`, which may be odd.
#[inline(always)]
fn fix(place: Place, at: u32, difference: u32) -> Option<()> {
    let odd = at & 1 != 0;
    fix_even(place, if odd { at_odd_offset(difference) } else { difference })
}

#[inline(always)]
fn fix_even(place: Place, difference: u32) -> Option<()> {
    // SAFETY: the helper checks the offset.
    let result = unsafe { bpf_l4_csum_replace(place.skb, place.tcp + TCP_CHECK as u32, 0, difference as u64, 0) };
    (result == 0).then_some(())
}

#[inline(always)]
fn pair(first: u16, second: u16) -> u32 {
    let [a, b] = first.to_ne_bytes();
    let [c, d] = second.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}
