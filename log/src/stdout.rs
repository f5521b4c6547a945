//! Standard output: what a command was called for.

use std::fmt;
use std::io::{self, Write};
use std::process;

/// See [`crate::outln`]. A reader that has seen enough (`| head`) ends the program in silence and with success, as the end
/// of its output is no fault; anything else that goes wrong, such as a full disk, is said, and the status is 1.
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
