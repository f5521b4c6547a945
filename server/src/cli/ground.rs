//! Where the models of a server may run. CUDA is tried once, when a model first wants to know: it takes seconds.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::env::Env;
use super::ort_lib::Placement;
use super::settings::{ServeSettings, SettingError};
use super::values::{Device, DeviceChoice};
use super::{cuda, ort_lib};
use crate::gpu::{Accounts, CudaDevice, GpuRef, Needs, Sampler, SamplerSettings};
use crate::metrics::Metrics;

/// The ground that models stand on. Cheap to clone.
#[derive(Clone)]
pub struct Ground {
    pub library: PathBuf,
    /// Whether runners have the model for voice activity detection.
    pub has_vad: bool,
    program: PathBuf,
    env: Env,
    /// What `auto` means here, once a model has asked for that.
    auto: Arc<OnceLock<Placement>>,
    /// Instead of the device that a model runs on ([`super::settings::MemorySettings::account_gpu`]).
    account_gpu: Option<GpuRef>,
    /// What runners inherit, so that all of them count the GPUs alike.
    pub runner_env: Vec<(OsString, OsString)>,
}

/// Where one model runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    pub asked: DeviceChoice,
    pub placement: Placement,
    /// As its runner counts.
    pub device: String,
    /// As NVML calls it; `None`: no GPU.
    pub gpu: Option<GpuRef>,
}

impl Ground {
    pub fn survey(
        settings: &ServeSettings,
        env: &Env,
        program: &Path,
        library: PathBuf,
        has_vad: bool,
    ) -> Result<Self, SettingError> {
        let mut ground = Self {
            library,
            has_vad,
            program: program.to_owned(),
            env: env.clone(),
            auto: Arc::default(),
            account_gpu: settings.memory.account_gpu,
            runner_env: Vec::new(),
        };
        // Also where the default is no GPU: a single model may name one, now or after a reload. Which `auto` finds is not
        // asked here, the environment is the same.
        let device = match settings.engine.device {
            DeviceChoice::Cuda(gpu) => Device::Cuda(gpu),
            DeviceChoice::Auto | DeviceChoice::Cpu => Device::Cuda(CudaDevice::Index(0)),
        };
        ground.runner_env = cuda::Seat::of(device, env)?.env;
        Ok(ground)
    }

    pub fn placement(&self, choice: DeviceChoice) -> Placement {
        match choice {
            DeviceChoice::Auto => self
                .auto
                .get_or_init(|| {
                    let probe = || cuda::probe(&self.program, &self.library, 0, &self.runner_env);
                    ort_lib::placement(choice, Some(&self.library), probe)
                })
                .clone(),
            named => ort_lib::placement(named, Some(&self.library), || Ok(())),
        }
    }

    /// Refuses a device that only runners with another environment would see.
    pub fn site(&self, asked: DeviceChoice, placement: Placement) -> Result<Site, SettingError> {
        let seat = cuda::Seat::of(placement.device, &self.env)?;
        if let Some((name, _)) = seat.env.iter().find(|entry| !self.runner_env.contains(entry)) {
            let name = name.to_string_lossy();
            return Err(SettingError::Combination(format!(
                "device `{asked}` needs {name} of its own, and all models of a server share one environment; name the GPU \
                 by its number, or give its model a server of its own"
            )));
        }
        Ok(Site { asked, placement, device: seat.device, gpu: self.account_gpu.or(seat.gpu) })
    }
}

/// The GPUs are looked at also where no model runs on one: what is free there is worth knowing.
pub fn accounts(settings: &ServeSettings, expected: bool, metrics: &Arc<Metrics>) -> std::io::Result<Accounts> {
    let memory = &settings.memory;
    let sampler = Sampler::start(SamplerSettings {
        library: memory.nvml_lib.clone(),
        interval: memory.sample_interval,
        expected: expected || memory.nvml_lib.is_some(),
    })?;
    let needs = Needs::open(&settings.store.models_dir);
    Ok(Accounts::start(sampler, needs, Arc::clone(metrics), memory.headroom_bytes, memory.reclaim_timeout))
}
