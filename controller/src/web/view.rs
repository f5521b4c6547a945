//! The types of the JSON API: the page's routes write them, and `kubectl hush` reads them.
//! `docs/controller-page.md` describes them.
//!
//! States and reasons are text here, and most fields have a default, so that a plugin understands controllers that are
//! older or newer than itself.

use std::borrow::Cow;

use hush_contract::WHISPER;
use hush_core::{Decision, Labels, PressureThreshold, RuleExplanation, RuleSet, SkipReason, SourcedValue};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::act::CommandRecord;
use crate::control_loop::PausedPolicy;

/// A point in time that moves on with every step. Two of them always compare equal, so that the passing of time alone is
/// no change of the state.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub struct MovingTime(pub Timestamp);

impl PartialEq for MovingTime {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A point in time that is computed from a sample, such as the beginning of idleness. It is inexact by as much as a scrape
/// takes, so that two of them compare equal when they are less than 1.5 s apart.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(transparent)]
pub struct SampledTime(pub Timestamp);

const SAMPLED_TIME_TOLERANCE: SignedDuration = SignedDuration::from_millis(1500);

impl PartialEq for SampledTime {
    fn eq(&self, other: &Self) -> bool {
        self.0.duration_since(other.0).abs() < SAMPLED_TIME_TOLERANCE
    }
}

/// Response to `GET /api/v1/state`, and the data of the event `state`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StateView {
    /// The time of the step that this state shows.
    pub at: MovingTime,
    pub version: &'static str,
    /// Whether commands are sent; false with `--dry-run`.
    pub acting: bool,
    /// Whether a token is configured, so that commands and what-ifs are accepted.
    pub actions: bool,
    pub stale_after_seconds: u64,
    pub gpus: Vec<GpuView>,
    pub servers: Vec<ServerView>,
    pub models: Vec<ModelStateView>,
    /// The decisions of the current plan; those of dry runs are marked.
    pub decisions: Vec<Decision>,
    pub policies: Vec<PolicyView>,
    /// What was left out of the world, and why.
    pub problems: Vec<String>,
    /// The last commands, and those that a dry run would have sent, oldest first.
    pub records: Vec<CommandRecord>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuView {
    pub uuid: String,
    #[serde(default)]
    pub node: String,
    pub total_bytes: u64,
    /// Held by models that the controller knows.
    pub ours_bytes: u64,
    /// Held by other programs.
    pub others_bytes: u64,
    pub free_bytes: u64,
    #[serde(default)]
    pub sampled_at: MovingTime,
    /// Whether the sample is recent enough to act on.
    pub fresh: bool,
    pub pressure: String,
    pub reason: Option<String>,
    /// While pressure is relieved: how much memory must become available.
    pub target_bytes: Option<u64>,
    #[serde(default)]
    pub thresholds: Vec<ThresholdView>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ThresholdView {
    /// `Soft` or `Hard`.
    pub level: String,
    /// Pressure begins when less memory than this is available.
    pub below_bytes: u64,
    /// How much memory is made available once pressure has begun.
    #[serde(default)]
    pub target_bytes: u64,
    pub policy: String,
}

impl From<&PressureThreshold> for ThresholdView {
    fn from(threshold: &PressureThreshold) -> Self {
        Self {
            level: threshold.level.to_string(),
            below_bytes: threshold.below_bytes,
            target_bytes: threshold.target_bytes,
            policy: threshold.policy.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerView {
    /// `namespace/name`.
    pub server: String,
    #[serde(default)]
    pub node: String,
    #[serde(default)]
    pub labels: Labels,
    /// `answering`, `failing` or `unknown`.
    pub state: String,
    /// Why the last scrape failed.
    pub failure: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelStateView {
    pub server: String,
    pub model: String,
    /// The kind of the program that serves the model; controllers that do not report it know Whisper alone.
    #[serde(default = "whisper")]
    pub app: String,
    pub gpu: Option<String>,
    pub state: String,
    pub generation: u64,
    #[serde(default)]
    pub inflight: u64,
    #[serde(default)]
    pub queued: u64,
    /// Held now; 0 when the model is not loaded.
    pub vram_bytes: u64,
    /// What a model that is not loaded needed last time, where that is known.
    pub need_bytes: Option<u64>,
    /// How much memory the model waits for.
    pub demand_bytes: Option<u64>,
    /// Present while the model is ready and not busy.
    pub idle_since: Option<SampledTime>,
    /// Present while a hold keeps the model from being loaded: the end of the hold.
    pub held_until: Option<SampledTime>,
    /// Present while the model is ready.
    pub loaded_since: Option<SampledTime>,
    /// Whether the sample is recent enough to act on.
    pub fresh: bool,
    /// `None`: no policy selects the model, and its server's own residency applies.
    pub rules: Option<RuleSetView>,
    pub idle_timeout_ms: Option<ChosenView<u64>>,
    /// The policies ask for the end of the app's process at an unload, and its server cannot end it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub process_stays: bool,
    /// When the idle timeout unloads the model, if no request comes before.
    pub leaves_at: Option<SampledTime>,
    /// Why nothing is done with the model; empty when a decision is about it.
    #[serde(default)]
    pub why: Vec<SkipReasonView>,
}

fn whisper() -> String {
    WHISPER.to_owned()
}

/// The merged rules of the policies that select a model.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleSetView {
    /// All policies that select the model, by name.
    pub policies: Vec<String>,
    pub residency: ChosenView<String>,
    /// The policy whose open window set the residency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    #[serde(default)]
    pub priority: ChosenView<i32>,
    /// What an unload ends; empty: the controller does not say it.
    #[serde(default)]
    pub unload: ChosenView<String>,
    #[serde(default)]
    pub min_resident_ms: u64,
    #[serde(default)]
    pub min_loaded: u32,
}

impl From<&RuleSet> for RuleSetView {
    fn from(rules: &RuleSet) -> Self {
        let residency = &rules.residency;

        Self {
            policies: rules.policies.clone(),
            residency: ChosenView { value: serialized_name(&residency.value), policy: residency.policy.clone() },
            window: rules.window.clone(),
            priority: rules.priority.clone().into(),
            unload: ChosenView { value: serialized_name(&rules.unload.value), policy: rules.unload.policy.clone() },
            min_resident_ms: rules.min_resident_ms,
            min_loaded: rules.min_loaded,
        }
    }
}

/// The text by which an enum without data is written in JSON.
pub fn serialized_name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// A value and the policy that it comes from.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct ChosenView<T> {
    pub value: T,
    pub policy: String,
}

impl<T> From<SourcedValue<T>> for ChosenView<T> {
    fn from(SourcedValue { value, policy }: SourcedValue<T>) -> Self {
        Self { value, policy }
    }
}

/// Why the plan leaves a model alone.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SkipReasonView {
    pub reason: String,
    #[serde(default)]
    pub detail: String,
}

impl PartialEq for SkipReasonView {
    /// Details that count time differ at every step; they are no change of the state.
    fn eq(&self, other: &Self) -> bool {
        const COUNTING_TIME: [SkipReason; 3] = [SkipReason::NotIdle, SkipReason::MinResident, SkipReason::GracePeriod];
        let counts_time = COUNTING_TIME.iter().any(|reason| reason.as_str() == self.reason);

        self.reason == other.reason && (counts_time || self.detail == other.detail)
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyView {
    /// `namespace/name`, or `/name` of the cluster kind.
    pub name: String,
    /// As the policy is written: its decisions are shown and not carried out.
    #[serde(default)]
    pub dry_run: bool,
    pub paused: Option<PausedView>,
    /// How many models the policy selects.
    #[serde(default)]
    pub models: usize,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PausedView {
    #[serde(default)]
    pub since: Timestamp,
    /// Absent: until the policy is resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The name that the request gave for its sender; it is not proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<String>,
}

impl From<PausedPolicy> for PausedView {
    fn from(PausedPolicy { since, until, claimed_by }: PausedPolicy) -> Self {
        Self { since, until, claimed_by: claimed_by.map(|name| name.to_string()) }
    }
}

/// Response to `GET /api/v1/explain`: one server, and for each of its models where every value comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerExplanationView {
    pub at: Timestamp,
    /// Whether commands are sent.
    pub acting: bool,
    pub server: ServerView,
    /// The GPUs of the server's models.
    pub gpus: Vec<GpuView>,
    pub models: Vec<ModelExplanationView>,
    /// The decisions of the current plan about the server's models.
    pub decisions: Vec<Decision>,
    /// Those of the last commands that went to the server, oldest first.
    pub records: Vec<CommandRecord>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelExplanationView {
    pub model: ModelStateView,
    /// Policies that are paused count as dry run.
    pub account: RuleExplanation,
}

/// Response to `POST /api/v1/plan`: what would be done now with the policies of the body.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WhatIfView {
    pub at: Timestamp,
    /// The policies of the body.
    pub policies: Vec<EditedView>,
    pub decisions: Vec<Decision>,
    pub gpus: Vec<GpuView>,
    pub models: Vec<ModelStateView>,
}

/// A policy of the body of `POST /api/v1/plan`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EditedView {
    pub name: String,
    /// `new`, `changed` or `same`, against the policies in force.
    pub is: String,
    /// How many models the policy selects now.
    pub models: usize,
}

/// Body of `POST .../pause`: either `duration` or `untilResumed`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PauseRequest {
    /// A duration such as `30m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// The pause has no end of its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub until_resumed: bool,
    /// The name of the sender; it is not proven.
    pub claimed_by: Option<String>,
}

/// Body of `POST .../resume`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ResumeRequest {
    /// The name of the sender; it is not proven.
    pub claimed_by: Option<String>,
}

/// Response to `POST .../resume`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct ResumedView {
    /// Whether the policy was paused.
    pub resumed: bool,
}

/// Body of `POST .../unload`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UnloadModelRequest {
    /// The generation that the sender saw; a model of another generation stays.
    pub if_generation: u64,
    /// How long requests in flight may go on; a request that has not ended then is started again after the next load.
    /// Absent: the unload of a busy model is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u64>,
    /// How long the model may not be loaded again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_seconds: Option<u64>,
}

