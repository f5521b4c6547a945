//! The output of Hush's programs: log lines and errors on standard error, results on standard output.
//!
//! A log line that cannot be written is dropped and counted, because the reader of a pipe may be gone or stuck and a
//! disk may be full; the program goes on. A result that cannot be written ends the program, because the result is its
//! only purpose.
//!
//! The crate also has the metrics of every program: its build, its process, and the dropped lines.

mod cause;
mod collector;
mod level;
mod printable;
mod process;
mod secret_file;
mod stderr;
mod stdout;

pub use cause::explain;
pub use collector::DroppedLines;
pub use level::{
    ActiveLogLevel, ChangeError, InvalidFilter, LONGEST_CHANGE, LogLevelChanges, LogSetup, change_log_level,
    check_filter, follow_log_level, init_log, log_level,
};
pub use printable::{is_printable, printable, printable_lines};
pub use process::register_program_metrics;
pub use secret_file::exposed_secret;
pub use stderr::{LogWriter, count_dropped_lines, dropped_lines, install_panic_hook, print_error_line, writer};
pub use stdout::print_result;

/// Like `eprintln!`, but a line that cannot be written is dropped without a panic.
#[macro_export]
macro_rules! errorln {
    ($($argument:tt)*) => { $crate::print_error_line(::std::format_args!($($argument)*)) };
}

/// Like `println!`, but the program ends without a panic when the line cannot be written.
#[macro_export]
macro_rules! outln {
    () => { $crate::print_result(::std::format_args!("\n")) };
    ($($argument:tt)*) => { $crate::print_result(::std::format_args!("{}\n", ::std::format_args!($($argument)*))) };
}

/// Like `print!`, but the program ends without a panic when the text cannot be written.
#[macro_export]
macro_rules! out {
    ($($argument:tt)*) => { $crate::print_result(::std::format_args!($($argument)*)) };
}
