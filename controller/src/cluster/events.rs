//! Publishes Kubernetes Events: each command that was carried out, on the policy that caused it and on the pod of the
//! server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hush_contract::WHISPER;
use hush_core::{PolicyKey, ServerName};
use hush_crds::API_VERSION;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::mirror::MirroredObjects;
use super::pods::MirroredPod;
use super::policies::PolicyObject;
use super::scope::ScopeGate;
use super::sources::Policies;
use crate::act::{CommandRecord, CommandResult};
use crate::amount::gib;
use crate::control_loop::{LoopEvent, PauseChange};
use crate::observe::{DisagreeingReport, ServerAppProblem};
use crate::status::PAUSED;

pub const CONTROLLER: &str = "gpu.hush.dev/hush-controller";
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest note that the API server accepts.
const NOTE_MAX_CHARS: usize = 1000;

pub struct EventPublisher {
    pub client: Client,
    /// The identity of this process.
    pub identity: String,
    pub policies: watch::Receiver<Policies>,
    pub pods: watch::Receiver<MirroredObjects<ServerName, MirroredPod>>,
    /// Whether this controller may act: of several controllers that observe the same, only one reports it.
    pub gate: Arc<ScopeGate>,
}

/// A recorder of Events. `identity` is that of this process.
pub fn recorder(client: Client, identity: String) -> Recorder {
    Recorder::new(client, Reporter { controller: CONTROLLER.to_owned(), instance: Some(identity) })
}

/// The contents of an Event, without the objects that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EventText {
    pub(super) is_warning: bool,
    pub(super) reason: &'static str,
    pub(super) action: String,
    pub(super) note: String,
}

impl EventText {
    /// Writes the Event on the object `regarding`. A failure is logged, and the Event is lost.
    pub(super) async fn publish(
        &self,
        recorder: &Recorder,
        regarding: &ObjectReference,
        secondary: Option<ObjectReference>,
    ) {
        let event = Event {
            type_: if self.is_warning { EventType::Warning } else { EventType::Normal },
            reason: self.reason.to_owned(),
            note: Some(self.note.chars().take(NOTE_MAX_CHARS).collect()),
            action: self.action.clone(),
            secondary,
        };

        match timeout(WRITE_TIMEOUT, recorder.publish(&event, regarding)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("an Event could not be written: {error}"),
            Err(_) => tracing::warn!("an Event could not be written within {WRITE_TIMEOUT:?}"),
        }
    }
}

impl EventPublisher {
    /// Publishes Events until the loop is gone.
    pub async fn run(self, mut events: mpsc::Receiver<LoopEvent>) {
        let recorder = recorder(self.client.clone(), self.identity.clone());

        while let Some(event) = events.recv().await {
            let Some((text, policy, pod)) = self.describe(&event) else { continue };
            if let Some(policy) = &policy {
                text.publish(&recorder, policy, pod.clone()).await;
            }
            if let Some(pod) = &pod {
                text.publish(&recorder, pod, policy.clone()).await;
            }
        }
    }

    /// The text of an Event, and the policy and the pod that it is about; `None`: nothing is published.
    fn describe(&self, event: &LoopEvent) -> Option<(EventText, Option<ObjectReference>, Option<ObjectReference>)> {
        match event {
            LoopEvent::Command { record, app } => {
                let text = command_text(record, app)?;
                Some((text, self.policy(&record.decision.policy), self.pod(&record.decision.server)))
            }
            LoopEvent::Pause(policy, change) => Some((pause_text(change), self.policy(&policy.to_string()), None)),
            LoopEvent::ReportsDisagree(_) | LoopEvent::AppProblem(_) if self.gate.check_leadership().is_err() => None,
            LoopEvent::ReportsDisagree(DisagreeingReport { server, note }) => {
                let action = "Observe".to_owned();
                let text = EventText { is_warning: true, reason: "ReportsDisagree", action, note: note.clone() };
                Some((text, None, self.pod(server)))
            }
            LoopEvent::AppProblem(problem) => Some((app_problem_text(problem), None, self.pod(&problem.server))),
        }
    }

