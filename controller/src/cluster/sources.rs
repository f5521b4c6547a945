//! Everything that is taken from the API server, kept up to date and put together.

use std::collections::BTreeMap;
use std::sync::Arc;

use hush_core::{Labels, Policy, PolicyName, ServerName};
use kube::Client;
use tokio::sync::watch;

use super::mirror::{Copied, Mirror};
use super::pods::ServerPod;
use super::policies::{Enforced, PolicyObject};
use super::scope::Scope;
use super::server_namespaces::ServerNamespaces;
use super::{namespaces, pods, policies};
use crate::metrics::Metrics;
use crate::observe::{Target, Targets};
use crate::run::Readiness;

/// All policies of both kinds as they are in the API server.
pub type Policies = Arc<BTreeMap<PolicyName, PolicyObject>>;

pub struct Sources {
    pub targets: watch::Receiver<Arc<Targets>>,
    /// Of each the generation that holds. None is in force before all are known, and the labels by which some of them select.
    pub policies: watch::Receiver<Arc<Vec<Policy>>>,
    pub namespaces: watch::Receiver<Arc<BTreeMap<String, Labels>>>,
    pub pods: watch::Receiver<Copied<ServerName, ServerPod>>,
    pub objects: watch::Receiver<Policies>,
}

/// Until nobody listens any more.
pub fn follow(
    client: &Client,
    scope: &Scope,
    allowed: ServerNamespaces,
    readiness: &Readiness,
    metrics: &Arc<Metrics>,
) -> Sources {
    let pods = start(pods::mirror(client, scope.node()), readiness, metrics);
    let namespaced = start(policies::namespaced(client), readiness, metrics);
    let cluster = start(policies::cluster(client), readiness, metrics);
    let labels = start(namespaces::mirror(client), readiness, metrics);

    let (told_targets, targets) = watch::channel(Arc::default());
    let found = FoundPods { pods: pods.clone(), labels: labels.clone(), allowed, own: scope.own_server().cloned() };
    tokio::spawn(found.tell(told_targets));
    let (told_policies, policies) = watch::channel(Arc::default());
    let (told_objects, objects) = watch::channel(Arc::default());
    let (told_namespaces, namespaces) = watch::channel(Arc::default());
    let joint = Joint { namespaced, cluster, labels };
    tokio::spawn(joint.tell(told_policies, told_objects, told_namespaces));
    Sources { targets, policies, namespaces, pods, objects }
}

/// The same for a single look: servers, policies and labels of namespaces, and what is wrong with some of them.
#[derive(Debug, Default)]
pub struct Look {
    pub targets: Targets,
    pub policies: Vec<Policy>,
    pub namespaces: BTreeMap<String, Labels>,
    pub problems: Vec<String>,
}

pub async fn look(client: &Client, allowed: &ServerNamespaces) -> Result<Look, kube::Error> {
    let mut look = Look { namespaces: namespaces::mirror(client).once().await?, ..Look::default() };
    for (server, pod) in pods::mirror(client, None).once().await? {
        let namespace = server.namespace();
        let is_allowed = allowed.check(namespace, look.namespaces.get(namespace));
        match is_allowed.and(pod.target) {
            Ok(target) => drop(look.targets.insert(server, target)),
            Err(problem) => look.problems.push(format!("{server} is not observed: {problem}")),
        }
    }
    let mut objects = policies::namespaced(client).once().await?;
    objects.append(&mut policies::cluster(client).once().await?);
    for (name, object) in objects {
        if let Err(problem) = object.policy {
            look.problems.push(format!("{name} is not valid: {problem}"));
        }
        look.policies.extend(object.enforced.map(|enforced| enforced.policy));
    }
    Ok(look)
}

fn start<O, K, V>(
    mirror: Mirror<O, K, V>,
    readiness: &Readiness,
    metrics: &Arc<Metrics>,
) -> watch::Receiver<Copied<K, V>>
where
    O: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K: Ord + Clone + Send + Sync + 'static,
    V: Clone + PartialEq + Send + Sync + 'static,
{
    let (told, copied) = watch::channel(None);
    tokio::spawn(mirror.run(told, readiness.clone(), Arc::clone(metrics)));
    copied
}

