//! `hush-controller run`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::control_sources::ControlSources;
use super::kubernetes::{ClusterController, KubernetesArgs};
use super::log::ControllerLogArgs;
use crate::act::{Audit, Executor, Heartbeat, ServerCredentials, TokenFile};
use crate::control_loop::{ControlLoop, LoopInputs, LoopOutputs, LoopRequest, LoopSettings, LoopSnapshot, Readiness};
use crate::http::{CaCertificates, HttpClient};
use crate::metrics::ControllerMetrics;
use crate::observe::{self, ObservationStore, ReportTrust, ScrapeSettings, Scraper};
use crate::option_values::parse_positive_duration;
use crate::sources::{self, CaFile, FileSource, NamedTarget, PolicyFiles, TargetsFile};
use crate::web::{self, AllowedHosts, PageToken, WebState};
use crate::{listen, ops};

/// How long commands in flight may take after SIGTERM. It is enough for a request that an unload waits for; Kubernetes kills
/// the process after 30 s.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);
/// How many requests of the page wait for the control loop.
const REQUESTS_WAITING: usize = 64;

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub fleet: FleetArgs,
    /// Time between two scrapes of a server.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_positive_duration, env = "HUSH_CONTROLLER_INTERVAL")]
    pub interval: Duration,
    /// Samples that are older cause no action.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = parse_positive_duration, env = "HUSH_CONTROLLER_STALE_AFTER")]
    pub stale_after: Duration,
    /// File with the token that the servers' admin API requires, the same for all of them; read again for each command. For
    /// servers that you name; in a cluster --service-account replaces it, and only `--scope pod` may have one.
    #[arg(long, value_name = "FILE", env = "HUSH_CONTROLLER_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// File to which a line of JSON is added for each command that was sent, with its outcome.
    #[arg(long, value_name = "FILE", env = "HUSH_CONTROLLER_AUDIT_LOG")]
    pub audit_log: Option<PathBuf>,
    /// Address that serves the page, /metrics, /healthz and /readyz.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9002", env = "HUSH_CONTROLLER_LISTEN")]
    pub listen: SocketAddr,
    /// File with the page token, which requests to unload, load or pause a policy need. Without it they are all refused.
    #[arg(long, value_name = "FILE", env = "HUSH_CONTROLLER_PAGE_TOKEN_FILE")]
    pub page_token_file: Option<PathBuf>,
    /// A name by which browsers open the page, besides addresses and localhost: behind a proxy, or by a name of the network.
    /// May be repeated.
    #[arg(long, value_name = "NAME", env = "HUSH_CONTROLLER_PAGE_HOST", value_delimiter = ',')]
    pub page_host: Vec<String>,
    /// Whether the page is served at `/`, and its API.
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set, env = "HUSH_CONTROLLER_WEB_UI")]
    pub web_ui: bool,
    /// Decide and report, but send no command.
    #[arg(long, env = "HUSH_CONTROLLER_DRY_RUN")]
    pub dry_run: bool,
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
    #[command(flatten)]
    pub log: ControllerLogArgs,
}

/// Which servers are observed, and by which policies.
#[derive(Debug, Args)]
pub struct FleetArgs {
    /// Policies: YAML files, or folders of them, watched for changes. May be repeated.
    #[arg(long, value_name = "FILE", env = "HUSH_CONTROLLER_POLICY", value_delimiter = ',')]
    pub policy: Vec<PathBuf>,
    /// A server's operations port, as in `http://127.0.0.1:9001`, `subtitles=http://...` or `speech/subtitles=http://...`
    /// (namespace and name, by which policies select). May be repeated.
    #[arg(long, value_name = "[[NAMESPACE/]NAME=]URL", env = "HUSH_CONTROLLER_TARGET", value_delimiter = ',')]
    pub target: Vec<NamedTarget>,
    /// YAML file with `targets: [{url, name, labels, node}]`, watched for changes.
    #[arg(long, value_name = "FILE", env = "HUSH_CONTROLLER_TARGETS")]
    pub targets: Option<PathBuf>,
    /// How long to wait for a server's metrics.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_positive_duration, env = "HUSH_CONTROLLER_SCRAPE_TIMEOUT")]
    pub scrape_timeout: Duration,
    /// File with the authorities that certificates of servers with HTTPS are checked against, in PEM, watched for changes.
    /// Pods that ask for https need it. Default: the authorities of the system.
    #[arg(long, value_name = "FILE", env = "HUSH_CONTROLLER_CA_FILE")]
    pub ca_file: Option<PathBuf>,
}

