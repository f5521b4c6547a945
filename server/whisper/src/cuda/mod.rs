//! The requirements of CUDA, and whether they are met. ONNX Runtime only reports that its CUDA provider could not be
//! loaded; this module finds the missing library, an old driver, or an unsupported GPU.
//!
//! | file | job |
//! |---|---|
//! | `elf` | reads names and sections of a library that is not loaded |
//! | `libraries` | opens the libraries beside the provider, and names the packages of missing ones |
//! | `driver` | version, number of GPUs, compute capability |
//! | `architectures` | the GPUs for which the provider contains code |
//! | `attention` | runs a small graph on the GPU and compares it with the CPU |
//! | `failure` | classifies failures on a GPU |
//! | `precision` | which precisions run on CUDA |

mod architectures;
mod attention;
mod driver;
mod elf;
mod error;
mod failure;
mod libraries;
mod precision;

use std::ffi::c_int;
use std::path::Path;

use architectures::ArchitectureSupport;
pub use architectures::{Architectures, Capability};
pub use attention::{Trial, try_attention, try_cuda};
use driver::CudaDriver;
pub use error::{CudaError, DriverError};
pub use failure::{is_device_lost, is_out_of_memory};
pub use libraries::MissingLibrary;
pub use precision::check_precision;

use crate::engine::EngineDevice;
use crate::graph::Precision;
use crate::runtime;

/// ONNX Runtime's CUDA provider, a file beside the library.
pub const PROVIDER: &str = "libonnxruntime_providers_cuda.so";
/// CUDA's default is to number the fastest GPU first; NVML, `nvidia-smi` and the option `cuda:1` use the order of the bus.
pub const ORDER_VARIABLE: &str = "CUDA_DEVICE_ORDER";
pub const ORDER: &str = "PCI_BUS_ID";

/// Facts about a working CUDA installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaFacts {
    /// The newest CUDA that the driver supports: `13000` is 13.0.
    pub driver: c_int,
    /// The CUDA version for which ONNX Runtime was built; `None` if unknown.
    pub runtime: Option<u32>,
    pub capability: Capability,
}

/// Checks whether ONNX Runtime at `ort_library` can use the GPU with CUDA's number `index`. Opens the libraries that the
/// CUDA provider needs, so that a session finds them whatever `LD_LIBRARY_PATH` is, and uses no memory of a GPU.
pub fn probe(ort_library: &Path, index: c_int) -> Result<CudaFacts, CudaError> {
    let provider = ort_library.with_file_name(PROVIDER);
    if !provider.exists() {
        return Err(CudaError::NoProvider(provider));
    }

    let unreadable = |cause| CudaError::Provider { path: provider.clone(), cause };
    let opened = libraries::open_all(&provider).map_err(unreadable)?;
    if !opened.missing.is_empty() {
        return Err(CudaError::Libraries { missing: opened.missing, driver: opened.driver });
    }

    if let Some(cause) = opened.driver {
        return Err(CudaError::NoDriver(cause));
    }

    let driver = CudaDriver::start()?;
    let has = driver.version()?;
    if let Some(needs) = opened.cuda.filter(|needs| c_int::try_from(*needs).is_ok_and(|needs| has / 1000 < needs)) {
        return Err(CudaError::OldDriver { has, needs });
    }

    let count = driver.count()?;
    if !(0..count).contains(&index) {
        return Err(CudaError::NoSuchGpu { index, count });
    }

    let capability = driver.capability(index)?;
    let library = elf::ElfLibrary::open(&provider).map_err(unreadable)?;

    match architectures::support(&library, capability).map_err(unreadable)? {
        ArchitectureSupport::Lacks(architectures) => {
            Err(CudaError::Architecture { index, has: capability, architectures })
        }
        ArchitectureSupport::Runs | ArchitectureSupport::Unknown => {
            Ok(CudaFacts { driver: has, runtime: opened.cuda, capability })
        }
    }
}

/// Checks what a model of this precision needs on `device`, with the ONNX Runtime that this process has loaded. If the
/// device is a GPU, the libraries of its provider are open afterwards.
pub fn prepare(device: EngineDevice, precision: Precision) -> Result<(), CudaError> {
    check_precision(device, precision)?;

    match (device, runtime::library()) {
        (EngineDevice::Cuda { index }, Ok(library)) => probe(&library, index).map(drop),
        // Loading the model reports that there is no ONNX Runtime.
        (EngineDevice::Cuda { .. }, Err(_)) | (EngineDevice::Cpu, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_for_cpus_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libonnxruntime.so");
        let error = probe(&library, 0).unwrap_err().to_string();
        assert!(error.contains(PROVIDER) && error.contains("docs/gpu.md"), "{error}");
        std::fs::write(folder.path().join(PROVIDER), "not a library").unwrap();
        assert!(matches!(probe(&library, 0), Err(CudaError::Provider { .. })));
    }

    #[test]
    fn each_missing_part_has_its_own_message() {
        let old = CudaError::OldDriver { has: 12040, needs: 13 }.to_string();
        assert!(old.contains("CUDA 12.4") && old.contains("CUDA 13"), "{old}");
        let none = CudaError::NoDriver("no such file".to_owned()).to_string();
        assert!(none.starts_with("no NVIDIA driver") && !none.contains("LD_LIBRARY_PATH"), "{none}");
        let refused = CudaError::Driver(DriverError { code: 100, text: "no device".to_owned() }).to_string();
        assert!(refused.contains("no device (error 100); CUDA sees no GPU"), "{refused}");
    }
}
