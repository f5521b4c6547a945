//! `hush-server serve`: settings become listeners, models and runners; a signal ends them in order.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hush_whisper::{runtime, vad};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::env::Env;
use super::fleet::{self, Fleet};
use super::ground::Ground;
use super::reload::Reload;
use super::settings::ServeSettings;
use super::values::{AsrEngine, CorsOrigin};
use super::{check, ground, log, ort_lib, security, vad_model};
use crate::admin::{self, AdminState};
use crate::api::{ApiConfig, ApiState, Catalogue, Live, UploadOptions};
use crate::audio::{Confinement, DecodeOptions, Ffmpeg};
use crate::budget::ByteBudget;
use crate::format::JsonShape;
use crate::gpu::GpuCollector;
use crate::metrics::{self, Metrics};
use crate::residency::{Governor, reclaim_memory};
use crate::runner;
use crate::serve::{ServeOptions, serve};
use crate::spool;

/// Answers are little work and runners are processes of their own: two threads serve any number of clients.
const WORKER_THREADS: usize = 2;

/// Of the operations listener: scrapes, controllers and their streams of events.
const OPS_CONNECTIONS: usize = 256;

/// After the runners had their time, connections get this much to hand out the last answers.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// Whoever waits for the model holds a connection and a file. The soft limit, often 1024, is only there for programs that
/// use `select`; the hard one is the operator's word.
fn lift_limit_of_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(soft_limit = limit.current, "the limit of open files stays as it is: {error}");
    }
}

/// Open files that are no request's: listeners, runners, the operations listener's connections, libraries.
const OTHER_FILES: u64 = 64;
/// Of a request: its connection, its upload, its samples.
const FILES_PER_REQUEST: u64 = 3;

/// As many connections as were asked for, or as the limit of open files leaves.
fn connections_within(max_connections: usize, open_files: Option<u64>) -> usize {
    let Some(open_files) = open_files else { return max_connections };
    let room = usize::try_from(open_files.saturating_sub(OTHER_FILES) / FILES_PER_REQUEST).unwrap_or(usize::MAX).max(1);
    if room < max_connections {
        tracing::warn!(open_files, "the limit of open files leaves {room} connections, not {max_connections}");
    }
    room.min(max_connections)
}

/// Runs until SIGTERM or SIGINT.
pub fn run(settings: &ServeSettings, env: &Env) -> anyhow::Result<()> {
    lift_limit_of_open_files();
    for used in &settings.legacy {
        tracing::info!("{used}");
    }
    // Sends what is left when the server has ended.
    #[cfg(feature = "otel")]
    let _traces = super::traces::start(env)?;
    let program = std::env::current_exe().context("finding this program")?;
    let library = ort_lib::find(settings.engine.ort_lib.as_deref(), env, &program)?;
    let vad_model = vad_model::find(settings.engine.vad_model.as_deref(), &library, &program)?;
    let has_vad = vad_model.is_some();
    let ground = Ground::survey(settings, env, &program, library.clone(), has_vad)?;
    let plans = fleet::plan(settings, env, &ground)?;
    if settings.check_config {
        return check::print(settings, &plans).context("printing the settings");
    }
    spool::check_folder(settings.spool_dir.as_deref())
        .context("starting without a place for uploads; --spool-dir names the folder")?;
    for plan in &plans {
        if let Some(reason) = &plan.site.placement.reason {
            let (model, asked) = (&plan.settings.name, plan.site.asked);
            tracing::info!(model, "--device {asked} is the CPU here: {reason}");
        }
    }
    let mut runners = runner::Settings::this_program(vec![OsString::from("runner")]);
    runners.env.push((runtime::PATH_VARIABLE.into(), library.clone().into_os_string()));
    runners.env.extend(ground.runner_env.iter().cloned());
    runners.env.extend(vad_model.map(|model| (vad::PATH_VARIABLE.into(), model.into_os_string())));
    runners.env.extend(log::variables(&settings.log));
    runners.load_timeout = settings.load_timeout;
    runners.stall_timeout = settings.stall_timeout;
    runners.busy_timeout = settings.busy_timeout;
    runners.spare = settings.spare_runner;

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let metrics = Arc::new(Metrics::new().context("registering metrics")?);
        publish_confinement(&metrics);
        let expected = plans.iter().any(|plan| plan.site.gpu.is_some());
        let accounts =
            ground::accounts(settings, expected, &metrics).context("starting the thread that looks at the GPUs")?;
        metrics.register(Box::new(GpuCollector::new(accounts.clone())?)).context("registering metrics")?;
        let gpus = accounts.sampler().clone();
        let stop = CancellationToken::new();
        let fleet = Fleet::start(settings, plans, runners, ground.clone(), &accounts, &metrics, stop.clone())?;
        let fleet = Arc::new(fleet);
        let (models, governor) = (Arc::clone(fleet.models()), Governor::default());
        if let Some(percent) = settings.memory.reclaimer.0 {
            tokio::spawn(reclaim_memory(models.clone(), accounts, f64::from(percent) / 100.0, governor.clone()));
        }
        let catalogue = Arc::clone(&fleet) as Arc<dyn Catalogue>;
        let config = ApiConfig { keys: security::api_keys(&settings.security)?, has_vad, ..api_config(settings) };
        let live = Live::new(models.clone(), stop.clone());
        let api = crate::api::router(ApiState::new(catalogue, Arc::clone(&metrics), config).with_live(live));
        let tls = security::tls("tls", settings.security.tls.as_ref())?;
        let ops_tls = security::tls("ops-tls", settings.security.ops_tls.as_ref())?;
        let (listener, address) = bind("--listen", settings.listen).await?;
        let (ops_listener, ops_address) = bind("--ops-listen", settings.ops_listen).await?;
        let ops_stop = CancellationToken::new();
        let access = security::access(&settings.security, ops_address.ip())?;
        let admin = AdminState::new(Arc::clone(&models), access, ops_stop.clone()).noting(governor);
        let ops = metrics::router(Arc::clone(&metrics), Some(gpus)).merge(admin::router(admin, Arc::clone(&metrics)));
        for model in models.iter() {
            tracing::info!(model = model.name(), "model");
        }
        tracing::info!(api = %address, ops = %ops_address, "listening");

        let drain = settings.drain_timeout;
        let max_connections = connections_within(settings.limits.max_connections, getrlimit(Resource::Nofile).current);
        let options = ServeOptions {
            drain_deadline: drain + ANSWER_GRACE,
            tls,
            max_connections,
            shape: crate::api::error_shape,
            ..ServeOptions::default()
        };
        let ops_options = ServeOptions {
            tls: ops_tls,
            max_connections: OPS_CONNECTIONS.min(max_connections),
            shape: admin::error_shape,
            ..options.clone()
        };
        let requests = tokio::spawn(serve(listener, api, stop.clone(), options));
        let operations = tokio::spawn(serve(ops_listener, ops, ops_stop.clone(), ops_options));
        let mut signals = Signals::new().context("listening for signals")?;
        let reload = Reload::new(settings, env, ground, &metrics);
        let signal = loop {
            match signals.next().await {
                "SIGHUP" => reload.run(&fleet).await,
                signal => break signal,
            }
        };
        tracing::info!(signal, "shutting down; requests that have arrived are served, for {drain:?} at most");
        tokio::spawn(async move {
            let signal = loop {
                match signals.next().await {
                    "SIGHUP" => {}
                    signal => break signal,
                }
            };
            tracing::warn!(signal, "a second signal: ending at once");
            // The runners end with this process.
            std::process::exit(1);
        });
        stop.cancel();
        let requests = async { requests.await.context("serving requests") };
        let (ended, ()) = tokio::join!(requests, models.shutdown(drain));
        // Until here `/metrics` and `/healthz` told how far the end has come.
        ops_stop.cancel();
        operations.await.context("serving operations")?;
        tracing::info!("ended");
        ended
    })
}

