//! Bytes of a request: in memory while they are few, then in a temporary file. Both have no name, so they are gone with
//! their last reader, even after a crash. Both are open files (`memfd_create`), so that other processes, runners and
//! ffmpeg, can be given them as they are.
//!
//! [`Spool`] is written once; [`Spool::finish`] makes it a [`Spooled`], which any number of readers share.
//! Nothing here is async: a write below the memory limit is a copy, and one above it is a write to the page cache.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use crate::budget::{BudgetSpent, ByteBudget, ByteShare};

/// Default of [`SpoolOptions::memory_bytes`].
pub const DEFAULT_MEMORY_BYTES: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("the body is larger than the limit of {limit_bytes} bytes")]
    TooLarge { limit_bytes: u64 },
    /// Other requests hold the whole budget.
    #[error(transparent)]
    Spent(#[from] BudgetSpent),
    #[error("the temporary file failed: {0}")]
    Disk(#[from] io::Error),
    #[error("the folder for uploads, {}, cannot be used: {source}", .dir.display())]
    Folder { dir: PathBuf, source: io::Error },
}

impl SpoolError {
    /// Whether the bytes cannot be stored because the disk, the quota or the budget has no room, or because the folder
    /// is missing or not writable. That is HTTP 507, and a task for the operator rather than for the client.
    pub fn is_storage_full(&self) -> bool {
        match self {
            Self::TooLarge { .. } => false,
            Self::Disk(error) => matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
            Self::Folder { .. } | Self::Spent(_) => true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolOptions {
    /// Bytes are held in memory up to this size; the first byte beyond it moves all of them to a file.
    pub memory_bytes: usize,
    /// The spool refuses to grow beyond this size.
    pub limit_bytes: Option<u64>,
    /// The folder of the file; `None`: the system's temporary folder.
    pub dir: Option<PathBuf>,
    /// Limit for the memory of all spools together; when it is spent, the next byte goes to a file.
    pub memory_budget: Option<ByteBudget>,
    /// Limit for all spools together, in memory and in files; when it is spent, the next byte is refused.
    pub budget: Option<ByteBudget>,
}

/// What a check of the folder writes: more than a full file system has room for.
const CHECK_BYTES: usize = 64 << 10;

/// The folder of temporary files.
pub fn folder(dir: Option<&Path>) -> PathBuf {
    dir.map_or_else(std::env::temp_dir, Path::to_owned)
}

/// Checks that files can be written to the folder, with a small file that has no name and is gone afterwards.
pub fn check_folder(dir: Option<&Path>) -> Result<(), SpoolError> {
    let written = temp_file(dir).and_then(|mut file| file.write_all(&[0; CHECK_BYTES]));
    written.map_err(|source| SpoolError::Folder { dir: folder(dir), source })
}

impl Default for SpoolOptions {
    fn default() -> Self {
        Self { memory_bytes: DEFAULT_MEMORY_BYTES, limit_bytes: None, dir: None, memory_budget: None, budget: None }
    }
}

/// A spool that is being written.
#[derive(Debug)]
pub struct Spool {
    /// `None` before the first byte.
    file: Option<File>,
    is_in_memory: bool,
    len_bytes: u64,
    options: SpoolOptions,
    shares: BudgetShares,
}

/// What a spool has taken of the budgets.
#[derive(Debug)]
struct BudgetShares {
    memory: Option<ByteShare>,
    all: Option<ByteShare>,
}

impl BudgetShares {
    fn new(options: &SpoolOptions) -> Self {
        let share = |budget: &Option<ByteBudget>| budget.as_ref().map(ByteBudget::share);
        Self { memory: share(&options.memory_budget), all: share(&options.budget) }
    }
}

impl Spool {
    pub fn new(options: SpoolOptions) -> Self {
        let shares = BudgetShares::new(&options);
        Self { file: None, is_in_memory: true, len_bytes: 0, options, shares }
    }

    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether `more` bytes fit into memory, so that their write does not wait for a disk. If so, takes them from the
    /// budget.
    pub fn stays_in_memory(&mut self, more: usize) -> bool {
        let len_after = self.len_bytes + more as u64;
        self.is_in_memory
            && len_after <= self.options.memory_bytes as u64
            && self.shares.memory.as_mut().is_none_or(|share| share.grow_to(len_after).is_ok())
    }

    /// Appends `bytes`. After an error the spool must be dropped.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let len_after = self.len_bytes + bytes.len() as u64;
        if let Some(limit_bytes) = self.options.limit_bytes
            && len_after > limit_bytes
        {
            return Err(SpoolError::TooLarge { limit_bytes });
        }

        if let Some(share) = &mut self.shares.all {
            share.grow_to(len_after)?;
        }

        let moves = self.is_in_memory && !self.stays_in_memory(bytes.len());
        let file = match self.file.take() {
            Some(file) if !moves => file,
            None if !moves => memory_file()?,
            before => {
                let moved = move_to_disk(before, self.options.dir.as_deref());
                self.is_in_memory = false;
                self.shares.memory = None;
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
        let (is_in_memory, len_bytes) = (self.is_in_memory, self.len_bytes);

        let shares = Some(Arc::new(self.shares));
        Spooled { file: self.file.map(Arc::new), is_in_memory, len_bytes, _shares: shares }
    }
}

/// A spool that can be read. Cheap to clone; all clones share the content.
#[derive(Clone, Debug)]
pub struct Spooled {
    /// `None` where nothing was written.
    file: Option<Arc<File>>,
    is_in_memory: bool,
    len_bytes: u64,
    /// Given back when the last clone is dropped.
    _shares: Option<Arc<BudgetShares>>,
}

impl Spooled {
    /// Takes a file on the disk, without a copy. It must not be a pipe, because readers read at any position.
    pub fn from_file(file: File) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
        Ok(Self { file: Some(Arc::new(file)), is_in_memory: false, len_bytes, _shares: None })
    }

    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Whether both have the same file.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.file, &other.file) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            _ => false,
        }
    }

    pub fn is_in_memory(&self) -> bool {
        self.is_in_memory
    }

    /// A reader with a position of its own, at the start.
    pub fn open(&self) -> SpoolReader {
        SpoolReader { content: self.clone(), position: 0 }
    }

    /// Fills `out` with the bytes from `offset` on.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.file {
            Some(file) => file.read_exact_at(out, offset),
            None if out.is_empty() => Ok(()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The content for another process. All holders of the descriptor share its position, so they read at explicit
    /// positions, or open the file again.
    pub fn to_file(&self) -> io::Result<File> {
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
    // A hardened kernel requires the promise that the file is never executed; a kernel before Linux 6.3 does not know
    // the flag.
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
    fn a_full_disk_is_recognised() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut spool = Spool { file: Some(full), is_in_memory: false, ..Spool::new(SpoolOptions::default()) };

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
        let options = SpoolOptions { memory_bytes: 1, dir: Some(missing.clone()), ..SpoolOptions::default() };
        let mut spool = Spool::new(options);
        for error in [spool.write(b"four").unwrap_err(), check_folder(Some(&missing)).unwrap_err()] {
            assert!(error.is_storage_full() && error.to_string().contains(missing.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn a_spool_goes_to_the_disk_when_the_memory_budget_is_spent() {
        let memory = ByteBudget::new("memory", 1000);
        let options = || SpoolOptions { memory_budget: Some(memory.clone()), ..SpoolOptions::default() };
        let (mut one, mut other) = (Spool::new(options()), Spool::new(options()));

        one.write(&[1; 900]).unwrap();
        assert_eq!(memory.used_bytes(), 900);
        other.write(&[2; 90]).unwrap();
        other.write(&[3; 90]).unwrap();

        // The bytes that it had in memory moved along.
        assert_eq!(memory.used_bytes(), 900);
        let (one, other) = (one.finish(), other.finish());
        assert!(one.is_in_memory() && !other.is_in_memory());
        let mut content = Vec::new();
        other.open().read_to_end(&mut content).unwrap();
        assert_eq!(content, [[2; 90], [3; 90]].concat());

        let reader = one.open();
        drop(one);
        assert_eq!(memory.used_bytes(), 900, "a reader still has it");
        drop(reader);
        assert_eq!(memory.used_bytes(), 0);
    }

    #[test]
    fn bytes_beyond_the_budget_are_refused_and_given_back() {
        let budget = ByteBudget::new("uploads", 100);
        for memory_bytes in [0, 1000] {
            let options = SpoolOptions { memory_bytes, budget: Some(budget.clone()), ..SpoolOptions::default() };
            let (mut one, mut other) = (Spool::new(options.clone()), Spool::new(options));
            one.write(&[0; 60]).unwrap();

            other.write(&[0; 40]).unwrap();
            let error = other.write(&[0]).unwrap_err();
            assert!(matches!(error, SpoolError::Spent(_)) && error.is_storage_full(), "{error:?}");

            drop(one.finish());
            other.write(&[0; 60]).unwrap();
            drop(other);
            assert_eq!(budget.used_bytes(), 0);
        }
    }
}
