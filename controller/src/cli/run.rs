//! `hush-controller run`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use hush_core::{Labels, Policy};
use tokio::sync::{mpsc, watch};

use super::kubernetes::{Cluster, KubernetesArgs};
use super::log::LogArgs;
use super::values::span;
use crate::act::{
    Audit, DryRunGate as Closed, Executor, Gate, Heartbeat as Presence, OpenGate as Open,
    ServerCredentials as Credentials, TokenFile,
};
use crate::cluster::{Policies, ScopeGate};
use crate::control_loop::{
    ControlLoop as Loop, LoopEvent as Told, LoopInputs as Inputs, LoopOutputs as Outputs, LoopSettings,
    LoopSnapshot as Snapshot, Readiness,
};
use crate::http::{CaCertificates, Client};
use crate::lease::LeaderWatcher as Leader;
use crate::metrics::Metrics;
use crate::observe::{self, ObservationStore as Store, ReportTrust as Trust, ScrapeSettings, Scraper, Targets};
use crate::sources::{self, CaFile, NamedTarget, PolicyFiles, Source, TargetsFile};
use crate::web::{self, Hosts, Token, Web};
use crate::{listen, ops};

/// Enough for a request that an unload waits for; Kubernetes kills after 30 s.
const FINISH: Duration = Duration::from_secs(20);
/// What people asked for and the loop has not seen yet.
const REQUESTS: usize = 64;

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub fleet: FleetArgs,
    /// Time between two looks at a server.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = span, env = "HUSH_CONTROLLER_INTERVAL")]
    pub interval: Duration,
    /// Figures that are older cause no action.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = span, env = "HUSH_CONTROLLER_STALE_AFTER")]
    pub stale_after: Duration,
    /// File with the token that the servers' admin API asks for, the same for all of them; read again for each command. For
    /// servers that you name; in a cluster --service-account takes its place, and only `--scope pod` may have one.
    #[arg(long, value_name = "FILE", env = "HUSH_CONTROLLER_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// A line of JSON for each command that was sent and how it ended is added to this file.
    #[arg(long, value_name = "FILE", env = "HUSH_CONTROLLER_AUDIT_LOG")]
    pub audit_log: Option<PathBuf>,
    /// Own listener for the page, /metrics, /healthz and /readyz.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9002", env = "HUSH_CONTROLLER_LISTEN")]
    pub listen: SocketAddr,
    /// File with the token of those who may act on the page: unload, load, pause a policy. Without it nobody may.
    #[arg(long, value_name = "FILE", env = "HUSH_CONTROLLER_PAGE_TOKEN_FILE")]
    pub page_token_file: Option<PathBuf>,
    /// A name by which the page is opened, beside addresses and localhost: behind a proxy, or by a name of the network. May
    /// be repeated.
    #[arg(long, value_name = "NAME", env = "HUSH_CONTROLLER_PAGE_HOST", value_delimiter = ',')]
    pub page_host: Vec<String>,
    /// Whether there is a page at `/` of the own listener, and the API below it.
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set, env = "HUSH_CONTROLLER_WEB_UI")]
    pub web_ui: bool,
    /// Decide and tell, but send no command.
    #[arg(long, env = "HUSH_CONTROLLER_DRY_RUN")]
    pub dry_run: bool,
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Which servers, by which policies.
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
    /// Longest wait for a server's metrics.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = span, env = "HUSH_CONTROLLER_SCRAPE_TIMEOUT")]
    pub scrape_timeout: Duration,
    /// The authorities that certificates of servers with HTTPS are checked against, in PEM, watched for changes. Pods that
    /// ask for https need it. Default: those of the system.
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

    /// What `--ca-file` holds now; the task that follows the file sends what it holds later.
    pub fn authorities(&self) -> anyhow::Result<Option<watch::Sender<Arc<CaCertificates>>>> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        let certificates = CaCertificates::read(path).map_err(|problem| anyhow::anyhow!("--ca-file {problem}"))?;
        Ok(Some(watch::Sender::new(Arc::new(certificates))))
    }

    pub fn scraper(
        &self,
        interval: Duration,
        metrics: &Arc<Metrics>,
        authorities: Option<&watch::Sender<Arc<CaCertificates>>>,
    ) -> anyhow::Result<Scraper> {
        let client = Client::new(authorities.map(watch::Sender::subscribe)).context("setting up TLS")?;
        let settings = ScrapeSettings { interval, timeout: self.scrape_timeout };
        Ok(Scraper { client, settings, store: Store::default(), metrics: Arc::clone(metrics) })
    }
}

pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    args.log.init()?;
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
        "--stale-after must be at least twice --interval, or every sample is too old when it is looked at"
    );
    if let Some(name) = args.kubernetes.scope {
        args.kubernetes.check(name, args.token_file.is_some(), args.dry_run)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(args))
}

/// Where everything comes from, and whether it may be acted upon.
struct Feed {
    targets: watch::Receiver<Arc<Targets>>,
    policies: watch::Receiver<Arc<Vec<Policy>>>,
    namespaces: watch::Receiver<Arc<BTreeMap<String, Labels>>>,
    gate: Arc<dyn Gate>,
    records: Option<mpsc::Sender<Told>>,
}

async fn serve(args: &RunArgs) -> anyhow::Result<ExitCode> {
    for (option, path) in [("--token-file", &args.token_file), ("--page-token-file", &args.page_token_file)] {
        if let Some(problem) = path.as_deref().and_then(|path| hush_log::exposed_secret(option, path)) {
            tracing::warn!("{problem}");
        }
    }
    let page_token = args.page_token_file.clone().map(Token::new).transpose();
    let page_token = page_token.map_err(|problem| anyhow::anyhow!("--page-token-file {problem}"))?;
    let metrics = Arc::new(Metrics::new().context("setting up the metrics")?);
    let readiness = Readiness::default();
    let authorities = args.fleet.authorities()?;
    let scraper = args.fleet.scraper(args.interval, &metrics, authorities.as_ref())?;
    if let (Some(path), Some(told)) = (&args.fleet.ca_file, authorities) {
        metrics.source_valid.with_label_values(&[CaFile::NAME]).set(1);
        tokio::spawn(sources::follow(Arc::new(CaFile(path.clone())), told, Arc::clone(&metrics)));
    }
    let (snapshots, looks) = watch::channel(Arc::new(Snapshot::nothing()));
    let mut cluster = match args.kubernetes.scope {
        Some(name) => Some(args.kubernetes.connect(name, args.dry_run, &readiness, &metrics).await?),
        None => None,
    };
    let feed = match &cluster {
        Some(cluster) => of_cluster(args, cluster, looks, &metrics, &readiness),
        None => of_files(args, &metrics)?,
    };
    let listener =
        tokio::net::TcpListener::bind(args.listen).await.with_context(|| format!("--listen {}", args.listen))?;
    let scope = cluster.as_ref().map(|cluster| tracing::field::debug(&cluster.scope));
    tracing::info!(ops = %listener.local_addr()?, dry_run = args.dry_run, scope, "controlling");

    let Feed { targets, policies, namespaces, gate, records } = feed;
    tokio::spawn(observe::follow(scraper.clone(), targets.clone()));
    let token_file = args.token_file.as_deref();
    let credentials: Arc<dyn Credentials> = match &cluster {
        Some(cluster) => {
            cluster.credentials(args.kubernetes.service_account.as_ref(), token_file, &metrics, &readiness)
        }
        None => Arc::new(TokenFile::new(args.token_file.clone())),
    };
    let presence = Presence {
        client: scraper.client.clone(),
        credentials: Arc::clone(&credentials),
        gate: Arc::clone(&gate),
        metrics: Arc::clone(&metrics),
        targets: targets.clone(),
    };
    tokio::spawn(presence.run());
    let (executor, ends) = Executor::new(scraper.client, credentials, gate, Arc::clone(&metrics));
    let mut router = ops::router(Arc::clone(&metrics), readiness.clone());
    let (ask, requests) = mpsc::channel(REQUESTS);
    if args.web_ui {
        let hosts = Hosts { names: args.page_host.clone(), listener: listener.local_addr()?.ip() };
        let page = Web::new(snapshots.subscribe(), ask, Arc::clone(&metrics), page_token, hosts);
        router = router.merge(web::router(page));
    }
    let audit = Audit::new(args.audit_log.clone(), Arc::clone(&metrics));
    let outputs = Outputs { executor, ended: ends, audit, metrics, readiness, snapshots, events: records };
    let inputs = Inputs { targets, policies, namespaces, store: scraper.store, requests };
    let trust = if cluster.is_some() { Trust::ByNamespace } else { Trust::AllTargets };
    let settings = LoopSettings { interval: args.interval, stale_after: args.stale_after, trust };
    let control = Loop::new(settings, inputs, outputs);
    tokio::spawn(listen::serve(listener, router, listen::LISTEN_OPTIONS));
    let stop = stopped()?;
    let Some(cluster) = &mut cluster else {
        control.run(stop, FINISH).await;
        tracing::info!("stopped");
        return Ok(ExitCode::SUCCESS);
    };
    tokio::select! {
        () = control.run(stop, FINISH) => {}
        loss = cluster.lost() => anyhow::bail!("this controller may not act any more: {loss}"),
    }
    cluster.leave().await;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

fn of_files(args: &RunArgs, metrics: &Arc<Metrics>) -> anyhow::Result<Feed> {
    let (policy_files, targets_file) = (Arc::new(args.fleet.policies()), Arc::new(args.fleet.targets()));
    let policies = policy_files.read().map_err(anyhow::Error::msg)?;
    let targets = targets_file.read().map_err(anyhow::Error::msg)?;
    for source in [PolicyFiles::NAME, TargetsFile::NAME] {
        metrics.source_valid.with_label_values(&[source]).set(1);
    }
    tracing::info!(policies = policies.len(), targets = targets.len(), "policies and targets from files");
    let (told_policies, policies) = watch::channel(Arc::new(policies));
    let (told_targets, targets) = watch::channel(Arc::new(targets));
    tokio::spawn(sources::follow(policy_files, told_policies, Arc::clone(metrics)));
    tokio::spawn(sources::follow(targets_file, told_targets, Arc::clone(metrics)));
    let gate: Arc<dyn Gate> = if args.dry_run { Arc::new(Closed) } else { Arc::new(Open) };
    metrics.acting.set(i64::from(!args.dry_run));
    let namespaces = watch::channel(Arc::default()).1;
    Ok(Feed { targets, policies, namespaces, gate, records: None })
}

fn of_cluster(
    args: &RunArgs,
    cluster: &Cluster,
    looks: watch::Receiver<Arc<Snapshot>>,
    metrics: &Arc<Metrics>,
    readiness: &Readiness,
) -> Feed {
    let sources = &cluster.sources;
    tokio::spawn(count_invalid(sources.objects.clone(), Arc::clone(metrics)));
    let (gate, records): (Arc<dyn Gate>, _) = if args.dry_run {
        (Arc::new(Closed), None)
    } else {
        tokio::spawn(show_acting(Arc::clone(&cluster.gate), Arc::clone(metrics), readiness.clone()));
        (cluster.gate.clone(), Some(cluster.tell(looks, metrics, readiness)))
    };
    Feed {
        targets: sources.targets.clone(),
        policies: sources.policies.clone(),
        namespaces: sources.namespaces.clone(),
        gate,
        records,
    }
}

async fn count_invalid(mut objects: watch::Receiver<Policies>, metrics: Arc<Metrics>) {
    loop {
        let invalid = objects.borrow_and_update().values().filter(|object| object.policy.is_err()).count();
        metrics.policies_invalid.set(i64::try_from(invalid).unwrap_or(i64::MAX));
        if objects.changed().await.is_err() {
            return;
        }
    }
}

/// A claim ends by itself, so it is looked at now and then.
async fn show_acting(gate: Arc<ScopeGate>, metrics: Arc<Metrics>, readiness: Readiness) {
    let mut last_superfluous = None;
    loop {
        let superfluous = gate.superfluous();
        if superfluous != last_superfluous {
            match &superfluous {
                Some(reason) => tracing::warn!("{reason}"),
                None => tracing::info!("no other installation acts any more"),
            }
            last_superfluous.clone_from(&superfluous);
        }

        readiness.set("lease", superfluous.or_else(|| gate.claim.trouble()));
        readiness.set("leases of controllers for more", gate.wider.iter().find_map(Leader::trouble));
        metrics.acting.set(i64::from(gate.open().is_ok()));
        let transitions = gate.claim.leader_changes().saturating_sub(metrics.leader_transitions_total.get());
        metrics.leader_transitions_total.inc_by(transitions);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// True from the first SIGTERM or SIGINT on.
fn stopped() -> anyhow::Result<watch::Receiver<bool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (told, stop) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("stopping: no new command is sent");
        // Kept until the loop has seen it.
        told.send_replace(true);
        told.closed().await;
    });
    Ok(stop)
}
