//! NVML's answers as plain data. Only the sampler's thread comes here: any call may take as long as the driver likes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Instant;

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;

use super::view::{Device, Memory};

/// Where drivers put it, after the name that the loader finds by itself.
const NAMES: &[&str] = &[
    "libnvidia-ml.so.1",
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib64/libnvidia-ml.so.1",
    "/usr/local/nvidia/lib64/libnvidia-ml.so.1",
    "/run/opengl-driver/lib/libnvidia-ml.so.1",
];

/// An initialised NVML; shut down when it is dropped.
pub struct Driver {
    nvml: Nvml,
    version: String,
}

/// A device that did not answer.
pub struct Silent {
    pub index: u32,
    pub cause: String,
}

impl Driver {
    /// `library`: the only one to try.
    pub fn open(library: Option<&Path>) -> Result<Self, String> {
        let names: Vec<&OsStr> = match library {
            Some(path) => vec![path.as_os_str()],
            None => NAMES.iter().map(|name| OsStr::new(*name)).collect(),
        };
        let mut first = None;
        for name in names {
            match Nvml::builder().lib_path(name).init() {
                Ok(nvml) => {
                    let version = nvml.sys_driver_version().map_err(explain)?;
                    return Ok(Self { nvml, version });
                }
                Err(error @ NvmlError::LibloadingError(_)) => {
                    first.get_or_insert_with(|| explain(error));
                }
                // It is there and does not work: another copy would not either.
                Err(error) => return Err(explain(error)),
            }
        }
        Err(first.unwrap_or_else(|| "no library to open".to_owned()))
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// Each GPU, or its instances. The error is NVML's own: it has to be initialised again.
    pub fn read(&self) -> Result<Vec<Result<Device, Silent>>, String> {
        let count = self.nvml.device_count().map_err(explain)?;
        let mut devices = Vec::new();
        for index in 0..count {
            match self.read_gpu(index) {
                Ok(read) => devices.extend(read.into_iter().map(Ok)),
                Err(NvmlError::Uninitialized) => return Err(explain(NvmlError::Uninitialized)),
                Err(error) => devices.push(Err(Silent { index, cause: explain(error) })),
            }
        }
        Ok(devices)
    }

    fn read_gpu(&self, index: u32) -> Result<Vec<Device>, NvmlError> {
        let gpu = self.nvml.device_by_index(index)?;
        // Older drivers and smaller cards do not know the question.
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

fn read_device(device: &nvml_wrapper::Device<'_>, index: u32) -> Result<Device, NvmlError> {
    let memory = device.memory_info()?;
    // The process list first failed on some drivers while memory was told: memory is what matters.
    let processes = read_processes(device);
    Ok(Device {
        uuid: device.uuid()?,
        index,
        name: device.name()?,
        memory: Memory {
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

/// `None` when the list of processes that compute is not to be had, or names them without what they hold. The list of those
/// that draw is taken where there is one: an instance of MIG has none.
fn read_processes(device: &nvml_wrapper::Device<'_>) -> Option<BTreeMap<u32, u64>> {
    let mut processes = BTreeMap::new();
    for ProcessInfo { pid, used_gpu_memory, .. } in device.running_compute_processes().ok()? {
        let UsedGpuMemory::Used(bytes) = used_gpu_memory else { return None };
        processes.insert(pid, bytes);
    }
    for ProcessInfo { pid, used_gpu_memory, .. } in device.running_graphics_processes().unwrap_or_default() {
        let UsedGpuMemory::Used(bytes) = used_gpu_memory else { continue };
        // One that computes and draws is in both lists with the same sum.
        let held = processes.entry(pid).or_insert(0);
        *held = bytes.max(*held);
    }
    Some(processes)
}

fn explain(error: NvmlError) -> String {
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
