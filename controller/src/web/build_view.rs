//! Builds the views of a snapshot.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_core::{
    GpuPlan, Labels, ModelPlan, ObservedGpu, ObservedModel, Plan, PressureLevel, ResidencyState, RuleSet, ServerName,
    SourcedValue,
};
use jiff::{SignedDuration, Timestamp};

use super::view::{
    ChosenView, GpuView, ModelStateView, MovingTime, PausedView, PolicyView, RuleSetView, SampledTime, ServerView,
    SkipReasonView, StateView, ThresholdView, serialized_name,
};
use crate::control_loop::LoopSnapshot;
use crate::observe::ScrapeTarget;

impl StateView {
    pub fn new(snapshot: &LoopSnapshot, acting: bool, actions: bool) -> Self {
        Self {
            at: MovingTime(snapshot.at),
            version: env!("CARGO_PKG_VERSION"),
            acting,
            actions,
            stale_after_seconds: snapshot.world.stale_after.as_secs(),
            gpus: gpus(snapshot, snapshot.at, &snapshot.plan),
            servers: servers(snapshot),
            models: models(snapshot, snapshot.at, &snapshot.plan),
            decisions: snapshot.plan.decisions.clone(),
            policies: policies(snapshot),
            problems: snapshot.problems.clone(),
            records: snapshot.records.clone(),
        }
    }
}

fn policies(snapshot: &LoopSnapshot) -> Vec<PolicyView> {
    let counts = count_selected_models(&snapshot.plan);
    let no_labels = Labels::new();
    let models = &snapshot.world.models;
    let labels =
        |model: &ObservedModel| snapshot.world.namespaces.get(model.key.server.namespace()).unwrap_or(&no_labels);

    let view = |policy: &hush_core::ModelPolicy| {
        let name = policy.name.to_string();
        let paused = snapshot.paused.get(&policy.name).cloned().map(PausedView::from);
        // The plan's rules do not name policies in dry run.
        let models = counts
            .get(name.as_str())
            .copied()
            .unwrap_or_else(|| models.iter().filter(|model| policy.selects(model, labels(model))).count());

        PolicyView { name, dry_run: policy.dry_run, paused, models }
    };
    snapshot.policies.iter().map(view).collect()
}

/// How many models each policy of the plan's rules selects.
pub fn count_selected_models(plan: &Plan) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();

    for rules in plan.models.iter().filter_map(|model| plan.rules.get(model.rules?)) {
        for policy in &rules.policies {
            *counts.entry(policy.as_str()).or_insert(0) += 1;
        }
    }
    counts
}

pub fn servers(snapshot: &LoopSnapshot) -> Vec<ServerView> {
    let view = |(server, target): (&ServerName, &ScrapeTarget)| {
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
            state: state.to_owned(),
            failure,
        }
    };
    snapshot.targets.iter().map(view).collect()
}

/// The GPUs of the snapshot with the pressure that `plan` states.
pub fn gpus(snapshot: &LoopSnapshot, at: Timestamp, plan: &Plan) -> Vec<GpuView> {
    let ours = bytes_held_by_models(snapshot);
    let plans: BTreeMap<&str, &GpuPlan> = plan.gpus.iter().map(|gpu| (gpu.uuid.as_str(), gpu)).collect();

    let view = |gpu: &ObservedGpu| {
        let planned = plans.get(gpu.uuid.as_str());
        // Models may report more than the GPU's sample shows yet.
        let ours_bytes = ours.get(gpu.uuid.as_str()).copied().unwrap_or(0).min(gpu.used_bytes);

        GpuView {
            uuid: gpu.uuid.to_string(),
            node: gpu.node.clone(),
            total_bytes: gpu.total_bytes,
            ours_bytes,
            others_bytes: gpu.used_bytes.saturating_sub(ours_bytes),
            free_bytes: gpu.available_bytes(),
            sampled_at: MovingTime(subtract(at, gpu.sample_age)),
            fresh: gpu.sample_age <= snapshot.world.stale_after,
            pressure: planned.map_or(PressureLevel::Unknown, |plan| plan.pressure).to_string(),
            reason: planned.and_then(|plan| plan.reason).map(|reason| reason.to_string()),
            target_bytes: planned.and_then(|plan| plan.target),
            thresholds: planned.map_or_else(Vec::new, |plan| plan.thresholds.iter().map(ThresholdView::from).collect()),
        }
    };
    snapshot.world.gpus.iter().map(view).collect()
}

fn bytes_held_by_models(snapshot: &LoopSnapshot) -> BTreeMap<&str, u64> {
    let mut held: BTreeMap<&str, u64> = BTreeMap::new();

    for model in snapshot.world.models.iter().filter(|model| model.sample.state.holds_memory()) {
        if let Some(gpu) = &model.sample.gpu {
            let sum = held.entry(gpu.as_str()).or_insert(0);
            *sum = sum.saturating_add(model.sample.vram_bytes);
        }
    }
    held
}

