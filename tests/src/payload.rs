//! Bytes whose hash is known: every transfer is checked end to end.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// Size and SHA-256 of what was sent or received.
#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint {
    pub bytes: u64,
    pub sha256: [u8; 32],
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, sha256 ", self.bytes)?;
        self.sha256.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Counts and hashes everything that passes.
#[derive(Default)]
pub struct Fingerprinter {
    bytes: u64,
    sha256: Sha256,
}

impl Fingerprinter {
    pub fn update(&mut self, chunk: &[u8]) {
        self.bytes += chunk.len() as u64;
        self.sha256.update(chunk);
    }

    pub fn finish(self) -> Fingerprint {
        Fingerprint { bytes: self.bytes, sha256: self.sha256.finalize().into() }
    }
}

/// Reads to the end.
pub fn fingerprint(mut from: impl Read) -> Result<Fingerprint> {
    let mut hasher = Fingerprinter::default();
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk).context("reading a transfer")? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&chunk[..n]),
        }
    }
}

pub fn fingerprint_file(path: &Path) -> Result<Fingerprint> {
    fingerprint(File::open(path).with_context(|| format!("opening {}", path.display()))?)
}

/// Writes a file of `bytes` incompressible bytes; the same seed gives the same file.
pub fn write_file(path: &Path, bytes: u64, seed: u64) -> Result<Fingerprint> {
    let mut file = BufWriter::new(File::create(path).with_context(|| format!("creating {}", path.display()))?);
    let mut hasher = Fingerprinter::default();
    let mut random = Random::new(seed);
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(CHUNK as u64) as usize;
        random.fill(&mut chunk[..n]);
        hasher.update(&chunk[..n]);
        file.write_all(&chunk[..n])?;
        left -= n as u64;
    }
    file.flush()?;
    Ok(hasher.finish())
}

/// xorshift64*: fast, seeded, good enough to notice a byte that is lost, doubled or moved.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let word = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

const CHUNK: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_has_the_fingerprint_that_was_announced() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("payload");
        let announced = write_file(&path, 200_001, 7)?;
        assert_eq!(announced.bytes, 200_001);
        assert_eq!(fingerprint_file(&path)?, announced);
        Ok(())
    }

    #[test]
    fn one_changed_byte_changes_the_fingerprint() -> Result<()> {
        let mut bytes = vec![0; 1000];
        Random::new(1).fill(&mut bytes);
        let before = fingerprint(bytes.as_slice())?;
        bytes[500] ^= 1;
        assert_ne!(fingerprint(bytes.as_slice())?, before);
        Ok(())
    }
}
