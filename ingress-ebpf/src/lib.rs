//! The contract between the daemon and its kernel programs, and the packet logic that both share.
//!
//! `no_std` on the BPF target, an ordinary library on the host, where the same code is unit-tested and fuzzed. Whatever the
//! kernel side decides about a packet is decided by a function on these pages.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "`raise` says why"))]

pub mod admission;
pub mod connection;
pub mod event;
pub mod flow;
pub mod header;
pub mod ip;
pub mod layout;
pub mod names;
pub mod proof;
pub mod raise;
pub mod rewrite;
pub mod too_big;
pub mod verdict;
