//! The life of the sidecar: its options become an app, models, runners and listeners; a signal ends them in order.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hush_access::Tls;
use hush_listener::open_files::{FileBudget, raise_limit};
use hush_listener::spool::{SpoolOptions, check_folder};
use hush_listener::{ListenOptions, free_port};
use hush_log::{LogSetup, exposed_secret, register_program_metrics};
use hush_residency::admin::error_body;
use hush_residency::{DrainEnd, LifecycleSettings, ModelSettings, Models, ResidencyMetrics};
use prometheus::Registry;
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::args::{LogFormatArg, ModeChoice, SecurityArgs, SidecarArgs, UnloadChoice};
use super::config::{ConfiguredModel, ConfiguredModels, aliases, configure};
use super::gpu::AppGpu;
use super::limits::check_limits;
use super::ops;
use crate::app::{App, AppParameters};
use crate::process::{AppActivity, AppSurvivors, ProcessSettings, ReadinessProbe, SupervisedApp};
use crate::proxy::{Proxy, ProxyMetrics, ProxySettings, RequestRoutes};
use crate::runner::{
    AppMetricSources, AppMetrics, AppRuns, AppWatch, DetachFlag, ModelMode, PresenceRecord, RunnerTimeouts,
    RunnersSettings, SidecarRunners, SidecarSpec, StateFile, WatchSettings, boot_id, find_state_folder,
};
use crate::status::AppStatus;
use crate::upstream::{IDLE_UPSTREAM_MAX, Upstream, UpstreamCredential, UpstreamSettings};

/// Connections of the operations listener: scrapes, controllers and their streams of events.
const OPS_CONNECTIONS: usize = 256;

/// Runs the sidecar until SIGTERM or SIGINT.
///
/// # Errors
/// If an option cannot be used, or the sidecar cannot start.
pub fn run(args: SidecarArgs) -> anyhow::Result<()> {
    hush_log::init_log(&LogSetup {
        json: args.log.format == LogFormatArg::Json,
        with_target: true,
        base: "",
        filter: &args.log.level,
    });
    raise_limit();

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(serve(args))
}

/// The app and how it is reached.
struct StartedApp {
    app: Arc<App>,
    upstream: Upstream,
    mode: ModelMode,
    /// The app loads and unloads its models itself, and the sidecar has started it.
    supervised: Option<SupervisedApp>,
    activity: AppActivity,
    survivors: AppSurvivors,
}

impl StartedApp {
    /// What the metrics of the app are read from.
    fn metric_sources(&self, status: watch::Receiver<AppStatus>) -> AppMetricSources {
        AppMetricSources {
            app: self.app.name().to_owned(),
            mode: self.mode.clone(),
            ends_process: self.supervised.is_some() || matches!(self.mode, ModelMode::Process(_)),
            survivors: self.survivors.clone(),
            status,
        }
    }
}

async fn serve(mut args: SidecarArgs) -> anyhow::Result<()> {
    let ConfiguredModels { models: configured, parameters } = configure(&mut args)?;
    check_limits(&args)?;
    check_folder(args.requests.spool_dir.as_deref()).context("--spool-dir")?;

    let registry = Registry::new();
    register_program_metrics(&registry, env!("CARGO_PKG_VERSION"))?;
    let residency = ResidencyMetrics::new(&registry).context("registering metrics")?;
    let app_metrics = AppMetrics::new(&registry).context("registering metrics")?;
    let proxy_metrics = ProxyMetrics::new(&registry).context("registering metrics")?;

    let (listener, address) = bind("--listen", args.listen).await?;
    let (ops_listener, ops_address) = bind("--ops-listen", args.ops_listen).await?;
    let access = ops::access(&args.security, ops_address.ip())?;
    let tls = listener_tls(&args.security)?;

    let gpu = AppGpu::start(&args.memory, &registry, &residency).await?;
    let governed = start_app(&args, &configured, parameters)?;
    let detach = DetachFlag::default();
    let (watch, runners) = watch_with_runners(&args, &governed, &app_metrics, &detach)?;
    let models = start_models(&args, &configured, &governed, runners, &gpu, &residency)?;
    app_metrics.register(&registry, governed.metric_sources(watch.status()))?;

    let ops_stop = CancellationToken::new();
    let routes: Arc<dyn RequestRoutes> = governed.app.clone();
    let settings = proxy_settings(&args, &configured, governed.activity.clone(), tls.clients);
    let proxy =
        Proxy::new(Arc::clone(&models), routes, governed.upstream.clone(), watch.status(), settings, proxy_metrics);
    let sampler = gpu.accounts.sampler().clone();
    let router =
        ops::router(Arc::clone(&models), access, ops_stop.clone(), registry, sampler, watch.status(), proxy.clone());
    let serving = proxy.clone();
    let requests = tokio::spawn(async move { serving.serve(listener).await });
    let operations = tokio::spawn(ops::serve(ops_listener, router, ops_options(), tls.ops));
    let watching = tokio::spawn(watch.run(Arc::clone(&models), app_names(&governed.app, &configured)));
    tracing::info!(
        app = governed.app.name(),
        upstream = governed.upstream.authority(),
        proxy = %address,
        ops = %ops_address,
        "listening"
    );

    wait_for_end(args.life.drain_timeout).await?;
    if governed.supervised.is_none() && !args.life.unload_at_end {
        detach.set();
    }

    proxy.shut_down();
    let (served, ()) = tokio::join!(requests, models.shutdown(args.life.drain_timeout));
    watching.abort();
    if let Some(supervised) = governed.supervised {
        supervised.stop().await;
    }

    ops_stop.cancel();
    operations.abort();
    tracing::info!("ended");
    served.context("serving requests")
}

