//! The parts of a process of this program that are not the sidecar itself. Code between fork and exec is `unsafe` in
//! Rust, so the program executes itself instead, and does as a normal program what must be done before an app begins.
//!
//! ```text
//! init (only as PID 1) -> sidecar -> keeper -> launcher, which becomes the app's main process by exec
//! ```

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal, setsid};

use super::cgroup::AppCgroup;
use super::{init, keeper};

/// The hidden subcommand: `spawn-app -- COMMAND` is a keeper, and with the options below it is a launcher.
pub(super) const SUBCOMMAND: &str = "spawn-app";
const KEEPER_OPTION: &str = "--keeper";
const CGROUP_OPTION: &str = "--cgroup";
const COMMAND_FOLLOWS: &str = "--";

/// If this process is to be something else than the sidecar, does that and returns its exit code. Must be called first
/// in `main`, before threads and log.
pub fn run_hidden_role() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next().as_deref() == Some(OsStr::new(SUBCOMMAND)) {
        return Some(match HiddenRole::parse(arguments) {
            Some(HiddenRole::Keeper { command }) => keeper::run(&command),
            Some(HiddenRole::Launcher { keeper, cgroup, command }) => launch(keeper, cgroup, &command),
            None => {
                hush_log::errorln!("`{SUBCOMMAND}` is for the sidecar itself");
                ExitCode::from(2)
            }
        });
    }
    (getpid() == Pid::INIT).then(init::run)
}

#[derive(Debug, PartialEq, Eq)]
enum HiddenRole {
    Keeper { command: Vec<OsString> },
    Launcher { keeper: i32, cgroup: Option<OsString>, command: Vec<OsString> },
}

impl HiddenRole {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let (mut keeper, mut cgroup) = (None, None);
        loop {
            let option = arguments.next()?;
            match option.to_str()? {
                KEEPER_OPTION => keeper = Some(arguments.next()?.to_str()?.parse().ok()?),
                CGROUP_OPTION => cgroup = Some(arguments.next()?),
                COMMAND_FOLLOWS => break,
                _ => return None,
            }
        }

        let command: Vec<OsString> = arguments.collect();
        match keeper {
            _ if command.is_empty() => None,
            Some(keeper) => Some(Self::Launcher { keeper, cgroup, command }),
            None => Some(Self::Keeper { command }),
        }
    }
}

/// The arguments with which this program becomes a keeper.
pub(super) fn keeper_arguments(command: &[OsString]) -> Vec<OsString> {
    let mut arguments = vec![SUBCOMMAND.into(), COMMAND_FOLLOWS.into()];
    arguments.extend_from_slice(command);
    arguments
}

/// The arguments with which this program becomes the launcher of a keeper.
pub(super) fn launcher_arguments(cgroup: Option<&Path>, command: &[OsString]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![SUBCOMMAND.into(), KEEPER_OPTION.into(), getpid().to_string().into()];
    if let Some(cgroup) = cgroup {
        arguments.extend([CGROUP_OPTION.into(), cgroup.into()]);
    }
    arguments.push(COMMAND_FOLLOWS.into());
    arguments.extend_from_slice(command);
    arguments
}

/// Becomes the app's main process. Standard input is a socket to the keeper: a text on it says why the program could not
/// be executed, and its end without a text means that the program runs.
fn launch(keeper: i32, cgroup: Option<OsString>, command: &[OsString]) -> ExitCode {
    // The clone is closed by a successful exec, which replaces standard input itself.
    let keeper_socket = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);

    let error = become_app(keeper, cgroup, command);
    let message = launch_failure(command, &error);
    let told = keeper_socket.and_then(|mut socket| socket.write_all(message.as_bytes()));
    if told.is_err() {
        hush_log::errorln!("{message}");
    }
    ExitCode::from(127)
}