impl FleetArgs {
    pub fn policies(&self) -> PolicyFiles {
        PolicyFiles(self.policy.clone())
    }

    pub fn targets(&self) -> TargetsFile {
        TargetsFile { fixed: self.target.clone(), path: self.targets.clone() }
    }

    /// The certificates of `--ca-file` as they are now. The task that follows the file sends later ones.
    pub fn authorities(&self) -> anyhow::Result<Option<watch::Sender<Arc<CaCertificates>>>> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        let certificates = CaCertificates::read(path).map_err(|error| anyhow::anyhow!("--ca-file {error}"))?;
        Ok(Some(watch::Sender::new(Arc::new(certificates))))
    }

    pub fn scraper(
        &self,
        interval: Duration,
        metrics: &Arc<ControllerMetrics>,
        authorities: Option<&watch::Sender<Arc<CaCertificates>>>,
    ) -> anyhow::Result<Scraper> {
        let client = HttpClient::new(authorities.map(watch::Sender::subscribe)).context("setting up TLS")?;
        let settings = ScrapeSettings { interval, timeout: self.scrape_timeout };
        Ok(Scraper { client, settings, store: ObservationStore::default(), metrics: Arc::clone(metrics) })
    }
}

pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    args.log.init()?;
    check(args)?;

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(args))
}

/// Refuses options that contradict each other or name nothing to control.
fn check(args: &RunArgs) -> anyhow::Result<()> {
    let fleet = &args.fleet;
    if args.kubernetes.scope.is_none() {
        anyhow::ensure!(
            args.kubernetes.service_account.is_none(),
            "--service-account needs --scope: servers that you name are shown the token of --token-file"
        );
        anyhow::ensure!(
            !fleet.policy.is_empty(),
            "no policy: give a file with --policy, or --scope to take policies from Kubernetes"
        );
        anyhow::ensure!(
            !fleet.target.is_empty() || fleet.targets.is_some(),
            "no server: give the URL of its operations port with --target, or a file with --targets"
        );
    }

    anyhow::ensure!(
        args.stale_after >= args.interval * 2,
        "--stale-after must be at least twice --interval, or every sample is too old when it is used"
    );
    if let Some(name) = args.kubernetes.scope {
        args.kubernetes.check(name, args.token_file.is_some(), args.dry_run)?;
    }
    Ok(())
}

async fn serve(args: &RunArgs) -> anyhow::Result<ExitCode> {
    warn_of_exposed_secrets(args);
    let page_token = args.page_token_file.clone().map(PageToken::new).transpose();
    let page_token = page_token.map_err(|error| anyhow::anyhow!("--page-token-file {error}"))?;
    let metrics = Arc::new(ControllerMetrics::new().context("setting up the metrics")?);
    let readiness = Readiness::default();

    let scraper = start_ca_file_watch_and_scraper(args, &metrics)?;
    let (snapshots, snapshot) = watch::channel(Arc::new(LoopSnapshot::empty()));
    let mut cluster = match args.kubernetes.scope {
        Some(name) => Some(args.kubernetes.connect(name, args.dry_run, &readiness, &metrics).await?),
        None => None,
    };
    let control_sources = match &cluster {
        Some(cluster) => ControlSources::watch_cluster(args, cluster, snapshot, &metrics, &readiness),
        None => ControlSources::watch_files(args, &metrics)?,
    };

    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("--listen {}", args.listen))?;
    let address = listener.local_addr()?;
    let scope = cluster.as_ref().map(|cluster| tracing::field::debug(&cluster.scope));
    tracing::info!(ops = %address, dry_run = args.dry_run, scope, "controlling");

    let ControlSources { targets, policies, namespaces, gate, records } = control_sources;
    tokio::spawn(observe::scrape_continuously(scraper.clone(), targets.clone()));
    let credentials = credentials(args, cluster.as_ref(), &metrics, &readiness);
    let presence = Heartbeat {
        client: scraper.client.clone(),
        credentials: Arc::clone(&credentials),
        gate: Arc::clone(&gate),
        metrics: Arc::clone(&metrics),
        targets: targets.clone(),
    };
    tokio::spawn(presence.run());

    let (executor, ends) = Executor::new(scraper.client, credentials, gate, Arc::clone(&metrics));
    let audit = Audit::new(args.audit_log.clone(), Arc::clone(&metrics));
    let mut router = ops::router(Arc::clone(&metrics), readiness.clone());
    let (request_sender, requests) = mpsc::channel(REQUESTS_WAITING);
    if args.web_ui {
        let page = page_router(args, address, request_sender, page_token, &snapshots, &metrics);
        router = router.merge(page);
    }

    let trust = if cluster.is_some() { ReportTrust::ByNamespace } else { ReportTrust::AllTargets };
    let settings = LoopSettings { interval: args.interval, stale_after: args.stale_after, trust };
    let inputs = LoopInputs { targets, policies, namespaces, store: scraper.store, requests };
    let outputs = LoopOutputs { executor, ended: ends, audit, metrics, readiness, snapshots, events: records };
    let control_loop = ControlLoop::new(settings, inputs, outputs);

    tokio::spawn(listen::serve(listener, router, listen::LISTEN_OPTIONS));
    run_until_stopped(control_loop, cluster.as_mut()).await
}

