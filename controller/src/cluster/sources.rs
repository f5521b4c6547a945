//! Everything that is read from the API server, kept up to date and joined.

use std::collections::BTreeMap;
use std::sync::Arc;

use hush_core::{Labels, ModelPolicy, PolicyKey, ServerName};
use kube::Client;
use tokio::sync::watch;

use super::mirror::{Mirror, MirroredObjects};
use super::pods::MirroredPod;
use super::policies::{EnforcedPolicy, PolicyObject};
use super::scope::Scope;
use super::server_namespaces::ServerNamespaces;
use super::{namespaces, pods, policies};
use crate::control_loop::Readiness;
use crate::metrics::ControllerMetrics;
use crate::observe::{ScrapeTarget, Targets};

/// All policies of both kinds as they are in the API server.
pub type Policies = Arc<BTreeMap<PolicyKey, PolicyObject>>;

pub struct ClusterSources {
    pub targets: watch::Receiver<Arc<Targets>>,
    /// The enforced generation of each policy. The list is empty until all policies are known, and the labels of namespaces
    /// by which some of them select.
    pub policies: watch::Receiver<Arc<Vec<ModelPolicy>>>,
    pub namespaces: watch::Receiver<Arc<BTreeMap<String, Labels>>>,
    pub pods: watch::Receiver<MirroredObjects<ServerName, MirroredPod>>,
    pub objects: watch::Receiver<Policies>,
}

/// Starts to follow the API server. The tasks end when the receivers are gone.
pub fn follow(
    client: &Client,
    scope: &Scope,
    allowed: ServerNamespaces,
    readiness: &Readiness,
    metrics: &Arc<ControllerMetrics>,
) -> ClusterSources {
    let pods = start_mirror(pods::mirror(client, scope.node()), readiness, metrics);
    let namespaced = start_mirror(policies::namespaced(client), readiness, metrics);
    let cluster = start_mirror(policies::cluster(client), readiness, metrics);
    let labels = start_mirror(namespaces::mirror(client), readiness, metrics);

    let (targets_sender, targets) = watch::channel(Arc::default());
    let finder = TargetFinder { pods: pods.clone(), labels: labels.clone(), allowed, own: scope.own_server().cloned() };
    tokio::spawn(finder.run(targets_sender));

    let (policies_sender, policies) = watch::channel(Arc::default());
    let (objects_sender, objects) = watch::channel(Arc::default());
    let (namespaces_sender, namespaces) = watch::channel(Arc::default());
    let feed = PolicyFeed { namespaced, cluster, labels };
    tokio::spawn(feed.run(policies_sender, objects_sender, namespaces_sender));

    ClusterSources { targets, policies, namespaces, pods, objects }
}

/// The servers, policies and labels of namespaces of a cluster at one time, and what is wrong with some of them.
#[derive(Debug, Default)]
pub struct ClusterInventory {
    pub targets: Targets,
    pub policies: Vec<ModelPolicy>,
    pub namespaces: BTreeMap<String, Labels>,
    pub problems: Vec<String>,
}

/// Reads the cluster once.
pub async fn read_once(client: &Client, allowed: &ServerNamespaces) -> Result<ClusterInventory, kube::Error> {
    let namespaces = namespaces::mirror(client).once().await?;
    let mut inventory = ClusterInventory { namespaces, ..ClusterInventory::default() };

    for (server, pod) in pods::mirror(client, None).once().await? {
        let namespace = server.namespace();
        let is_allowed = allowed.check(namespace, inventory.namespaces.get(namespace));
        match is_allowed.map_err(|refusal| refusal.to_string()).and(pod.target) {
            Ok(target) => drop(inventory.targets.insert(server, target)),
            Err(problem) => inventory.problems.push(format!("{server} is not observed: {problem}")),
        }
    }

    let mut objects = policies::namespaced(client).once().await?;
    objects.append(&mut policies::cluster(client).once().await?);
    for (name, object) in objects {
        if let Err(problem) = object.policy {
            inventory.problems.push(format!("{name} is not valid: {problem}"));
        }
        inventory.policies.extend(object.enforced.map(|enforced| enforced.policy));
    }
    Ok(inventory)
}

fn start_mirror<O, K, V>(
    mirror: Mirror<O, K, V>,
    readiness: &Readiness,
    metrics: &Arc<ControllerMetrics>,
) -> watch::Receiver<MirroredObjects<K, V>>
where
    O: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K: Ord + Clone + Send + Sync + 'static,
    V: Clone + PartialEq + Send + Sync + 'static,
{
    let (sender, mirrored) = watch::channel(None);
    tokio::spawn(mirror.run(sender, readiness.clone(), Arc::clone(metrics)));
    mirrored
}

/// Finds the targets among the pods with the label of a server.
struct TargetFinder {
    pods: watch::Receiver<MirroredObjects<ServerName, MirroredPod>>,
    /// The labels of namespaces.
    labels: watch::Receiver<MirroredObjects<String, Labels>>,
    allowed: ServerNamespaces,
    /// The server beside which this controller runs.
    own: Option<ServerName>,
}

