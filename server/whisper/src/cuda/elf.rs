//! Reads tables of a shared library without loading it, because its constructors expect a running ONNX Runtime. Only
//! headers and names are read, so that the size of the library does not matter.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const DYNAMIC_SEGMENT: u32 = 2;
const LOAD_SEGMENT: u32 = 1;
const NEEDED_TAG: u64 = 1;
const STRING_TABLE_TAG: u64 = 5;
/// The length limit of names.
const NAME_MAX_BYTES: u64 = 256;

/// An entry of the program header table.
struct ElfSegment {
    kind: u32,
    offset: u64,
    address: u64,
    length: u64,
}

/// The position of a section's bytes in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ElfSection {
    pub offset: u64,
    pub length: u64,
}

/// A shared library that is read as a file.
pub(super) struct ElfLibrary(File);

impl ElfLibrary {
    /// Opens a 64-bit little-endian library.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let library = Self(File::open(path)?);
        if library.bytes::<6>(0)? != *b"\x7fELF\x02\x01" {
            return Err(broken("its head"));
        }
        Ok(library)
    }

    pub(super) fn bytes<const N: usize>(&self, at: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn u16(&self, at: u64) -> io::Result<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&self, at: u64) -> io::Result<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: u64) -> io::Result<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    fn text(&self, at: u64) -> io::Result<String> {
        let mut text = Vec::new();
        for position in 0..NAME_MAX_BYTES {
            match self.bytes::<1>(at.saturating_add(position))? {
                [0] => return Ok(String::from_utf8_lossy(&text).into_owned()),
                [byte] => text.push(byte),
            }
        }

        Err(broken("a name without an end"))
    }

    /// The names of the libraries with which this one is linked.
    pub(super) fn needed(&self) -> io::Result<Vec<String>> {
        let (table, size, count) = (self.u64(32)?, self.u16(54)?, self.u16(56)?);
        let segments = (0..u64::from(count)).map(|n| {
            let at = table.saturating_add(n * u64::from(size));
            let (kind, offset) = (self.u32(at)?, self.u64(at.saturating_add(8))?);
            let (address, length) = (self.u64(at.saturating_add(16))?, self.u64(at.saturating_add(32))?);
            Ok(ElfSegment { kind, offset, address, length })
        });

        let segments = segments.collect::<io::Result<Vec<_>>>()?;
        let is_dynamic = |segment: &&ElfSegment| segment.kind == DYNAMIC_SEGMENT;
        let dynamic = segments.iter().find(is_dynamic).ok_or_else(|| broken("no tables"))?;

        let (mut names, mut strings) = (Vec::new(), None);

        for n in 0..dynamic.length / 16 {
            let at = dynamic.offset.saturating_add(n * 16);
            match (self.u64(at)?, self.u64(at.saturating_add(8))?) {
                (0, _) => break,
                (NEEDED_TAG, name) => names.push(name),
                (STRING_TABLE_TAG, address) => strings = Some(address),
                _ => {}
            }
        }

        let address = strings.ok_or_else(|| broken("no names"))?;
        let contains_strings = |segment: &&ElfSegment| {
            segment.kind == LOAD_SEGMENT
                && (segment.address..segment.address.saturating_add(segment.length)).contains(&address)
        };

        let segment = segments.iter().find(contains_strings).ok_or_else(|| broken("names outside of it"))?;
        let strings = address - segment.address + segment.offset;

        names.into_iter().map(|name| self.text(strings.saturating_add(name))).collect()
    }

    /// The section with this name; `None` if the library has no such section or no table of sections.
    pub(super) fn section(&self, section_name: &str) -> io::Result<Option<ElfSection>> {
        let (table, size, count, names) = (self.u64(40)?, self.u16(58)?, self.u16(60)?, self.u16(62)?);
        if table == 0 || names >= count {
            return Ok(None);
        }

        let header = |n: u16| table.saturating_add(u64::from(n) * u64::from(size));
        let names = self.u64(header(names).saturating_add(24))?;
        for n in 0..count {
            let name = u64::from(self.u32(header(n))?);
            if self.text(names.saturating_add(name))? == section_name {
                let offset = self.u64(header(n).saturating_add(24))?;
                let length = self.u64(header(n).saturating_add(32))?;
                return Ok(Some(ElfSection { offset, length }));
            }
        }

        Ok(None)
    }
}

pub(super) fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a library for 64 bits: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_from_a_library_and_cut_libraries_are_errors() {
        let program = std::env::current_exe().unwrap();
        let library = ElfLibrary::open(&program).unwrap();
        let needed = library.needed().unwrap();

        assert!(needed.iter().any(|name| name.starts_with("libc.so")), "{needed:?}");

        let text = library.section(".text").unwrap().unwrap();

        assert!(text.offset > 0 && text.length > 1_000_000, "{text:?}");
        assert_eq!(library.section(".nv_fatbin").unwrap(), None);

        let folder = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(&program).unwrap();
        let cut = folder.path().join("cut");

        for length in [0, 3, 20, 63, 64, 100, 300] {
            std::fs::write(&cut, &bytes[..length]).unwrap();
            assert!(ElfLibrary::open(&cut).and_then(|library| library.needed()).is_err(), "{length}");
            assert!(ElfLibrary::open(&cut).and_then(|library| library.section(".text")).is_err(), "{length}");
        }
    }
}
