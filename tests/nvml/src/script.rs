//! What a test writes: devices, who holds their memory, and what goes wrong.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::NvmlCode;

/// Names the script's file to the double. Unset: there is no driver.
pub const SCRIPT_VARIABLE: &str = "HUSH_NVML_SCRIPT";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    pub driver_version: String,
    /// `13000` is CUDA 13.0.
    pub cuda_version: i32,
    /// Grows when the driver is loaded anew: sessions that were initialised before that get `uninitialized`.
    pub epoch: u64,
    /// What a function returns instead of working, by its full name (`nvmlDeviceGetMemoryInfo_v2`); `*` is every one.
    pub errors: BTreeMap<String, NvmlCode>,
    /// How long a function takes, likewise.
    pub delays_ms: BTreeMap<String, u64>,
    pub devices: Vec<ScriptedDevice>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            driver_version: "580.95.05".to_owned(),
            cuda_version: 13000,
            epoch: 0,
            errors: BTreeMap::new(),
            delays_ms: BTreeMap::new(),
            devices: Vec::new(),
        }
    }
}

/// A GPU, or a MIG instance of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScriptedDevice {
    pub uuid: String,
    pub name: String,
    pub compute_capability: [i32; 2],
    pub total_bytes: u64,
    /// By the driver and its firmware: neither used nor free.
    pub reserved_bytes: u64,
    /// Held by whom no list names.
    pub used_bytes: u64,
    /// Later values of `used_bytes`.
    pub changes: Vec<ScriptedChange>,
    pub processes: Vec<ScriptedProcess>,
    pub guests: Vec<ProcessMemory>,
    pub process_list: ProcessList,
    /// As [`Script::errors`], for calls that name this device.
    pub errors: BTreeMap<String, NvmlCode>,
    /// Fallen off the bus: every call that names it is `gpu_is_lost`.
    pub lost: bool,
    /// MIG is on when there is any.
    pub mig: Vec<Self>,
}

impl Default for ScriptedDevice {
    fn default() -> Self {
        Self {
            uuid: "GPU-00000000-0000-0000-0000-000000000000".to_owned(),
            name: "Scripted GPU".to_owned(),
            compute_capability: [8, 9],
            total_bytes: 8 << 30,
            reserved_bytes: 0,
            used_bytes: 0,
            changes: Vec::new(),
            processes: Vec::new(),
            guests: Vec::new(),
            process_list: ProcessList::default(),
            errors: BTreeMap::new(),
            lost: false,
            mig: Vec::new(),
        }
    }
}

impl ScriptedDevice {
    pub fn new(uuid: &str, total_bytes: u64) -> Self {
        Self { uuid: uuid.to_owned(), total_bytes, ..Self::default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptedChange {
    /// Milliseconds since 1970, see [`unix_millis`].
    pub at_unix_ms: u64,
    pub used_bytes: u64,
}

/// A process of another program, alive as long as the script says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptedProcess {
    pub pid: u32,
    pub bytes: u64,
    #[serde(default)]
    pub graphics: bool,
}

/// Memory that follows the life of real processes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessMemory {
    /// `/proc/PID/comm` of the processes that hold memory; there may be several, each with its own.
    pub process: String,
    /// Only children of this process.
    pub parent_pid: Option<u32>,
    /// Only while a file whose path holds this is mapped: a process that has not loaded its model holds nothing.
    pub mapped: Option<String>,
    pub bytes: u64,
    /// How long the memory outlives its process.
    pub release_ms: u64,
    /// How much of it never comes back.
    pub residue_bytes: u64,
    /// Who takes memory at the moment that such a process dies.
    pub taker: Option<MemoryTaker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryTaker {
    pub pid: u32,
    pub bytes: u64,
}

/// What the lists of running processes tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessList {
    #[default]
    Pids,
    /// As in a container: the numbers are those of another namespace.
    HostPids,
    /// Who is there, not how much each holds.
    WithoutMemory,
    NotSupported,
}

impl Script {
    pub fn of(devices: impl IntoIterator<Item = ScriptedDevice>) -> Self {
        Self { devices: devices.into_iter().collect(), ..Self::default() }
    }

    /// Replaces the file at once: no reader ever sees half of it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.persist(path)?;
        Ok(())
    }
}

/// Now, as [`ScriptedChange`] counts.
pub fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The double as a file, for a program that runs in the same build folder as the double: a test, or a demonstration.
pub fn library() -> io::Result<PathBuf> {
    let program = env::current_exe()?;
    let folders = program.ancestors().skip(1).take(2);
    let places = folders.flat_map(|folder| [folder.join("libhush_nvml.so"), folder.join("deps/libhush_nvml.so")]);
    let found = places.into_iter().find(|path| path.is_file());
    found.ok_or_else(|| io::Error::other("libhush_nvml.so is missing: run `cargo build -p hush-nvml` first"))
}