impl TargetFinder {
    /// Publishes the targets until the receivers are gone.
    async fn run(mut self, sender: watch::Sender<Arc<Targets>>) {
        let mut logged_problems = BTreeMap::new();
        loop {
            replace(&sender, self.targets(&mut logged_problems));
            tokio::select! {
                changed = self.pods.changed() => if changed.is_err() { return },
                changed = self.labels.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    }

    /// The targets as they are now. Logs why other pods are not observed, once while the problem lasts.
    fn targets(&mut self, logged_problems: &mut BTreeMap<ServerName, String>) -> Targets {
        let pods = self.pods.borrow_and_update().clone().unwrap_or_default();
        let labels = self.labels.borrow_and_update().clone();
        logged_problems.retain(|server, _| pods.contains_key(server));
        // No pod is a server until the labels of its namespace are known.
        let Some(labels) = labels else { return Targets::new() };

        let mut targets = Targets::new();
        for (server, pod) in pods.iter() {
            match self.target(server, pod, &labels) {
                Ok(target) => {
                    logged_problems.remove(server);
                    targets.insert(server.clone(), target);
                }
                Err(problem) if logged_problems.get(server) != Some(&problem) => {
                    tracing::info!(%server, "not observed: {problem}");
                    logged_problems.insert(server.clone(), problem);
                }
                Err(_) => {}
            }
        }
        targets
    }

    fn target(
        &self,
        server: &ServerName,
        pod: &MirroredPod,
        labels: &BTreeMap<String, Labels>,
    ) -> Result<ScrapeTarget, String> {
        let mut target = pod.target.clone()?;
        if self.own.as_ref() == Some(server) {
            // The server beside this controller may listen on the loopback address of their pod only.
            target.url = target.url.on_loopback();
            return Ok(target);
        }

        let namespace = server.namespace();
        self.allowed.check(namespace, labels.get(namespace)).map_err(|refusal| refusal.to_string())?;
        Ok(target)
    }
}

/// Joins the policies of both kinds with the labels of namespaces.
struct PolicyFeed {
    namespaced: watch::Receiver<MirroredObjects<PolicyKey, PolicyObject>>,
    cluster: watch::Receiver<MirroredObjects<PolicyKey, PolicyObject>>,
    labels: watch::Receiver<MirroredObjects<String, Labels>>,
}

impl PolicyFeed {
    /// Publishes policies and labels until the receivers are gone.
    async fn run(
        mut self,
        policies: watch::Sender<Arc<Vec<ModelPolicy>>>,
        objects: watch::Sender<Policies>,
        namespaces: watch::Sender<Arc<BTreeMap<String, Labels>>>,
    ) {
        let mut last_valid = LastValidPolicies::default();
        loop {
            let labels = self.labels.borrow_and_update().clone();
            let namespaced = self.namespaced.borrow_and_update().clone();
            let cluster = self.cluster.borrow_and_update().clone();

            let mut all = BTreeMap::new();
            if let (Some(namespaced), Some(cluster), Some(_)) = (&namespaced, &cluster, &labels) {
                for (name, object) in namespaced.iter().chain(cluster.iter()) {
                    all.insert(name.clone(), object.clone());
                }
                last_valid.enforce(&mut all);
            }

            // The labels come first: new policies must never be used with old labels.
            replace(&namespaces, labels.as_deref().cloned().unwrap_or_default());
            let enforced = all.values().filter_map(|object| Some(object.enforced.as_ref()?.policy.clone()));
            replace(&policies, enforced.collect());
            replace(&objects, all);

            tokio::select! {
                changed = self.labels.changed() => if changed.is_err() { return },
                changed = self.namespaced.changed() => if changed.is_err() { return },
                changed = self.cluster.changed() => if changed.is_err() { return },
                () = policies.closed() => return,
            }
        }
    }
}

/// The last valid generation of each policy that this controller has observed, with the UID of the object: an object that is
/// created anew under an old name begins without one.
#[derive(Debug, Default)]
struct LastValidPolicies(BTreeMap<PolicyKey, (String, EnforcedPolicy)>);

impl LastValidPolicies {
    /// Enforces the last valid generation of each policy whose current one is not valid. It takes precedence over the
    /// generation in the status, because it is at least as new.
    fn enforce(&mut self, all: &mut BTreeMap<PolicyKey, PolicyObject>) {
        self.0.retain(|name, (uid, _)| all.get(name).is_some_and(|object| object.uid == *uid));

        for (name, object) in all {
            if object.policy.is_err()
                && let Some((_, enforced)) = self.0.get(name)
            {
                object.enforced = Some(enforced.clone());
            }
            if let Some(enforced) = &object.enforced {
                self.0.insert(name.clone(), (object.uid.clone(), enforced.clone()));
            }
        }
    }
}

/// Publishes a value, if it differs from the one before.
fn replace<T: PartialEq>(sender: &watch::Sender<Arc<T>>, value: T) {
    sender.send_if_modified(|before| {
        let changed = **before != value;
        if changed {
            *before = Arc::new(value);
        }
        changed
    });
}
