//! Messages of a stream, one a line, bounded.

use super::error::EtcdError;

/// Bytes that arrived, until a line is whole. Pure.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// So many of them hold no line end.
    searched: usize,
}

impl Lines {
    pub(super) fn add(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
    }

    /// The next whole line.
    ///
    /// # Errors
    /// It is too long.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, EtcdError> {
        match self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let rest = self.bytes.split_off(self.searched + at + 1);
                self.searched = 0;
                Ok(Some(std::mem::replace(&mut self.bytes, rest)))
            }
            None if self.bytes.len() > MAX_LINE => Err(EtcdError::TooLarge),
            None => {
                self.searched = self.bytes.len();
                Ok(None)
            }
        }
    }
}

/// A thousand changes with values of 64 KiB, in base64.
const MAX_LINE: usize = 96 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_however_they_came_in() {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for chunk in [&b"o"[..], b"ne\ntw", b"", b"o\n\nfour"] {
            lines.add(chunk);
            while let Some(line) = lines.next().expect("short enough") {
                found.push(String::from_utf8(line).expect("text"));
            }
        }
        assert_eq!(found, ["one\n", "two\n", "\n"]);
    }
}
