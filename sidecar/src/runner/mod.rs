//! The runners that are plugged into the life of a model, and the watch over the app.
//!
//! ```text
//! AppWatch: polls the app -> AppStatus (proxy, metrics), AppObservation (runners), appeared/occupy (ModelHandle)
//! SidecarRunners: start -> ApiRunner: load and unload through the app's API
//!                       -> AppProcess: the app is started and ended
//! ```

mod api_runner;
mod app_calls;
mod app_metrics;
mod app_presence;
mod app_runs;
mod app_users;
mod observation;
mod port_check;
mod presence_record;
mod process_end;
mod recorded_calls;
mod state_file;
mod watch;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hush_residency::{ModelRunner, OnRunnerEvent, RunnerFactory, RunnerSpec};
use tokio::sync::{Semaphore, watch as watch_channel};

use app_users::AppUsers;

use crate::app::App;
use crate::process::{AppActivity, AppControl, AppProcess, AppSurvivors, ProcessSettings};
use crate::status::AppStatus;
use crate::upstream::Upstream;

pub use api_runner::ApiRunner;
pub use app_metrics::{AppMetricSources, AppMetrics};
pub use app_runs::AppRuns;
pub use observation::AppObservation;
pub use presence_record::PresenceRecord;
pub use state_file::{AppLock, StateFile, boot_id, find_state_folder};
pub use watch::{AppWatch, WatchSettings};

/// How the app is asked, and for how long.
#[derive(Clone, Debug)]
pub struct RunnerTimeouts {
    /// From the command to load until the app lists the model as loaded.
    pub load: Duration,
    /// From the command to unload until the app lists the model no more.
    pub unload: Duration,
}

/// What all runners of a sidecar share.
pub struct RunnersSettings {
    pub app: Arc<App>,
    pub upstream: Upstream,
    pub timeouts: RunnerTimeouts,
    pub observations: watch_channel::Receiver<AppObservation>,
    pub status: watch_channel::Receiver<AppStatus>,
    pub detach: DetachFlag,
    pub runs: AppRuns,
    /// For an app that does not tell what it has in memory, and would end if it was asked for what it has done already.
    pub record: PresenceRecord,
    /// When the app last sent something through the proxy.
    pub activity: AppActivity,
    /// The processes of the app that cannot be killed.
    pub survivors: AppSurvivors,
    /// Ends and starts the app between its loads; `None`: the sidecar has not started the app, or it is one model in
    /// process mode.
    pub control: Option<AppControl>,
    pub metrics: AppMetrics,
}

/// Once set, runners leave their models to the app instead of unloading them: the end of the sidecar must not end what it
/// did not start. Cheap to clone; clones are the same flag.
#[derive(Clone, Debug, Default)]
pub struct DetachFlag(Arc<AtomicBool>);

impl DetachFlag {
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How a model is loaded and unloaded.
#[derive(Clone, Debug)]
pub enum ModelMode {
    /// Through the app's API.
    Api,
    /// By starting and ending the app.
    Process(ProcessSettings),
}

/// A model of the app.
#[derive(Clone, Debug)]
pub struct SidecarSpec {
    /// The name in metrics and requests.
    pub name: String,
    /// The name under which the app knows the model.
    pub app_name: String,
    /// `cpu`, `cuda:0`: where the app is known to run it.
    pub device: String,
    pub mode: ModelMode,
}

impl RunnerSpec for SidecarSpec {
    fn device(&self) -> &str {
        &self.device
    }

    /// No app takes a limit.
    fn with_memory_limit(self, _bytes: Option<u64>) -> Self {
        self
    }
}

/// Starts the runners of one app.
#[derive(Clone)]
pub struct SidecarRunners {
    shared: Arc<RunnersShared>,
}

struct RunnersShared {
    settings: RunnersSettings,
    /// One load at a time: of two models that grow at once, the figures of the device do not tell which took what.
    load_turn: Semaphore,
    users: Mutex<AppUsers>,
}

/// A runner of one model.
#[derive(Clone)]
pub enum SidecarRunner {
    Api(ApiRunner),
    Process(AppProcess),
}

impl RunnerFactory for SidecarRunners {
    type Settings = RunnersSettings;
    type Spec = SidecarSpec;
    type Runner = SidecarRunner;

    fn new(settings: RunnersSettings) -> io::Result<Self> {
        let shared = RunnersShared { settings, load_turn: Semaphore::new(1), users: Mutex::default() };

        Ok(Self { shared: Arc::new(shared) })
    }

    fn start(&self, spec: SidecarSpec, notify: OnRunnerEvent) -> SidecarRunner {
        match spec.mode.clone() {
            ModelMode::Api => SidecarRunner::Api(ApiRunner::load(Arc::clone(&self.shared), spec, notify)),
            ModelMode::Process(process) => self.start_process(process, notify),
        }
    }

    fn adopt(&self, spec: SidecarSpec, notify: OnRunnerEvent) -> SidecarRunner {
        match spec.mode.clone() {
            ModelMode::Api => SidecarRunner::Api(ApiRunner::adopt(Arc::clone(&self.shared), spec, notify)),
            // A process that this sidecar did not start is never adopted.
            ModelMode::Process(process) => self.start_process(process, notify),
        }
    }

    fn end_unused_process(&self) {
        let shared = Arc::clone(&self.shared);

        tokio::spawn(async move { shared.end_unused_process().await });
    }

    async fn shutdown(&self) {}
}

impl SidecarRunners {
    fn start_process(&self, process: ProcessSettings, notify: OnRunnerEvent) -> SidecarRunner {
        let settings = &self.shared.settings;
        let (activity, survivors) = (settings.activity.clone(), settings.survivors.clone());

        SidecarRunner::Process(AppProcess::start_reporting(process, activity, survivors, notify))
    }
}

impl ModelRunner for SidecarRunner {
    fn stop(&self) {
        match self {
            Self::Api(runner) => runner.stop(),
            Self::Process(process) => process.stop(),
        }
    }

    fn stop_with_process(&self) {
        match self {
            Self::Api(runner) => runner.stop_with_process(),
            // Its process is all that there is.
            Self::Process(process) => process.stop(),
        }
    }

    fn kill(&self) {
        match self {
            Self::Api(runner) => runner.kill(),
            Self::Process(process) => process.kill(),
        }
    }
}
