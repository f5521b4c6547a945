//! Events: each command that was carried out, on the policy that caused it and on the pod of the server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hush_core::{PolicyName, ServerName};
use hush_crds::API_VERSION;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::mirror::Copied;
use super::pods::ServerPod;
use super::policies::PolicyObject;
use super::scope::ScopeGate;
use super::sources::Policies;
use crate::act::{Outcome, Record};
use crate::amount::gib;
use crate::observe::OddReport;
use crate::run::{PauseChange, Told};
use crate::status::PAUSED;

pub const CONTROLLER: &str = "gpu.hush.dev/hush-controller";
const PATIENCE: Duration = Duration::from_secs(10);
/// What the API server takes.
pub(super) const NOTE_MAX_CHARS: usize = 1000;

pub struct Reporting {
    pub client: Client,
    /// Of this process.
    pub identity: String,
    pub policies: watch::Receiver<Policies>,
    pub pods: watch::Receiver<Copied<ServerName, ServerPod>>,
    /// Whether this controller may act: of several that see the same, one tells of it.
    pub gate: Arc<ScopeGate>,
}

/// `identity`: of this process.
pub fn recorder(client: Client, identity: String) -> Recorder {
    Recorder::new(client, Reporter { controller: CONTROLLER.to_owned(), instance: Some(identity) })
}

/// What is told of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Story {
    warning: bool,
    reason: &'static str,
    note: String,
}

impl Reporting {
    /// Until the loop is gone.
    pub async fn run(self, mut told: mpsc::Receiver<Told>) {
        let recorder = recorder(self.client.clone(), self.identity.clone());
        while let Some(told) = told.recv().await {
            let (story, policy, pod, action) = match &told {
                Told::Command(record) => {
                    let Some(story) = story(record) else { continue };
                    let pod = self.pod(&record.decision.server);
                    (story, self.policy(&record.decision.policy), pod, record.decision.action.to_string())
                }
                Told::Pause(policy, change) => {
                    let action = if matches!(change, PauseChange::Paused(_)) { "Pause" } else { "Resume" };
                    (pause_story(change), self.policy(&policy.to_string()), None, action.to_owned())
                }
                Told::Odd(_) if self.gate.open().is_err() => continue,
                Told::Odd(OddReport { server, note }) => {
                    let story = Story { warning: true, reason: "ReportsDisagree", note: note.clone() };
                    (story, None, self.pod(server), "Observe".to_owned())
                }
            };
            for (regarding, secondary) in [(&policy, &pod), (&pod, &policy)] {
                let Some(regarding) = regarding else { continue };
                let event = Event {
                    type_: if story.warning { EventType::Warning } else { EventType::Normal },
                    reason: story.reason.to_owned(),
                    note: Some(story.note.chars().take(NOTE_MAX_CHARS).collect()),
                    action: action.clone(),
                    secondary: secondary.clone(),
                };
                match timeout(PATIENCE, recorder.publish(&event, regarding)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!("an Event could not be written: {error}"),
                    Err(_) => tracing::warn!("an Event could not be written within {PATIENCE:?}"),
                }
            }
        }
    }

    fn policy(&self, policy: &str) -> Option<ObjectReference> {
        let policies = Arc::clone(&self.policies.borrow());
        let (name, object) = policies.iter().find(|(name, _)| name.to_string() == policy)?;
        Some(reference(name, object))
    }

    fn pod(&self, server: &ServerName) -> Option<ObjectReference> {
        let pods: Arc<BTreeMap<ServerName, ServerPod>> = self.pods.borrow().clone()?;
        let (namespace, name) = server.as_str().split_once('/')?;
        Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            uid: Some(pods.get(server)?.uid.clone()),
            ..ObjectReference::default()
        })
    }
}

