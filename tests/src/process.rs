//! What `/proc` says of a process.

use std::process::{Command, Output, Stdio};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_for;

/// Runs a command that is to end by itself, and ends it where it does not. For commands that say little.
pub fn output_within(command: &mut Command, deadline: Duration) -> Result<Output> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let waited = wait_for("the command ends", deadline, || Ok(child.try_wait()?));
    if waited.is_err() {
        // Fails only when it has ended after all.
        let _ = child.kill();
    }
    let output = child.wait_with_output()?;
    waited.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(output)
}

/// Process ids of the living children of `parent`, zombies included.
pub fn children(parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        // The process may be gone between the listing and the reading.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if stat_field(&stat, 1).and_then(|p| p.parse().ok()) == Some(parent) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// `R`, `S`, `Z`, `T`, ...; `None` when the process is gone.
pub fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat_field(&stat, 0)?.chars().next()
}

/// The n-th field after the command name, which is in parentheses and may hold spaces.
fn stat_field(stat: &str, n: usize) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(n)
}

/// Whether a file whose name holds `part` is mapped by the process.
pub fn maps(pid: u32, part: &str) -> Result<bool> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("reading the memory map")?;
    Ok(maps.lines().any(|line| line.contains(part)))
}

pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("VmRSS without a value")?.parse()?;
    Ok(kib * 1024)
}

/// Processor time that the process has used so far, in user and kernel.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = |n| stat_field(&stat, n).context("a short stat")?.parse::<u64>().context("no number in stat");
    // Linux tells them in hundredths of a second whatever its own clock is.
    Ok((ticks(11)? + ticks(12)?) as f64 / 100.0)
}

/// A process that is stopped stands still afterwards: its threads hear of it one after the other, and might still answer.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    kill_process(Pid::from_raw(i32::try_from(pid)?).context("process id 0")?, signal)?;
    while signal == Signal::STOP && !stands_still(pid) {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn stands_still(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z']))
    })
}
