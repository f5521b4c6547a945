//! The life of a server: its settings become models, runners and listeners; a signal ends them in order.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use hush_listener::open_files::{connections_within_limit, raise_limit};
use hush_whisper::{runtime, vad};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::api_config::api_config;
use super::device_environment::{DeviceEnvironment, start_gpu_accounts};
use super::model_install::ProgressDisplay;
use super::model_registry::ModelRegistry;
use super::reload::{ConfigReload, ReadSettings, record_reload};
use super::served_model_spec::{ServedModelSpec, model_specs};
use super::signals::{ServerSignal, ServerSignals};
use super::{log_setup, ort_library, security, vad_model};
use crate::admin::{self, ServerAdminState};
use crate::api::{ApiConfig, ApiState, LiveFeed, ModelCatalogue};
use crate::audio::Confinement;
use crate::cli::env::Env;
use crate::cli::settings::ServeSettings;
use crate::gpu::{Accounts, GpuCollector, GpuSampler};
use crate::metrics::ServerMetrics;
use crate::ops;
use crate::residency::{ControllerPresence, reclaim_memory};
use crate::runner::RunnerSettings;
use crate::serve::{ServeOptions, Tls, serve};

/// An answer is little work for the server, and runners are processes of their own: two threads serve any number of
/// clients.
const WORKER_THREADS: usize = 2;

/// Connections of the operations listener: scrapes, controllers and their streams of events.
const OPS_CONNECTIONS: usize = 256;

/// How long connections may send their last answers after the runners have ended.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// A server whose settings are checked and whose libraries and models are found.
pub struct PreparedServer {
    settings: ServeSettings,
    env: Env,
    progress: Arc<dyn ProgressDisplay>,
    devices: DeviceEnvironment,
    vad_model: Option<PathBuf>,
    specs: Vec<ServedModelSpec>,
}

impl PreparedServer {
    /// Raises the limit of open files, and finds the libraries and the models. Blocks while a missing model is installed.
    ///
    /// # Errors
    /// If the settings cannot be used on this machine.
    pub fn new(settings: &ServeSettings, env: &Env, progress: Arc<dyn ProgressDisplay>) -> anyhow::Result<Self> {
        raise_limit();
        for used in &settings.legacy {
            tracing::info!("{used}");
        }

        let program = std::env::current_exe().context("finding this program")?;
        let library = ort_library::find(settings.engine.ort_lib.as_deref(), env, &program)?;
        let vad_model = vad_model::find(settings.engine.vad_model.as_deref(), &library, &program)?;
        let devices = DeviceEnvironment::new(settings, env, &program, library, vad_model.is_some())?;
        let specs = model_specs(settings, env, &devices, &*progress)?;

        Ok(Self { settings: settings.clone(), env: env.clone(), progress, devices, vad_model, specs })
    }

    /// The models that the server would serve, the default model first.
    pub fn specs(&self) -> &[ServedModelSpec] {
        &self.specs
    }

