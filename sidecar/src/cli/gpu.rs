//! Where the memory of the app's models is counted.

use std::time::Duration;

use anyhow::Context;
use hush_residency::gpu::{
    AccountSettings, Accounts, CudaDevice, GpuCollector, GpuRef, GpuSampler, Needs, SamplerSettings, VisibleDevice,
};
use prometheus::Registry;

use super::args::MemoryArgs;
use super::values::AppDevice;
use hush_residency::ResidencyMetrics;

/// How long the start waits for the first figures of the GPUs.
const FIRST_READING_TIMEOUT: Duration = Duration::from_secs(2);

/// The GPU of the app's models.
pub struct AppGpu {
    pub accounts: Accounts,
    /// For display: `cpu`, `cuda:0`.
    pub device: String,
    gpu: Option<GpuRef>,
}

impl AppGpu {
    /// Begins to look at the GPUs. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If the thread that looks at them cannot be started, or the device does not exist.
    pub async fn start(memory: &MemoryArgs, registry: &Registry, metrics: &ResidencyMetrics) -> anyhow::Result<Self> {
        let is_expected = matches!(memory.device, AppDevice::Cuda(_)) || memory.nvml_lib.is_some();
        let sampler = GpuSampler::start(SamplerSettings {
            library: memory.nvml_lib.clone(),
            interval: memory.sample_interval,
            expected: is_expected,
        })
        .context("starting the thread that looks at the GPUs")?;

        let needs = memory.state_dir.as_deref().map(Needs::open).unwrap_or_default();
        let accounts = Accounts::start(sampler.clone(), needs, metrics, memory.headroom, memory.reclaim_timeout);
        registry.register(Box::new(GpuCollector::new(accounts.clone())?)).context("registering metrics")?;

        let (device, gpu) = resolve(memory.device, &sampler).await?;
        Ok(Self { accounts, device, gpu })
    }

    /// The account of a model that is expected to need `need_bytes`; `None`: its memory is not counted.
    pub fn account(&self, need_bytes: u64) -> Option<AccountSettings> {
        let precision = "app".to_owned();

        self.gpu.map(|gpu| AccountSettings { gpu, precision, weights_bytes: need_bytes, estimate_bytes: need_bytes })
    }
}

async fn resolve(device: AppDevice, sampler: &GpuSampler) -> anyhow::Result<(String, Option<GpuRef>)> {
    let cuda = match device {
        AppDevice::Cpu => return Ok(("cpu".to_owned(), None)),
        AppDevice::Cuda(cuda) => cuda,
        AppDevice::Auto => {
            let has_gpu = sampler.fresh(FIRST_READING_TIMEOUT).await.is_some_and(|reading| !reading.devices.is_empty());
            if !has_gpu {
                return Ok(("cpu".to_owned(), None));
            }
            CudaDevice::Index(0)
        }
    };

    let variable = |name: &str| std::env::var(name).ok();
    let visible = variable("CUDA_VISIBLE_DEVICES");
    let order = variable("CUDA_DEVICE_ORDER");
    let found = VisibleDevice::resolve(cuda, visible.as_deref(), order.as_deref());
    let gpu = found
        .gpu
        .with_context(|| format!("--device {}: CUDA_VISIBLE_DEVICES has no such GPU", AppDevice::Cuda(cuda)))?;

    Ok((AppDevice::Cuda(cuda).to_string(), Some(gpu)))
}
