//! Reads the configuration again on SIGHUP. What it says about models takes effect at once. A configuration that cannot be
//! used changes nothing.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hush_log::explain;

use super::device_environment::DeviceEnvironment;
use super::model_install::ProgressDisplay;
use super::model_registry::{ModelRegistry, ReloadChanges};
use super::served_model_spec::model_specs;
use crate::cli::env::Env;
use crate::cli::settings::ServeSettings;
use crate::metrics::ServerMetrics;

/// Reads the settings again, from the same arguments and the same environment as at the start.
pub type ReadSettings = Arc<dyn Fn() -> anyhow::Result<ServeSettings> + Send + Sync>;

pub struct ConfigReload {
    pub read_settings: ReadSettings,
    pub env: Env,
    pub devices: DeviceEnvironment,
    pub progress: Arc<dyn ProgressDisplay>,
    pub metrics: Arc<ServerMetrics>,
    /// Changes of settings that do not belong to a model need a restart.
    pub settings_at_start: ServeSettings,
}

impl ConfigReload {
    pub async fn run(&self, registry: &ModelRegistry) {
        match self.try_run(registry).await {
            Ok(ReloadChanges { added, removed, kept }) => {
                tracing::info!(?added, ?removed, ?kept, "the configuration was read again");
                record_reload(&self.metrics, true);
            }
            Err(error) => {
                let cause = explain(error.as_ref());
                tracing::error!("the new configuration is refused, the old one stays in force: {cause}");
                record_reload(&self.metrics, false);
            }
        }
    }

    async fn try_run(&self, registry: &ModelRegistry) -> anyhow::Result<ReloadChanges> {
        let read_settings = Arc::clone(&self.read_settings);
        let progress = Arc::clone(&self.progress);
        let env = self.env.clone();
        let devices = self.devices.clone();

        // Blocks for minutes if a new model must be downloaded.
        let read = move || -> anyhow::Result<_> {
            let settings = read_settings()?;
            let specs = model_specs(&settings, &env, &devices, &*progress)?;
            Ok((settings, specs))
        };
        let (settings, specs) = tokio::task::spawn_blocking(read).await??;

        for name in self.settings_at_start.restart_for(&settings) {
            tracing::warn!("{name} has changed in the configuration; that takes a restart");
        }
        Ok(registry.apply(settings, specs)?)
    }
}

/// Records that the configuration was read; the start counts as the first time.
pub fn record_reload(metrics: &ServerMetrics, is_successful: bool) {
    metrics.config_last_reload_successful.set(if is_successful { 1.0 } else { 0.0 });
    if is_successful {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        metrics.config_last_reload_success_timestamp_seconds.set(now);
    }
}
