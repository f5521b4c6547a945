//! From a snapshot to the views of it.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_core::{Chosen, Gpu, GpuPlan, Labels, Model, ModelPlan, Plan, Pressure, RuleSet, State};
use jiff::{SignedDuration, Timestamp};

use super::view::{GpuView, ModelView, Passing, PausedView, PolicyView, ServerView, Since, StateView, WhyView};
use crate::control_loop::LoopSnapshot as Snapshot;

impl StateView {
    pub fn new(snapshot: &Snapshot, acting: bool, actions: bool) -> Self {
        let selected = selected(&snapshot.plan);
        let nothing = Labels::new();
        let policies = snapshot.policies.iter().map(|policy| {
            let name = policy.name.to_string();
            let paused = snapshot.paused.get(&policy.name).cloned().map(PausedView::from);
            // Of those in dry run the plan's rules say nothing.
            let models = selected.get(name.as_str()).copied().unwrap_or_else(|| {
                let labels = |m: &Model| snapshot.world.namespaces.get(m.key.server.namespace()).unwrap_or(&nothing);
                snapshot.world.models.iter().filter(|m| policy.selects(m, labels(m))).count()
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

pub fn servers(snapshot: &Snapshot) -> Vec<ServerView> {
    let view = |(server, target): (&hush_core::ServerName, &crate::observe::ScrapeTarget)| {
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
        vram_bytes: if holds(model.state) { model.vram_bytes } else { 0 },
        need_bytes: Some(model.vram_bytes).filter(|bytes| !holds(model.state) && *bytes > 0),
        demand_bytes: (model.state == State::WaitingForMemory).then_some(model.demand_bytes),
        idle_since: idle_since.map(Since),
        held_until: held_until(snapshot, model, sampled_at).map(Since),
        loaded_since: loaded_since.map(Since),
        fresh: model.sample_age <= snapshot.world.stale_after,
        rules,
        idle_timeout_ms,
        leaves_at: leaves_at.map(Since),
        why,
    }
}

/// The end of a hold, as the model's server tells it.
fn held_until(snapshot: &Snapshot, model: &Model, sampled_at: Timestamp) -> Option<Timestamp> {
    let (_, sample) = snapshot.seen.get(&model.key.server)?.last.as_ref()?;
    let hold = sample.models.get(&model.key.model)?.hold;
    let until = after(sampled_at, u64::try_from(hold.as_millis()).unwrap_or(u64::MAX));
    (!hold.is_zero() && until > snapshot.at).then_some(until)
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
