//! How a process is bound to one GPU: the index and the variables that CUDA reads, and NVML's name for the same GPU.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use hush_whisper::cuda::ORDER_VARIABLE;

use crate::cli::env::Env;
use crate::cli::settings::SettingError;
use crate::cli::values::ComputeDevice;
use crate::gpu::{CudaDevice, GpuRef, VisibleDevice};

/// The device of a process, as its runner and as NVML name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaBinding {
    /// `cpu` or `cuda:N`, for [`crate::runner::wire::LoadSpec`].
    pub device: String,
    /// Variables that the process must have for `N` to be this GPU.
    pub env: Vec<(OsString, OsString)>,
    /// `None`: the device is the CPU, or NVML has no name for it.
    pub gpu: Option<GpuRef>,
}

impl CudaBinding {
    /// # Errors
    /// If a variable of CUDA in `env` is not valid UTF-8.
    pub fn new(device: ComputeDevice, env: &Env) -> Result<Self, SettingError> {
        let ComputeDevice::Cuda(chosen) = device else {
            return Ok(Self { device: device.to_string(), env: Vec::new(), gpu: None });
        };

        let visible = visible_device(chosen, env)?;
        Ok(Self { device: format!("cuda:{}", visible.index), env: visible.env, gpu: visible.gpu })
    }
}

fn visible_device(chosen: CudaDevice, env: &Env) -> Result<VisibleDevice, SettingError> {
    // A variable that is set and empty means "no GPU" to CUDA. `Env` reports it as not set; CUDA itself then refuses.
    let visible_devices = env.text("CUDA_VISIBLE_DEVICES")?;
    let device_order = env.text(ORDER_VARIABLE)?;
    Ok(VisibleDevice::resolve(chosen, visible_devices, device_order))
}

/// The index at which CUDA finds `chosen` in this process. CUDA reads its variables before any of its other code runs, so
/// if they must change, this process executes itself again with the right ones, under the same process id.
///
/// # Errors
/// If a variable is not valid UTF-8 or the program cannot be executed again.
pub fn index_in_this_process(chosen: CudaDevice, env: &Env) -> anyhow::Result<u32> {
    let VisibleDevice { index, env: needed, .. } = visible_device(chosen, env)?;

    let is_set = |(name, value): &(OsString, OsString)| env::var_os(name).as_ref() == Some(value);
    if needed.iter().all(is_set) {
        return Ok(index);
    }

    let program = env::current_exe()?;
    // `exec` returns only if it fails.
    let error = Command::new(program).args(env::args_os().skip(1)).envs(needed).exec();
    Err(anyhow::Error::new(error).context("starting anew with the variables of CUDA"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_no_gpu() {
        let binding = CudaBinding::new(ComputeDevice::Cpu, &Env::default()).unwrap();
        assert_eq!(binding, CudaBinding { device: "cpu".to_owned(), env: Vec::new(), gpu: None });
    }
}
