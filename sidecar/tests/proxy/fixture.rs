//! A proxy in front of a raw app, with models whose runners do nothing.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use hush_contract::{ModelState, UnloadReason};
use hush_residency::{
    LifecycleSettings, LoadTimings, ModelHandle, ModelRunner, ModelSettings, Models, OnRunnerEvent, ResidencyMetrics,
    ResidencyRule, RunnerEvent, RunnerFactory, RunnerSpec, UnloadCommand,
};
use hush_sidecar::app::{
    AppAnswer, AppAnswerError, AppRequest, DisguisedCommand, ModelNameSource, RouteClass, RouteMatch,
};
use hush_sidecar::proxy::{Proxy, ProxyMetrics, ProxySettings, RequestRoutes};
use hush_sidecar::status::AppStatus;
use hush_sidecar::upstream::{Upstream, UpstreamCredential, UpstreamSettings};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::LONG;

/// Routes like those of real apps, as a table.
pub struct TableRoutes;

impl RequestRoutes for TableRoutes {
    fn route(&self, method: &Method, path: &str, _: Option<&str>, _: bool) -> RouteMatch {
        let in_body = || ModelNameSource::Body { member: "model".to_owned() };
        let (class, model) = match (method.as_str(), path) {
            ("POST", "/unload" | "/models/unload") => (RouteClass::Closed, ModelNameSource::None),
            ("POST", "/one" | "/forever" | "/prompt") => (RouteClass::Work, ModelNameSource::None),
            ("POST", "/pull") => (RouteClass::NotWork, ModelNameSource::None),
            ("GET" | "HEAD", "/v1/models" | "/events") => (RouteClass::NotWork, ModelNameSource::None),
            ("GET", "/ws") => (RouteClass::DisplaySocket, ModelNameSource::None),
            ("GET", "/v1/stream") => {
                (RouteClass::NotWorkLoadedOnly, ModelNameSource::Earlier { parameter: "conv_id".to_owned() })
            }
            ("GET", "/realtime") => (RouteClass::WorkSocket, ModelNameSource::Query { parameter: "model".to_owned() }),
            ("GET" | "HEAD" | "OPTIONS", _) => (RouteClass::NotWorkLoadedOnly, in_body()),
            _ => (RouteClass::Work, in_body()),
        };

        let removed = |is_there: bool, name: &str| if is_there { vec![name.to_owned()] } else { Vec::new() };
        RouteMatch {
            class,
            template: path.to_owned(),
            model,
            removed_members: removed(path == "/api/generate", "keep_alive"),
            removed_parameters: removed(true, "autoload"),
            ends_when_app_is_idle: path == "/prompt",
            waits_forever: path == "/forever",
            command: (path == "/api/generate").then(|| DisguisedCommand {
                work_members: vec!["prompt".to_owned()],
                unload_member: Some("keep_alive".to_owned()),
            }),
        }
    }

    fn canonical_name(&self, model: &str) -> String {
        if model.contains(':') { model.to_owned() } else { format!("{model}:latest") }
    }

    fn governs(&self, model: &str) -> bool {
        !model.ends_with("cloud")
    }

    fn earlier_header(&self) -> Option<&str> {
        Some("X-Conversation-Id")
    }

    fn busy(&self, _: &str) -> Option<AppRequest> {
        let (method, path, timeout) = (Method::GET, "/queue".to_owned(), Duration::from_secs(5));
        Some(AppRequest { method, path, body: None, timeout })
    }

    fn read_busy(&self, _: &str, answer: &AppAnswer) -> Result<u64, AppAnswerError> {
        let text = String::from_utf8_lossy(&answer.body);
        text.trim().parse().map_err(|_| AppAnswerError { request: "GET /queue".to_owned(), problem: text.into_owned() })
    }
}

#[derive(Clone)]
pub struct InstantSpec;

impl RunnerSpec for InstantSpec {
    fn device(&self) -> &str {
        "cpu"
    }

    fn with_memory_limit(self, _: Option<u64>) -> Self {
        self
    }
}

/// Loads when the gate is open.
#[derive(Clone)]
pub struct InstantRunners {
    gate: watch::Receiver<bool>,
}

#[derive(Clone)]
pub struct InstantRunner {
    notify: Arc<OnRunnerEvent>,
    has_ended: Arc<AtomicBool>,
}

impl RunnerFactory for InstantRunners {
    type Settings = Self;
    type Spec = InstantSpec;
    type Runner = InstantRunner;

    fn new(settings: Self) -> io::Result<Self> {
        Ok(settings)
    }

