//! Writes the status of policies, and only when it says something new.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hush_core::{Policy, PolicyName, conflicts};
use hush_crds::{ClusterGpuModelPolicy, GpuModelPolicy, PolicyStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::events::{NOTE_MAX_CHARS, reference};
use super::policies::PolicyObject;
use super::sources::Policies;
use crate::lease::Claim;
use crate::run::Snapshot;
use crate::status::{INVALID, PAUSED, READY, Scene, Subject, status};

/// From one round to the next: figures change faster than anybody reads.
const PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Writer {
    pub client: Client,
    pub events: Recorder,
    /// Of several controllers one writes.
    pub claim: Claim,
    pub policies: watch::Receiver<Policies>,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// What was written, until the API server reports it back.
type Written = BTreeMap<PolicyName, (PolicyStatus, PolicyStatus)>;

impl Writer {
    /// Until the loop is gone.
    pub async fn run(mut self) {
        let mut written = Written::new();
        let mut paused_here = BTreeSet::new();
        while self.snapshots.changed().await.is_ok() {
            if self.claim.is_current() {
                let snapshot = self.snapshots.borrow_and_update().clone();
                let policies = self.policies.borrow_and_update().clone();
                paused_here.extend(snapshot.paused.keys().cloned());
                paused_here.retain(|name| policies.contains_key(name));
                self.round(&snapshot, &policies, &mut written, &paused_here).await;
            }
            sleep(PAUSE).await;
        }
    }

    /// `paused_here`: policies that this controller has paused at any time.
    async fn round(
        &self,
        snapshot: &Snapshot,
        policies: &BTreeMap<PolicyName, PolicyObject>,
        written: &mut Written,
        paused_here: &BTreeSet<PolicyName>,
    ) {
        written.retain(|name, (before, _)| policies.get(name).is_some_and(|object| object.status == *before));
        let found = conflicts(snapshot.at, &snapshot.world, &snapshot.policies);
        let scene = Scene {
            world: &snapshot.world,
            plan: &snapshot.plan,
            records: &snapshot.records,
            conflicts: &found,
            paused: &snapshot.paused,
        };
        let decided_by: BTreeSet<&PolicyName> = snapshot.policies.iter().map(|policy| &policy.name).collect();
        for (name, object) in policies {
            if !is_current(object, decided_by.contains(name), &snapshot.policies) {
                continue;
            }
            let subject = Subject {
                name,
                generation: object.generation,
                policy: object.policy.as_ref().map_err(String::as_str),
                enforced: object.enforced.as_ref(),
                before: &object.status,
            };
            let wanted = status(Timestamp::now(), &scene, &subject);
            let sent = written.get(name).map_or(&object.status, |(_, sent)| sent);
            if wanted != *sent && self.claim.is_current() {
                match timeout(PATIENCE, self.patch(name, &wanted)).await {
                    Ok(Ok(())) => {
                        if let Some(message) = refused(&object.status, &wanted) {
                            self.refuse(name, object, message).await;
                        }
                        if is_paused(&object.status) && !is_paused(&wanted) && !paused_here.contains(name) {
                            let note = "in force again: the controller that had paused it has ended";
                            self.publish(name, object, EventType::Normal, "Resumed", "Resume", note).await;
                        }
                        written.insert(name.clone(), (object.status.clone(), wanted));
                    }
                    // It is gone; the watch will say so.
                    Ok(Err(kube::Error::Api(error))) if error.code == 404 => {}
                    Ok(Err(kube::Error::Api(error))) if error.code == 429 => {
                        tracing::warn!(policy = %name, "the API server is busy; the status is written later");
                        return;
                    }
                    Ok(Err(error)) => tracing::warn!(policy = %name, "the status could not be written: {error}"),
                    Err(_) => tracing::warn!(policy = %name, "the status could not be written within {PATIENCE:?}"),
                }
            }
        }
    }

    /// Tells of an edit that is not valid, once for each generation.
    async fn refuse(&self, name: &PolicyName, object: &PolicyObject, message: String) {
        tracing::warn!(policy = %name, generation = object.generation, "the policy is not valid: {message}");
        self.publish(name, object, EventType::Warning, INVALID, "Validate", &message).await;
    }

    async fn publish(
        &self,
        name: &PolicyName,
        object: &PolicyObject,
        type_: EventType,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let note = Some(note.chars().take(NOTE_MAX_CHARS).collect());
        let event = Event { type_, reason: reason.to_owned(), note, action: action.to_owned(), secondary: None };
        match timeout(PATIENCE, self.events.publish(&event, &reference(name, object))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("an Event could not be written: {error}"),
            Err(_) => tracing::warn!("an Event could not be written within {PATIENCE:?}"),
        }
    }

    async fn patch(&self, name: &PolicyName, wanted: &PolicyStatus) -> Result<(), kube::Error> {
        let patch = Patch::Merge(json!({"status": wanted}));
        let parameters = PatchParams::default();
        match &name.namespace {
            Some(namespace) => {
                let api = Api::<GpuModelPolicy>::namespaced(self.client.clone(), namespace);
                api.patch_status(&name.name, &parameters, &patch).await.map(drop)
            }
            None => {
                let api = Api::<ClusterGpuModelPolicy>::all(self.client.clone());
                api.patch_status(&name.name, &parameters, &patch).await.map(drop)
            }
        }
    }
}

fn is_paused(status: &PolicyStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == READY && condition.reason == PAUSED)
}

/// What `wanted` says of a generation that is not valid, if that is news.
fn refused(before: &PolicyStatus, wanted: &PolicyStatus) -> Option<String> {
    fn invalid(status: &PolicyStatus) -> Option<&Condition> {
        let mut conditions = status.conditions.iter().flatten();
        conditions.find(|condition| condition.type_ == READY && condition.reason == INVALID)
    }
    let now = invalid(wanted)?;
    let told = invalid(before).is_some() && before.observed_generation == wanted.observed_generation;
    (!told).then(|| now.message.clone())
}

/// Whether the step that is told of was made with this policy as it is now: else the next one is told of.
fn is_current(object: &PolicyObject, was_there: bool, decided_with: &[Policy]) -> bool {
    match &object.enforced {
        Some(enforced) => decided_with.contains(&enforced.policy),
        None => !was_there,
    }
}
