//! The log that the double of the CUDA runtime writes for each process; its layout is that of `tests/cuda/src/log.h`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const MAGIC: &[u8; 8] = b"CUDADBL1";
const NAMES_AT: u64 = 4096;
const NAME_BYTES: usize = 256;
const NAMES_MAX: u64 = 8192;
const RECORDS_AT: u64 = NAMES_AT + NAMES_MAX * NAME_BYTES as u64;
const RECORD_BYTES: usize = 24;

/// What one process did so far, in the order in which it did it.
#[derive(Clone, Debug)]
pub struct DoubleLog {
    pub process: u32,
    pub entries: Vec<LogEntry>,
}

#[derive(Clone, Debug)]
pub struct LogEntry {
    /// `kind` or `kind:detail`, as `kernel:cublasGemmEx`.
    pub name: Arc<str>,
    pub thread: u32,
    pub bytes: u64,
    /// By `CLOCK_MONOTONIC`.
    pub at: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCount {
    pub count: u64,
    pub bytes: u64,
}

impl CallCount {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }

    fn plus(self, other: Self) -> Self {
        Self { count: self.count + other.count, bytes: self.bytes + other.bytes }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    HostToDevice,
    DeviceToHost,
    DeviceToDevice,
    HostToHost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostMemory {
    Pageable,
    Pinned,
    /// Neither end is in the host's memory.
    None,
}

/// Where copies go from and to, by which calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CopyRoute {
    pub direction: Direction,
    pub host: HostMemory,
    /// By a call that returns when the copy is done.
    pub synchronous: bool,
}

/// Counts by the kernel's name with its template arguments, cuBLAS's products under their functions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernels(pub BTreeMap<String, CallCount>);

impl Kernels {
    pub fn total(&self) -> CallCount {
        self.named("")
    }

    /// The sum over all kernels whose names begin with `start`.
    pub fn named(&self, start: &str) -> CallCount {
        self.0
            .iter()
            .filter(|(name, _)| name.starts_with(start))
            .fold(CallCount::default(), |sum, (_, one)| sum.plus(*one))
    }
}

/// What a process did between two moments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Launched one by one, not by a graph. Bytes: of a product's three matrices.
    pub kernels: Kernels,
    /// Recorded into a graph that was being captured.
    pub captured_kernels: Kernels,
    /// Bytes: the number of operations in them.
    pub graph_launches: CallCount,
    pub graph_captures: u64,
    pub copies: BTreeMap<CopyRoute, CallCount>,
    pub captured_copies: BTreeMap<CopyRoute, CallCount>,
    pub memsets: CallCount,
    pub stream_synchronisations: u64,
    pub event_synchronisations: u64,
    pub device_synchronisations: u64,
    pub device_allocations: CallCount,
    pub device_frees: CallCount,
    /// Allocations for which there was no memory.
    pub refused_allocations: CallCount,
    pub pinned_allocations: CallCount,
    pub contexts: CallCount,
    /// Kernels and functions that the double does not know, and did not compute.
    pub unknown: Vec<String>,
}

impl Counters {
    pub fn copied(&self, direction: Direction) -> CallCount {
        let copies = self.copies.iter().filter(|(copy, _)| copy.direction == direction);
        copies.fold(CallCount::default(), |sum, (_, one)| sum.plus(*one))
    }

    /// What a device was told to do, one call each: kernels, copies, memsets, graphs.
    pub fn device_operations(&self) -> u64 {
        let copies: u64 = self.copies.values().map(|copy| copy.count).sum();
        self.kernels.total().count + copies + self.memsets.count + self.graph_launches.count
    }

    /// Calls that wait until the device is done, synchronous copies among them.
    pub fn synchronisations(&self) -> u64 {
        let copies: u64 = self.copies.iter().filter(|(copy, _)| copy.synchronous).map(|(_, count)| count.count).sum();
        self.stream_synchronisations + self.event_synchronisations + self.device_synchronisations + copies
    }

    fn add(&mut self, entry: &LogEntry) -> Result<()> {
        let (kind, detail) = entry.name.split_once(':').unwrap_or((&entry.name, ""));
        match (kind, detail) {
            ("kernel", kernel) => self.kernels.0.entry(kernel.to_owned()).or_default().add(entry.bytes),
            ("copy", copy) => self.copies.entry(copied(copy)?).or_default().add(entry.bytes),
            ("captured", what) => match what.split_once(':') {
                Some(("kernel", kernel)) => {
                    self.captured_kernels.0.entry(kernel.to_owned()).or_default().add(entry.bytes)
                }
                Some(("copy", copy)) => self.captured_copies.entry(copied(copy)?).or_default().add(entry.bytes),
                _ => {}
            },
            ("graph", "launch") => self.graph_launches.add(entry.bytes),
            ("graph", "capture") => self.graph_captures += 1,
            ("memset", _) => self.memsets.add(entry.bytes),
            ("sync", "stream") => self.stream_synchronisations += 1,
            ("sync", "event") => self.event_synchronisations += 1,
            ("sync", "device") => self.device_synchronisations += 1,
            ("alloc", "device") => self.device_allocations.add(entry.bytes),
            ("free", "device") => self.device_frees.add(entry.bytes),
            ("refused", "device") => self.refused_allocations.add(entry.bytes),
            ("alloc", "pinned") => self.pinned_allocations.add(entry.bytes),
            ("context", _) => self.contexts.add(entry.bytes),
            ("unknown", what) => self.unknown.push(what.to_owned()),
            _ => {}
        }
        Ok(())
    }
}

