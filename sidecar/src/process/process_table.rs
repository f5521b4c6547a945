//! The processes of this machine as `/proc` lists them, and which of them belong to an app.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;

use procfs::process::{Process, all_processes};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::messages::ProcessName;

/// A process at the time when `/proc` was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProcessEntry {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) session: i32,
    /// In clock ticks since the start of the machine. Together with the process id it names one process for ever.
    pub(super) start_ticks: u64,
    /// The process has ended and was not reaped yet. A process whose first thread alone has ended is none.
    pub(super) is_zombie: bool,
    pub(super) name: String,
}

impl ProcessEntry {
    fn read(process: &Process) -> Option<Self> {
        let stat = process.stat().ok()?;
        Some(Self {
            pid: stat.pid,
            parent: stat.ppid,
            session: stat.session,
            start_ticks: stat.starttime,
            is_zombie: matches!(stat.state, 'Z' | 'X' | 'x') && stat.num_threads <= 1,
            name: stat.comm,
        })
    }

    pub(super) fn process_name(&self) -> ProcessName {
        ProcessName { pid: self.pid.unsigned_abs(), name: self.name.clone() }
    }

    /// Sends a signal to this process and to no later one with the same process id.
    ///
    /// # Errors
    /// If the process may not be signalled. That it has ended is no error.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };

        let sent = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) if self.is_still_there() => pidfd_send_signal(pidfd, signal),
            Ok(_) | Err(Errno::SRCH) => return Ok(()),
            // A sandbox may not have the call.
            Err(_) if self.is_still_there() => kill_process(pid, signal),
            Err(_) => return Ok(()),
        };
        match sent {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn is_still_there(&self) -> bool {
        let found = Process::new(self.pid).ok().and_then(|process| Self::read(&process));
        found.is_some_and(|found| found.start_ticks == self.start_ticks)
    }
}

/// All processes that this one may see. Processes that end meanwhile are left out.
pub(super) fn read_processes() -> Vec<ProcessEntry> {
    let processes = all_processes().into_iter().flatten().flatten();
    processes.filter_map(|process| ProcessEntry::read(&process)).collect()
}

/// The processes below `root`, without `root` itself: parents before their children.
pub(super) fn descendants(processes: &[ProcessEntry], root: i32) -> Vec<ProcessEntry> {
    let mut children: HashMap<i32, Vec<&ProcessEntry>> = HashMap::new();
    for process in processes {
        children.entry(process.parent).or_default().push(process);
    }

    let mut found: Vec<ProcessEntry> = Vec::new();
    let mut seen = HashSet::from([root]);
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            // The table is no snapshot: a process id that was given twice meanwhile could make a circle.
            if seen.insert(child.pid) {
                found.push((*child).clone());
                parents.push(child.pid);
            }
        }
    }
    found
}

/// Those of `processes` that were started with this variable, as `NAME=VALUE`. It is inherited, so that it marks all
/// processes of an app but those that were given another environment.
pub(super) fn marked(processes: &[ProcessEntry], variable: &OsStr) -> Vec<ProcessEntry> {
    let is_marked = |process: &&ProcessEntry| {
        let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|assignment| assignment == variable.as_bytes())
    };
    processes.iter().filter(is_marked).cloned().collect()
}

/// Those of `processes` that belong to an app whose keeper is gone: the ones that were `known`, those of their sessions,
/// and what is below them. Oldest first.
pub(super) fn remaining(processes: &[ProcessEntry], known: &[ProcessEntry]) -> Vec<ProcessEntry> {
    let identities: HashSet<(i32, u64)> = known.iter().map(|process| (process.pid, process.start_ticks)).collect();
    let own_pid = std::process::id();
    let own_session = processes.iter().find(|process| process.pid.unsigned_abs() == own_pid).map(|own| own.session);
    // A session has the process id of its first process, which was one of the app's own. It is 0 where that process is
    // outside of this process id namespace, as it may be in a container.
    let sessions: HashSet<i32> = known
        .iter()
        .map(|process| process.session)
        .filter(|session| *session > 0 && Some(*session) != own_session)
        .collect();
    let is_known = |process: &ProcessEntry| {
        identities.contains(&(process.pid, process.start_ticks)) || sessions.contains(&process.session)
    };

    let roots: Vec<&ProcessEntry> = processes.iter().filter(|process| is_known(process)).collect();
    let mut found: Vec<ProcessEntry> = Vec::new();
    for root in roots {
        let below = descendants(processes, root.pid);
        for process in std::iter::once(root.clone()).chain(below) {
            if !process.is_zombie && !found.iter().any(|other| other.pid == process.pid) {
                found.push(process);
            }
        }
    }
    found.sort_by_key(|process| (process.start_ticks, process.pid));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, session: i32) -> ProcessEntry {
        let start_ticks = pid.unsigned_abs().into();
        ProcessEntry { pid, parent, session, start_ticks, is_zombie: false, name: format!("p{pid}") }
    }

    fn pids(processes: &[ProcessEntry]) -> Vec<i32> {
        let mut pids: Vec<i32> = processes.iter().map(|process| process.pid).collect();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn children_of_children_belong_to_the_app_whatever_their_session() {
        let table = [
            process(1, 0, 1),
            process(10, 1, 10),
            process(11, 10, 11),
            process(12, 11, 12),
            process(13, 10, 13),
            process(20, 1, 20),
        ];
        assert_eq!(pids(&descendants(&table, 10)), [11, 12, 13]);
        assert_eq!(pids(&descendants(&table, 20)), [0i32; 0]);
    }

    #[test]
    fn a_circle_of_parents_ends() {
        let table = [process(2, 3, 2), process(3, 2, 2)];
        assert_eq!(pids(&descendants(&table, 2)), [3]);
    }

    #[test]
    fn without_a_keeper_the_app_is_what_was_known_its_sessions_and_what_is_below() {
        let known = [process(11, 10, 900_011), process(12, 11, 900_012)];
        let mut reused = process(12, 1, 900_500);
        reused.start_ticks = 77;
        let table = [
            process(11, 1, 900_011),
            reused,
            process(13, 11, 900_013),
            // Forked by 12 after the last look at the table.
            process(14, 1, 900_012),
            process(30, 1, 900_030),
        ];
        assert_eq!(pids(&remaining(&table, &known)), [11, 13, 14]);
    }

    #[test]
    fn neither_the_own_session_nor_one_outside_of_the_namespace_belongs_to_the_app() {
        let own_pid = std::process::id().cast_signed();
        let own_session = 900_001;
        for session in [own_session, 0] {
            let known = [process(11, own_pid, session)];
            let table = [
                process(own_pid, 1, own_session),
                process(11, own_pid, session),
                process(12, 11, session),
                process(13, 1, session),
            ];
            assert_eq!(pids(&remaining(&table, &known)), [11, 12], "session {session}");
        }
    }

    #[test]
    fn this_process_finds_itself() {
        let own = std::process::id();
        assert!(read_processes().iter().any(|process| process.pid.unsigned_abs() == own && !process.is_zombie));
    }
}