/// A policy as an Event names it.
pub(super) fn reference(name: &PolicyName, object: &PolicyObject) -> ObjectReference {
    let kind = if name.namespace.is_some() { "GpuModelPolicy" } else { "ClusterGpuModelPolicy" };
    ObjectReference {
        api_version: Some(API_VERSION.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: name.namespace.clone(),
        name: Some(name.name.clone()),
        uid: Some(object.uid.clone()),
        ..ObjectReference::default()
    }
}

/// A policy that is paused relieves no pressure: that is worth a warning.
fn pause_story(change: &PauseChange) -> Story {
    let (warning, reason) = match change {
        PauseChange::Paused(_) => (true, PAUSED),
        PauseChange::Resumed(_) | PauseChange::Over => (false, "Resumed"),
    };
    Story { warning, reason, note: change.to_string() }
}

/// `None`: nothing was done.
fn story(record: &Record) -> Option<Story> {
    let decision = &record.decision;
    let whose = if decision.policy.is_empty() { "a person" } else { &decision.policy };
    let what = format!("{} of {} for {whose} ({})", decision.model, decision.server, decision.reason);
    let (warning, reason, note) = match &record.outcome {
        Outcome::Unloaded { reclaimed_bytes, residual_bytes } => {
            let came_back = reclaimed_bytes.map_or_else(String::new, |bytes| format!(", {} came back", gib(bytes)));
            let left = residual_bytes.filter(|bytes| *bytes > 0);
            let left = left.map_or_else(String::new, |bytes| format!(", {} did not", gib(bytes)));
            (!left.is_empty(), "Unloaded", format!("unloaded {what}{came_back}{left}"))
        }
        Outcome::Loading => (false, "Loading", format!("loads {what}")),
        Outcome::Failed { message, .. } => (true, "CommandFailed", format!("{}: {what}: {message}", decision.action)),
        Outcome::Refused { .. } | Outcome::Withheld { .. } => return None,
    };
    Some(Story { warning, reason, note })
}

#[cfg(test)]
mod tests {
    use hush_core::{Action, Decision, Reason};
    use jiff::Timestamp;

    use super::*;

    fn told(policy: &str, reason: Reason, outcome: Outcome) -> Option<(bool, &'static str, String)> {
        let decision = Decision {
            server: "a/w".into(),
            model: "turbo".to_owned(),
            gpu: None,
            action: Action::Unload,
            reason,
            policy: policy.to_owned(),
            if_generation: None,
            if_idle_seconds: None,
            drain_seconds: None,
            hold_seconds: None,
            vram_bytes: 0,
            dry_run: false,
        };
        let now = Timestamp::UNIX_EPOCH;
        let story = story(&Record { time: now, decided_at: now, decision, outcome, seconds: 0.0 })?;
        Some((story.warning, story.reason, story.note))
    }

    #[test]
    fn what_is_told() {
        let done = Outcome::Unloaded { reclaimed_bytes: Some(2 << 30), residual_bytes: Some(0) };
        let note = "unloaded turbo of a/w for a/speech (HardPressure), 2.00Gi came back";
        assert_eq!(told("a/speech", Reason::HardPressure, done.clone()), Some((false, "Unloaded", note.to_owned())));
        let note = "unloaded turbo of a/w for a person (Manual), 2.00Gi came back";
        assert_eq!(told("", Reason::Manual, done), Some((false, "Unloaded", note.to_owned())));
        let left = Outcome::Unloaded { reclaimed_bytes: Some(0), residual_bytes: Some(1 << 30) };
        assert!(told("a/speech", Reason::HardPressure, left).is_some_and(|(warning, ..)| warning));
        let failed = told("a/speech", Reason::IdleTimeout, Outcome::failed("timeout", "no answer"));
        assert!(failed.is_some_and(|(warning, reason, _)| warning && reason == "CommandFailed"));
        let refused = Outcome::Refused { code: "busy".to_owned(), message: String::new() };
        for nothing in [refused, Outcome::Withheld { message: String::new() }] {
            assert_eq!(told("a/speech", Reason::IdleTimeout, nothing), None);
        }
    }
}