/// Waits for SIGTERM or SIGINT.
async fn wait_for_end(drain: Duration) -> anyhow::Result<()> {
    let signal = next_end_signal().await?;

    tracing::info!(signal, "shutting down; requests that have arrived are served, for {drain:?} at most");
    Ok(())
}

/// The watch over the app, and what the runners of its models share with it.
///
/// # Errors
/// If the folder for records was configured and cannot be used.
fn watch_with_runners(
    args: &SidecarArgs,
    governed: &StartedApp,
    metrics: &AppMetrics,
    detach: &DetachFlag,
) -> anyhow::Result<(AppWatch, RunnersSettings)> {
    let runs = AppRuns::new(governed.upstream.settings());
    let folder = state_folder(args)?;
    let record = presence_record(governed, runs.clone(), folder.as_deref());
    let watch = app_watch(args, governed, metrics.clone(), (runs.clone(), record.clone()), folder);

    let runners = RunnersSettings {
        app: Arc::clone(&governed.app),
        upstream: governed.upstream.clone(),
        timeouts: RunnerTimeouts { load: args.life.load_timeout, unload: args.life.unload_timeout },
        observations: watch.observations(),
        status: watch.status(),
        detach: detach.clone(),
        runs,
        record,
        activity: governed.activity.clone(),
        survivors: governed.survivors.clone(),
        control: governed.supervised.as_ref().map(SupervisedApp::control),
        metrics: metrics.clone(),
    };
    Ok((watch, runners))
}

fn find_app(name: &str) -> anyhow::Result<App> {
    if name.is_empty() {
        bail!("--app is missing: which kind of app is it? `hush-sidecar apps` lists those that are known");
    }
    if let Some(app) = App::find(name) {
        return Ok(app);
    }

    let path = Path::new(name);
    if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
        let text = std::fs::read_to_string(path).with_context(|| format!("--app {name} cannot be read"))?;
        return App::from_yaml(&text).with_context(|| format!("--app {name}"));
    }

    let known: Vec<&str> = App::known().collect();
    bail!("--app {name}: it is none of the known apps ({}), and no file that ends in .yaml", known.join(", "))
}

fn start_app(
    args: &SidecarArgs,
    configured: &[ConfiguredModel],
    parameters: Map<String, Value>,
) -> anyhow::Result<StartedApp> {
    let app = Arc::new(with_parameters(&find_app(&args.app)?, configured, parameters)?);
    for unseen in app.cannot_see() {
        tracing::info!(app = app.name(), "cannot be seen through the app's API: {unseen}");
    }
    let settings = upstream_settings(args, &app)?;
    let port = settings.port;
    let upstream = Upstream::new(settings);

    let can_unload = app.can_unload();
    let is_process = match args.mode {
        ModeChoice::Process => true,
        ModeChoice::Api if can_unload => false,
        ModeChoice::Api => bail!("--mode api: {} has no route that unloads a model", app.name()),
        ModeChoice::Auto => !can_unload,
    };
    let process = process_settings(args, &app, port)?;
    if process.is_none() && args.life.unload == UnloadChoice::Process {
        bail!("--unload process: only an app that the sidecar starts can be ended: give its command after `--`");
    }

    let (mode, supervised_settings) = match (is_process, process) {
        (false, process) => (ModelMode::Api, process),
        (true, Some(process)) => {
            if let [_, second, ..] = configured {
                bail!("in process mode the app is one model; `{}` is a second one", second.name);
            }
            (ModelMode::Process(process), None)
        }
        (true, None) => bail!(
            "{} can only be unloaded by ending it, so the sidecar must start it: give its command after `--`",
            app.name()
        ),
    };

    let activity = AppActivity::new();
    let survivors = AppSurvivors::default();
    let start = |settings| SupervisedApp::start_with(settings, activity.clone(), survivors.clone());
    let supervised = supervised_settings.map(start);
    Ok(StartedApp { app, upstream, mode, supervised, activity, survivors })
}