/// Returns only with the error that prevented the exec.
fn become_app(keeper: i32, cgroup: Option<OsString>, command: &[OsString]) -> io::Error {
    // The keeper ends the app before itself. This is for a keeper that is killed.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    if getppid().map(Pid::as_raw_pid) != Some(keeper) {
        return io::Error::other("the keeper of the app has ended");
    }

    // A session and a group of its own: no terminal, and one signal reaches all that do not leave the group.
    if let Err(error) = setsid() {
        return error.into();
    }
    if let Some(folder) = cgroup {
        // Without the right to move itself the process stays where it is, which the keeper sees.
        let _ = AppCgroup::at(folder).join();
    }

    close_on_exec();
    match command.split_first() {
        Some((program, arguments)) => Command::new(program).args(arguments).stdin(Stdio::null()).exec(),
        None => io::Error::from(io::ErrorKind::InvalidInput),
    }
}

/// Why a program could not be executed, with what helps.
fn launch_failure(command: &[OsString], error: &io::Error) -> String {
    let program = command.first().map(OsString::as_os_str).unwrap_or_default();
    let has_folder = Path::new(program).components().count() > 1;
    let hint = match error.kind() {
        io::ErrorKind::NotFound if has_folder && fs::exists(program).unwrap_or_default() => {
            ": the interpreter that its first line names, or its loader, is missing"
        }
        io::ErrorKind::NotFound if !has_folder => ": there is no such program in `PATH`",
        io::ErrorKind::PermissionDenied if has_folder => ": the file is not executable, or is a folder",
        io::ErrorKind::PermissionDenied => {
            ": the only such file in `PATH` is not executable, or a folder of `PATH` may not be read"
        }
        _ => "",
    };

    let program = hush_log::printable(&program.to_string_lossy(), 200);
    format!("`{program}` could not be started: {error}{hint}")
}

/// Marks all descriptors after the standard streams as close-on-exec: what a library opened without the mark, or what
/// this program itself inherited. A kernel before Linux 5.11 does not know the call; files of this program have the mark.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
fn close_on_exec() {
    const AFTER_STANDARD_STREAMS: libc::c_uint = 3;
    // SAFETY: the arguments are numbers, and no descriptor is closed before exec.
    unsafe {
        libc::syscall(libc::SYS_close_range, AFTER_STANDARD_STREAMS, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: Vec<OsString>) -> Option<HiddenRole> {
        HiddenRole::parse(arguments.into_iter().skip(1))
    }

    #[test]
    fn arguments_are_read_as_they_are_written() {
        let command = [OsString::from("sh"), OsString::from("-c"), OsString::from("--keeper")];
        assert_eq!(parse(keeper_arguments(&command)), Some(HiddenRole::Keeper { command: command.to_vec() }));

        let keeper = getpid().as_raw_pid();
        let launcher = HiddenRole::Launcher { keeper, cgroup: Some("/c".into()), command: command.to_vec() };
        assert_eq!(parse(launcher_arguments(Some(Path::new("/c")), &command)), Some(launcher));
    }

    #[test]
    fn what_the_sidecar_did_not_write_is_refused() {
        assert_eq!(parse(vec!["spawn-app".into()]), None);
        assert_eq!(parse(vec!["spawn-app".into(), "--".into()]), None);
        assert_eq!(parse(vec!["spawn-app".into(), "sh".into()]), None);
        assert_eq!(parse(vec!["spawn-app".into(), "--keeper".into(), "x".into(), "--".into(), "sh".into()]), None);
    }

    #[test]
    fn the_reason_for_a_failed_start_names_program_and_remedy() {
        let not_found = io::Error::from_raw_os_error(2);
        let message = launch_failure(&["no-such-server".into()], &not_found);
        assert!(message.starts_with("`no-such-server` could not be started"), "{message}");
        assert!(message.contains("PATH"), "{message}");

        let denied = launch_failure(&["/etc/passwd".into()], &io::Error::from_raw_os_error(13));
        assert!(denied.contains("not executable"), "{denied}");
    }
}
