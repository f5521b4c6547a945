//! Options of a controller in a cluster, and how it is put together there.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use hush_core::ServerName;
use kube::{Client, Config};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::values::{lease, server};
use crate::act::{ServerCredentials as Credentials, TokenFile};
use crate::api_server;
use crate::cluster::{
    AccountName, ClusterSources as Sources, EventPublisher as Reporting, LeaseNames, NamespaceSelector,
    SERVERS_LABEL_SELECTOR, Scope, ScopeGate, ServerNamespaces, ServerTokens, StatusWriter as Writer, follow, recorder,
};
use crate::control_loop::{LoopEvent as Told, LoopSnapshot as Snapshot, Readiness};
use crate::lease::{
    Claim, ClaimLoss as Loss, Contender, Elector, LeaderWatcher as Leader, LeaseName, LeaseTiming as Terms, identity,
};
use crate::metrics::Metrics;

/// Commands that have ended and have no Event yet; what comes beyond them has none.
const EVENTS_WAITING: usize = 256;

#[derive(Debug, Args)]
pub struct KubernetesArgs {
    /// Take servers and policies from Kubernetes, and act for all servers (`cluster`), those of one node (`node`), or the
    /// one beside which this runs (`pod`). Node and pod only observe while a controller for more leads.
    #[arg(long, value_enum, env = "HUSH_CONTROLLER_SCOPE", conflicts_with_all = ["policy", "target", "targets"])]
    pub scope: Option<ScopeName>,
    /// The node that this runs on; with `--scope node` and `--scope pod`.
    #[arg(long, value_name = "NAME", env = "HUSH_CONTROLLER_NODE")]
    pub node: Option<String>,
    /// The pod that this runs in; with `--scope pod`.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = server, env = "HUSH_CONTROLLER_POD")]
    pub pod: Option<ServerName>,
    /// The lease of the controller for the whole cluster; that of a node has the node's name added to it.
    #[arg(long, value_name = "NAME", default_value = "hush-controller", env = "HUSH_CONTROLLER_LEASE")]
    pub lease: String,
    /// Where the lease of the cluster's controller is. It must be the same for every installation in the cluster: of all
    /// that name the same lease one acts.
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system", env = "HUSH_CONTROLLER_LEASE_NAMESPACE")]
    pub lease_namespace: String,
    /// Where the leases of the controllers for a node are. Default: the namespace of this pod.
    #[arg(long, value_name = "NAMESPACE", env = "HUSH_CONTROLLER_NODE_LEASE_NAMESPACE")]
    pub node_lease_namespace: Option<String>,
    /// What this controller was installed as, such as NAMESPACE/DEPLOYMENT. Replicas of one installation relieve each
    /// other; a controller that sees another installation lead is not ready and says so. Default: the namespace of this
    /// pod.
    #[arg(long, value_name = "NAME", env = "HUSH_CONTROLLER_INSTALLATION")]
    pub installation: Option<String>,
    /// How long nobody acts when a leader is gone without a word, whole seconds.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = lease, env = "HUSH_CONTROLLER_LEASE_DURATION")]
    pub lease_duration: Terms,
    /// The service account that this runs under, with `--scope`: the API server is asked for a token of it for each server,
    /// which only that server accepts.
    #[arg(long, value_name = "NAMESPACE:NAME", env = "HUSH_CONTROLLER_SERVICE_ACCOUNT", conflicts_with = "token_file")]
    pub service_account: Option<AccountName>,
    /// Namespaces whose pods may be servers, as a label selector such as `team in (a,b)`; an empty one selects all. A pod
    /// with a server's label elsewhere is ignored. May be repeated: one of them must select the namespace. In the variable
    /// with semicolons between them.
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

/// A controller's place in a cluster.
pub struct Cluster {
    client: Client,
    /// Asks again by itself where the API server is busy.
    patient: Client,
    pub scope: Scope,
    pub gate: Arc<ScopeGate>,
    pub sources: Sources,
    election: Option<Election>,
    identity: String,
}

struct Election {
    stop: oneshot::Sender<()>,
    end: JoinHandle<Result<(), Loss>>,
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

    /// Refuses what would hand one credential to many servers.
    pub fn check(&self, name: ScopeName, has_token_file: bool, observes_only: bool) -> anyhow::Result<()> {
        anyhow::ensure!(
            name == ScopeName::Pod || !has_token_file,
            "--token-file with --scope {}: one token for all servers would be seen by every pod that calls itself one; give \
             --service-account, and the API server makes a token for each server",
            if name == ScopeName::Node { "node" } else { "cluster" },
        );
        // The server beside a controller may be open to its own pod alone, and need none.
        anyhow::ensure!(
            observes_only || name == ScopeName::Pod || self.service_account.is_some(),
            "no credential for the servers: give --service-account NAMESPACE:NAME, the account that this controller runs \
             under, or --dry-run to send no command"
        );
        Ok(())
    }

