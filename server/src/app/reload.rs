//! SIGHUP: the configuration is read again. What it says of models holds from then on; a file that cannot be used
//! changes nothing.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hush_log::explain;

use super::device_environment::Ground;
use super::model_registry::{self, Changes, Fleet};
use crate::cli::settings::{ServeSettings, Settings};
use crate::cli::{Env, parse, settle};
use crate::metrics::Metrics;

/// What is needed to read the settings again: the same arguments and the same environment.
pub struct Reload {
    argv: Vec<OsString>,
    env: Env,
    ground: Ground,
    metrics: Arc<Metrics>,
    /// What is changed besides models takes a restart.
    started: ServeSettings,
}

impl Reload {
    /// The start counts as the first time that the configuration was taken over.
    pub fn new(started: &ServeSettings, env: &Env, ground: Ground, metrics: &Arc<Metrics>) -> Self {
        let reload = Self {
            argv: std::env::args_os().collect(),
            env: env.clone(),
            ground,
            metrics: Arc::clone(metrics),
            started: started.clone(),
        };
        reload.count(true);
        reload
    }

    pub async fn run(&self, fleet: &Arc<Fleet>) {
        match self.try_run(fleet).await {
            Ok(Changes { added, removed, kept }) => {
                tracing::info!(?added, ?removed, ?kept, "the configuration was read again");
                self.count(true);
            }
            Err(error) => {
                let cause = explain(error.as_ref());
                tracing::error!("the configuration was not taken over, the old one stays: {cause}");
                self.count(false);
            }
        }
    }

    async fn try_run(&self, fleet: &Arc<Fleet>) -> anyhow::Result<Changes> {
        let (argv, env, ground) = (self.argv.clone(), self.env.clone(), self.ground.clone());
        // A new model may have to be downloaded.
        let read = move || -> anyhow::Result<_> {
            let Settings::Serve(settings) = settle(parse(argv)?, &env)? else {
                anyhow::bail!("these are not the settings of a server");
            };
            let plans = model_registry::plan(&settings, &env, &ground)?;
            Ok((*settings, plans))
        };
        let (settings, plans) = tokio::task::spawn_blocking(read).await??;
        for name in self.started.restart_for(&settings) {
            tracing::warn!("{name} has changed in the configuration; that takes a restart");
        }
        Ok(fleet.apply(settings, plans)?)
    }

    fn count(&self, good: bool) {
        self.metrics.config_last_reload_successful.set(if good { 1.0 } else { 0.0 });
        if good {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
            self.metrics.config_last_reload_success_timestamp_seconds.set(now);
        }
    }
}