/// Body of `POST .../load`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadModelRequest {
    /// The generation that the sender saw; nothing is done if the model was loaded since.
    pub if_generation: u64,
}

/// Body of `PUT .../log-level`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ChangeLogLevelRequest {
    /// As the option `--log-level`. Absent: the configured level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// A duration such as `10m`, after which the configured level is in force again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
}

/// Response to `GET` and `PUT .../log-level`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLevelView {
    pub level: String,
    /// The level that the controller was started with.
    pub configured_level: String,
    /// When the configured level is in force again; absent: no end is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// Body of every response that is no success.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorView {
    pub code: Cow<'static, str>,
    /// Says what is wrong, and how to fix it.
    pub message: String,
    /// The mistakes in a YAML body.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ProblemView>,
}

/// A mistake in a YAML body.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemView {
    /// Counted from 1; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    pub message: String,
}

#[cfg(test)]
mod tests {
    use hush_core::{PolicyResidency, PolicyUnload, PressureLevel, ResidencyState};
    use serde_json::Value;

    use super::*;

    fn json(value: &impl Serialize) -> Value {
        serde_json::to_value(value).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + seconds).unwrap()
    }

    fn why(reason: SkipReason, detail: &str) -> SkipReasonView {
        SkipReasonView { reason: reason.to_string(), detail: detail.to_owned() }
    }

    #[test]
    fn a_view_is_written_as_the_type_of_the_core_is() {
        let chosen = |value| SourcedValue { value, policy: "m/p".to_owned() };
        let rules = RuleSet {
            policies: vec!["/floor".to_owned(), "m/p".to_owned()],
            residency: SourcedValue { value: PolicyResidency::OnDemand, policy: "m/p".to_owned() },
            window: None,
            priority: chosen(-3),
            unload: SourcedValue { value: PolicyUnload::Process, policy: "m/p".to_owned() },
            min_resident_ms: 10_000,
            min_loaded: 1,
        };
        let threshold = PressureThreshold {
            level: PressureLevel::Hard,
            below_bytes: 1,
            target_bytes: 2,
            policy: "/floor".to_owned(),
        };

        assert_eq!(json(&RuleSetView::from(&rules)), json(&rules));
        assert_eq!(json(&RuleSetView::from(&RuleSet { window: Some("m/p".to_owned()), ..rules }))["window"], "m/p");
        assert_eq!(json(&ThresholdView::from(&threshold)), json(&threshold));
        assert_eq!(serialized_name(&ResidencyState::WaitingForMemory), "WaitingForMemory");
    }

    #[test]
    fn time_is_no_change() {
        assert_eq!(MovingTime(at(0)), MovingTime(at(9)));

        let since = SampledTime(at(0));
        assert_eq!(since, SampledTime(at(1)), "a scrape is not exact");
        assert_ne!(since, SampledTime(at(2)), "a request has come and gone");

        assert_eq!(why(SkipReason::NotIdle, "1s of 5s"), why(SkipReason::NotIdle, "2s of 5s"));
        assert_ne!(why(SkipReason::Busy, "1 in flight"), why(SkipReason::Busy, "2 in flight"));
        assert_ne!(why(SkipReason::NotIdle, ""), why(SkipReason::Busy, ""));
    }
}
