//! Which processes live, by name.

use std::fs;

/// A process that cannot be mistaken for a later one with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alive {
    pub pid: u32,
    /// Clock ticks since boot.
    pub started: u64,
    pub parent: u32,
}

/// Living processes with this name; a dead one that nobody has reaped yet holds no memory.
pub fn named(name: &str) -> Vec<Alive> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // The kernel keeps 15 bytes of a name.
    let name = name.get(..15).unwrap_or(name);
    pids.filter_map(|pid| alive(pid, name)).collect()
}

fn alive(pid: u32, name: &str) -> Option<Alive> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    if head.split_once('(')?.1 != name {
        return None;
    }
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let [state, parent, ..] = fields[..] else { return None };
    // proc(5) counts from 1 and the name is its second: the start is its 22nd.
    let started = fields.get(19)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(Alive { pid, started, parent: parent.parse().ok()? })
}

pub fn maps(pid: u32, part: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.lines().any(|line| line.contains(part)))
}
