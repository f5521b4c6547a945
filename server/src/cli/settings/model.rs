//! Settings of single models.

use std::time::Duration;

use hush_whisper::TranscribeOptions;

use crate::cli::config::ModelConfig;
use crate::cli::values::{DeviceChoice, PrecisionChoice, ResidencyChoice};

/// What the configuration file says of one model. It beats the settings for the whole server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelOverrides {
    /// What requests call a model that was given as a directory.
    pub name: Option<String>,
    pub aliases: Vec<String>,
    pub residency: Option<ResidencyChoice>,
    /// Zero: idleness never unloads it.
    pub idle_timeout: Option<Duration>,
    pub precision: Option<PrecisionChoice>,
    pub device: Option<DeviceChoice>,
    pub threads: Option<usize>,
    pub max_queue: Option<usize>,
    /// How it decodes where a request does not say.
    pub defaults: TranscribeOptions,
}

impl From<&ModelConfig> for ModelOverrides {
    fn from(model: &ModelConfig) -> Self {
        Self {
            name: model.name.clone().filter(|_| model.path.is_some()),
            aliases: model.aliases.clone(),
            residency: model.residency.map(|residency| residency.0),
            idle_timeout: model.idle_timeout.map(|timeout| timeout.0.0),
            precision: model.precision.map(|precision| precision.0),
            device: model.device.map(|device| device.0),
            threads: model.threads.map(|threads| threads.0.0).filter(|threads| *threads > 0),
            max_queue: model.max_queue.map(|limit| limit.0.0),
            defaults: model.defaults.options(),
        }
    }
}
