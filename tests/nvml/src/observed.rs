//! What the double remembers between calls and shares between processes: who held memory, and since when they are dead.

use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::procfs;
use crate::script::{ProcessMemory, Script};

/// A process that holds or held memory of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryHolder {
    pub device: String,
    pub pid: u32,
    started: u64,
    pub guest: ProcessMemory,
    pub died_unix_ms: Option<u64>,
}

impl MemoryHolder {
    pub fn bytes_at(&self, now: u64) -> u64 {
        match self.died_unix_ms {
            Some(died) if now.saturating_sub(died) >= self.guest.release_ms => self.guest.residue_bytes,
            _ => self.guest.bytes,
        }
    }
}

/// Looks who lives and who has died, and writes it down beside the script. Without guests there is nothing to remember.
pub fn holders(script: &Script, path: &Path, now: u64) -> Vec<MemoryHolder> {
    let devices = || script.devices.iter().flat_map(|device| std::iter::once(device).chain(&device.mig));
    if devices().all(|device| device.guests.is_empty()) {
        return Vec::new();
    }
    let beside = |extension: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(extension);
        name
    };
    let Ok(lock) = File::create(beside(".lock")) else { return Vec::new() };
    let _ = flock(&lock, FlockOperation::LockExclusive);
    let memory = beside(".holders");
    let before: Vec<MemoryHolder> =
        fs::read(&memory).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();

    let mut after = Vec::new();
    for device in devices() {
        for guest in &device.guests {
            for alive in procfs::named(&guest.process, guest.parent_pid) {
                if guest.mapped.as_ref().is_none_or(|part| procfs::maps(alive.pid, part)) {
                    after.push(MemoryHolder {
                        device: device.uuid.clone(),
                        pid: alive.pid,
                        started: alive.started,
                        guest: guest.clone(),
                        died_unix_ms: None,
                    });
                }
            }
        }
    }
    for mut old in before {
        let is =
            |other: &MemoryHolder| (other.pid, other.started, &other.device) == (old.pid, old.started, &old.device);
        if !after.iter().any(is) {
            old.died_unix_ms.get_or_insert(now);
            after.push(old);
        }
    }
    if let Ok(text) = serde_json::to_vec(&after) {
        // Readers hold the lock too.
        let _ = fs::write(&memory, text);
    }
    after
}
