//! The ring of the programs' events, from outside: it can be made to look full, so that what happens meanwhile is told to nobody.

use std::num::NonZeroUsize;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::bpf;

/// A ring in which nothing more fits, until this is dropped. Only while its reader, the daemon, stands still.
#[derive(Debug)]
pub struct FullRing {
    /// How far the reader says that it has read. It has a page to itself, the first one (BPF_MAP_TYPE_RINGBUF).
    read: NonNull<AtomicU64>,
    /// What it said.
    truly: u64,
}

const PAGE: usize = 4096;

impl FullRing {
    pub fn of(pin: &Path) -> Result<Self> {
        let map = bpf::open(pin).with_context(|| format!("opening {}", pin.display()))?;
        let length = NonZeroUsize::new(PAGE).context("a page has bytes")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping of a page that every ring has.
        let page = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &map, 0) };
        let read: NonNull<AtomicU64> = page.context("mapping the reader's page")?.cast();
        // SAFETY: the page is mapped, and begins with this counter.
        let position = unsafe { read.as_ref() };
        let truly = position.load(Ordering::Acquire);
        // Further behind than any ring is long.
        position.store(truly.wrapping_sub(1 << 40), Ordering::Release);
        Ok(Self { read, truly })
    }
}

impl Drop for FullRing {
    fn drop(&mut self) {
        // SAFETY: mapped until the next line.
        unsafe { self.read.as_ref() }.store(self.truly, Ordering::Release);
        // SAFETY: our own mapping; nothing borrowed from it outlives this.
        let _ = unsafe { munmap(self.read.cast(), PAGE) };
    }
}
