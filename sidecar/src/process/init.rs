//! The first process of a container, if the sidecar is its entrypoint: the kernel gives it all orphans of the container,
//! and has no default action for its signals. It runs the sidecar as its child, passes signals on, and reaps whatever
//! ends, so that the sidecar itself reaps only what it started.

use std::io;
use std::process::{Command, ExitCode};
use std::{env, os::unix::process::CommandExt};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

/// Runs this program again as a child, with the same arguments, until it ends. The kernel then ends all other processes of
/// the container.
pub(super) fn run() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(run_sidecar())) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            hush_log::errorln!("the sidecar could not be started as a child of the container's first process: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run_sidecar() -> io::Result<u8> {
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut first_user_signal = signal(SignalKind::user_defined1())?;
    let mut second_user_signal = signal(SignalKind::user_defined2())?;
    let mut child_ended = signal(SignalKind::child())?;

    let sidecar = start_sidecar()?;
    loop {
        let passed_on = tokio::select! {
            _ = hang_up.recv() => Some(Signal::HUP),
            _ = interrupt.recv() => Some(Signal::INT),
            _ = quit.recv() => Some(Signal::QUIT),
            _ = terminate.recv() => Some(Signal::TERM),
            _ = first_user_signal.recv() => Some(Signal::USR1),
            _ = second_user_signal.recv() => Some(Signal::USR2),
            _ = child_ended.recv() => None,
        };
        if let Some(signal) = passed_on {
            // The sidecar is not reaped yet: its process id is its own.
            let _ = kill_process(sidecar, signal);
        }
        if let Some(code) = reap(sidecar)? {
            return Ok(code);
        }
    }
}

/// The sidecar gets a process group of its own, so that a terminal's signal does not reach it twice.
fn start_sidecar() -> io::Result<Pid> {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| "hush-sidecar".into());
    let child = Command::new("/proc/self/exe").arg0(name).args(arguments).process_group(0).spawn()?;
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| Errno::SRCH.into())
}

/// Reaps every process that has ended. Returns the exit code of the sidecar if it is among them.
fn reap(sidecar: Pid) -> io::Result<Option<u8>> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == sidecar => return Ok(Some(exit_code(status))),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// As shells say it: 128 and the number of the signal.
fn exit_code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code & 0xff).ok()).unwrap_or(1)
}
