//! What a test writes for the double of the CUDA runtime; the devices are in the script of NVML that it names.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use tempfile::NamedTempFile;

/// CUDA's errors that tests script.
pub const DEVICES_UNAVAILABLE: i32 = 46;
pub const ECC_UNCORRECTABLE: i32 = 214;
pub const LAUNCH_FAILURE: i32 = 719;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaScript {
    /// The script of NVML.
    pub gpus: PathBuf,
    /// What `cuInit` returns; 0 is success.
    pub init_error: i32,
    /// What the context of a process takes on a device.
    pub context_bytes: u64,
    /// More than this, context apart, a process cannot allocate on a device.
    pub allocation_limit_bytes: Option<u64>,
    /// Kernels that a process may still launch from the moment at which it reads this; then its device is lost.
    pub launches_before_failure: Option<u64>,
    /// The error of a device that is lost.
    pub failure: i32,
    /// How fast each stream copies between host and device; `None`: copies take no time.
    pub copy_bytes_per_second: Option<u64>,
    /// `false`: kernels are counted and do nothing.
    pub compute: bool,
    /// What new device memory holds; `None`: zeros.
    pub fresh_memory_byte: Option<u8>,
}

impl CudaScript {
    pub fn new(gpus: &Path) -> Self {
        Self {
            gpus: gpus.to_owned(),
            init_error: 0,
            context_bytes: 0,
            allocation_limit_bytes: None,
            launches_before_failure: None,
            failure: LAUNCH_FAILURE,
            copy_bytes_per_second: None,
            compute: true,
            // Real memory holds what was there before; 0xff is not a number in every floating-point type.
            fresh_memory_byte: Some(0xff),
        }
    }

    /// Replaces the file at once: no reader sees half of it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut script = json!({
            "gpus": self.gpus,
            "init_error": self.init_error,
            "context_bytes": self.context_bytes,
            "failure": self.failure,
            "compute": self.compute,
        });
        let optional = [
            ("allocation_limit_bytes", self.allocation_limit_bytes),
            ("launches_before_failure", self.launches_before_failure),
            ("copy_bytes_per_second", self.copy_bytes_per_second),
            ("fresh_memory_byte", self.fresh_memory_byte.map(u64::from)),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                script[name] = value.into();
            }
        }

        let mut file = NamedTempFile::new_in(path.parent().context("a script without a folder")?)?;
        file.write_all(&serde_json::to_vec_pretty(&script)?)?;
        file.persist(path)?;
        Ok(())
    }
}
