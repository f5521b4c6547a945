//! Devices that models run on.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::{ValueError, expected, reads_from_text};
use crate::gpu::{CudaDevice, GpuRef};

/// What `--device` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA when the machine and the ONNX Runtime library both have it, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(CudaDevice),
}

impl DeviceChoice {
    /// `cuda` without a number or a UUID.
    pub const CUDA: Self = Self::Cuda(CudaDevice::Index(0));
}

impl FromStr for DeviceChoice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let gpu = match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => return Ok(Self::CUDA),
            _ => text.strip_prefix("cuda:").and_then(|gpu| GpuChoice::read(gpu).ok()),
        };

        match gpu {
            Some(GpuRef::Index(index)) => Ok(Self::Cuda(CudaDevice::Index(index))),
            Some(GpuRef::Uuid(uuid)) => Ok(Self::Cuda(CudaDevice::Uuid(uuid))),
            None => expected(
                "expected cpu, cuda, cuda:N (N is the number of the GPU, from 0), cuda:UUID (as `nvidia-smi -L` prints it) \
                 or auto",
            ),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => ComputeDevice::Cpu.fmt(f),
            Self::Cuda(gpu) => ComputeDevice::Cuda(*gpu).fmt(f),
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A GPU by its number or its UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuChoice(pub GpuRef);

impl GpuChoice {
    pub fn read(text: &str) -> Result<GpuRef, ValueError> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let index = text.parse().ok().filter(|_| is_number).map(GpuRef::Index);

        match index.or_else(|| text.parse().ok().map(GpuRef::Uuid)) {
            Some(gpu) => Ok(gpu),
            None => expected("expected the number of a GPU, from 0, or its UUID as `nvidia-smi -L` prints it"),
        }
    }
}

reads_from_text!(GpuChoice);

/// Where the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComputeDevice {
    Cpu,
    Cuda(CudaDevice),
}

impl fmt::Display for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(CudaDevice::Index(index)) => write!(f, "cuda:{index}"),
            Self::Cuda(CudaDevice::Uuid(uuid)) => write!(f, "cuda:{uuid}"),
        }
    }
}
