//! The memory of GPUs.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{SettingError, must_be_longer_than_zero};
use crate::cli::values::{ByteSize, DurationArg, GpuChoice, Percent};
use crate::gpu::GpuRef;

#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[command(next_help_heading = "Device memory")]
pub struct MemorySettings {
    /// NVIDIA's management library, which reports the memory of each GPU and the processes that use it.
    ///
    /// Default: libnvidia-ml.so.1 where the loader finds it, and in the usual folders of drivers.
    #[arg(long, value_name = "PATH")]
    pub nvml_lib: Option<PathBuf>,

    /// How often the memory of the GPUs is sampled.
    #[arg(
        long = "gpu-sample-interval",
        value_name = "DURATION",
        value_parser = DurationArg::read,
        default_value = "1s"
    )]
    pub sample_interval: Duration,

    /// Device memory that must stay free beside a model that loads. Without that much free memory the model waits.
    #[arg(long = "headroom", value_name = "SIZE", value_parser = ByteSize::read, default_value = "256MiB")]
    pub headroom_bytes: u64,

    /// How long an unload waits for the device's memory to come back before it reports what is missing.
    #[arg(long, value_name = "DURATION", value_parser = DurationArg::read, default_value = "5s")]
    pub reclaim_timeout: Duration,

    /// Unload the longest idle model when more than this share of its GPU is used: 95%, or off.
    ///
    /// For a server without a controller; a controller decides for all servers of a GPU together.
    #[arg(long = "memory-reclaimer", value_name = "PERCENT", default_value = "off")]
    pub reclaimer: Percent,

    /// Count the models against this GPU, by number or UUID, wherever they run.
    ///
    /// For tests and demonstrations: the free memory of this GPU decides whether a model is loaded, even if it runs on
    /// the CPU. Default: the GPU of --device.
    #[arg(long, value_name = "N|UUID", value_parser = GpuChoice::read, hide_short_help = true)]
    #[serde(skip)]
    pub account_gpu: Option<GpuRef>,
}

impl MemorySettings {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        must_be_longer_than_zero("gpu-sample-interval", self.sample_interval)
    }
}