    fn policy(&self, policy: &str) -> Option<ObjectReference> {
        let policies = Arc::clone(&self.policies.borrow());
        let (name, object) = policies.iter().find(|(name, _)| name.to_string() == policy)?;
        Some(policy_reference(name, object))
    }

    fn pod(&self, server: &ServerName) -> Option<ObjectReference> {
        let pods: Arc<BTreeMap<ServerName, MirroredPod>> = self.pods.borrow().clone()?;
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

/// A policy as the object of an Event.
pub(super) fn policy_reference(name: &PolicyKey, object: &PolicyObject) -> ObjectReference {
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

/// A pause is a warning: a paused policy relieves no pressure.
fn pause_text(change: &PauseChange) -> EventText {
    let (is_warning, reason, action) = match change {
        PauseChange::Paused(_) => (true, PAUSED, "Pause"),
        PauseChange::Resumed(_) | PauseChange::Expired => (false, "Resumed", "Resume"),
    };
    EventText { is_warning, reason, action: action.to_owned(), note: change.to_string() }
}

fn app_problem_text(problem: &ServerAppProblem) -> EventText {
    EventText {
        is_warning: true,
        reason: problem.problem.kind.event_reason(),
        action: "Observe".to_owned(),
        note: problem.to_string(),
    }
}

/// `None`: the command changed nothing. `app` is the kind of the model's app; that of `hush-server` is not named.
fn command_text(record: &CommandRecord, app: &str) -> Option<EventText> {
    let decision = &record.decision;
    let cause = if decision.policy.is_empty() { "a person" } else { &decision.policy };
    let kind = if app.is_empty() || app == WHISPER { String::new() } else { format!(" ({app})") };
    let what = format!("{}{kind} of {} for {cause} ({})", decision.model, decision.server, decision.reason);

    let (is_warning, reason, note) = match &record.outcome {
        CommandResult::Unloaded { reclaimed_bytes, residual_bytes, .. } => {
            let came_back = reclaimed_bytes.map_or_else(String::new, |bytes| format!(", {} came back", gib(bytes)));
            let residual_bytes = residual_bytes.filter(|bytes| *bytes > 0);
            let residual = residual_bytes.map_or_else(String::new, |bytes| format!(", {} did not", gib(bytes)));
            let kept = record.outcome.kept_process(decision);
            let process = match kept {
                Some(kept) => format!(", {kept}"),
                None if record.outcome.has_ended_process(decision) => ", with its process".to_owned(),
                None => String::new(),
            };
            let is_warning = !residual.is_empty() || kept.is_some();
            (is_warning, "Unloaded", format!("unloaded {what}{came_back}{residual}{process}"))
        }
        CommandResult::Loading => (false, "Loading", format!("loads {what}")),
        CommandResult::Failed { message, .. } => {
            (true, "CommandFailed", format!("{}: {what}: {message}", decision.action))
        }
        CommandResult::Refused { .. } | CommandResult::Withheld { .. } => return None,
    };
    Some(EventText { is_warning, reason, action: decision.action.to_string(), note })
}

#[cfg(test)]
mod tests {
    use hush_contract::admin::ProcessOutcome;
    use hush_core::{Decision, DecisionReason, PolicyUnload};
    use jiff::Timestamp;

    use super::*;
    use crate::act::test_decision::unload_decision;
    use crate::observe::{AppProblem, AppProblemKind};

    fn text_of(policy: &str, reason: DecisionReason, outcome: CommandResult) -> Option<(bool, &'static str, String)> {
        let decision = Decision { reason, policy: policy.to_owned(), ..unload_decision("turbo") };
        let now = Timestamp::UNIX_EPOCH;
        let record = CommandRecord { time: now, decided_at: now, decision, outcome, seconds: 0.0 };
        let text = command_text(&record, WHISPER)?;
        Some((text.is_warning, text.reason, text.note))
    }

    #[test]
    fn the_app_is_named_where_it_is_not_whisper() {
        let (now, decision) = (Timestamp::UNIX_EPOCH, unload_decision("tiny:latest"));
        let outcome = CommandResult::Unloaded { reclaimed_bytes: None, residual_bytes: None, process: None };
        let record = CommandRecord { time: now, decided_at: now, decision, outcome, seconds: 0.0 };
        let note = command_text(&record, "ollama").unwrap().note;
        assert!(note.starts_with("unloaded tiny:latest (ollama) of "), "{note}");
    }

    #[test]
    fn what_became_of_the_process_is_said_where_its_end_was_asked_for() {
        let note_of = |unload, process| {
            let (now, decision) = (Timestamp::UNIX_EPOCH, Decision { unload, ..unload_decision("m") });
            let outcome =
                CommandResult::Unloaded { reclaimed_bytes: None, residual_bytes: None, process: Some(process) };
            let record = CommandRecord { time: now, decided_at: now, decision, outcome, seconds: 0.0 };
            let text = command_text(&record, "vllm").unwrap();
            (text.is_warning, text.note.rsplit_once(')').unwrap().1.to_owned())
        };

        let ended = note_of(PolicyUnload::Process, ProcessOutcome::Ended);
        assert_eq!(ended, (false, ", with its process".to_owned()));
        let kept = note_of(PolicyUnload::Process, ProcessOutcome::KeptForOthers);
        assert_eq!(kept, (true, ", its process goes on until its other models leave".to_owned()));
        assert_eq!(note_of(PolicyUnload::App, ProcessOutcome::Kept), (false, String::new()));
    }

    #[test]
    fn an_app_that_cannot_be_governed_is_a_warning_that_names_the_flag() {
        let problem = AppProblem { kind: AppProblemKind::Unsuitable, text: "set OLLAMA_KEEP_ALIVE=-1".to_owned() };
        let problem = ServerAppProblem { server: "a/chat".into(), app: "ollama".to_owned(), problem };
        let EventText { is_warning, reason, note, .. } = app_problem_text(&problem);
        assert_eq!(
            (is_warning, reason, note.as_str()),
            (true, "AppUnsuitable", "a/chat (ollama): set OLLAMA_KEEP_ALIVE=-1")
        );
    }

    #[test]
    fn commands_that_changed_something_or_failed_are_published() {
        let done = CommandResult::Unloaded { reclaimed_bytes: Some(2 << 30), residual_bytes: Some(0), process: None };
        let note = "unloaded turbo of a/w for a/speech (HardPressure), 2.00Gi came back";
        let text = text_of("a/speech", DecisionReason::HardPressure, done.clone());
        assert_eq!(text, Some((false, "Unloaded", note.to_owned())));

        let note = "unloaded turbo of a/w for a person (Manual), 2.00Gi came back";
        assert_eq!(text_of("", DecisionReason::Manual, done), Some((false, "Unloaded", note.to_owned())));

        let residual =
            CommandResult::Unloaded { reclaimed_bytes: Some(0), residual_bytes: Some(1 << 30), process: None };
        assert!(text_of("a/speech", DecisionReason::HardPressure, residual).is_some_and(|(is_warning, ..)| is_warning));

        let failed = text_of("a/speech", DecisionReason::IdleTimeout, CommandResult::failed("timeout", "no answer"));
        assert!(failed.is_some_and(|(is_warning, reason, _)| is_warning && reason == "CommandFailed"));

        let refused = CommandResult::Refused { code: "busy".to_owned(), message: String::new() };
        for unpublished in [refused, CommandResult::Withheld { message: String::new() }] {
            assert_eq!(text_of("a/speech", DecisionReason::IdleTimeout, unpublished), None);
        }
    }
}