/// At the start, so that an operator sees it before a file comes that needs it.
fn publish_confinement(metrics: &Metrics) {
    let found = Confinement::of_this_kernel();
    for (mechanism, is_offered) in [("landlock", found.landlock), ("seccomp", found.seccomp)] {
        metrics.ffmpeg_confined.with_label_values(&[mechanism]).set(f64::from(u8::from(is_offered)));
    }
}

fn api_config(settings: &ServeSettings) -> ApiConfig {
    let memory_bytes = usize::try_from(settings.spool_memory_bytes).unwrap_or(usize::MAX);
    let total_bytes = settings.limits.spool_memory_total_bytes;
    let memory_budget = Some(ByteBudget::new("the memory for uploads and decoded audio is in use", total_bytes));
    let uploads = ByteBudget::new("there is no room for the upload (--max-spool)", settings.limits.max_spool_bytes);
    let decoded =
        ByteBudget::new("there is no room for the decoded audio (--max-decoded)", settings.limits.max_decoded_bytes);
    let decode = decode_options(settings.engine.ffmpeg.as_deref(), settings.spool_dir.as_deref(), memory_bytes);
    ApiConfig {
        json_shape: match settings.asr_engine {
            AsrEngine::OpenaiWhisper => JsonShape::OpenAiWhisper,
            AsrEngine::FasterWhisper => JsonShape::FasterWhisper,
        },
        upload: UploadOptions {
            max_upload_bytes: settings.max_upload_bytes,
            memory_bytes,
            dir: settings.spool_dir.clone(),
            least_bytes_per_second: settings.limits.least_upload_bytes_per_second,
            memory_budget: memory_budget.clone(),
            budget: Some(uploads),
            ..UploadOptions::default()
        },
        web_ui: settings.web_ui,
        decode: DecodeOptions {
            limit_seconds: settings.limits.max_audio.as_secs(),
            memory_budget,
            budget: Some(decoded),
            ..decode
        },
        cold_hold: settings.cold_hold,
        cors_origins: settings.cors_origins.iter().map(|CorsOrigin(origin)| origin.clone()).collect(),
        ..ApiConfig::default()
    }
}

/// How audio is decoded, for `serve` and `transcribe`.
pub fn decode_options(
    ffmpeg: Option<&std::path::Path>,
    spool_dir: Option<&std::path::Path>,
    memory_bytes: usize,
) -> DecodeOptions {
    DecodeOptions {
        ffmpeg: ffmpeg.map_or(Ffmpeg::OnPath, |program| Ffmpeg::At(program.to_owned())),
        dir: spool_dir.map(ToOwned::to_owned),
        memory_bytes,
        ..DecodeOptions::default()
    }
}

async fn bind(option: &str, address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("{option} {address} cannot be listened on"))?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// What asks the server to end, or to read its configuration again.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_limit_of_open_files() {
        assert_eq!(connections_within(1024, None), 1024);
        assert_eq!(connections_within(1024, Some(1 << 20)), 1024);
        assert_eq!(connections_within(1024, Some(1024)), 320);
        assert_eq!(connections_within(1024, Some(128)), 21);
        assert_eq!(connections_within(1024, Some(10)), 1);
    }
}
