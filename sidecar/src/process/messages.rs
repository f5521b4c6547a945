//! What the sidecar and the keeper of an app tell each other: lines of JSON on a socket.

use std::fmt;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

/// What the sidecar has the keeper do. The end of the socket means [`Self::Kill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeeperCommand {
    /// SIGTERM to the app's process group.
    TerminateGroup,
    /// SIGTERM to all processes of the app that are left, also to those outside of its group.
    TerminateRest,
    /// SIGKILL to every process of the app until none is left.
    Kill,
}

/// What the keeper reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeeperMessage {
    /// The app's program runs.
    Launched {
        main: u32,
        /// The folder of the app's own cgroup, where it has one.
        cgroup: Option<String>,
    },
    /// The app's program could not be executed.
    NotLaunched {
        cause: String,
    },
    MainExited(MainExit),
    /// The processes that are left although they were killed some seconds ago.
    Surviving {
        processes: Vec<ProcessName>,
    },
    /// No process of the app is left. The last message.
    AllGone,
}

/// How the main process of an app ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MainExit {
    Code(i32),
    Signal(i32),
}

impl fmt::Display for MainExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with exit status {code}"),
            Self::Signal(9) => f.write_str("was killed by SIGKILL (the kernel does so when memory is short)"),
            Self::Signal(number) => match signal_name(*number) {
                Some(name) => write!(f, "was killed by {name}"),
                None => write!(f, "was killed by signal {number}"),
            },
        }
    }
}

/// A process in log lines and errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessName {
    pub pid: u32,
    /// The short name that the kernel keeps, at most 15 bytes.
    pub name: String,
}

impl fmt::Display for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pid, hush_log::printable(&self.name, 32))
    }
}

fn signal_name(number: i32) -> Option<&'static str> {
    Some(match Signal::from_named_raw(number)? {
        Signal::HUP => "SIGHUP",
        Signal::INT => "SIGINT",
        Signal::QUIT => "SIGQUIT",
        Signal::ILL => "SIGILL",
        Signal::TRAP => "SIGTRAP",
        Signal::ABORT => "SIGABRT",
        Signal::BUS => "SIGBUS",
        Signal::FPE => "SIGFPE",
        Signal::USR1 => "SIGUSR1",
        Signal::SEGV => "SIGSEGV",
        Signal::USR2 => "SIGUSR2",
        Signal::PIPE => "SIGPIPE",
        Signal::ALARM => "SIGALRM",
        Signal::TERM => "SIGTERM",
        Signal::XCPU => "SIGXCPU",
        Signal::XFSZ => "SIGXFSZ",
        Signal::SYS => "SIGSYS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_told_with_the_name_of_its_signal() {
        assert_eq!(MainExit::Code(3).to_string(), "ended with exit status 3");
        assert_eq!(MainExit::Signal(11).to_string(), "was killed by SIGSEGV");
        assert_eq!(MainExit::Signal(9).to_string(), "was killed by SIGKILL (the kernel does so when memory is short)");
        assert_eq!(MainExit::Signal(40).to_string(), "was killed by signal 40");
    }
}
