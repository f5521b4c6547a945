//! Writes the statuses of policies, each only when it differs from the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hush_core::{ModelPolicy, PolicyKey, conflicts};
use hush_crds::{ClusterGpuModelPolicy, GpuModelPolicy, PolicyStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::Recorder;
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::events::{EventText, policy_reference};
use super::policies::PolicyObject;
use super::sources::Policies;
use super::write_failures::WriteFailures;
use crate::api_server::{BUSY, FIELD_MANAGER, NO_ANSWER, ROLE_HINT, failure_result};
use crate::control_loop::{LoopSnapshot, Readiness};
use crate::lease::Claim;
use crate::metrics::ControllerMetrics;
use crate::status::{FailingServer, INVALID, PAUSED, READY, StatusContext, StatusSubject, status};

/// The pause between two rounds: figures change faster than a status is read.
const PAUSE: Duration = Duration::from_secs(1);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of failures in a row from which a server is named in a status. A server that is starting is not named.
const FAILURES_SHOWN: u32 = 3;

pub struct StatusWriter {
    pub client: Client,
    pub events: Recorder,
    /// Only the controller with the claim writes.
    pub claim: Claim,
    pub policies: watch::Receiver<Policies>,
    pub snapshots: watch::Receiver<Arc<LoopSnapshot>>,
    pub metrics: Arc<ControllerMetrics>,
    pub readiness: Readiness,
}

/// What the writer remembers from one round to the next.
#[derive(Default)]
struct WriterMemory {
    /// The status before and the status after each write, until the watch reports the write.
    written: BTreeMap<PolicyKey, (PolicyStatus, PolicyStatus)>,
    failures: WriteFailures,
    /// Policies that this controller has paused at any time.
    paused_here: BTreeSet<PolicyKey>,
}

impl WriterMemory {
    fn update(&mut self, snapshot: &LoopSnapshot, policies: &BTreeMap<PolicyKey, PolicyObject>) {
        self.paused_here.extend(snapshot.paused.keys().cloned());
        self.paused_here.retain(|name| policies.contains_key(name));
        self.failures.retain(|name| policies.contains_key(name));
        self.written.retain(|name, (before, _)| policies.get(name).is_some_and(|object| object.status == *before));
    }
}

/// Why a status was not written.
#[derive(Debug, thiserror::Error)]
enum StatusWriteError {
    #[error("the API server does not let this account patch `{kind}/status`: {ROLE_HINT}")]
    Forbidden { kind: &'static str },
    #[error("the API server is busy")]
    Busy,
    #[error("no answer within {WRITE_TIMEOUT:?}")]
    Timeout,
    #[error(transparent)]
    Api(kube::Error),
}

impl StatusWriteError {
    fn new(name: &PolicyKey, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => {
                let is_namespaced = name.namespace.is_some();
                Self::Forbidden { kind: if is_namespaced { "gpumodelpolicies" } else { "clustergpumodelpolicies" } }
            }
            kube::Error::Api(status) if status.code == 429 => Self::Busy,
            error => Self::Api(error),
        }
    }

    /// Whether the policy does not exist any more.
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.code == 404)
    }

    /// The value of the metric label `result`.
    fn label(&self) -> &'static str {
        match self {
            Self::Forbidden { .. } => "forbidden",
            Self::Busy => BUSY,
            Self::Timeout => NO_ANSWER,
            Self::Api(error) => failure_result(error),
        }
    }
}

impl StatusWriter {
    /// Writes statuses until the loop is gone.
    pub async fn run(mut self) {
        let mut memory = WriterMemory::default();

        while self.snapshots.changed().await.is_ok() {
            if self.claim.is_current() {
                let snapshot = self.snapshots.borrow_and_update().clone();
                let policies = self.policies.borrow_and_update().clone();
                memory.update(&snapshot, &policies);
                self.write_all(&snapshot, &policies, &mut memory).await;
            } else {
                memory.failures.clear();
            }

            self.readiness.set("status", memory.failures.summary());
            sleep(PAUSE).await;
        }
    }

