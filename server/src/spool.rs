//! Bytes on their way through the server: in memory while they are few, then in a temporary file. Neither has a name: it
//! is gone when its last reader is, whatever happens to the process. Both are open files (`memfd_create`), so that other
//! processes, runners and ffmpeg, are given them as they are.
//!
//! [`Spool`] is written once; [`Spool::finish`] makes it a [`Spooled`], which any number of readers share.
//! Nothing here is async: a write below the memory threshold is a copy, one above it is a write to the page cache.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

/// Default of [`SpoolOptions::memory_bytes`].
pub const DEFAULT_MEMORY_BYTES: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("the body is larger than the limit of {limit_bytes} bytes")]
    TooLarge { limit_bytes: u64 },
    #[error("the temporary file failed: {0}")]
    Disk(#[from] io::Error),
    #[error("the folder for uploads, {}, cannot be used: {source}", .dir.display())]
    Folder { dir: PathBuf, source: io::Error },
}

impl SpoolError {
    /// There is nowhere to put it, because the disk (or quota) has no room or the folder is missing or may not be written:
    /// HTTP 507, and the operator's business rather than the client's.
    pub fn is_storage_full(&self) -> bool {
        match self {
            Self::TooLarge { .. } => false,
            Self::Disk(error) => matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
            Self::Folder { .. } => true,
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

/// What a check of the folder writes: more than a file system finds room for when it has none.
const CHECK_BYTES: usize = 64 << 10;

/// The folder that files go to.
pub fn folder(dir: Option<&Path>) -> PathBuf {
    dir.map_or_else(std::env::temp_dir, Path::to_owned)
}

/// Whether files can be written to the folder: it is tried with a small one, which has no name and is gone afterwards.
pub fn check_folder(dir: Option<&Path>) -> Result<(), SpoolError> {
    let written = temp_file(dir).and_then(|mut file| file.write_all(&[0; CHECK_BYTES]));
    written.map_err(|source| SpoolError::Folder { dir: folder(dir), source })
}

impl Default for SpoolOptions {
    fn default() -> Self {
        Self { memory_bytes: DEFAULT_MEMORY_BYTES, limit_bytes: None, dir: None }
    }
}

/// The writing half.
#[derive(Debug)]
pub struct Spool {
    /// None before the first byte.
    file: Option<File>,
    is_in_memory: bool,
    len_bytes: u64,
    options: SpoolOptions,
}

impl Spool {
    pub fn new(options: SpoolOptions) -> Self {
        Self { file: None, is_in_memory: true, len_bytes: 0, options }
    }

    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether so many more bytes are a copy, and no work for a disk.
    pub fn stays_in_memory(&self, more: usize) -> bool {
        self.is_in_memory && self.len_bytes + more as u64 <= self.options.memory_bytes as u64
    }

    /// Appends all of `bytes`, or nothing that counts: after an error the spool is only good for dropping.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let len_after = self.len_bytes + bytes.len() as u64;
        if let Some(limit_bytes) = self.options.limit_bytes
            && len_after > limit_bytes
        {
            return Err(SpoolError::TooLarge { limit_bytes });
        }
        let moves = self.is_in_memory && !self.stays_in_memory(bytes.len());
        let file = match self.file.take() {
            Some(file) if !moves => file,
            None if !moves => memory_file()?,
            before => {
                let moved = move_to_disk(before, self.options.dir.as_deref());
                self.is_in_memory = false;
                moved.map_err(|source| self.failed(source))?
            }
        };
        let written = self.file.insert(file).write_all(bytes);
        written.map_err(|source| self.failed(source))?;
        self.len_bytes = len_after;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> SpoolError {
        if self.is_in_memory {
            return SpoolError::Disk(source);
        }
        SpoolError::Folder { dir: folder(self.options.dir.as_deref()), source }
    }

    pub fn finish(self) -> Spooled {
        Spooled { file: self.file.map(Arc::new), is_in_memory: self.is_in_memory, len_bytes: self.len_bytes }
    }
}

/// The reading half: cheap to clone, all clones share the content.
#[derive(Clone, Debug)]
pub struct Spooled {
    /// None: nothing was written.
    file: Option<Arc<File>>,
    is_in_memory: bool,
    len_bytes: u64,
}

impl Spooled {
    /// A file as it lies on the disk; nothing is copied. It must not be a pipe: readers come back to earlier places.
    pub fn from_file(file: File) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
        Ok(Self { file: Some(Arc::new(file)), is_in_memory: false, len_bytes })
    }

    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    pub fn is_in_memory(&self) -> bool {
        self.is_in_memory
    }

    /// A reader with a position of its own, at the start.
    pub fn open(&self) -> SpoolReader {
        SpoolReader { content: self.clone(), position: 0 }
    }

    /// Fills `out` with the bytes from `offset`.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.file {
            Some(file) => file.read_exact_at(out, offset),
            None if out.is_empty() => Ok(()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The content for another process, which shares the position of the descriptor with whoever else has one: it reads
    /// at places that it names, or opens the file anew.
    pub(crate) fn to_file(&self) -> io::Result<File> {
        self.file.as_ref().map_or_else(memory_file, |file| file.try_clone())
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
        let Some(file) = &self.content.file else { return Ok(0) };
        let n = file.read_at(out, self.position)?;
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

fn move_to_disk(memory: Option<File>, dir: Option<&Path>) -> io::Result<File> {
    let mut disk = temp_file(dir)?;
    if let Some(mut memory) = memory {
        memory.rewind()?;
        io::copy(&mut memory, &mut disk)?;
    }
    Ok(disk)
}

fn memory_file() -> io::Result<File> {
    let create = |flags| memfd_create("hush-spool", flags);
    // A hardened kernel wants the promise that nobody will execute it; one before Linux 6.3 does not know it.
    let file = create(MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL);
    Ok(file.or_else(|error| if error == Errno::INVAL { create(MemfdFlags::CLOEXEC) } else { Err(error) })?.into())
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
        let mut spool = Spool { file: Some(full), is_in_memory: false, len_bytes: 0, options: SpoolOptions::default() };
        let error = spool.write(b"x").unwrap_err();
        assert!(error.is_storage_full(), "{error:?}");
        assert_eq!(spool.len_bytes(), 0);
        assert!(!SpoolError::TooLarge { limit_bytes: 1 }.is_storage_full());
        assert!(!SpoolError::Disk(io::Error::from(io::ErrorKind::PermissionDenied)).is_storage_full());
        assert!(error.to_string().contains(std::env::temp_dir().to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_folder(Some(dir.path())).is_ok());
        let missing = dir.path().join("uploads");
        let mut spool = Spool::new(SpoolOptions { memory_bytes: 1, limit_bytes: None, dir: Some(missing.clone()) });
        for error in [spool.write(b"four").unwrap_err(), check_folder(Some(&missing)).unwrap_err()] {
            assert!(error.is_storage_full() && error.to_string().contains(missing.to_str().unwrap()), "{error}");
        }
    }
}
