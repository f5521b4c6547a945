//! Reads the fields of a binary file in order. An error names the field at which the file ends.

use super::malformed::MalformedFile;

pub(super) struct ByteReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> ByteReader<'a> {
    /// Starts at the byte `at`.
    pub const fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// Offset of the next byte.
    pub const fn position(&self) -> usize {
        self.at
    }

    pub const fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// The next `length` bytes; `what` names them in an error.
    pub fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8], MalformedFile> {
        let end = self.at.checked_add(length);
        let taken = end.and_then(|end| self.bytes.get(self.at..end)).ok_or_else(|| self.truncated(what, length))?;
        self.at += length;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], MalformedFile> {
        let rest = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let taken = rest.ok_or_else(|| self.truncated(what, N))?;
        self.at += N;
        Ok(*taken)
    }

    fn truncated(&self, what: &str, needed: usize) -> MalformedFile {
        let left = self.bytes.len().saturating_sub(self.at);
        MalformedFile::Truncated { field: what.to_owned(), at: self.at, needed, left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_short_file_names_the_field_and_both_lengths() {
        let mut reader = ByteReader::new(&[1, 2, 3, 4, 5], 1);
        assert_eq!(reader.array::<2>("a number").unwrap(), [2, 3]);

        let error = reader.array::<4>("the next number").unwrap_err();
        let MalformedFile::Truncated { field, at, needed, left } = error else { panic!("{error}") };
        assert_eq!((&*field, at, needed, left), ("the next number", 3, 4, 2));

        // A field that does not fit leaves the position as it was.
        assert_eq!(reader.take(2, "the rest").unwrap(), [4, 5]);
        assert!(reader.is_at_end());
        assert!(matches!(reader.take(usize::MAX, "more"), Err(MalformedFile::Truncated { left: 0, .. })));
    }
}