fn with_parameters(app: &App, configured: &[ConfiguredModel], common: Map<String, Value>) -> anyhow::Result<App> {
    let of_model = |model: &ConfiguredModel| (app_name(app, model), model.parameters.clone());
    let by_model = configured.iter().filter(|model| !model.parameters.is_empty()).map(of_model).collect();
    let names: Vec<String> = configured.iter().map(|model| app_name(app, model)).collect();

    app.with_parameters(AppParameters { common, by_model }, &names).context("--config: parameters")
}

fn upstream_settings(args: &SidecarArgs, app: &Arc<App>) -> anyhow::Result<UpstreamSettings> {
    let mut settings = match &args.upstream {
        Some(url) => UpstreamSettings::from_url(url).context("--upstream")?,
        None if args.command.is_empty() => {
            bail!("where the app listens is not known: give --upstream URL, or the app's command after `--`")
        }
        None => {
            let port = args.process.port.map_or_else(free_port, Ok).context("looking for a free port for the app")?;
            UpstreamSettings::new(Ipv4Addr::LOCALHOST.to_string(), port)
        }
    };

    settings.busy_port = args.busy_port;
    settings.connect_timeout = args.requests.connect_timeout;
    settings.idle_timeout = args.requests.upstream_idle;
    if let Some(path) = &args.upstream_credential_file {
        if let Some(problem) = exposed_secret("--upstream-credential-file", path) {
            tracing::warn!("{problem}");
        }
        let credential = UpstreamCredential::from_file(path.clone(), app).context("--upstream-credential-file")?;
        settings.credential = Some(credential);
    }
    Ok(settings)
}

/// `None`: the sidecar does not start the app.
fn process_settings(args: &SidecarArgs, app: &App, port: u16) -> anyhow::Result<Option<ProcessSettings>> {
    if args.command.is_empty() {
        return Ok(None);
    }

    let probe = match args.process.ready.as_deref() {
        None => ReadinessProbe::Http { path: app.ready_path().to_owned() },
        Some("tcp") => ReadinessProbe::Tcp,
        Some(text) => match text.strip_prefix("log:") {
            Some(line) if !line.is_empty() => ReadinessProbe::LogLine { text: line.to_owned() },
            None if text.starts_with('/') => ReadinessProbe::Http { path: text.to_owned() },
            _ => bail!("--ready {text}: expected a path such as /health, `tcp`, or `log:TEXT`"),
        },
    };

    Ok(Some(ProcessSettings {
        working_dir: args.process.working_dir.clone(),
        probe,
        load_timeout: args.life.load_timeout,
        stop_timeout: args.process.stop_timeout,
        hang_timeout: args.process.hang_timeout.0,
        ..ProcessSettings::new(app.name(), args.command.clone(), port)
    }))
}

/// Where the sidecar keeps what the next one must know; `None`: no folder can be used.
///
/// # Errors
/// If a folder was configured and cannot be used.
fn state_folder(args: &SidecarArgs) -> anyhow::Result<Option<PathBuf>> {
    let configured = args.memory.state_dir.as_deref();

    match (find_state_folder(configured, |name| std::env::var_os(name)), configured) {
        (Ok(folder), _) => Ok(Some(folder)),
        (Err(error), Some(folder)) => Err(error)
            .with_context(|| format!("--state-dir {}: the folder can be neither made nor written", folder.display())),
        (Err(error), None) => {
            tracing::warn!(
                error = hush_log::explain(&error),
                "no folder for records was found; give one with --state-dir"
            );
            Ok(None)
        }
    }
}

/// What an earlier sidecar has left about the app, and what this one leaves.
fn presence_record(governed: &StartedApp, runs: AppRuns, folder: Option<&Path>) -> PresenceRecord {
    let file = folder
        .filter(|_| governed.app.starts_loaded())
        .map(|folder| StateFile::new(folder, governed.upstream.authority()));
    let stored = file.as_ref().map_or(Ok(None), |file| {
        file.read().map_err(|error| format!("the record {} cannot be read: {error}", file.path().display()))
    });

    PresenceRecord::new(runs, boot_id(), file, stored)
}