/// `H2D:pageable:async`, or `D2D:async`.
fn copied(text: &str) -> Result<CopyRoute> {
    let mut parts = text.split(':');
    let direction = match parts.next() {
        Some("H2D") => Direction::HostToDevice,
        Some("D2H") => Direction::DeviceToHost,
        Some("D2D") => Direction::DeviceToDevice,
        Some("H2H") => Direction::HostToHost,
        _ => bail!("no direction in {text}"),
    };
    let rest: Vec<&str> = parts.collect();
    let host = match rest.first() {
        Some(&"pageable") => HostMemory::Pageable,
        Some(&"pinned") => HostMemory::Pinned,
        _ => HostMemory::None,
    };
    Ok(CopyRoute { direction, host, synchronous: rest.last() == Some(&"sync") })
}

impl DoubleLog {
    pub fn counters(&self) -> Counters {
        count(&self.entries)
    }

    /// What was done from each mark of this name (see `cuda_double_mark`) to the next mark, or to the end.
    pub fn after_marks(&self, name: &str) -> Vec<Counters> {
        let is_mark = |entry: &LogEntry| entry.name.starts_with("mark:");
        let marks = self.entries.iter().enumerate().filter(|(_, entry)| entry.name.strip_prefix("mark:") == Some(name));
        let after = marks.map(|(at, _)| {
            let rest = self.entries.get(at + 1..).unwrap_or_default();
            let until = rest.iter().position(is_mark).unwrap_or(rest.len());
            count(rest.get(..until).unwrap_or_default())
        });
        after.collect()
    }

    fn read(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let bytes = |at: u64, length: usize| -> Result<Vec<u8>> {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, at)?;
            Ok(bytes)
        };
        let head = bytes(0, 32)?;
        ensure!(head.starts_with(MAGIC), "{} is not a log of the double", path.display());
        let process = number(&head, 8, 4)?;
        let names = usize::try_from(number(&head, 12, 4)?)?;
        let records = usize::try_from(number(&head, 16, 8)?)?;
        ensure!(number(&head, 24, 8)? == 0, "{} is full", path.display());

        let name = |slot: &[u8]| -> Arc<str> {
            let end = slot.iter().position(|byte| *byte == 0).unwrap_or(slot.len());
            String::from_utf8_lossy(slot.get(..end).unwrap_or_default()).into()
        };
        let names: Vec<Arc<str>> = bytes(NAMES_AT, names * NAME_BYTES)?.chunks(NAME_BYTES).map(name).collect();
        let entry = |record: &[u8]| -> Result<LogEntry> {
            let name = names.get(usize::try_from(number(record, 0, 4)?)?).context("a record without a name")?;
            Ok(LogEntry {
                name: Arc::clone(name),
                thread: u32::try_from(number(record, 4, 4)?)?,
                bytes: number(record, 8, 8)?,
                at: Duration::from_nanos(number(record, 16, 8)?),
            })
        };
        let written = bytes(RECORDS_AT, records * RECORD_BYTES)?;
        // A process that is killed, or that still runs, may have taken the place of a record and not yet filled it.
        let filled = written.chunks(RECORD_BYTES).filter(|record| record.iter().any(|byte| *byte != 0));
        Ok(Self { process: u32::try_from(process)?, entries: filled.map(entry).collect::<Result<_>>()? })
    }
}

fn count(entries: &[LogEntry]) -> Counters {
    let mut counters = Counters::default();
    for entry in entries {
        // A name that is not understood is a defect of the double.
        if let Err(error) = counters.add(entry) {
            counters.unknown.push(error.to_string());
        }
    }
    counters
}

fn number(bytes: &[u8], at: usize, length: usize) -> Result<u64> {
    let bytes = bytes.get(at..at + length).context("a log that is too short")?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

pub(super) fn in_folder(folder: &Path) -> Result<Vec<DoubleLog>> {
    // No process has opened the double yet.
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut logs = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let log = DoubleLog::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let began = path.to_string_lossy().rsplit_once('-').and_then(|(_, number)| number.parse::<u64>().ok());
        logs.push((began, log));
    }
    logs.sort_by_key(|(began, _)| *began);
    Ok(logs.into_iter().map(|(_, log)| log).collect())
}
