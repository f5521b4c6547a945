//! The processes of an app that the sidecar did not start.

use super::port::PortListeners;
use super::process_table::{descendants, read_processes};

/// The processes that listen on a port of this machine, and their descendants; none where they are not visible, as those
/// of another container are. Blocks for some milliseconds.
pub fn app_processes(port: u16) -> Vec<u32> {
    let Ok(listeners) = PortListeners::find(port) else { return Vec::new() };
    if listeners.processes.is_empty() {
        return Vec::new();
    }

    let processes = read_processes();
    let mut pids: Vec<u32> = Vec::new();
    for listener in listeners.processes {
        let below = i32::try_from(listener.pid).map(|pid| descendants(&processes, pid)).unwrap_or_default();
        pids.push(listener.pid);
        pids.extend(below.iter().map(|process| process.pid.unsigned_abs()));
    }

    pids.dedup();
    pids
}