    /// Serves until SIGTERM or SIGINT. `read_settings` is called on SIGHUP.
    ///
    /// # Errors
    /// If the server cannot start, or one of its tasks has panicked.
    pub fn run(self, read_settings: ReadSettings) -> anyhow::Result<()> {
        hush_listener::spool::check_folder(self.settings.spool_dir.as_deref())
            .context("starting without a place for uploads; --spool-dir names the folder")?;

        for spec in &self.specs {
            if let Some(reason) = &spec.device.placement.reason {
                let choice = spec.device.choice;
                tracing::info!(model = spec.name(), "--device {choice} is the CPU here: {reason}");
            }
        }

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKER_THREADS)
            .enable_all()
            .build()
            .context("starting the runtime")?;
        runtime.block_on(self.serve(read_settings))
    }

    async fn serve(mut self, read_settings: ReadSettings) -> anyhow::Result<()> {
        let metrics = Arc::new(ServerMetrics::new().context("registering metrics")?);
        publish_confinement(&metrics);

        let stop = CancellationToken::new();
        let specs = std::mem::take(&mut self.specs);
        let accounts = self.start_accounts(&specs, &metrics)?;
        let registry = self.start_models(specs, &accounts, &metrics, stop.clone())?;
        let controller_presence = self.start_reclaimer(&registry, accounts.clone());

        let listeners =
            self.start_listeners(&registry, &metrics, accounts.sampler(), controller_presence, stop).await?;

        let mut signals = ServerSignals::new().context("listening for signals")?;
        record_reload(&metrics, true);
        let reload = ConfigReload {
            read_settings,
            env: self.env,
            devices: self.devices,
            progress: self.progress,
            metrics,
            settings_at_start: self.settings.clone(),
        };
        let signal = loop {
            match signals.next().await {
                ServerSignal::Reload => reload.run(&registry).await,
                ServerSignal::End(name) => break name,
            }
        };

        let drain_timeout = self.settings.drain_timeout;
        tracing::info!(signal, "shutting down; requests that have arrived are served, for {drain_timeout:?} at most");
        tokio::spawn(exit_on_second_signal(signals));
        listeners.shut_down(&registry, drain_timeout).await
    }

    fn start_accounts(&self, specs: &[ServedModelSpec], metrics: &Arc<ServerMetrics>) -> anyhow::Result<Accounts> {
        let is_gpu_expected = specs.iter().any(|spec| spec.device.gpu.is_some());
        let accounts = start_gpu_accounts(&self.settings, is_gpu_expected, metrics)
            .context("starting the thread that looks at the GPUs")?;
        let collector = GpuCollector::new(accounts.clone())?;
        metrics.register(Box::new(collector)).context("registering metrics")?;
        Ok(accounts)
    }

    fn start_models(
        &self,
        specs: Vec<ServedModelSpec>,
        accounts: &Accounts,
        metrics: &Arc<ServerMetrics>,
        stop: CancellationToken,
    ) -> anyhow::Result<Arc<ModelRegistry>> {
        let runners = self.runner_settings();
        let devices = self.devices.clone();
        let registry = ModelRegistry::start(&self.settings, specs, runners, devices, accounts, metrics, stop)?;
        Ok(Arc::new(registry))
    }

    fn runner_settings(&self) -> RunnerSettings {
        let mut runners = RunnerSettings::this_program(vec![OsString::from("runner")]);
        runners.env.push((runtime::PATH_VARIABLE.into(), self.devices.ort_library.clone().into_os_string()));
        runners.env.extend(self.devices.runner_env.iter().cloned());
        runners.env.extend(self.vad_model.clone().map(|model| (vad::PATH_VARIABLE.into(), model.into_os_string())));
        runners.env.extend(log_setup::variables(&self.settings.log));

        runners.load_timeout = self.settings.load_timeout;
        runners.stall_timeout = self.settings.stall_timeout;
        runners.busy_timeout = self.settings.busy_timeout;
        runners.spare = self.settings.spare_runner;
        runners
    }

    /// Starts the task that unloads idle models if the memory of a GPU runs short, if the settings want it.
    fn start_reclaimer(&self, registry: &ModelRegistry, accounts: Accounts) -> ControllerPresence {
        let controller_presence = ControllerPresence::default();
        if let Some(percent) = self.settings.memory.reclaimer.0 {
            let models = Arc::clone(registry.models());
            let threshold = f64::from(percent) / 100.0;
            tokio::spawn(reclaim_memory(models, accounts, threshold, controller_presence.clone()));
        }
        controller_presence
    }

    async fn start_listeners(
        &self,
        registry: &Arc<ModelRegistry>,
        metrics: &Arc<ServerMetrics>,
        sampler: &GpuSampler,
        controller_presence: ControllerPresence,
        stop: CancellationToken,
    ) -> anyhow::Result<ServerListeners> {
        let security = &self.settings.security;
        let ops_stop = CancellationToken::new();

        let api = self.api_router(registry, metrics, stop.clone())?;
        let tls = security::tls("tls", security.tls.as_ref())?;
        let ops_tls = security::tls("ops-tls", security.ops_tls.as_ref())?;
        let (listener, address) = bind("--listen", self.settings.listen).await?;
        let (ops_listener, ops_address) = bind("--ops-listen", self.settings.ops_listen).await?;

        let access = security::access(security, ops_address.ip())?;
        let admin_state = ServerAdminState::new(Arc::clone(registry.models()), access, ops_stop.clone())
            .with_controller_presence(controller_presence);
        let admin = admin::router(admin_state, Arc::clone(metrics));
        let ops = ops::router(Arc::clone(metrics), Some(sampler.clone())).merge(admin);

        for model in registry.models().iter() {
            tracing::info!(model = model.name(), "model");
        }
        tracing::info!(api = %address, ops = %ops_address, "listening");

        let (options, ops_options) = self.serve_options(tls, ops_tls);
        Ok(ServerListeners {
            requests: tokio::spawn(serve(listener, api, stop.clone(), options)),
            operations: tokio::spawn(serve(ops_listener, ops, ops_stop.clone(), ops_options)),
            stop,
            ops_stop,
        })
    }

    fn api_router(
        &self,
        registry: &Arc<ModelRegistry>,
        metrics: &Arc<ServerMetrics>,
        stop: CancellationToken,
    ) -> anyhow::Result<Router> {
        let keys = security::api_keys(&self.settings.security)?;
        let config = ApiConfig { keys, has_vad: self.devices.has_vad, ..api_config(&self.settings) };
        let catalogue = Arc::clone(registry) as Arc<dyn ModelCatalogue>;
        let live = LiveFeed::new(registry.models().clone(), stop);
        let state = ApiState::new(catalogue, Arc::clone(metrics), config).with_live(live);
        Ok(crate::api::router(state))
    }

    /// The options of the public listener and of the operations listener.
    fn serve_options(&self, tls: Option<Tls>, ops_tls: Option<Tls>) -> (ServeOptions, ServeOptions) {
        let max_connections = connections_within_limit(self.settings.limits.max_connections);
        let options = ServeOptions {
            drain_deadline: self.settings.drain_timeout + ANSWER_GRACE,
            tls,
            max_connections,
            format_error: crate::api::error_body,
            ..ServeOptions::default()
        };
        let ops_options = ServeOptions {
            tls: ops_tls,
            max_connections: OPS_CONNECTIONS.min(max_connections),
            format_error: admin::error_body,
            ..options.clone()
        };
        (options, ops_options)
    }
}

