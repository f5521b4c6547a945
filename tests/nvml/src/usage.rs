//! What the double of the CUDA runtime (tests/cuda) allocated for real processes: a file per process in the folder
//! `<script>.cuda`, which counts as long as the process lives.
//!
//! ```text
//! 8123456                                          when the process started, as proc(5) counts
//! GPU-11111111-2222-3333-4444-555555555555 2097152     a device and the bytes that the process holds there
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::procfs;
use crate::script::{ScriptedDevice, ScriptedProcess};

struct UsageCommand {
    device: String,
    process: ScriptedProcess,
}

/// Adds to a device, and to its instances, the processes that hold memory there now.
pub fn add_processes(device: &mut ScriptedDevice, script: &Path) {
    let usages = usages(script);
    if usages.is_empty() {
        return;
    }
    extend(device, &usages);
    for instance in &mut device.mig {
        extend(instance, &usages);
    }
}

fn extend(device: &mut ScriptedDevice, usages: &[UsageCommand]) {
    let here = usages.iter().filter(|usage| usage.device == device.uuid).map(|usage| usage.process);
    device.processes.extend(here);
}

fn folder(script: &Path) -> PathBuf {
    let mut name = script.as_os_str().to_owned();
    name.push(".cuda");
    name.into()
}

fn usages(script: &Path) -> Vec<UsageCommand> {
    let folder = folder(script);
    // Without it no process has used the double of CUDA.
    let Ok(lock) = File::open(folder.join("lock")) else { return Vec::new() };
    if flock(&lock, FlockOperation::LockShared).is_err() {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(&folder) else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| of_process(pid, &folder)).flatten().collect()
}

fn of_process(pid: u32, folder: &Path) -> Option<Vec<UsageCommand>> {
    let text = fs::read_to_string(folder.join(pid.to_string())).ok()?;
    let mut lines = text.lines();
    let started: u64 = lines.next()?.parse().ok()?;
    if procfs::started(pid) != Some(started) {
        return None;
    }
    let usage = |line: &str| {
        let (device, bytes) = line.split_once(' ')?;
        let process = ScriptedProcess { pid, bytes: bytes.parse().ok()?, graphics: false };
        Some(UsageCommand { device: device.to_owned(), process })
    };
    Some(lines.filter_map(usage).collect())
}
