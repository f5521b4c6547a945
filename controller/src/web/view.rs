//! The types of the JSON API, and how they are made of a snapshot. `docs/controller-page.md` has them in words.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_core::{
    Chosen, Decision, Gpu, GpuPlan, GpuReason, Labels, Model, ModelPlan, Plan, Pressure, RuleSet, SkipReason, State,
    Threshold,
};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::act::Record;
use crate::run::Snapshot;

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
    /// Held now; of an unloaded model what it needed last time, 0 when that is not known.
    pub vram_bytes: u64,
    /// What it waits for.
    pub demand_bytes: Option<u64>,
    /// While it is ready and not busy.
    pub idle_since: Option<Since>,
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

/// Body of `POST .../pause`; nothing at all means until it is resumed.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PauseRequest {
    /// A duration such as `30m`.
    pub duration: Option<String>,
}

/// Body of `POST .../unload`.
#[derive(Clone, Debug, serde::Deserialize)]
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
#[derive(Clone, Debug, serde::Deserialize)]
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

impl StateView {
    pub fn new(snapshot: &Snapshot, acting: bool, actions: bool) -> Self {
        let selected = selected(&snapshot.plan);
        let policies = snapshot.policies.iter().map(|policy| {
            let name = policy.name.to_string();
            let paused = snapshot.paused.get(&policy.name);
            let paused = paused.map(|paused| PausedView { since: paused.since, until: paused.until });
            // Of those in dry run the plan's rules say nothing.
            let models = selected.get(name.as_str()).copied().unwrap_or_else(|| {
                let labels = |model: &Model| snapshot.world.namespaces.get(model.key.server.namespace()).cloned();
                snapshot.world.models.iter().filter(|m| policy.selects(m, &labels(m).unwrap_or_default())).count()
            });
            PolicyView { name, dry_run: policy.dry_run, paused, models }
        });
        Self {
            at: Passing(snapshot.at),
            version: env!("CARGO_PKG_VERSION"),
            acting,
            actions,
            stale_after_seconds: snapshot.world.stale_after.as_secs(),
            gpus: gpus(snapshot, snapshot.at, &snapshot.plan),
            servers: servers(snapshot),
            models: models(snapshot, snapshot.at, &snapshot.plan),
            decisions: snapshot.plan.decisions.clone(),
            policies: policies.collect(),
            problems: snapshot.problems.clone(),
            records: snapshot.records.clone(),
        }
    }
}

/// How many models each policy of the plan's rules selects.
pub fn selected(plan: &Plan) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for rules in plan.models.iter().filter_map(|model| plan.rules.get(model.rules?)) {
        for policy in &rules.policies {
            *counts.entry(policy.as_str()).or_insert(0) += 1;
        }
    }
    counts
}

fn servers(snapshot: &Snapshot) -> Vec<ServerView> {
    let view = |(server, target): (&hush_core::ServerName, &crate::observe::Target)| {
        let seen = snapshot.seen.get(server);
        let failure = seen.and_then(|seen| seen.failure.clone());
        let state = match (seen, &failure) {
            (None, _) => "unknown",
            (Some(_), Some(_)) => "failing",
            (Some(_), None) => "answering",
        };
        ServerView {
            server: server.to_string(),
            node: target.node.clone(),
            labels: target.labels.clone(),
            state,
            failure,
        }
    };
    snapshot.targets.iter().map(view).collect()
}

/// The cards of the snapshot as `plan` sees them.
pub fn gpus(snapshot: &Snapshot, at: Timestamp, plan: &Plan) -> Vec<GpuView> {
    let mut ours: BTreeMap<&str, u64> = BTreeMap::new();
    for model in snapshot.world.models.iter().filter(|model| holds(model.state)) {
        if let Some(gpu) = &model.gpu {
            let sum = ours.entry(gpu.as_str()).or_insert(0);
            *sum = sum.saturating_add(model.vram_bytes);
        }
    }
    let plans: BTreeMap<&str, &GpuPlan> = plan.gpus.iter().map(|gpu| (gpu.uuid.as_str(), gpu)).collect();
    let view = |gpu: &Gpu| {
        let planned = plans.get(gpu.uuid.as_str());
        // Models may report more than the card's sample has seen yet.
        let ours_bytes = ours.get(gpu.uuid.as_str()).copied().unwrap_or(0).min(gpu.used_bytes);
        GpuView {
            uuid: gpu.uuid.to_string(),
            node: gpu.node.clone(),
            total_bytes: gpu.total_bytes,
            ours_bytes,
            others_bytes: gpu.used_bytes.saturating_sub(ours_bytes),
            free_bytes: gpu.available_bytes(),
            sampled_at: Passing(before(at, gpu.sample_age)),
            fresh: gpu.sample_age <= snapshot.world.stale_after,
            pressure: planned.map_or(Pressure::Unknown, |plan| plan.pressure),
            reason: planned.and_then(|plan| plan.reason),
            target_bytes: planned.and_then(|plan| plan.target),
            thresholds: planned.map(|plan| plan.thresholds.clone()).unwrap_or_default(),
        }
    };
    snapshot.world.gpus.iter().map(view).collect()
}

