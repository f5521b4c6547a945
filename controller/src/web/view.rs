//! The types of the JSON API. `docs/controller-page.md` has them in words.

use hush_core::{Account, Chosen, Decision, GpuReason, Labels, Pressure, RuleSet, SkipReason, State, Threshold};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::act::CommandRecord as Record;
use crate::control_loop::{ClaimedName, PausedPolicy as Paused};

/// A point in time that moves on by itself: never a change.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(transparent)]
pub struct Passing(pub Timestamp);

impl PartialEq for Passing {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// The beginning of something that lasts, as a sample tells it: off by as long as a scrape takes.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(transparent)]
pub struct Since(pub Timestamp);

const INEXACT: SignedDuration = SignedDuration::from_millis(1500);

impl PartialEq for Since {
    fn eq(&self, other: &Self) -> bool {
        self.0.duration_since(other.0).abs() < INEXACT
    }
}

/// Answer to `GET /api/v1/state`, and the data of the event `state`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StateView {
    /// Of the step that this tells of.
    pub at: Passing,
    pub version: &'static str,
    /// Whether commands are sent; false with `--dry-run`.
    pub acting: bool,
    /// Whether people may act: a token is configured.
    pub actions: bool,
    pub stale_after_seconds: u64,
    pub gpus: Vec<GpuView>,
    pub servers: Vec<ServerView>,
    pub models: Vec<ModelView>,
    /// What the plan says now; those of dry runs are marked.
    pub decisions: Vec<Decision>,
    pub policies: Vec<PolicyView>,
    /// What was left out of the world, and why.
    pub problems: Vec<String>,
    /// The last commands and what would have been commanded, oldest first.
    pub records: Vec<Record>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuView {
    pub uuid: String,
    pub node: String,
    pub total_bytes: u64,
    /// Held by models that we know of.
    pub ours_bytes: u64,
    pub others_bytes: u64,
    pub free_bytes: u64,
    pub sampled_at: Passing,
    pub fresh: bool,
    pub pressure: Pressure,
    pub reason: Option<GpuReason>,
    /// While pressure is relieved: so much must become available.
    pub target_bytes: Option<u64>,
    pub thresholds: Vec<Threshold>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerView {
    pub server: String,
    pub node: String,
    pub labels: Labels,
    /// `answering`, `failing` or `unknown`.
    pub state: &'static str,
    /// Why the last look failed.
    pub failure: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelView {
    pub server: String,
    pub model: String,
    pub gpu: Option<String>,
    pub state: State,
    pub generation: u64,
    pub inflight: u64,
    pub queued: u64,
    /// Held now; 0 when it is not loaded.
    pub vram_bytes: u64,
    /// What a model that is not loaded needed last time, where that is known.
    pub need_bytes: Option<u64>,
    /// What it waits for.
    pub demand_bytes: Option<u64>,
    /// While it is ready and not busy.
    pub idle_since: Option<Since>,
    /// While a hold keeps it from being loaded: its end.
    pub held_until: Option<Since>,
    /// While it is ready.
    pub loaded_since: Option<Since>,
    pub fresh: bool,
    /// `None`: no policy selects it, and its server's own residency holds.
    pub rules: Option<RuleSet>,
    pub idle_timeout_ms: Option<Chosen<u64>>,
    /// When idleness makes it leave, if nobody asks for it before.
    pub leaves_at: Option<Since>,
    /// Why nothing is done with it; empty when something is.
    pub why: Vec<WhyView>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyView {
    pub reason: SkipReason,
    pub detail: String,
}

impl PartialEq for WhyView {
    /// Details that count time change all the time.
    fn eq(&self, other: &Self) -> bool {
        use SkipReason::{GracePeriod, MinResident, NotIdle};
        let counts_time = matches!(self.reason, NotIdle | MinResident | GracePeriod);
        self.reason == other.reason && (counts_time || self.detail == other.detail)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyView {
    /// `namespace/name`, or `/name` of the cluster kind.
    pub name: String,
    /// As it is written: it only shows what it would do.
    pub dry_run: bool,
    pub paused: Option<PausedView>,
    /// How many models it selects.
    pub models: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PausedView {
    pub since: Timestamp,
    /// Absent: until it is resumed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Who the request said that it was from; nothing proves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<ClaimedName>,
}

impl From<Paused> for PausedView {
    fn from(Paused { since, until, claimed_by }: Paused) -> Self {
        Self { since, until, claimed_by }
    }
}

/// Answer to `GET /api/v1/explain`: one server, and for each of its models where every value comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainView {
    pub at: Timestamp,
    /// Whether commands are sent.
    pub acting: bool,
    pub server: ServerView,
    /// The cards of its models.
    pub gpus: Vec<GpuView>,
    pub models: Vec<AccountView>,
    /// What the plan says of it now.
    pub decisions: Vec<Decision>,
    /// Of the last commands those to it, oldest first.
    pub records: Vec<Record>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccountView {
    pub model: ModelView,
    /// Policies that are paused count as dry run.
    pub account: Account,
}

/// Answer to `POST /api/v1/plan`: what would be done now with the policies of the body.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WhatIfView {
    pub at: Timestamp,
    /// The policies of the body.
    pub policies: Vec<EditedView>,
    pub decisions: Vec<Decision>,
    pub gpus: Vec<GpuView>,
    pub models: Vec<ModelView>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EditedView {
    pub name: String,
    /// `new`, `changed` or `same`, against those in force.
    pub is: &'static str,
    /// How many models it selects now.
    pub models: usize,
}

/// Body of `POST .../pause`: one of the first two.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PauseRequest {
    /// A duration such as `30m`.
    pub duration: Option<String>,
    /// Nothing else ends it.
    pub until_resumed: bool,
    /// Who says that it is from them; nothing proves it.
    pub claimed_by: Option<String>,
}

/// Body of `POST .../resume`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ResumeRequest {
    /// Who says that it is from them; nothing proves it.
    pub claimed_by: Option<String>,
}

/// Body of `POST .../unload`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UnloadRequest {
    /// The generation that the person saw; another one stays.
    pub if_generation: u64,
    /// How long requests in flight may go on; a request that is not done then is begun again after the next load.
    /// Left out: a busy model is refused.
    pub drain_seconds: Option<u64>,
    /// How long it stays away.
    pub hold_seconds: Option<u64>,
}

/// Body of `POST .../load`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadRequest {
    /// The generation that the person saw; if it was loaded since, nothing is done.
    pub if_generation: u64,
}

/// Body of every answer that is no success.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorView {
    pub code: &'static str,
    /// For people: what is wrong, and the fix.
    pub message: String,
    /// In a YAML body: each mistake by itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ProblemView>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemView {
    /// From 1; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + seconds).unwrap()
    }

    fn why(reason: SkipReason, detail: &str) -> WhyView {
        WhyView { reason, detail: detail.to_owned() }
    }

    #[test]
    fn time_is_no_change() {
        assert_eq!(Passing(at(0)), Passing(at(9)));
        let since = Since(at(0));
        assert_eq!(since, Since(at(1)), "a scrape is not exact");
        assert_ne!(since, Since(at(2)), "a request has come and gone");
        assert_eq!(why(SkipReason::NotIdle, "1s of 5s"), why(SkipReason::NotIdle, "2s of 5s"));
        assert_ne!(why(SkipReason::Busy, "1 in flight"), why(SkipReason::Busy, "2 in flight"));
        assert_ne!(why(SkipReason::NotIdle, ""), why(SkipReason::Busy, ""));
    }
}
