//! Why CUDA cannot be used, and how to fix it.

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::PROVIDER;
use super::architectures::{Architectures, Capability};
use super::libraries::{DRIVER, MissingLibrary};
use crate::graph::Precision;

#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    #[error(
        "ONNX Runtime's CUDA part {} is missing; use the GPU build of ONNX Runtime (docs/gpu.md)", .0.display()
    )]
    NoProvider(PathBuf),
    #[error("{}: {cause}", path.display())]
    Provider { path: PathBuf, cause: io::Error },
    #[error(
        "CUDA's libraries are missing or cannot be loaded: {}; install them (docs/gpu.md) where the loader finds them, \
         put them beside {PROVIDER}, or name their folder in LD_LIBRARY_PATH{}",
        list(.missing), also_driver(.driver.as_deref())
    )]
    Libraries {
        missing: Vec<MissingLibrary>,
        /// Set if the driver cannot be loaded either.
        driver: Option<String>,
    },
    #[error(
        "no NVIDIA driver: {DRIVER} cannot be loaded ({0}); CUDA's libraries are there, but the driver is a package of its \
         own (nvidia-driver or nvidia-driver-NNN), and a container gets it from the host (NVIDIA_DRIVER_CAPABILITIES=\
         compute,utility and a GPU)"
    )]
    NoDriver(String),
    #[error("the NVIDIA driver refuses to start: {0}")]
    Driver(DriverError),
    #[error(
        "the NVIDIA driver is made for CUDA {}.{} and this ONNX Runtime for CUDA {needs}; install a newer driver",
        .has / 1000, .has % 1000 / 10
    )]
    OldDriver { has: c_int, needs: u32 },
    #[error("there is no GPU {index}: CUDA sees {count} (CUDA_VISIBLE_DEVICES may hide some)")]
    NoSuchGpu { index: c_int, count: c_int },
    #[error(
        "GPU {index} has compute capability {}.{}, for which this ONNX Runtime holds no code; it runs on {architectures} \
         (docs/gpu.md says which GPUs these are)",
        .has.0, .has.1
    )]
    Architecture { index: c_int, has: Capability, architectures: Architectures },
    #[error(
        "precision {0} does not run on CUDA, which takes fp16 only: use --precision fp16 (or auto), or --device cpu for {0}"
    )]
    Precision(Precision),
    #[error("a small attention graph does not run on GPU {index}: {cause}")]
    Graph { index: c_int, cause: String },
    #[error(
        "a small attention graph gives wrong numbers on GPU {index}: {found} where the CPU gives {expected}; \
         please report this with the name of the GPU and the version of its driver"
    )]
    Wrong { index: c_int, expected: f32, found: f32 },
}

fn list(missing: &[MissingLibrary]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn also_driver(driver: Option<&str>) -> String {
    driver.map_or_else(String::new, |cause| format!(". The NVIDIA driver is missing too ({cause})"))
}

/// An error of the driver, with its number in `cuda.h`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverError {
    pub code: u32,
    /// The driver's description; may be empty.
    pub text: String,
}

impl DriverError {
    fn advice(&self) -> Option<&'static str> {
        match self.code {
            100 => {
                Some("CUDA sees no GPU: look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, and give a container the GPU")
            }
            802 => Some("on machines with NVSwitch the fabric manager must run"),
            803 => Some("libcuda.so.1 and the kernel's module are of different versions: load the driver anew"),
            804 => Some("a forward-compatible libcuda.so.1 serves data centre GPUs only: use the driver's own"),
            _ => None,
        }
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.text.is_empty() {
            write!(f, "{} ", self.text)?;
        }
        write!(f, "(error {})", self.code)?;
        self.advice().map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}
