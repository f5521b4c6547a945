//! Bytes on their way through the server: in memory while they are few, then in a temporary file without a name
//! (it is gone when its last reader is, whatever happens to the process).
//!
//! [`Spool`] is written once; [`Spool::finish`] makes it a [`Spooled`], which any number of readers share.
//! Nothing here is async: a write below the memory threshold is a copy, one above it is a write to the page cache.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Default of [`SpoolOptions::memory_bytes`].
pub const DEFAULT_MEMORY_BYTES: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("the body is larger than the limit of {limit_bytes} bytes")]
    TooLarge { limit_bytes: u64 },
    #[error("the temporary file failed: {0}")]
    Disk(#[from] io::Error),
}

impl SpoolError {
    /// The disk (or quota) has no room: HTTP 507, and the operator's business rather than the client's.
    pub fn is_storage_full(&self) -> bool {
        match self {
            Self::TooLarge { .. } => false,
            Self::Disk(error) => matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolOptions {
    /// Held in memory up to here; the first byte beyond moves everything to a file.
    pub memory_bytes: usize,
    /// Refuse to grow beyond this.
    pub limit_bytes: Option<u64>,
    /// Where the file goes; the system's temporary directory when `None`.
    pub dir: Option<PathBuf>,
}

impl Default for SpoolOptions {
    fn default() -> Self {
        Self { memory_bytes: DEFAULT_MEMORY_BYTES, limit_bytes: None, dir: None }
    }
}

#[derive(Debug)]
enum Store {
    Memory(Vec<u8>),
    File(File),
}

/// The writing half.
#[derive(Debug)]
pub struct Spool {
    store: Store,
    len_bytes: u64,
    options: SpoolOptions,
}

impl Spool {
    pub fn new(options: SpoolOptions) -> Self {
        Self { store: Store::Memory(Vec::new()), len_bytes: 0, options }
    }

    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether so many more bytes are a copy, and no work for a disk.
    pub fn stays_in_memory(&self, more: usize) -> bool {
        matches!(self.store, Store::Memory(_)) && self.len_bytes + more as u64 <= self.options.memory_bytes as u64
    }

    /// Appends all of `bytes`, or nothing that counts: after an error the spool is only good for dropping.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let len_after = self.len_bytes + bytes.len() as u64;
        if let Some(limit_bytes) = self.options.limit_bytes
            && len_after > limit_bytes
        {
            return Err(SpoolError::TooLarge { limit_bytes });
        }
        if !self.stays_in_memory(bytes.len())
            && let Store::Memory(memory) = &mut self.store
        {
            let mut file = temp_file(self.options.dir.as_deref())?;
            file.write_all(memory)?;
            self.store = Store::File(file);
        }
        match &mut self.store {
            Store::Memory(memory) => memory.extend_from_slice(bytes),
            Store::File(file) => file.write_all(bytes)?,
        }
        self.len_bytes = len_after;
        Ok(())
    }

    pub fn finish(self) -> Spooled {
        Spooled { store: Arc::new(self.store), len_bytes: self.len_bytes, dir: self.options.dir }
    }
}

/// The reading half: cheap to clone, all clones share the content.
#[derive(Clone, Debug)]
pub struct Spooled {
    store: Arc<Store>,
    len_bytes: u64,
    dir: Option<PathBuf>,
}

impl Spooled {
    /// Content that is in memory already.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { len_bytes: bytes.len() as u64, store: Arc::new(Store::Memory(bytes)), dir: None }
    }

    /// A file as it lies on the disk; nothing is copied. It must not be a pipe: readers come back to earlier places.
    pub fn from_file(file: File) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
        Ok(Self { len_bytes, store: Arc::new(Store::File(file)), dir: None })
    }

    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    pub fn is_in_memory(&self) -> bool {
        matches!(*self.store, Store::Memory(_))
    }

    /// A reader with a position of its own, at the start.
    pub fn open(&self) -> SpoolReader {
        SpoolReader { content: self.clone(), position: 0 }
    }

    /// Fills `out` with the bytes from `offset`.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match &*self.store {
            Store::File(file) => file.read_exact_at(out, offset),
            Store::Memory(memory) => {
                let start = usize::try_from(offset).map_err(io::Error::other)?;
                let end = start.checked_add(out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                out.copy_from_slice(memory.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        match &*self.store {
            Store::File(file) => file.read_at(out, offset),
            Store::Memory(memory) => {
                let start = usize::try_from(offset).map_or(memory.len(), |start| start.min(memory.len()));
                let n = out.len().min(memory.len() - start);
                out[..n].copy_from_slice(&memory[start..start + n]);
                Ok(n)
            }
        }
    }

    /// The content as a file descriptor for a child process; what is in memory is written to a temporary file first.
    pub(crate) fn to_file(&self) -> io::Result<File> {
        match &*self.store {
            Store::File(file) => file.try_clone(),
            Store::Memory(memory) => {
                let mut file = temp_file(self.dir.as_deref())?;
                file.write_all(memory)?;
                file.rewind()?;
                Ok(file)
            }
        }
    }
}

/// Created by [`Spooled::open`].
#[derive(Clone, Debug)]
pub struct SpoolReader {
    content: Spooled,
    position: u64,
}

impl Read for SpoolReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.content.read_at(out, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for SpoolReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(delta) => self.content.len_bytes.checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

fn temp_file(dir: Option<&Path>) -> io::Result<File> {
    match dir {
        Some(dir) => tempfile::tempfile_in(dir),
        None => tempfile::tempfile(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut spool = Spool { store: Store::File(full), len_bytes: 0, options: SpoolOptions::default() };
        let error = spool.write(b"x").unwrap_err();
        assert!(error.is_storage_full(), "{error:?}");
        assert_eq!(spool.len_bytes(), 0);
        assert!(!SpoolError::TooLarge { limit_bytes: 1 }.is_storage_full());
        assert!(!SpoolError::Disk(io::Error::from(io::ErrorKind::PermissionDenied)).is_storage_full());
    }
}
