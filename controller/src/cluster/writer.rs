//! Writes the status of policies, and only when it says something new.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
use super::write_failures::WriteFailures;
use crate::api_server::{BUSY, FIELD_MANAGER, NO_ANSWER, ROLE_HINT, failure_result};
use crate::lease::Claim;
use crate::metrics::Metrics;
use crate::run::{Readiness, Snapshot};
use crate::status::{FailingServer, INVALID, PAUSED, READY, Scene, Subject, status};

/// From one round to the next: figures change faster than anybody reads.
const PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);
/// From so many failures in a row on, a status tells of a server.
const FAILURES_TOLD: u32 = 3;

pub struct Writer {
    pub client: Client,
    pub events: Recorder,
    /// Of several controllers one writes.
    pub claim: Claim,
    pub policies: watch::Receiver<Policies>,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
}

/// What was written, until the API server reports it back.
type Written = BTreeMap<PolicyName, (PolicyStatus, PolicyStatus)>;

impl Writer {
    /// Until the loop is gone.
    pub async fn run(mut self) {
        let (mut written, mut failures) = (Written::new(), WriteFailures::default());
        let mut paused_here = BTreeSet::new();
        while self.snapshots.changed().await.is_ok() {
            if self.claim.is_current() {
                let snapshot = self.snapshots.borrow_and_update().clone();
                let policies = self.policies.borrow_and_update().clone();
                paused_here.extend(snapshot.paused.keys().cloned());
                paused_here.retain(|name| policies.contains_key(name));
                self.round(&snapshot, &policies, &mut written, &mut failures, &paused_here).await;
            } else {
                failures.clear();
            }
            self.readiness.set("status", failures.summary());
            sleep(PAUSE).await;
        }
    }

    /// `paused_here`: policies that this controller has paused at any time.
    async fn round(
        &self,
        snapshot: &Snapshot,
        policies: &BTreeMap<PolicyName, PolicyObject>,
        written: &mut Written,
        failures: &mut WriteFailures,
        paused_here: &BTreeSet<PolicyName>,
    ) {
        failures.retain(|name| policies.contains_key(name));
        written.retain(|name, (before, _)| policies.get(name).is_some_and(|object| object.status == *before));
        let found = conflicts(snapshot.at, &snapshot.world, &snapshot.policies);
        let failing = failing(snapshot);
        let scene = Scene {
            world: &snapshot.world,
            plan: &snapshot.plan,
            records: &snapshot.records,
            conflicts: &found,
            failing: &failing,
            targets: &snapshot.targets,
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
            if wanted != *sent && failures.is_due(Instant::now(), name) && self.claim.is_current() {
                let (result, cause) = match timeout(PATIENCE, self.patch(name, &wanted)).await {
                    Ok(Ok(())) => {
                        if failures.succeeded(name) {
                            tracing::info!("the status of every policy is written again");
                        }
                        if let Some(message) = refused(&object.status, &wanted) {
                            self.refuse(name, object, message).await;
                        }
                        if is_paused(&object.status) && !is_paused(&wanted) && !paused_here.contains(name) {
                            let note = "in force again: the controller that had paused it has ended";
                            self.publish(name, object, EventType::Normal, "Resumed", "Resume", note).await;
                        }
                        written.insert(name.clone(), (object.status.clone(), wanted));
                        continue;
                    }
                    // It is gone; the watch will say so.
                    Ok(Err(kube::Error::Api(error))) if error.code == 404 => continue,
                    Ok(Err(error)) => (failure_result(&error), cause(name, &error)),
                    Err(_) => (NO_ANSWER, format!("no answer within {PATIENCE:?}")),
                };

                self.metrics.status_write_failures_total.with_label_values(&[result]).inc();
                if failures.failed(Instant::now(), name, result, cause.clone()) {
                    tracing::warn!(policy = %name, "the status could not be written, and is tried again: {cause}");
                }
                if result == BUSY {
                    return;
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
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
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

/// A server that only starts is not told of.
fn failing(snapshot: &Snapshot) -> Vec<FailingServer<'_>> {
    let failing = snapshot.targets.iter().filter_map(|(server, target)| {
        let seen = snapshot.seen.get(server).filter(|seen| seen.failures_in_a_row >= FAILURES_TOLD)?;
        Some(FailingServer { server, labels: &target.labels, failure: seen.failure.as_deref()? })
    });
    failing.collect()
}

/// Why a status was not written, and who can help.
fn cause(name: &PolicyName, error: &kube::Error) -> String {
    let kind = if name.namespace.is_some() { "gpumodelpolicies" } else { "clustergpumodelpolicies" };
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!("the API server does not let this account patch `{kind}/status`: {ROLE_HINT}")
        }
        kube::Error::Api(status) if status.code == 429 => "the API server is busy".to_owned(),
        error => error.to_string(),
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