fn app_watch(
    args: &SidecarArgs,
    governed: &StartedApp,
    metrics: AppMetrics,
    (runs, record): (AppRuns, PresenceRecord),
    lock_folder: Option<PathBuf>,
) -> AppWatch {
    let settings = WatchSettings {
        interval: args.life.poll_interval,
        mode: governed.mode.clone(),
        control: governed.supervised.as_ref().map(SupervisedApp::control),
        lock_folder,
    };

    AppWatch::new(Arc::clone(&governed.app), governed.upstream.clone(), settings, metrics, runs, record)
}

fn start_models(
    args: &SidecarArgs,
    configured: &[ConfiguredModel],
    governed: &StartedApp,
    runners: RunnersSettings,
    gpu: &AppGpu,
    metrics: &ResidencyMetrics,
) -> anyhow::Result<Arc<Models<SidecarRunners>>> {
    let settings = configured.iter().map(|model| ModelSettings {
        name: model.name.clone(),
        spec: SidecarSpec {
            name: model.name.clone(),
            app_name: app_name(&governed.app, model),
            device: gpu.device.clone(),
            mode: governed.mode.clone(),
        },
        precision: None,
        lifecycle: LifecycleSettings {
            residency: model.residency,
            queue_limit: at_least_one(args.requests.max_queue),
            concurrency: at_least_one(args.requests.concurrency),
            drain: model.drain,
            drain_end: DrainEnd::GiveUp,
            unload_method: args.life.unload.into(),
            ..LifecycleSettings::default()
        },
        account: gpu.account(model.need_bytes),
    });

    let models = Models::start(settings.collect(), runners, Some(&gpu.accounts), metrics)?;
    for model in models.iter() {
        tracing::info!(model = model.name(), "model");
    }
    Ok(Arc::new(models))
}

fn at_least_one(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN)
}

/// The name under which the app lists a model.
fn app_name(app: &App, model: &ConfiguredModel) -> String {
    app.canonical_name(model.app_name.as_deref().unwrap_or(&model.name))
}

fn app_names(app: &App, configured: &[ConfiguredModel]) -> BTreeMap<String, String> {
    configured.iter().map(|model| (model.name.clone(), app_name(app, model))).collect()
}

/// The TLS of both listeners; `None`: plain HTTP.
struct ListenerTls {
    clients: Option<Tls>,
    ops: Option<Tls>,
}

fn listener_tls(security: &SecurityArgs) -> anyhow::Result<ListenerTls> {
    let SecurityArgs { tls_cert, tls_key, ops_tls_cert, ops_tls_key, .. } = security;

    let clients = Tls::from_options("tls", tls_cert.as_ref(), tls_key.as_ref())?;
    let ops = Tls::from_options("ops-tls", ops_tls_cert.as_ref(), ops_tls_key.as_ref())?;
    Ok(ListenerTls { clients, ops })
}

fn proxy_settings(
    args: &SidecarArgs,
    configured: &[ConfiguredModel],
    activity: AppActivity,
    tls: Option<Tls>,
) -> ProxySettings {
    let requests = &args.requests;
    let files = FileBudget::within_limit(OPS_CONNECTIONS + IDLE_UPSTREAM_MAX);

    ProxySettings {
        cold_hold: Some(requests.cold_hold),
        // `check_limits` has seen that it fits.
        attribution_bytes: usize::try_from(requests.attribution_bytes).unwrap_or(usize::MAX),
        spool: SpoolOptions {
            limit_bytes: Some(requests.max_body),
            dir: requests.spool_dir.clone(),
            ..SpoolOptions::default()
        },
        body_stall: requests.body_stall,
        client_stall: requests.client_stall.0,
        socket_idle: requests.socket_idle,
        first_byte_timeout: requests.first_byte_timeout.0,
        between_bytes_timeout: requests.between_bytes_timeout.0,
        request_timeout: requests.request_timeout.0,
        default_model: configured.first().map(|model| model.name.clone()),
        aliases: aliases(configured),
        max_connections: files.connections(requests.max_connections),
        files,
        keep_alive: requests.keep_alive,
        drain_deadline: args.life.drain_timeout + Duration::from_secs(2),
        tls,
        activity,
    }
}

fn ops_options() -> ListenOptions {
    ListenOptions {
        max_connections: OPS_CONNECTIONS,
        head_timeout: hush_listener::HEAD_TIMEOUT,
        format_error: error_body,
    }
}

async fn bind(option: &str, address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("{option} {address} cannot be listened on"))?;
    let bound = listener.local_addr()?;

    Ok((listener, bound))
}

/// Waits for a signal that ends the program, and lets a second one end it at once.
async fn next_end_signal() -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for signals")?;
    let name = next_of(&mut terminate, &mut interrupt).await;

    tokio::spawn(async move {
        let signal = next_of(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal, "a second signal: ending at once");
        std::process::exit(1);
    });
    Ok(name)
}

async fn next_of(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
