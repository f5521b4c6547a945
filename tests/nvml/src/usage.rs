//! What real processes hold of the scripted devices: what the double of the CUDA runtime (tests/cuda) allocated for them, or
//! what a stand-in for another program registers for itself. A file per process in the folder `<script>.cuda`, which counts
//! as long as the process lives.
//!
//! ```text
//! 8123456                                          when the process started, as proc(5) counts
//! GPU-11111111-2222-3333-4444-555555555555 2097152     a device and the bytes that the process holds there
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::script::{Script, ScriptedDevice, ScriptedProcess, unix_millis};
use crate::world::{self, ScriptedMemory};
use crate::{observed, procfs};

/// Registers what this process holds of one device, in place of what it held before; 0: nothing. `false`: the device has no
/// room for it, and nothing has changed.
///
/// # Errors
/// If the script cannot be read, has no such device, or the registration cannot be written.
pub fn hold_memory(script: &Path, device_uuid: &str, bytes: u64) -> io::Result<bool> {
    let folder = folder(script);
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;

    let pid = std::process::id();
    if bytes > free_bytes_without(pid, script, device_uuid)? {
        return Ok(false);
    }

    let started = procfs::started(pid).ok_or_else(|| io::Error::other("this process is not in /proc"))?;
    fs::write(folder.join(pid.to_string()), format!("{started}\n{device_uuid} {bytes}\n"))?;
    Ok(true)
}

/// What is used of one device, as NVML would tell it.
///
/// # Errors
/// If the script cannot be read or has no such device.
pub fn used_bytes(script: &Path, device_uuid: &str) -> io::Result<u64> {
    let folder = folder(script);
    // Without it no process has registered anything.
    let lock = File::open(folder.join("lock")).ok();
    if let Some(lock) = &lock {
        flock(lock, FlockOperation::LockShared)?;
    }
    Ok(memory_with(&registered(&folder), script, device_uuid)?.used)
}

/// What would be free if this process held nothing. The lock is held.
fn free_bytes_without(pid: u32, script: &Path, device_uuid: &str) -> io::Result<u64> {
    let all = registered(&folder(script)).into_iter();
    let others: Vec<UsageCommand> = all.filter(|usage| usage.process.pid != pid).collect();
    Ok(memory_with(&others, script, device_uuid)?.free)
}

fn memory_with(usages: &[UsageCommand], script: &Path, device_uuid: &str) -> io::Result<ScriptedMemory> {
    let parsed: Script = serde_json::from_slice(&fs::read(script)?)?;
    let found = world::by_uuid(&parsed, device_uuid).and_then(|place| world::device(&parsed, place));
    let mut device =
        found.cloned().ok_or_else(|| io::Error::other(format!("no device {device_uuid} in the script")))?;
    extend(&mut device, usages);
    let now = unix_millis();
    Ok(world::memory(&device, &observed::holders(&parsed, script, now), now))
}

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
    registered(&folder)
}

/// The lock is held.
fn registered(folder: &Path) -> Vec<UsageCommand> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| of_process(pid, folder)).flatten().collect()
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
