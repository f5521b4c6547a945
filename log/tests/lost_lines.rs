//! What happens to lines that standard error does not accept. Each case needs a standard error of its own, so the test runs itself
//! as a process with the name of the case in a variable.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

const CASE: &str = "HUSH_LOG_TEST_CASE";

/// Runs the process of a case. Returns the number of dropped lines, which it prints on standard output.
fn run(case: &str, stderr: Stdio) -> String {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "the_process_of_a_case", "--nocapture"])
        .env(CASE, case)
        .env_remove("RUST_BACKTRACE")
        .stdout(Stdio::piped())
        .stderr(stderr)
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();

    assert!(output.status.success(), "{case}: {}: {printed}", output.status);
    printed.lines().find_map(|line| line.split_once("dropped ")).map(|(_, rest)| rest.to_owned()).expect("no count")
}

/// The process of a case. As a test, without the variable, it does nothing.
#[test]
fn the_process_of_a_case() {
    let Ok(case) = env::var(CASE) else { return };
    match case.as_str() {
        "lines" => {
            for number in 0..3 {
                hush_log::errorln!("line {number}");
            }
        }
        "panic" => {
            hush_log::install_panic_hook();
            let ended = thread::Builder::new().name("worker".to_owned()).spawn(|| panic!("on purpose")).unwrap().join();
            assert!(ended.is_err());
        }
        "stuck" => {
            let began = Instant::now();
            for _ in 0..100 {
                hush_log::errorln!("a line");
            }
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        }
        "long" => hush_log::errorln!("{}", "x".repeat(100_000)),
        other => panic!("{other}"),
    }
    println!("dropped {}", hush_log::dropped_lines());
}

#[test]
fn a_full_disk_costs_lines() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(run("lines", full().into()), "3");
    assert_eq!(run("panic", full().into()), "1");
}

#[test]
fn a_reader_that_is_gone_costs_lines() {
    for case in ["lines", "panic"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);

        assert_ne!(run(case, writer.into()), "0", "{case}");
    }
}

#[test]
fn a_reader_that_is_stuck_costs_lines_and_hardly_any_time() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let capacity = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();

    writer.write_all(&vec![b'x'; capacity]).unwrap();
    assert_eq!(run("stuck", writer.into()), "100");
    drop(reader);
}

#[test]
fn no_line_is_lost_where_the_pipe_is_read() {
    let read = |case: &str| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let text = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(run(case, writer.into()), "0", "{case}");
        text.join().unwrap()
    };
    assert_eq!(read("lines"), "line 0\nline 1\nline 2\n");

    let report = read("panic");
    assert!(report.starts_with("thread 'worker' panicked at ") && report.ends_with(": on purpose\n"), "{report}");
    // The line is longer than a pipe holds.
    assert_eq!(read("long").len(), 100_001);
}