fn warn_of_exposed_secrets(args: &RunArgs) {
    for (option, path) in [("--token-file", &args.token_file), ("--page-token-file", &args.page_token_file)] {
        if let Some(problem) = path.as_deref().and_then(|path| hush_log::exposed_secret(option, path)) {
            tracing::warn!("{problem}");
        }
    }
}

fn start_ca_file_watch_and_scraper(args: &RunArgs, metrics: &Arc<ControllerMetrics>) -> anyhow::Result<Scraper> {
    let authorities = args.fleet.authorities()?;
    let scraper = args.fleet.scraper(args.interval, metrics, authorities.as_ref())?;

    if let (Some(path), Some(authorities)) = (&args.fleet.ca_file, authorities) {
        metrics.source_valid.with_label_values(&[CaFile::NAME]).set(1);
        tokio::spawn(sources::follow(Arc::new(CaFile(path.clone())), authorities, Arc::clone(metrics)));
    }
    Ok(scraper)
}

/// What requests to servers authenticate with.
fn credentials(
    args: &RunArgs,
    cluster: Option<&ClusterController>,
    metrics: &Arc<ControllerMetrics>,
    readiness: &Readiness,
) -> Arc<dyn ServerCredentials> {
    match cluster {
        Some(cluster) => {
            let account = args.kubernetes.service_account.as_ref();
            cluster.credentials(account, args.token_file.as_deref(), metrics, readiness)
        }
        None => Arc::new(TokenFile::new(args.token_file.clone())),
    }
}

fn page_router(
    args: &RunArgs,
    address: SocketAddr,
    requests: mpsc::Sender<LoopRequest>,
    page_token: Option<PageToken>,
    snapshots: &watch::Sender<Arc<LoopSnapshot>>,
    metrics: &Arc<ControllerMetrics>,
) -> Router {
    let hosts = AllowedHosts { names: args.page_host.clone(), listener: address.ip() };
    web::router(WebState::new(snapshots.subscribe(), requests, Arc::clone(metrics), page_token, hosts))
}

/// Runs the control loop until SIGTERM or SIGINT. In a cluster, an error ends it when this controller loses the right to
/// act.
async fn run_until_stopped(
    control_loop: ControlLoop,
    cluster: Option<&mut ClusterController>,
) -> anyhow::Result<ExitCode> {
    let stop = stop_signal()?;

    match cluster {
        None => control_loop.run(stop, SHUTDOWN_TIMEOUT).await,
        Some(cluster) => {
            tokio::select! {
                () = control_loop.run(stop, SHUTDOWN_TIMEOUT) => {}
                loss = cluster.wait_for_loss() => anyhow::bail!("this controller may not act any more: {loss}"),
            }
            cluster.release_lease().await;
        }
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Becomes true with the first SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<watch::Receiver<bool>> {
    use tokio::signal::unix::{SignalKind, signal};

    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (sender, stop) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("stopping: no new command is sent");

        // The sender is kept until the control loop has seen the value.
        sender.send_replace(true);
        sender.closed().await;
    });
    Ok(stop)
}