    fn start(&self, _: InstantSpec, notify: OnRunnerEvent) -> InstantRunner {
        let runner = InstantRunner { notify: Arc::new(notify), has_ended: Arc::default() };
        (runner.notify)(RunnerEvent::Started { pids: Vec::new() });

        let (loading, mut gate) = (runner.clone(), self.gate.clone());
        tokio::spawn(async move {
            let _ = gate.wait_for(|is_open| *is_open).await;
            if !loading.has_ended.load(Ordering::Acquire) {
                (loading.notify)(RunnerEvent::Loaded(LoadTimings::default()));
            }
        });
        runner
    }

    async fn shutdown(&self) {}
}

impl ModelRunner for InstantRunner {
    fn stop(&self) {
        if !self.has_ended.swap(true, Ordering::AcqRel) {
            (self.notify)(RunnerEvent::Exited);
        }
    }

    fn kill(&self) {
        self.stop();
    }
}

pub struct Fixture {
    pub proxy: Proxy,
    pub address: SocketAddr,
    pub models: Arc<Models<InstantRunners>>,
    pub status: watch::Sender<AppStatus>,
    /// Opens the way for loads.
    pub gate: watch::Sender<bool>,
    pub registry: Registry,
    pub served: JoinHandle<()>,
    _spool: tempfile::TempDir,
}

/// What a test changes.
pub struct FixtureOptions {
    pub settings: ProxySettings,
    pub lifecycle: LifecycleSettings,
    pub can_load: bool,
    /// The credential of the sidecar's own requests.
    pub credential: Option<UpstreamCredential>,
}

impl Default for FixtureOptions {
    fn default() -> Self {
        let lifecycle = LifecycleSettings {
            residency: ResidencyRule::Idle(None),
            concurrency: NonZeroUsize::new(64).unwrap(),
            ..LifecycleSettings::default()
        };
        Self { settings: ProxySettings::default(), lifecycle, can_load: true, credential: None }
    }
}

impl Fixture {
    pub async fn start(app: SocketAddr) -> Self {
        Self::with(app, |_| {}).await
    }

    /// Models `tiny` (the default) and `big:7b`.
    pub async fn with(app: SocketAddr, change: impl FnOnce(&mut FixtureOptions)) -> Self {
        let mut options = FixtureOptions::default();
        let spool = tempfile::tempdir().unwrap();
        options.settings.spool.dir = Some(spool.path().to_owned());
        change(&mut options);

        let (gate, gate_seen) = watch::channel(options.can_load);
        let registry = Registry::new();
        let model = |name: &str| ModelSettings {
            name: name.to_owned(),
            spec: InstantSpec,
            precision: None,
            lifecycle: options.lifecycle,
            account: None,
        };
        let metrics = ResidencyMetrics::new(&registry).unwrap();
        let runners = InstantRunners { gate: gate_seen };
        let models = Models::start(vec![model("tiny"), model("big:7b")], runners, None, &metrics).unwrap();
        let models = Arc::new(models);

        let (status, status_seen) = watch::channel(AppStatus::Running { version: None });
        let upstream = UpstreamSettings::new(app.ip().to_string(), app.port());
        let upstream = Upstream::new(UpstreamSettings { credential: options.credential, ..upstream });
        let metrics = ProxyMetrics::new(&registry).unwrap();
        let routes = Arc::new(TableRoutes);
        let proxy = Proxy::new(Arc::clone(&models), routes, upstream, status_seen, options.settings, metrics);

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn({
            let proxy = proxy.clone();
            async move { proxy.serve(listener).await }
        });
        Self { proxy, address, models, status, gate, registry, served, _spool: spool }
    }

    pub fn model(&self, name: &str) -> ModelHandle<InstantRunners> {
        self.models.get(name).unwrap()
    }

    pub fn tiny(&self) -> ModelHandle<InstantRunners> {
        self.model("tiny")
    }

    pub async fn unload(&self, name: &str) {
        self.model(name).unload(UnloadCommand::now(UnloadReason::Manual)).await.unwrap();
        assert_eq!(self.model(name).snapshot().state, ModelState::Unloaded);
    }

    /// The value of a metric, with its labels as they are shown; `None`: it is not shown.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let text = prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
        text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }
}

/// Waits until the condition holds.
pub async fn soon<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let until = tokio::time::Instant::now() + LONG;
    while !holds().await {
        assert!(tokio::time::Instant::now() < until, "not soon: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until so many requests hold the model, and so many wait for it.
pub async fn counts(model: &ModelHandle<InstantRunners>, inflight: usize, queued: usize) {
    soon(&format!("{inflight} in flight, {queued} queued"), || async {
        let snapshot = model.snapshot();
        (snapshot.inflight, snapshot.queued) == (inflight, queued)
    })
    .await;
}
