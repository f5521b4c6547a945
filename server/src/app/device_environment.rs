//! The devices on which the models of a server may run.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::cuda_binding::CudaBinding;
use super::cuda_probe;
use super::device_placement::{self, DevicePlacement};
use crate::cli::env::Env;
use crate::cli::settings::{ServeSettings, SettingError};
use crate::cli::values::{ComputeDevice, DeviceChoice};
use crate::gpu::{Accounts, CudaDevice, GpuRef, GpuSampler, Needs, SamplerSettings};
use crate::metrics::ServerMetrics;

/// The library and the variables that all models of a server share, and the device that `auto` means with them. Cheap to
/// clone.
#[derive(Clone)]
pub struct DeviceEnvironment {
    /// ONNX Runtime's library.
    pub ort_library: PathBuf,
    /// Whether runners have the model for voice activity detection.
    pub has_vad: bool,
    /// Variables that every runner gets, so that all runners count the GPUs alike.
    pub runner_env: Vec<(OsString, OsString)>,
    program: PathBuf,
    env: Env,
    /// Empty until a model first asks for `auto`, because trying CUDA takes seconds.
    auto_placement: Arc<OnceLock<DevicePlacement>>,
    /// The GPU whose memory is counted, if it is not the one that the model runs on
    /// ([`crate::cli::settings::MemorySettings::account_gpu`]).
    account_gpu: Option<GpuRef>,
}

/// The device of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceAssignment {
    /// The device that the settings choose.
    pub choice: DeviceChoice,
    pub placement: DevicePlacement,
    /// The device as the runner counts it: `cpu` or `cuda:N`.
    pub device: String,
    /// The GPU as NVML names it; `None`: the model uses no GPU.
    pub gpu: Option<GpuRef>,
}

impl DeviceEnvironment {
    /// # Errors
    /// If a variable of CUDA is not valid UTF-8.
    pub fn new(
        settings: &ServeSettings,
        env: &Env,
        program: &Path,
        ort_library: PathBuf,
        has_vad: bool,
    ) -> Result<Self, SettingError> {
        // Runners get the variables of CUDA also if the default device is not a GPU: a single model may name one, now or
        // after a reload. They are the same for each index, so what `auto` means is not asked here.
        let gpu = match settings.engine.device {
            DeviceChoice::Cuda(gpu) => gpu,
            DeviceChoice::Auto | DeviceChoice::Cpu => CudaDevice::Index(0),
        };
        let binding = CudaBinding::new(ComputeDevice::Cuda(gpu), env)?;

        Ok(Self {
            ort_library,
            has_vad,
            runner_env: binding.env,
            program: program.to_owned(),
            env: env.clone(),
            auto_placement: Arc::default(),
            account_gpu: settings.memory.account_gpu,
        })
    }

    /// The device that `choice` means on this machine. The first `auto` tries CUDA, which takes seconds.
    pub fn place(&self, choice: DeviceChoice) -> DevicePlacement {
        if choice != DeviceChoice::Auto {
            return device_placement::place(choice, Some(&self.ort_library), || Ok(()));
        }

        let probe = || cuda_probe::probe(&self.program, &self.ort_library, 0, &self.runner_env);
        let place = || device_placement::place(choice, Some(&self.ort_library), probe);
        self.auto_placement.get_or_init(place).clone()
    }

    /// # Errors
    /// If only a runner with other variables would see the device.
    pub fn assign(&self, choice: DeviceChoice, placement: DevicePlacement) -> Result<DeviceAssignment, SettingError> {
        let binding = CudaBinding::new(placement.device, &self.env)?;

        if let Some((name, _)) = binding.env.iter().find(|variable| !self.runner_env.contains(variable)) {
            let name = name.to_string_lossy();
            return Err(SettingError::Combination(format!(
                "device `{choice}` needs {name} of its own, and all models of a server share one environment; name the \
                 GPU by its number, or give its model a server of its own"
            )));
        }

        let gpu = self.account_gpu.or(binding.gpu);
        Ok(DeviceAssignment { choice, placement, device: binding.device, gpu })
    }
}

/// Starts the thread that samples the GPUs, also if no model runs on one, because the free memory is worth knowing.
/// `is_gpu_expected`: a GPU that cannot be seen is a problem to report.
///
/// # Errors
/// If the thread cannot be started.
pub fn start_gpu_accounts(
    settings: &ServeSettings,
    is_gpu_expected: bool,
    metrics: &Arc<ServerMetrics>,
) -> io::Result<Accounts> {
    let memory = &settings.memory;
    let sampler = GpuSampler::start(SamplerSettings {
        library: memory.nvml_lib.clone(),
        interval: memory.sample_interval,
        expected: is_gpu_expected || memory.nvml_lib.is_some(),
    })?;
    let needs = Needs::open(&settings.store.models_dir);
    Ok(Accounts::start(sampler, needs, &metrics.residency, memory.headroom_bytes, memory.reclaim_timeout))
}
