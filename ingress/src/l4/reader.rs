//! A cursor over bytes that a peer sent: every read is bounded, and nothing may be left over unseen. Shared by the
//! ClientHello and PROXY parsers.

/// The named field is cut short, breaks its own bounds, or has bytes left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is malformed")]
pub(super) struct Malformed(pub(super) &'static str);

pub(super) struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    pub(super) fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], Malformed> {
        let (taken, left) = self.left.split_at_checked(length).ok_or(Malformed(field))?;
        self.left = left;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Malformed> {
        let (taken, left) = self.left.split_first_chunk().ok_or(Malformed(field))?;
        self.left = left;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, Malformed> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, Malformed> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// Bytes behind a one-byte length.
    pub(super) fn vec8(&mut self, field: &'static str) -> Result<&'a [u8], Malformed> {
        let length = self.u8(field)?;
        self.take(usize::from(length), field)
    }

    /// Bytes behind a two-byte length.
    pub(super) fn vec16(&mut self, field: &'static str) -> Result<&'a [u8], Malformed> {
        let length = self.u16(field)?;
        self.take(usize::from(length), field)
    }

    /// All that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.left
    }

    /// There must be nothing left.
    pub(super) fn finish(self, field: &'static str) -> Result<(), Malformed> {
        if self.left.is_empty() { Ok(()) } else { Err(Malformed(field)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_past_the_end_fails_and_takes_nothing() {
        let mut reader = Reader::new(&[0, 3, 1, 2]);
        assert_eq!(reader.vec16("name"), Err(Malformed("name")));
        let mut reader = Reader::new(&[1, 2]);
        assert_eq!(reader.take(3, "name"), Err(Malformed("name")));
        assert_eq!(reader.rest(), &[1, 2]);
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        let mut reader = Reader::new(&[2, 7, 8, 9]);
        assert_eq!(reader.vec8("list"), Ok(&[7, 8][..]));
        assert_eq!(reader.finish("list"), Err(Malformed("list")));
    }
}