/// Pods with the label of a server, and what says whether they may be one.
struct FoundPods {
    pods: watch::Receiver<Copied<ServerName, ServerPod>>,
    /// Of namespaces.
    labels: watch::Receiver<Copied<String, Labels>>,
    allowed: ServerNamespaces,
    /// The server beside which this controller runs.
    own: Option<ServerName>,
}

impl FoundPods {
    async fn tell(mut self, told: watch::Sender<Arc<Targets>>) {
        let mut complaints = BTreeMap::new();
        loop {
            replace(&told, self.targets(&mut complaints));
            tokio::select! {
                changed = self.pods.changed() => if changed.is_err() { return },
                changed = self.labels.changed() => if changed.is_err() { return },
                () = told.closed() => return,
            }
        }
    }

    /// `complaints`: what was logged of each pod.
    fn targets(&mut self, complaints: &mut BTreeMap<ServerName, String>) -> Targets {
        let pods = self.pods.borrow_and_update().clone().unwrap_or_default();
        let labels = self.labels.borrow_and_update().clone();
        complaints.retain(|server, _| pods.contains_key(server));
        // Before the labels are known no pod is a server.
        let Some(labels) = labels else { return Targets::new() };

        let mut targets = Targets::new();
        for (server, pod) in pods.iter() {
            match self.target(server, pod, &labels) {
                Ok(target) => {
                    complaints.remove(server);
                    targets.insert(server.clone(), target);
                }
                Err(complaint) if complaints.get(server) != Some(&complaint) => {
                    tracing::info!(%server, "not observed: {complaint}");
                    complaints.insert(server.clone(), complaint);
                }
                Err(_) => {}
            }
        }
        targets
    }

    fn target(
        &self,
        server: &ServerName,
        pod: &ServerPod,
        labels: &BTreeMap<String, Labels>,
    ) -> Result<Target, String> {
        let mut target = pod.target.clone()?;
        if self.own.as_ref() == Some(server) {
            // It listens where only its own pod reaches it.
            target.url = target.url.on_loopback();
            return Ok(target);
        }

        let namespace = server.namespace();
        self.allowed.check(namespace, labels.get(namespace))?;
        Ok(target)
    }
}

struct Joint {
    namespaced: watch::Receiver<Copied<PolicyName, PolicyObject>>,
    cluster: watch::Receiver<Copied<PolicyName, PolicyObject>>,
    labels: watch::Receiver<Copied<String, Labels>>,
}

impl Joint {
    async fn tell(
        mut self,
        policies: watch::Sender<Arc<Vec<Policy>>>,
        objects: watch::Sender<Policies>,
        namespaces: watch::Sender<Arc<BTreeMap<String, Labels>>>,
    ) {
        let mut last_valid = LastValid::default();
        loop {
            let labels = self.labels.borrow_and_update().clone();
            let namespaced = self.namespaced.borrow_and_update().clone();
            let cluster = self.cluster.borrow_and_update().clone();
            let mut all = BTreeMap::new();
            if let (Some(namespaced), Some(cluster), Some(_)) = (&namespaced, &cluster, &labels) {
                for (name, object) in namespaced.iter().chain(cluster.iter()) {
                    all.insert(name.clone(), object.clone());
                }
                last_valid.hold(&mut all);
            }
            // Labels first: a policy must not be looked at with those of yesterday.
            replace(&namespaces, labels.as_deref().cloned().unwrap_or_default());
            replace(
                &policies,
                all.values().filter_map(|object| Some(object.enforced.as_ref()?.policy.clone())).collect(),
            );
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

/// What was last seen to be valid of each policy, by the name and the object's own id: one that is made anew under an old
/// name begins without it.
#[derive(Debug, Default)]
struct LastValid(BTreeMap<PolicyName, (String, Enforced)>);

impl LastValid {
    /// What was seen here is at least as new as what a status tells.
    fn hold(&mut self, all: &mut BTreeMap<PolicyName, PolicyObject>) {
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

fn replace<T: PartialEq>(told: &watch::Sender<Arc<T>>, value: T) {
    told.send_if_modified(|before| {
        let changed = **before != value;
        if changed {
            *before = Arc::new(value);
        }
        changed
    });
}
