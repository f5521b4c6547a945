//! The options of a controller in a cluster, and the connection to the API server that they describe.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use hush_core::ServerName;
use kube::{Client, Config};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::values::{parse_lease_duration, parse_pod_name};
use crate::act::{ServerCredentials, TokenFile};
use crate::api_server;
use crate::cluster::{
    AccountName, ClusterSources, EventPublisher, LeaseNames, NamespaceSelector, SERVERS_LABEL_SELECTOR, Scope,
    ScopeGate, ServerNamespaces, ServerTokens, StatusWriter, follow, recorder,
};
use crate::control_loop::{LoopEvent, LoopSnapshot, Readiness};
use crate::lease::{Claim, ClaimLoss, Contender, Elector, LeaderWatcher, LeaseName, LeaseTiming, identity};
use crate::metrics::ControllerMetrics;

/// How many records wait for their Event; further records get none.
const EVENTS_WAITING: usize = 256;
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct KubernetesArgs {
    /// Take servers and policies from Kubernetes, and act for all servers (`cluster`), those of one node (`node`), or the
    /// server in the same pod (`pod`). With `node` and `pod` the controller only observes while one of a wider scope leads.
    #[arg(long, value_enum, env = "HUSH_CONTROLLER_SCOPE", conflicts_with_all = ["policy", "target", "targets"])]
    pub scope: Option<ScopeName>,
    /// The node that the controller runs on; with `--scope node` and `--scope pod`.
    #[arg(long, value_name = "NAME", env = "HUSH_CONTROLLER_NODE")]
    pub node: Option<String>,
    /// The pod that the controller runs in; with `--scope pod`.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = parse_pod_name, env = "HUSH_CONTROLLER_POD")]
    pub pod: Option<ServerName>,
    /// The name of the lease of the cluster's controller. The lease of a node's controller has the node's name added to it.
    #[arg(long, value_name = "NAME", default_value = "hush-controller", env = "HUSH_CONTROLLER_LEASE")]
    pub lease: String,
    /// The namespace of the lease of the cluster's controller. It must be the same for every installation in the cluster:
    /// one of all controllers with the same lease acts.
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system", env = "HUSH_CONTROLLER_LEASE_NAMESPACE")]
    pub lease_namespace: String,
    /// The namespace of the leases of nodes' controllers. Default: the namespace of this pod.
    #[arg(long, value_name = "NAMESPACE", env = "HUSH_CONTROLLER_NODE_LEASE_NAMESPACE")]
    pub node_lease_namespace: Option<String>,
    /// The name of the installation, such as NAMESPACE/DEPLOYMENT. Replicas of one installation take over from each other;
    /// a controller that sees another installation lead is not ready and says so. Default: the namespace of this pod.
    #[arg(long, value_name = "NAME", env = "HUSH_CONTROLLER_INSTALLATION")]
    pub installation: Option<String>,
    /// How long a lease lasts after its last renewal, in whole seconds. After a leader that ends without releasing its
    /// lease, no controller acts for this long.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = parse_lease_duration, env = "HUSH_CONTROLLER_LEASE_DURATION")]
    pub lease_duration: LeaseTiming,
    /// The service account that the controller runs under, with `--scope`: for each server, the controller gets a token of
    /// it from the API server, which only that server accepts.
    #[arg(long, value_name = "NAMESPACE:NAME", env = "HUSH_CONTROLLER_SERVICE_ACCOUNT", conflicts_with = "token_file")]
    pub service_account: Option<AccountName>,
    /// Namespaces whose pods may be servers, as a label selector such as `team in (a,b)`; an empty one selects all. A pod
    /// with a server's label in another namespace is ignored. May be repeated: one of the selectors must select the
    /// namespace. In the variable they are separated by semicolons.
    #[arg(
        long,
        value_name = "SELECTOR",
        default_value = SERVERS_LABEL_SELECTOR,
        value_delimiter = ';',
        env = "HUSH_CONTROLLER_SERVER_NAMESPACES"
    )]
    pub server_namespaces: Vec<NamespaceSelector>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScopeName {
    Cluster,
    Node,
    Pod,
}

/// The connection to the API server, and what follows from the controller's scope.
pub struct ClusterController {
    client: Client,
    /// Retries requests by itself while the API server is busy.
    retrying_client: Client,
    pub scope: Scope,
    pub gate: Arc<ScopeGate>,
    pub sources: ClusterSources,
    election: Option<ElectionTask>,
    identity: String,
}

struct ElectionTask {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ClaimLoss>>,
}

impl KubernetesArgs {
    fn scope(&self, name: ScopeName) -> anyhow::Result<Scope> {
        let node = || self.node.clone().context("--scope node and --scope pod need --node, the name of the node");

        Ok(match name {
            ScopeName::Cluster => Scope::Cluster,
            ScopeName::Node => Scope::Node { node: node()? },
            ScopeName::Pod => {
                let server = self.pod.clone().context("--scope pod needs --pod, the pod's NAMESPACE/NAME")?;
                Scope::Pod { node: node()?, server }
            }
        })
    }

    /// Refuses options by which many servers would get the same credential.
    pub fn check(&self, name: ScopeName, has_token_file: bool, observes_only: bool) -> anyhow::Result<()> {
        anyhow::ensure!(
            name == ScopeName::Pod || !has_token_file,
            "--token-file with --scope {}: one token for all servers would be seen by every pod that calls itself one; give \
             --service-account, and the API server makes a token for each server",
            if name == ScopeName::Node { "node" } else { "cluster" },
        );
        // The server in the same pod may accept requests of its own pod alone, without a credential.
        anyhow::ensure!(
            observes_only || name == ScopeName::Pod || self.service_account.is_some(),
            "no credential for the servers: give --service-account NAMESPACE:NAME, the account that this controller runs \
             under, or --dry-run to send no command"
        );
        Ok(())
    }

