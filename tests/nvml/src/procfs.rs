//! Which processes live, by name.

use std::fs;
use std::path::Path;

/// A process that cannot be mistaken for a later one with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveProcess {
    pub pid: u32,
    /// Clock ticks since boot.
    pub started: u64,
    pub parent: u32,
}

/// Living processes with this name, of one parent if it is given; a dead one that has not been reaped yet holds no memory.
pub fn named(name: &str, parent: Option<u32>) -> Vec<LiveProcess> {
    // The kernel keeps 15 bytes of a name.
    let name = name.get(..15).unwrap_or(name);
    let pids = parent.and_then(children).unwrap_or_else(|| numbers("/proc"));
    let is_child = |alive: &LiveProcess| parent.is_none_or(|parent| alive.parent == parent);
    pids.into_iter().filter_map(|pid| alive(pid, name)).filter(is_child).collect()
}

/// Without a look at every process of the machine: the double is asked many times a second. `None`: this kernel does not
/// tell (`CONFIG_PROC_CHILDREN`).
fn children(parent: u32) -> Option<Vec<u32>> {
    let mut children = Vec::new();
    for thread in numbers(&format!("/proc/{parent}/task")) {
        match fs::read_to_string(format!("/proc/{parent}/task/{thread}/children")) {
            Ok(pids) => children.extend(pids.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok())),
            // The thread has just ended.
            Err(_) if !Path::new(&format!("/proc/{parent}/task/{thread}")).exists() => {}
            Err(_) => return None,
        }
    }
    Some(children)
}

fn numbers(dir: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// When a living process started, in clock ticks since boot.
pub fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, tail) = stat.rsplit_once(')')?;
    Some(of_stat(pid, tail)?.started)
}

fn alive(pid: u32, name: &str) -> Option<LiveProcess> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    if head.split_once('(')?.1 != name {
        return None;
    }
    of_stat(pid, tail)
}

/// From what stands behind the name.
fn of_stat(pid: u32, tail: &str) -> Option<LiveProcess> {
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let [state, parent, ..] = fields[..] else { return None };
    // proc(5) counts from 1 and the name is its second: the start is its 22nd.
    let started = fields.get(19)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(LiveProcess { pid, started, parent: parent.parse().ok()? })
}

pub fn maps(pid: u32, part: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.lines().any(|line| line.contains(part)))
}