/// Publishes at the start what the kernel offers to confine ffmpeg, so that an operator sees it before the first file
/// that needs ffmpeg.
fn publish_confinement(metrics: &ServerMetrics) {
    let found = Confinement::of_this_kernel();
    for (mechanism, is_offered) in [("landlock", found.landlock), ("seccomp", found.seccomp)] {
        metrics.ffmpeg_confined.with_label_values(&[mechanism]).set(f64::from(u8::from(is_offered)));
    }
}

async fn bind(option: &str, address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("{option} {address} cannot be listened on"))?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// The listeners of a running server, each served by a task.
struct ServerListeners {
    requests: JoinHandle<()>,
    operations: JoinHandle<()>,
    stop: CancellationToken,
    ops_stop: CancellationToken,
}

impl ServerListeners {
    /// Lets requests that have arrived finish, ends the models, and then the operations listener: until then `/metrics`
    /// and `/healthz` show how far the end has come.
    async fn shut_down(self, registry: &ModelRegistry, drain_timeout: Duration) -> anyhow::Result<()> {
        self.stop.cancel();
        let (served, ()) = tokio::join!(self.requests, registry.models().shutdown(drain_timeout));

        self.ops_stop.cancel();
        self.operations.await.context("serving operations")?;
        tracing::info!("ended");
        served.context("serving requests")
    }
}

/// Runners end with this process.
async fn exit_on_second_signal(mut signals: ServerSignals) {
    let signal = signals.next_end().await;
    tracing::warn!(signal, "a second signal: ending at once");
    std::process::exit(1);
}
