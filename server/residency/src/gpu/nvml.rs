//! NVML's answers as plain data. Only the sampler's thread calls NVML, because a call may take as long as the driver likes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Instant;

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;

use super::reading::{GpuDevice, GpuMemory};

/// Where drivers install the library, after the name that the loader finds by itself.
const LIBRARY_NAMES: &[&str] = &[
    "libnvidia-ml.so.1",
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib64/libnvidia-ml.so.1",
    "/usr/local/nvidia/lib64/libnvidia-ml.so.1",
    "/run/opengl-driver/lib/libnvidia-ml.so.1",
];

/// Why NVML gives no figures.
#[derive(Debug, thiserror::Error)]
pub enum NvmlFault {
    #[error("no library to open")]
    NoLibrary,
    #[error("NVML is not open")]
    NotOpen,
    /// The last attempt failed for this reason, and the next is not due yet.
    #[error("{0}")]
    NotRetriedYet(String),
    #[error("{}", describe(.0))]
    Nvml(NvmlError),
}

impl From<NvmlError> for NvmlFault {
    fn from(error: NvmlError) -> Self {
        Self::Nvml(error)
    }
}

/// An initialised NVML. Its drop shuts NVML down.
pub struct NvmlDriver {
    nvml: Nvml,
    version: String,
}

/// A device that did not answer.
pub struct SilentDevice {
    pub index: u32,
    pub cause: String,
}

impl NvmlDriver {
    /// `library`: the only file to try; `None`: the usual names.
    pub fn open(library: Option<&Path>) -> Result<Self, NvmlFault> {
        let names: Vec<&OsStr> = match library {
            Some(path) => vec![path.as_os_str()],
            None => LIBRARY_NAMES.iter().map(|name| OsStr::new(*name)).collect(),
        };

        let mut first_fault = None;
        for name in names {
            match Nvml::builder().lib_path(name).init() {
                Ok(nvml) => {
                    let version = nvml.sys_driver_version()?;
                    return Ok(Self { nvml, version });
                }
                Err(error @ NvmlError::LibloadingError(_)) => {
                    first_fault.get_or_insert(NvmlFault::Nvml(error));
                }
                // The library is there and does not work: another copy of it would not either.
                Err(error) => return Err(error.into()),
            }
        }
        Err(first_fault.unwrap_or(NvmlFault::NoLibrary))
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// Each GPU, or its instances. After an error NVML has to be initialised again.
    pub fn read(&self) -> Result<Vec<Result<GpuDevice, SilentDevice>>, NvmlFault> {
        let count = self.nvml.device_count()?;

        let mut devices = Vec::new();
        for index in 0..count {
            match self.read_gpu(index) {
                Ok(read) => devices.extend(read.into_iter().map(Ok)),
                Err(NvmlError::Uninitialized) => return Err(NvmlError::Uninitialized.into()),
                Err(error) => devices.push(Err(SilentDevice { index, cause: describe(&error) })),
            }
        }
        Ok(devices)
    }

    fn read_gpu(&self, index: u32) -> Result<Vec<GpuDevice>, NvmlError> {
        let gpu = self.nvml.device_by_index(index)?;

        // Older drivers and smaller cards do not know the call.
        let is_split = gpu.mig_mode().is_ok_and(|mode| mode.current == 1);
        if !is_split {
            return Ok(vec![read_device(&gpu, index)?]);
        }

        let mut instances = Vec::new();
        for instance in 0..gpu.mig_device_count()? {
            match gpu.mig_device_by_index(instance) {
                Ok(instance) => instances.push(read_device(&instance, index)?),
                Err(NvmlError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(instances)
    }
}

fn read_device(device: &nvml_wrapper::Device<'_>, index: u32) -> Result<GpuDevice, NvmlError> {
    let memory = device.memory_info()?;
    // The list of processes is optional: it fails on some drivers that do tell the memory, which matters more.
    let processes = read_processes(device);

    Ok(GpuDevice {
        uuid: device.uuid()?,
        index,
        name: device.name()?,
        memory: GpuMemory {
            // The rest is the driver's own: no process will ever get it.
            total_bytes: memory.total.saturating_sub(memory.reserved),
            used_bytes: memory.used,
            free_bytes: memory.free,
        },
        processes,
        taken: Instant::now(),
        fault: None,
    })
}

/// `None`: the driver does not list the processes that compute, or lists them without what they hold. The processes that
/// draw are added where there is a list of them: an instance of MIG has none.
fn read_processes(device: &nvml_wrapper::Device<'_>) -> Option<BTreeMap<u32, u64>> {
    let mut processes = BTreeMap::new();

    for ProcessInfo { pid, used_gpu_memory, .. } in device.running_compute_processes().ok()? {
        let UsedGpuMemory::Used(bytes) = used_gpu_memory else { return None };
        processes.insert(pid, bytes);
    }

    for ProcessInfo { pid, used_gpu_memory, .. } in device.running_graphics_processes().unwrap_or_default() {
        let UsedGpuMemory::Used(bytes) = used_gpu_memory else { continue };
        // A process that computes and draws is in both lists with the same sum.
        let held = processes.entry(pid).or_insert(0);
        *held = bytes.max(*held);
    }

    Some(processes)
}

fn describe(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(cause) => format!("NVML could not be opened: {cause}"),
        NvmlError::DriverNotLoaded => "the NVIDIA driver is not loaded".to_owned(),
        NvmlError::LibRmVersionMismatch => {
            "the NVIDIA driver and its libraries are of different versions; load the driver anew".to_owned()
        }
        NvmlError::GpuLost => "the GPU has fallen off the bus or is not accessible".to_owned(),
        error => format!("NVML: {error}"),
    }
}
