//! Writes to standard error, which may be closed, full or stuck.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How long the first line waits for a reader that does not read. Later lines are dropped at once until the reader reads again,
/// so that a stuck reader costs this time only once.
const WRITE_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A pipe that is ready for writing takes this many bytes without waiting (POSIX: PIPE_BUF; Linux: 4096).
const PIECE_BYTES: usize = 4096;

static DROPPED_LINES: AtomicU64 = AtomicU64::new(0);
static IS_STUCK: AtomicBool = AtomicBool::new(false);
/// The last line was written in part, so the next one begins with a line feed.
static IS_TORN: AtomicBool = AtomicBool::new(false);

/// Number of log lines that could not be written, in this process and in those that [`count_dropped_lines`] reported.
pub fn dropped_lines() -> u64 {
    DROPPED_LINES.load(Ordering::Relaxed)
}

/// Adds the lines that another process (a runner) has dropped.
pub fn count_dropped_lines(lines: u64) {
    DROPPED_LINES.fetch_add(lines, Ordering::Relaxed);
}

/// The writer for `tracing_subscriber`: each write is one line, and none fails.
pub fn writer() -> LogWriter {
    LogWriter
}

/// Created by [`writer`].
#[derive(Clone, Copy, Debug)]
pub struct LogWriter;

impl io::Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write_or_drop(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a line; see [`crate::errorln`].
pub fn print_error_line(text: fmt::Arguments<'_>) {
    write_or_drop(format!("{text}\n").as_bytes());
}

/// Reports panics like log lines: a report that cannot be written is dropped. The report has the text of the standard library,
/// with a backtrace where RUST_BACKTRACE asks for one.
pub fn install_panic_hook() {
    panic::set_hook(Box::new(|panic| write_or_drop(panic_report(panic).as_bytes())));
}

fn panic_report(panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let mut report = format!("thread '{}' panicked", thread.name().unwrap_or("<unnamed>"));

    // Writing to a string does not fail.
    if let Some(location) = panic.location() {
        let _ = write!(report, " at {location}");
    }
    let _ = writeln!(report, ": {}", panic.payload_as_str().unwrap_or("no message"));

    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        let _ = writeln!(report, "{backtrace}");
    }
    report
}

fn write_or_drop(line: &[u8]) {
    // The lock keeps the lines of different threads apart.
    let stderr = io::stderr().lock();
    if !write_line(stderr.as_fd(), line) {
        DROPPED_LINES.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns whether the whole line was written.
fn write_line(file: BorrowedFd<'_>, line: &[u8]) -> bool {
    if IS_TORN.load(Ordering::Relaxed) {
        if write_all(file, b"\n") == 0 {
            return false;
        }
        IS_TORN.store(false, Ordering::Relaxed);
    }

    let written = write_all(file, line);
    IS_TORN.store(0 < written && written < line.len(), Ordering::Relaxed);
    written == line.len()
}

/// Returns the number of bytes that were written.
fn write_all(file: BorrowedFd<'_>, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        if !wait_until_writable(file) {
            return written;
        }

        let end = bytes.len().min(written + PIECE_BYTES);
        match rustix::io::write(file, &bytes[written..end]) {
            Ok(0) => return written,
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(_) => return written,
        }
    }
    written
}

/// Returns `true` also where the write then fails, because only the waiting matters.
fn wait_until_writable(file: BorrowedFd<'_>) -> bool {
    let timeout = if IS_STUCK.load(Ordering::Relaxed) { NO_WAIT } else { WRITE_TIMEOUT };
    let mut polled = [PollFd::from_borrowed_fd(file, PollFlags::OUT)];
    loop {
        match poll(&mut polled, Some(&timeout)) {
            Err(Errno::INTR) => {}
            // A file that cannot be polled is written to.
            Err(_) => return true,
            Ok(ready) => {
                IS_STUCK.store(ready == 0, Ordering::Relaxed);
                return ready > 0;
            }
        }
    }
}