    /// Writes each status that has changed. Stops early where the API server is busy.
    async fn write_all(
        &self,
        snapshot: &LoopSnapshot,
        policies: &BTreeMap<PolicyKey, PolicyObject>,
        memory: &mut WriterMemory,
    ) {
        let conflicts = conflicts(snapshot.at, &snapshot.world, &snapshot.policies);
        let failing = failing_servers(snapshot);
        let context = StatusContext {
            world: &snapshot.world,
            plan: &snapshot.plan,
            records: &snapshot.records,
            conflicts: &conflicts,
            failing: &failing,
            app_problems: &snapshot.app_problems,
            targets: &snapshot.targets,
            paused: &snapshot.paused,
        };
        let decided_with: BTreeSet<&PolicyKey> = snapshot.policies.iter().map(|policy| &policy.name).collect();

        for (name, object) in policies {
            if !is_current(object, decided_with.contains(name), &snapshot.policies) {
                continue;
            }

            let subject = StatusSubject {
                name,
                generation: object.generation,
                policy: object.policy.as_ref().map_err(String::as_str),
                enforced: object.enforced.as_ref(),
                before: &object.status,
            };
            let wanted = status(Timestamp::now(), &context, &subject);
            let written = memory.written.get(name).map_or(&object.status, |(_, written)| written);
            if wanted == *written || !memory.failures.is_due(Instant::now(), name) || !self.claim.is_current() {
                continue;
            }

            match self.patch(name, &wanted).await {
                Ok(()) => self.record_success(name, object, wanted, memory).await,
                // The policy was deleted; the watch will report it.
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    self.record_failure(name, &error, memory);
                    if matches!(error, StatusWriteError::Busy) {
                        return;
                    }
                }
            }
        }
    }

    /// Remembers what was written, and publishes Events for the changes that users should know of.
    async fn record_success(
        &self,
        name: &PolicyKey,
        object: &PolicyObject,
        written: PolicyStatus,
        memory: &mut WriterMemory,
    ) {
        if memory.failures.succeeded(name) {
            tracing::info!("the status of every policy is written again");
        }

        if let Some(note) = new_invalid_message(&object.status, &written) {
            tracing::warn!(policy = %name, generation = object.generation, "the policy is not valid: {note}");
            let text = EventText { is_warning: true, reason: INVALID, action: "Validate".to_owned(), note };
            text.publish(&self.events, &policy_reference(name, object), None).await;
        }
        if is_paused(&object.status) && !is_paused(&written) && !memory.paused_here.contains(name) {
            let note = "in force again: the controller that had paused it has ended".to_owned();
            let text = EventText { is_warning: false, reason: "Resumed", action: "Resume".to_owned(), note };
            text.publish(&self.events, &policy_reference(name, object), None).await;
        }

        memory.written.insert(name.clone(), (object.status.clone(), written));
    }

    fn record_failure(&self, name: &PolicyKey, error: &StatusWriteError, memory: &mut WriterMemory) {
        let result = error.label();
        self.metrics.status_write_failures_total.with_label_values(&[result]).inc();

        let is_new = memory.failures.failed(Instant::now(), name, result, error.to_string());
        if is_new {
            tracing::warn!(policy = %name, "the status could not be written, and is tried again: {error}");
        }
    }

    async fn patch(&self, name: &PolicyKey, wanted: &PolicyStatus) -> Result<(), StatusWriteError> {
        let patch = Patch::Merge(json!({"status": wanted}));
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };

        let request = async {
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
        };
        match timeout(WRITE_TIMEOUT, request).await {
            Ok(answer) => answer.map_err(|error| StatusWriteError::new(name, error)),
            Err(_) => Err(StatusWriteError::Timeout),
        }
    }
}

/// The servers that could not be observed [`FAILURES_SHOWN`] times in a row.
fn failing_servers(snapshot: &LoopSnapshot) -> Vec<FailingServer<'_>> {
    let failing = snapshot.targets.iter().filter_map(|(server, target)| {
        let seen = snapshot.seen.get(server).filter(|seen| seen.failures_in_a_row >= FAILURES_SHOWN)?;
        Some(FailingServer { server, labels: &target.labels, failure: seen.failure.as_deref()? })
    });
    failing.collect()
}

fn is_paused(status: &PolicyStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == READY && condition.reason == PAUSED)
}

/// The message of `wanted` about a generation that is not valid; `None` where `before` already has one for it.
fn new_invalid_message(before: &PolicyStatus, wanted: &PolicyStatus) -> Option<String> {
    fn invalid(status: &PolicyStatus) -> Option<&Condition> {
        let mut conditions = status.conditions.iter().flatten();
        conditions.find(|condition| condition.type_ == READY && condition.reason == INVALID)
    }

    let condition = invalid(wanted)?;
    let is_known = invalid(before).is_some() && before.observed_generation == wanted.observed_generation;
    (!is_known).then(|| condition.message.clone())
}

/// Whether the last step was made with this policy as it is now. Otherwise its status waits for the next step.
fn is_current(object: &PolicyObject, was_decided_with: bool, policies: &[ModelPolicy]) -> bool {
    match &object.enforced {
        Some(enforced) => policies.contains(&enforced.policy),
        None => !was_decided_with,
    }
}
