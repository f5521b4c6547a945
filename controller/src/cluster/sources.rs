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
use super::{namespaces, pods, policies};
use crate::metrics::Metrics;
use crate::observe::Targets;
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
pub fn follow(client: &Client, scope: &Scope, readiness: &Readiness, metrics: &Arc<Metrics>) -> Sources {
    let pods = start(pods::mirror(client, scope.node()), readiness, metrics);
    let namespaced = start(policies::namespaced(client), readiness, metrics);
    let cluster = start(policies::cluster(client), readiness, metrics);
    let labels = start(namespaces::mirror(client), readiness, metrics);

    let (told_targets, targets) = watch::channel(Arc::default());
    tokio::spawn(tell_targets(pods.clone(), scope.own_server().cloned(), told_targets));
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

pub async fn look(client: &Client) -> Result<Look, kube::Error> {
    let mut look = Look { namespaces: namespaces::mirror(client).once().await?, ..Look::default() };
    for (server, pod) in pods::mirror(client, None).once().await? {
        match pod.target {
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

async fn tell_targets(
    mut pods: watch::Receiver<Copied<ServerName, ServerPod>>,
    own: Option<ServerName>,
    told: watch::Sender<Arc<Targets>>,
) {
    let mut complaints: BTreeMap<ServerName, String> = BTreeMap::new();
    loop {
        let seen = pods.borrow_and_update().clone().unwrap_or_default();
        complaints.retain(|server, complaint| {
            seen.get(server).is_some_and(|pod| pod.target.as_ref().err() == Some(complaint))
        });
        let mut targets = Targets::new();
        for (server, pod) in seen.iter() {
            match &pod.target {
                Ok(target) => {
                    let mut target = target.clone();
                    if own.as_ref() == Some(server) {
                        // It listens where only its own pod reaches it.
                        target.url = target.url.on_loopback();
                    }
                    targets.insert(server.clone(), target);
                }
                Err(complaint) if complaints.get(server) != Some(complaint) => {
                    tracing::info!(%server, "not observed: {complaint}");
                    complaints.insert(server.clone(), complaint.clone());
                }
                Err(_) => {}
            }
        }
        replace(&told, targets);
        tokio::select! {
            changed = pods.changed() => if changed.is_err() { return },
            () = told.closed() => return,
        }
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