    /// Starts to follow the API server, and to compete for the lease of the scope. A controller that only observes does not
    /// compete.
    pub async fn connect(
        &self,
        name: ScopeName,
        observes_only: bool,
        readiness: &Readiness,
        metrics: &Arc<ControllerMetrics>,
    ) -> anyhow::Result<ClusterController> {
        let scope = self.scope(name)?;
        let mut config = infer_config().await?;
        let own_namespace = config.default_namespace.clone();
        let leases = LeaseNames {
            cluster: LeaseName { namespace: self.lease_namespace.clone(), name: self.lease.clone() },
            nodes_namespace: self.node_lease_namespace.clone().unwrap_or_else(|| own_namespace.clone()),
        };
        let installation = self.installation.clone().unwrap_or(own_namespace);

        let retrying_client = connect(config.clone(), Some(metrics))?;
        // Watches, leases and status writes have retries of their own, which show in the readiness; hidden retries of the
        // client could take longer than a lease lasts.
        config.default_retry = false;
        let client = connect(config, Some(metrics))?;

        let identity = identity().context("making up a name for this process")?;
        let wider_leases = scope.wider(&leases).into_iter();
        let lease_duration = self.lease_duration.lease;
        let wider = wider_leases.map(|lease| LeaderWatcher::follow(client.clone(), lease, lease_duration)).collect();

        let (election, claim) = match scope.lease(&leases).filter(|_| !observes_only) {
            None => (None, Claim::always_current()),
            Some(lease) => {
                let contender = Contender { identity: identity.clone(), installation };
                let (election, claim) = self.start_election(client.clone(), lease, contender);
                (Some(election), claim)
            }
        };

        let allowed = ServerNamespaces(self.server_namespaces.clone());
        let sources = follow(&client, &scope, allowed, readiness, metrics);
        let gate = Arc::new(ScopeGate { scope: scope.clone(), claim, wider });
        Ok(ClusterController { client, retrying_client, scope, gate, sources, election, identity })
    }

    fn start_election(&self, client: Client, lease: LeaseName, contender: Contender) -> (ElectionTask, Claim) {
        let (elector, claim) = Elector::new(client, lease, contender, self.lease_duration);
        let (stop, stopped) = oneshot::channel();

        let task = tokio::spawn(elector.run(async move {
            // An error means that the sender was dropped, which stops the election as well.
            let _ = stopped.await;
        }));
        (ElectionTask { stop, task }, claim)
    }
}

/// For a command that lists objects once, and serves no metrics.
pub async fn connect_without_metrics() -> anyhow::Result<Client> {
    connect(infer_config().await?, None)
}

/// The configuration of kubectl, or that of a pod.
async fn infer_config() -> anyhow::Result<Config> {
    Config::infer().await.context("there is no kubeconfig, and this is not a pod of a cluster")
}

fn connect(config: Config, metrics: Option<&Arc<ControllerMetrics>>) -> anyhow::Result<Client> {
    api_server::connect(config, metrics).context("connecting to the API server")
}

impl ClusterController {
    /// What requests to servers authenticate with: tokens of the service account, or the token of a file.
    pub fn credentials(
        &self,
        account: Option<&AccountName>,
        token_file: Option<&Path>,
        metrics: &Arc<ControllerMetrics>,
        readiness: &Readiness,
    ) -> Arc<dyn ServerCredentials> {
        let Some(account) = account else { return Arc::new(TokenFile::new(token_file.map(Path::to_owned))) };
        let (client, targets) = (self.client.clone(), self.sources.targets.clone());
        ServerTokens::start(client, account.clone(), targets, Arc::clone(metrics), readiness.clone())
    }

    /// Starts to write Events and, for the controller of the whole cluster, the status of policies.
    pub fn start_reporting(
        &self,
        snapshots: watch::Receiver<Arc<LoopSnapshot>>,
        metrics: &Arc<ControllerMetrics>,
        readiness: &Readiness,
    ) -> mpsc::Sender<LoopEvent> {
        let (record_sender, records) = mpsc::channel(EVENTS_WAITING);
        // Each Event is written once, so that its request must be retried.
        let reporting = EventPublisher {
            client: self.retrying_client.clone(),
            identity: self.identity.clone(),
            policies: self.sources.objects.clone(),
            pods: self.sources.pods.clone(),
            gate: Arc::clone(&self.gate),
        };
        tokio::spawn(reporting.run(records));

        if self.scope == Scope::Cluster {
            let (client, claim) = (self.client.clone(), self.gate.claim.clone());
            let events = recorder(self.retrying_client.clone(), self.identity.clone());
            let writer = StatusWriter {
                client,
                events,
                claim,
                policies: self.sources.objects.clone(),
                snapshots,
                metrics: Arc::clone(metrics),
                readiness: readiness.clone(),
            };
            tokio::spawn(writer.run());
        }
        record_sender
    }

    /// Returns when the right to act is lost for good; without an election, never.
    pub async fn wait_for_loss(&mut self) -> ClaimLoss {
        match &mut self.election {
            None => std::future::pending().await,
            Some(election) => match (&mut election.task).await {
                Ok(Err(loss)) => loss,
                // The election ends without a loss only when it is stopped, after this future was dropped.
                Ok(Ok(())) | Err(_) => ClaimLoss::Gone,
            },
        }
    }

    /// Releases the lease. Only after the last command.
    pub async fn release_lease(&mut self) {
        if let Some(ElectionTask { stop, task }) = self.election.take() {
            // An election that has ended by itself needs no signal, and has released or lost its lease.
            let _ = stop.send(());
            let _ = tokio::time::timeout(RELEASE_TIMEOUT, task).await;
        }
    }
}