    /// Begins to follow the API server, and to stand for the lease; who only observes does not take it from others.
    pub async fn connect(
        &self,
        name: ScopeName,
        observes_only: bool,
        readiness: &Readiness,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Cluster> {
        let scope = self.scope(name)?;
        let mut config = config().await?;
        let own_namespace = config.default_namespace.clone();
        let leases = LeaseNames {
            cluster: LeaseName { namespace: self.lease_namespace.clone(), name: self.lease.clone() },
            nodes_namespace: self.node_lease_namespace.clone().unwrap_or_else(|| own_namespace.clone()),
        };
        let installation = self.installation.clone().unwrap_or(own_namespace);
        let patient = connected(config.clone(), Some(metrics))?;
        // Whoever follows and writes what is there now asks again when it is time to, and says what it waits for: tries
        // that nobody sees would take longer than a lease lasts.
        config.default_retry = false;
        let client = connected(config, Some(metrics))?;
        let identity = identity().context("making up a name for this process")?;
        let patience = self.lease_duration.lease;
        let wider = scope.wider(&leases).into_iter();
        let wider = wider.map(|lease| Leader::follow(client.clone(), lease, patience)).collect();
        let (election, claim) = match scope.lease(&leases).filter(|_| !observes_only) {
            None => (None, Claim::unrivalled()),
            Some(lease) => {
                let contender = Contender { identity: identity.clone(), installation };
                let (elector, claim) = Elector::new(client.clone(), lease, contender, self.lease_duration);
                let (stop, stopped) = oneshot::channel();
                let end = tokio::spawn(elector.run(async move {
                    // Also when nobody is there any more to say it.
                    let _ = stopped.await;
                }));
                (Some(Election { stop, end }), claim)
            }
        };
        let allowed = ServerNamespaces(self.server_namespaces.clone());
        let sources = follow(&client, &scope, allowed, readiness, metrics);
        let gate = Arc::new(ScopeGate { scope: scope.clone(), claim, wider });
        Ok(Cluster { client, patient, scope, gate, sources, election, identity })
    }
}

/// For a single look.
pub async fn client() -> anyhow::Result<Client> {
    connected(config().await?, None)
}

/// As kubectl is configured, or as a pod is.
async fn config() -> anyhow::Result<Config> {
    Config::infer().await.context("there is no kubeconfig, and this is no pod of a cluster")
}

fn connected(config: Config, metrics: Option<&Arc<Metrics>>) -> anyhow::Result<Client> {
    api_server::connect(config, metrics).context("connecting to the API server")
}

impl Cluster {
    /// What is shown to servers.
    pub fn credentials(
        &self,
        account: Option<&AccountName>,
        token_file: Option<&Path>,
        metrics: &Arc<Metrics>,
        readiness: &Readiness,
    ) -> Arc<dyn Credentials> {
        let Some(account) = account else { return Arc::new(TokenFile::new(token_file.map(Path::to_owned))) };
        let (client, targets) = (self.client.clone(), self.sources.targets.clone());
        ServerTokens::start(client, account.clone(), targets, Arc::clone(metrics), readiness.clone())
    }

    /// Tells people of what is done: Events, and of the whole cluster's controller the status of policies.
    pub fn tell(
        &self,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        metrics: &Arc<Metrics>,
        readiness: &Readiness,
    ) -> mpsc::Sender<Told> {
        let (told, records) = mpsc::channel(EVENTS_WAITING);
        // What has happened is told once.
        let reporting = Reporting {
            client: self.patient.clone(),
            identity: self.identity.clone(),
            policies: self.sources.objects.clone(),
            pods: self.sources.pods.clone(),
            gate: Arc::clone(&self.gate),
        };
        tokio::spawn(reporting.run(records));
        if self.scope == Scope::Cluster {
            let (client, claim) = (self.client.clone(), self.gate.claim.clone());
            let events = recorder(self.patient.clone(), self.identity.clone());
            let writer = Writer {
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
        told
    }

    /// Ends when the right to act is lost for good, or never.
    pub async fn lost(&mut self) -> Loss {
        match &mut self.election {
            None => std::future::pending().await,
            Some(election) => match (&mut election.end).await {
                Ok(Err(loss)) => loss,
                // It ends without a loss only when it is told to, and then nobody asks.
                Ok(Ok(())) | Err(_) => Loss::Gone,
            },
        }
    }

    /// Gives the lease back. Only after the last command.
    pub async fn leave(&mut self) {
        if let Some(Election { stop, end }) = self.election.take() {
            // An elector that is gone needs not be told.
            let _ = stop.send(());
            let _ = tokio::time::timeout(Duration::from_secs(5), end).await;
        }
    }
}