const fn holds(state: State) -> bool {
    matches!(state, State::Loading | State::Ready | State::Draining | State::Unloading)
}

/// The models of the snapshot as `plan` sees them.
pub fn models(snapshot: &Snapshot, at: Timestamp, plan: &Plan) -> Vec<ModelView> {
    let mut why: BTreeMap<(&str, &str), Vec<WhyView>> = BTreeMap::new();
    for skip in &plan.skips {
        let reasons = why.entry((skip.server.as_str(), &skip.model)).or_default();
        reasons.push(WhyView { reason: skip.reason, detail: skip.detail.clone() });
    }
    let known: BTreeMap<(&str, &str), &Model> =
        snapshot.world.models.iter().map(|m| ((m.key.server.as_str(), m.key.model.as_str()), m)).collect();
    let mut views = Vec::with_capacity(plan.models.len());
    for ModelPlan { server, model, rules, idle_timeout_ms } in &plan.models {
        let key = (server.as_str(), model.as_str());
        let Some(model) = known.get(&key) else { continue };
        let rules = rules.and_then(|rules| plan.rules.get(rules)).cloned();
        let why = why.remove(&key).unwrap_or_default();
        views.push(of_model(snapshot, at, model, rules, idle_timeout_ms.clone(), why));
    }
    views
}

fn of_model(
    snapshot: &Snapshot,
    at: Timestamp,
    model: &Model,
    rules: Option<RuleSet>,
    idle_timeout_ms: Option<Chosen<u64>>,
    why: Vec<WhyView>,
) -> ModelView {
    let sampled_at = before(at, model.sample_age);
    let idle_since = (model.ready() && !model.busy()).then(|| before(sampled_at, model.idle));
    let loaded_since = model.ready().then(|| before(sampled_at, model.loaded_for));
    let leaves_at = idle_since.zip(idle_timeout_ms.as_ref()).map(|(since, timeout)| {
        let idle = after(since, timeout.value);
        let young = loaded_since.zip(rules.as_ref()).map(|(loaded, rules)| after(loaded, rules.min_resident_ms));
        young.map_or(idle, |young| young.max(idle))
    });
    ModelView {
        server: model.key.server.to_string(),
        model: model.key.model.clone(),
        gpu: model.gpu.as_ref().map(ToString::to_string),
        state: model.state,
        generation: model.generation,
        inflight: model.inflight,
        queued: model.queued,
        vram_bytes: model.vram_bytes,
        demand_bytes: (model.state == State::WaitingForMemory).then_some(model.demand_bytes),
        idle_since: idle_since.map(Since),
        loaded_since: loaded_since.map(Since),
        fresh: model.sample_age <= snapshot.world.stale_after,
        rules,
        idle_timeout_ms,
        leaves_at: leaves_at.map(Since),
        why,
    }
}

fn before(at: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| at.checked_sub(span).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn after(at: Timestamp, ms: u64) -> Timestamp {
    let span = i64::try_from(ms).map(SignedDuration::from_millis).unwrap_or(SignedDuration::MAX);
    at.checked_add(span).unwrap_or(Timestamp::MAX)
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

    #[test]
    fn times_out_of_range_are_the_first_or_the_last() {
        assert_eq!(before(at(0), Duration::MAX), Timestamp::UNIX_EPOCH);
        assert_eq!(after(at(0), u64::MAX), Timestamp::MAX);
        assert_eq!(after(before(at(9), Duration::from_secs(4)), 5000), at(10));
    }

    #[test]
    fn before_the_first_step_there_is_nothing() {
        let view = serde_json::to_value(StateView::new(&Snapshot::nothing(), true, false)).unwrap();
        assert_eq!(view["at"], "1970-01-01T00:00:00Z");
        for part in ["gpus", "servers", "models", "decisions", "policies", "problems", "records"] {
            assert_eq!(view[part], serde_json::json!([]), "{part}");
        }
    }
}
