//! Writes results to standard output.

use std::fmt;
use std::io::{self, Write};
use std::process;

/// Writes a result; see [`crate::outln`]. A reader that stops reading (`| head`) ends the program silently and with success; any
/// other failure, such as a full disk, is reported, and the exit status is 1.
pub fn print_result(text: fmt::Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_fmt(text).and_then(|()| stdout.flush());
    let Err(error) = written else { return };
    if error.kind() == io::ErrorKind::BrokenPipe {
        process::exit(0);
    }
    crate::errorln!("error: standard output: {error}");
    process::exit(1);
}