/// The models of the snapshot with the rules and skip reasons of `plan`.
pub fn models(snapshot: &LoopSnapshot, at: Timestamp, plan: &Plan) -> Vec<ModelStateView> {
    let mut skips: BTreeMap<(&str, &str), Vec<SkipReasonView>> = BTreeMap::new();
    for skip in &plan.skips {
        let reasons = skips.entry((skip.server.as_str(), &skip.model)).or_default();
        reasons.push(SkipReasonView { reason: skip.reason.to_string(), detail: skip.detail.clone() });
    }

    let known: BTreeMap<(&str, &str), &ObservedModel> =
        snapshot.world.models.iter().map(|m| ((m.key.server.as_str(), m.key.model.as_str()), m)).collect();

    let mut views = Vec::with_capacity(plan.models.len());
    for ModelPlan { server, model, rules, idle_timeout_ms, process_stays } in &plan.models {
        let key = (server.as_str(), model.as_str());
        let Some(model) = known.get(&key) else { continue };

        let rules = rules.and_then(|rules| plan.rules.get(rules));
        let why = skips.remove(&key).unwrap_or_default();
        let view = model_view(snapshot, at, model, rules, idle_timeout_ms.clone(), why);
        views.push(ModelStateView { process_stays: *process_stays, ..view });
    }
    views
}

fn model_view(
    snapshot: &LoopSnapshot,
    at: Timestamp,
    model: &ObservedModel,
    rules: Option<&RuleSet>,
    idle_timeout_ms: Option<SourcedValue<u64>>,
    why: Vec<SkipReasonView>,
) -> ModelStateView {
    let sampled_at = subtract(at, model.sample_age);
    let idle_since = (model.is_ready() && !model.is_busy()).then(|| subtract(sampled_at, model.sample.idle));
    let loaded_since = model.is_ready().then(|| subtract(sampled_at, model.sample.loaded_for));

    let leaves_at = idle_since.zip(idle_timeout_ms.as_ref()).map(|(since, timeout)| {
        let idle_end = add_millis(since, timeout.value);
        let min_resident_end = loaded_since.zip(rules).map(|(loaded, rules)| add_millis(loaded, rules.min_resident_ms));
        min_resident_end.map_or(idle_end, |end| end.max(idle_end))
    });

    ModelStateView {
        server: model.key.server.to_string(),
        model: model.key.model.clone(),
        app: model.app.clone(),
        gpu: model.sample.gpu.as_ref().map(ToString::to_string),
        state: serialized_name(&model.sample.state),
        generation: model.sample.generation,
        inflight: model.sample.inflight,
        queued: model.sample.queued,
        vram_bytes: if model.sample.state.holds_memory() { model.sample.vram_bytes } else { 0 },
        need_bytes: Some(model.sample.vram_bytes).filter(|bytes| !model.sample.state.holds_memory() && *bytes > 0),
        demand_bytes: (model.sample.state == ResidencyState::WaitingForMemory).then_some(model.sample.demand_bytes),
        idle_since: idle_since.map(SampledTime),
        held_until: held_until(snapshot, model, sampled_at).map(SampledTime),
        loaded_since: loaded_since.map(SampledTime),
        fresh: model.sample_age <= snapshot.world.stale_after,
        rules: rules.map(RuleSetView::from),
        idle_timeout_ms: idle_timeout_ms.map(ChosenView::from),
        process_stays: false,
        leaves_at: leaves_at.map(SampledTime),
        why,
    }
}

/// The end of a hold, as the model's server reports it.
fn held_until(snapshot: &LoopSnapshot, model: &ObservedModel, sampled_at: Timestamp) -> Option<Timestamp> {
    let hold = model.sample.hold;
    let until = add_millis(sampled_at, u64::try_from(hold.as_millis()).unwrap_or(u64::MAX));

    (!hold.is_zero() && until > snapshot.at).then_some(until)
}

/// Saturates at the Unix epoch.
fn subtract(at: Timestamp, duration: Duration) -> Timestamp {
    let duration = SignedDuration::try_from(duration).ok();
    duration.and_then(|duration| at.checked_sub(duration).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Saturates at the last timestamp.
fn add_millis(at: Timestamp, ms: u64) -> Timestamp {
    let duration = i64::try_from(ms).map(SignedDuration::from_millis).unwrap_or(SignedDuration::MAX);
    at.checked_add(duration).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + seconds).unwrap()
    }

    #[test]
    fn times_out_of_range_are_the_first_or_the_last() {
        assert_eq!(subtract(at(0), Duration::MAX), Timestamp::UNIX_EPOCH);
        assert_eq!(add_millis(at(0), u64::MAX), Timestamp::MAX);
        assert_eq!(add_millis(subtract(at(9), Duration::from_secs(4)), 5000), at(10));
    }

    #[test]
    fn before_the_first_step_there_is_nothing() {
        let view = serde_json::to_value(StateView::new(&LoopSnapshot::empty(), true, false)).unwrap();

        assert_eq!(view["at"], "1970-01-01T00:00:00Z");
        for part in ["gpus", "servers", "models", "decisions", "policies", "problems", "records"] {
            assert_eq!(view[part], serde_json::json!([]), "{part}");
        }
    }
}
